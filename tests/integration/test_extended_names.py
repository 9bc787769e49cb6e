"""Deadlines that were lifted are set back by their names, however many keys there are."""

from __future__ import annotations

import asyncio

import pytest

from benches.support.servers import Server
from benches.support.waiting import SECONDS
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.model.verification import AtFence
from engine.transfer import keys_with_extended_ttls
from engine.transfer.cut_over_check import Settle
from engine.verify import LiveComparison
from tests.support.library import migrating
from tests.support.own_keys import OWN_PREFIX, YEAR_MS
from tests.support.servers import ServerFactory, known

KEYS = 20_000
TIMED = 100


@pytest.fixture
def ends(server_factory: ServerFactory) -> tuple[Server, Server]:
    """A target without import mode."""
    source, target = (server_factory(known("redis-7.0")) for _ in range(2))
    pipe = source.client(1).pipeline(transaction=False)
    pipe.mset({f"key:{n}": n for n in range(KEYS)})
    for n in range(TIMED):
        pipe.set(f"timed:{n}", n, ex=600)
    pipe.execute()
    return source, target


def renew(source: Server) -> None:
    """Every way in which a lifted deadline comes to a key: by its own command, from another key,
    to another database."""
    client = source.client(1)
    client.set("set", "1", ex=900)
    client.restore("restored", 900_000, client.dump("key:1"))
    client.expire("key:2", 900)
    client.rename("timed:1", "renamed")
    client.renamenx("timed:2", "renamed, too")
    client.copy("timed:3", "copied")
    client.copy("timed:4", "copied", destination_db=2)
    client.move("timed:5", 2)
    client.persist("timed:6")
    client.delete("timed:7")
    client.eval("redis.call('RENAME', KEYS[1], KEYS[2])", 2, "timed:8", "renamed by a script")
    with client.pipeline(transaction=True) as pipe:
        pipe.rename("timed:9", "between").rename("between", "renamed twice").execute()


def scans(server: Server) -> int:
    """How many pages of keys the server was asked for."""
    return int(server.client().info("commandstats").get("cmdstat_scan", {"calls": 0})["calls"])


def expire_times(server: Server, db: int) -> dict[bytes, int]:
    """Of the keys that have one."""
    client = server.client(db)
    keys = list(client.scan_iter(count=5000))
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.pexpiretime(key)
    return {key: at for key, at in zip(keys, pipe.execute(), strict=True) if at >= 0}


def assert_set_back(source: Server, target: Server) -> None:
    for db in (1, 2):
        assert expire_times(source, db)
        assert expire_times(target, db) == expire_times(source, db)
    for key in target.client().scan_iter():
        assert not key.startswith(OWN_PREFIX)


class Late(LiveComparison):
    """A comparison that the fence's deadline passes, while `late`."""

    late = True

    async def at_fence(self, settle: Settle) -> AtFence:
        if self.late:
            await asyncio.sleep(SECONDS)
        return await super().at_fence(settle)


def test_the_target_is_not_walked_through(ends: tuple[Server, Server]) -> None:
    """Not one page of its keys is asked for: what it costs depends on what was lifted alone. It is
    the same at the second try, for which they were lifted again."""
    source, target = ends
    before: list[int] = []

    urls = (Endpoint.parse(each.url) for each in (source, target))
    comparison = Late(*urls, TransferSettings(), lambda: False)
    with migrating(source, target, cut_over_timeout=1.0, comparison=comparison) as run:
        run.following()
        renew(source)
        run.in_sync()
        for key in ("timed:0", "set", "renamed twice"):
            assert target.client(1).pttl(key) > 50 * YEAR_MS
        assert "the deadline of 1 s passed" in run.refused()
        comparison.late = False
        run.in_sync()
        source.client(1).set("later", "1", ex=600)
        run.in_sync()
        before.append(scans(target))
        run.complete(skip_verification=True)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert scans(target) == before[0]
    assert_set_back(source, target)


@pytest.mark.parametrize("why", ["too many", "swapped"])
def test_names_that_are_not_known(
    ends: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Then every key is looked at."""
    source, target = ends
    before: list[int] = []
    if why == "too many":
        names = keys_with_extended_ttls.ExtendedNames
        monkeypatch.setattr(
            keys_with_extended_ttls, "ExtendedNames", lambda: names(names_most=TIMED // 2)
        )

    with migrating(source, target) as run:
        run.following()
        renew(source)
        if why == "swapped":
            source.client().swapdb(1, 2)
            source.client(1).set("later", "1", ex=600)
        run.in_sync()
        before.append(scans(target))
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert scans(target) - before[0] >= KEYS // 1000
    assert_set_back(source, target)
