"""Run one migration as a replica in the test's own process, and steer it from beside it.

    async def steer(work: Transfer, run: Run) -> None:
        await following(work)
        ...
        await cut_over(work)

    run = online(source, target, steer)

What blocks (a client that waits, a writer that is stopped) goes through `asyncio.to_thread`: the
engine shares the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import soon
from engine.fleet.verification_gate import comparison_of
from engine.model.endpoint import Endpoint
from engine.model.progress import ENDS, Phase
from engine.model.settings import TransferSettings
from engine.transfer.transfer import Transfer
from tests.support.comparison import OWN_PREFIX
from tests.support.servers import offset_of, url_of
from tests.support.transfers import Run, transfer

Steer = Callable[[Transfer, Run], Awaitable[None]]
YEAR_MS = 365 * 86_400_000
# A busy machine is not a failure: what is awaited comes, or it does not come at all.
SECONDS = 60.0


def online(
    source: Server | Proxy | str,
    target: Server | Proxy | str,
    steer: Steer | None = None,
    *,
    one_go: bool = False,
    **options: Any,
) -> Run:
    """One migration with the gate that the product has; `options` as `transfer` takes them."""
    ends = Endpoint.parse(url_of(source)), Endpoint.parse(url_of(target))
    options = {"source_type": "replica", "timeout": 120.0, **options}
    if "gate_in_sync" not in options:
        options.setdefault("comparison", comparison_of(*ends, TransferSettings(), lambda: False))
    return transfer(source, target, meanwhile=steer, one_go=one_go, **options)


async def phase(work: Transfer, wanted: Phase, seconds: float = SECONDS) -> None:
    """Wait until the migration is in this phase."""
    await soon(
        lambda: work.progress.phase is wanted or work.progress.phase in ENDS,
        f"the phase {wanted}",
        seconds,
        told=lambda: work.progress,
    )
    assert work.progress.phase is wanted, work.progress


async def following(work: Transfer) -> None:
    """Wait until the snapshot is over and what was written meanwhile is applied."""
    await phase(work, Phase.FOLLOW)


async def in_sync(work: Transfer, source: Server) -> None:
    """Wait until everything that is written by now is on the target, and the gate is open."""
    offset = await asyncio.to_thread(offset_of, source)
    await soon(
        lambda: work.progress.can_complete and (work.progress.applied_offset or 0) >= offset,
        "in sync",
    )


async def cut_over(work: Transfer, run: Run, source: Server) -> None:
    """Once in sync, give the word, and wait for the end. A refusal raises `AssertionError`.

    Redis 6.0 is paused for half a second at first, which a slow machine may need for other things:
    there a deadline that passed is tried again, as an operator would.
    """
    tries = 1 if source.binary.version >= (6, 2, 0) else 5
    while True:
        await in_sync(work, source)
        before = len(refusals(run))
        work.complete()
        await soon(lambda: work.progress.phase in ENDS or len(refusals(run)) > before, "an end")  # noqa: B023
        tries -= 1
        if not tries or work.progress.phase in ENDS or "the deadline of" not in refusals(run)[-1]:
            break
    assert work.progress.phase is Phase.DONE, (work.progress, run.events)


async def refused(work: Transfer, run: Run, *, skip_verification: bool = False) -> str:
    """Give the word; the reason of the refusal that follows."""
    before = len(refusals(run))
    work.complete(skip_verification=skip_verification)
    await soon(lambda: len(refusals(run)) > before, "a refusal")
    return refusals(run)[-1]


def refusals(run: Run) -> list[str]:
    """The reasons of the cut-overs that were refused so far."""
    return [event for event in run.events if event.startswith("cut-over refused: ")]


def assert_tidy(target: Server, *, left: bool = False) -> None:
    """Nothing of the engine is left: no key of its own, no lifted deadline, no import mode.

    `left`: but for the mark of a migration that ended without a cut-over, and left keys.
    """
    marks = {b"startmigration:left"} if left else set()
    for db in range(target.databases):
        client = target.client(db)
        for key in client.scan_iter(count=1000):
            assert key in marks or not key.startswith(OWN_PREFIX), key
            assert client.pttl(key) < 50 * YEAR_MS, (db, key)
    assert target.client().exists("startmigration:left") == left
    assert importing(target) in (None, "no")


def importing(server: Server) -> str | None:
    """Whether the server is in import mode ("yes", "no"); None where it knows none."""
    found = server.client().config_get("import-mode")
    return found.get("import-mode")
