"""`verify` between servers at rest, whose counts tell that the target has no key that the source
has not: its own names are not asked for then. Where that law does not hold, whatever the counts,
they are, and what the target has more is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine import Engine
from engine.model.endpoint import Endpoint
from engine.model.proof import Mode, ProofProgress, ProofReport, ProofSettings
from engine.proof import second_looks
from tests.integration.test_verify_strings import asked
from tests.support.servers import End, ServerFactory, known, url_of

KEYS = 6_000
# By then the keys of the first page are compared.
LATE = 4_000
VALUES = {f"key:{n}": n for n in range(KEYS)}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow each other soon."""
    monkeypatch.setattr(second_looks, "PAUSES", (0.0, 0.02, 0.02, 0.02, 0.02, 0.02))


@pytest.fixture
def pair(server_factory: ServerFactory) -> tuple[Server, Server]:
    """Both have the same keys, and their last save is over."""
    return filled(server_factory, "redis-7.0")


def filled(server_factory: ServerFactory, name: str) -> tuple[Server, Server]:
    pair = server_factory(known(name)), server_factory(known(name))
    for each in pair:
        client = each.client()
        client.mset(VALUES)

        def over(client: redis.Redis = client) -> bool:
            told = client.info()
            return int(told["server_time_usec"]) // 1_000_000 > int(told["rdb_last_save_time"])

        wait_for(over, "a second behind the last save")
    return pair


def verify(
    source: End, target: End, late: Callable[[], object] | None = None, mode: Mode = "full"
) -> tuple[ProofReport, ProofProgress]:
    """With `late` done once most keys are compared; the report, and how far it was last."""
    left = [late] if late is not None else []
    seen: list[ProofProgress] = []

    def told(progress: ProofProgress) -> None:
        seen.append(progress)
        if left and progress.keys >= 2 * LATE:
            left.pop()()

    ends = (Endpoint.parse(url_of(each)) for each in (source, target))
    found = Engine().sync.verify(*ends, settings=ProofSettings(mode=mode), on_progress=told)
    assert not left
    return found, seen[-1]


def named(server: Server) -> bool:
    """Whether more than the engine's own keys was looked for there, page by page, since CONFIG
    RESETSTAT."""
    return asked(server.client(), "scan") > 1


@pytest.mark.parametrize("mode", ["count", "ttl", "full"])
def test_servers_at_rest(pair: tuple[Server, Server], mode: Mode) -> None:
    here, there = pair
    found, last = verify(here, there, mode=mode)
    assert (found.outcome, found.compared, named(there)) == ("equal", KEYS, False)
    assert (last.keys, last.total) == (2 * KEYS, 2 * KEYS)
    # As many keys, and others.
    there.client().rename("key:1", "extra")
    found, _ = verify(here, there, mode=mode)
    assert {each.key: each.kinds for each in found.differences} == {
        "key:1": ("missing",), "extra": ("extra",)
    }  # fmt: skip
    assert named(there)


@pytest.mark.parametrize(
    ("name", "writes"),
    [
        ("redis-8.0", ("VADD", "extra", "VALUES", 2, 1, 2, "element")),
        ("valkey-9.1", ("EVAL", "redis.call('SET', KEYS[1], 1)", 1, "extra")),
    ],
)
def test_modules_that_a_server_comes_with(
    server_factory: ServerFactory, name: str, writes: tuple[str | int, ...]
) -> None:
    """Their writes count."""
    here, there = filled(server_factory, name)
    client = there.client()
    assert client.info()["modules"]
    found, _ = verify(here, there)
    assert (found.outcome, found.compared, named(there)) == ("equal", KEYS, False)
    changes = "rdb_changes_since_last_save"
    before = client.info()[changes]
    client.execute_command(*writes)
    assert client.info()[changes] > before
    found, _ = verify(here, there)
    assert [each.key for each in found.differences] == ["extra"]


@pytest.mark.parametrize("act", ["write", "save", "restart", "source"])
def test_what_happens_meanwhile(pair: tuple[Server, Server], act: str) -> None:
    """There are as many keys behind it as before."""
    here, there = pair
    # It is on the first page, and so compared by then.
    before = here.client().scan(0, count=1000)[1][0].decode()

    def acts() -> None:
        if act == "source":
            here.client().rename(before, "extra")
            there.client().copy(before, "extra")
            there.client().delete("key:0" if before != "key:0" else "key:1")
            return
        if act == "restart":
            there.restart()
            there.client().mset(VALUES)
        there.client().rename(before, "extra")
        if act == "save":
            there.client().save()
            there.client().config_resetstat()

    found, _ = verify(here, there, acts)
    extra = before if act == "source" else "extra"
    assert extra in [each.key for each in found.differences if each.kinds == ("extra",)]


@pytest.mark.parametrize("why", ["timed", "untold", "replica", "saved"])
def test_where_counts_do_not_tell(pair: tuple[Server, Server], why: str) -> None:
    here, there = pair
    if why == "timed":
        for each in pair:
            each.client().pexpireat("key:0", 4_000_000_000_000)
    elif why == "replica":
        there.client().replicaof(here.host, here.port)
        wait_for(lambda: there.client().info()["master_link_status"] == "up", "a replica")
    there.client().config_resetstat()
    with Proxy(there.host, there.port) as line:
        if why == "untold":
            line.veil(b"rdb_changes_since_last_save:")
        elif why == "saved":
            # Within the second of the last save another one may follow.
            line.veil(b"server_time_usec:")
        found, _ = verify(here, line)
    assert (found.outcome, found.compared) == ("equal", KEYS)
    assert named(there)


def test_a_key_that_has_expired_and_is_still_there(pair: tuple[Server, Server]) -> None:
    """It counts, and SCAN does not name it: as many keys are other ones."""
    here, there = pair
    client = here.client()
    # In one go: nothing expires while writes are paused.
    pipe = client.pipeline(transaction=False)
    pipe.set("gone", 1, px=200).execute_command("CLIENT", "PAUSE", 600_000, "WRITE").execute()
    wait_for(lambda: not client.exists("gone"), "its end")
    assert client.dbsize() == KEYS + 1
    there.client().set("extra", 1)
    found, _ = verify(here, there)
    client.client_unpause()
    assert [(each.key, each.kinds) for each in found.differences] == [("extra", ("extra",))]
