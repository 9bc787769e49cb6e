"""Run one transfer in the test's own process, without the front."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.endpoint import Endpoint
from engine.model.progress import Progress
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.transfer.checkpoint_store import CheckpointStore, MemoryCheckpoint
from engine.transfer.cut_over_check import (
    Comparison,
    CutOverCheckInSync,
    CutOverCheckResult,
    FilesCutOverCheck,
)
from engine.transfer.transfer import Transfer
from engine.wire.event_loop import run
from tests.support.servers import url_of


@dataclass
class Run:
    """What a transfer said while it ran."""

    report: Report = field(default_factory=lambda: Report("failed"))
    events: list[str] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for something that a running transfer tells only when asked."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.002)


def transfer(
    source: Server | Proxy | str,
    target: Server | Proxy | str,
    *,
    checkpoints: CheckpointStore | None = None,
    gate: Callable[[], Any] | None = None,
    meanwhile: Callable[[Transfer, Run], Any] | None = None,
    timeout: float = 120.0,
    compare: Callable[..., Any] | None = None,
    one_go: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    gate_in_sync: CutOverCheckInSync | None = None,
    comparison: Comparison | None = None,
    gate_of_files: FilesCutOverCheck | None = None,
    **settings: Any,
) -> Run:
    """Move everything from `source` to `target`; `meanwhile` is awaited beside the transfer.

    `timeout` in seconds: a transfer that hangs fails the test. What `meanwhile` raises ends the
    transfer, and is raised.
    """
    settings = {"retry_for": 10.0, "source_type": "scan", **settings}
    result = Run()

    def told(progress: Progress) -> None:
        result.progress.append(progress)
        if on_progress is not None:
            on_progress(progress)

    async def pass_all() -> CutOverCheckResult:
        return CutOverCheckResult(True, "not verified")

    async def main() -> None:
        extra = {} if compare is None else {"compare": compare}
        work = Transfer(
            Endpoint.parse(url_of(source)),
            Endpoint.parse(url_of(target)),
            TransferSettings(**settings),
            checkpoints=checkpoints or MemoryCheckpoint(),
            on_progress=told,
            on_event=result.events.append,
            gate=gate or pass_all,
            one_go=one_go,
            gate_in_sync=gate_in_sync,
            comparison=comparison,
            gate_of_files=gate_of_files,
            **extra,
        )

        async def accompany() -> None:
            assert meanwhile is not None
            try:
                await meanwhile(work, result)
            except BaseException:
                work.stop()
                raise

        beside = asyncio.ensure_future(accompany()) if meanwhile else None
        async with asyncio.timeout(timeout):
            result.report = await work.run()
        if beside is not None:
            beside.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beside

    run(main())
    return result
