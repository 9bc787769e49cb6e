"""`--verify full`, on real servers: every key is compared while writes go on, and again what
changes; what was changed on the target behind the engine's back is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.model.verification import Compared
from engine.verify import LiveComparison
from tests.support.library import Run, migrating
from tests.support.own_keys import assert_tidy
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory, known
from tests.support.writers import Clicks, writing

KEYS = 3_000


class Sabotaged(LiveComparison):
    """Has something happen before every key is gone through, and before the look behind the fence:
    once each."""

    def __init__(
        self, source: Server, target: Server, acts: dict[str, Callable[[], object]]
    ) -> None:
        ends = (Endpoint.parse(each.url) for each in (source, target))
        super().__init__(*ends, TransferSettings(), lambda: False)
        self._acts = acts

    def apart(self) -> LiveComparison:
        return self

    async def _act(self, when: str) -> None:
        act = self._acts.pop(when, None)
        if act is not None:
            await asyncio.to_thread(act)

    async def every_key(self) -> AsyncGenerator[tuple[int, list[bytes]], None]:
        await self._act("walk")
        async for page in super().every_key():
            yield page

    async def at_rest(self, db: int, keys: Sequence[bytes]) -> Compared:
        await self._act("fence")
        return await super().at_rest(db, keys)


class Apart(LiveComparison):
    """One whose full proof is done by another."""

    def __init__(self, source: Server, target: Server, proof: LiveComparison) -> None:
        ends = (Endpoint.parse(each.url) for each in (source, target))
        super().__init__(*ends, TransferSettings(), lambda: False)
        self._proof = proof

    def apart(self) -> LiveComparison:
        return self._proof


def filled(factory: ServerFactory, name: str, other: str = "") -> tuple[Server, Server]:
    source, target = factory(known(name)), factory(known(other or name))
    pipe = source.client().pipeline(transaction=False)
    for n in range(KEYS):
        pipe.hset(f"hash:{n}", mapping={"f": n, "g": "x"})
    pipe.execute()
    return source, target


def proving(source: Any, target: Server, **options: Any) -> Run:
    return migrating(source, target, verify="full", **options)


def assert_every_key(run: Run, target: Server) -> None:
    assert run.report.status == "done", (run.report.errors, run.events)
    found = run.report.verification
    keys = int(target.client().dbsize())
    assert found is not None
    assert found.full
    assert found.compared == keys
    assert f"{keys:,} of {keys:,} keys compared, none differs" in found.reason
    assert_tidy(target)


@pytest.mark.parametrize("ends", [("redis-7.0", "valkey-9"), ("redis-6.2", "redis-6.2")])
def test_every_key_is_compared_while_writes_go_on(
    ends: tuple[str, str], server_factory: ServerFactory
) -> None:
    source, target = filled(server_factory, *ends)
    with (
        Clicks(source) as clicks,
        writing(
            lambda client, n: client.hset(f"hash:{n % (2 * KEYS)}", f"new:{n}", n),
            server=source,
            until_refused=True,
        ),
        proving(source, target) as run,
    ):
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        assert run.progress.keys_to_prove is not None
        assert run.progress.keys_to_prove >= KEYS
        run.cut_over()
    assert_every_key(run, target)
    assert run.report.verification is not None
    assert run.report.verification.repaired == 0
    assert int(target.client().get("clicks")) == clicks.acknowledged


def test_one_field_of_one_key_is_found(server_factory: ServerFactory) -> None:
    """Changed on the target, before its comparison; behind it, and then named by the stream; and
    behind the fence."""
    source, target = filled(server_factory, "redis-7.0")

    def change(key: str) -> Callable[[], object]:
        return lambda: target.client().hset(key, "f", "changed")

    def name_at_fence() -> None:
        target.client().hset("hash:3", "f", "changed")

    proof = Sabotaged(source, target, {"walk": change("hash:1"), "fence": name_at_fence})
    with proving(source, target, comparison=Apart(source, target, proof)) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        assert target.client().hget("hash:1", "f") == b"1"
        change("hash:2")()
        source.client().hset("hash:2", "g", "y")
        run.wait_for(lambda: target.client().hget("hash:2", "f") == b"2", "it was read again")
        run.wait_for(lambda: run.progress.can_complete, "it was compared again")
        with writing(
            lambda client, n: client.hset("hash:3", "g", n), server=source, until_refused=True
        ):
            run.cut_over()
    assert_every_key(run, target)
    assert run.report.verification is not None
    assert run.report.verification.repaired == 3
    assert target.client().hgetall("hash:3")[b"f"] == b"3"
    for n in (1, 2):
        told = f"differed from the source, and were read again: database 0, key hash:{n}: value"
        assert any(told in each for each in run.events), run.events


def test_a_link_that_is_lost_and_a_flush(server_factory: ServerFactory) -> None:
    """What was proven is so behind a link that is made anew; FLUSHALL leaves nothing proven, which
    is said."""
    source, target = filled(server_factory, "valkey-9")
    with Proxy(source.host, source.port) as proxy:
        through = source.url.replace(str(source.port), str(proxy.port))
        with proving(through, target) as run:
            run.following()
            run.wait_for(lambda: run.progress.can_complete, "every key was compared")
            proxy.cut_now()
            source.client().hset("hash:1", "g", "y")
            run.wait_for(lambda: run.progress.partial_syncs, "it was connected again")
            run.wait_for(lambda: run.progress.can_complete, "what changed was compared")
            assert not any("from the beginning" in each for each in run.events)
            source.client().flushall()
            source.client().set("left", "1")
            run.wait_for(
                lambda: any("any key: every key is compared" in each for each in run.events),
                "it begins anew",
            )
            run.wait_for(lambda: run.progress.can_complete, "every key was compared")
            run.cut_over()
    assert_every_key(run, target)


def test_lanes_in_several_processes(scenario: NewScenario) -> None:
    """Each lane proves its own slots; the report has the sum."""
    s = scenario("valkey-8.1", "valkey-8.1", source_shards=2, target_shards=2)
    s.load(keys=1000)
    with s.running(lanes_per_worker=1, verify="full", timeout=120.0) as run:
        run.following()
        run.wait_for(lambda: run.progress.can_complete, "every key was compared")
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    found = run.report.verification
    assert found is not None
    assert found.full
    assert found.compared == found.keys_source > 0
    assert f"{found.compared:,} of {found.compared:,} keys compared, none differs" in found.reason
