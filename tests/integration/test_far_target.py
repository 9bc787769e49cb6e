"""A target that is far: several transactions of the stream are under way at once.

What one of them does not bring there, though those behind it are applied, is read from the source
again, with all that was derived of it meanwhile. Each test holds the link long enough for a handful
of transactions to be under way, has one of them fail in its way, and compares both ends.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import soon, wait_for
from engine._native import Sent
from engine.errors import LinkError
from engine.model.endpoint import Endpoint
from engine.model.progress import ENDS
from engine.model.settings import TransferSettings
from engine.targets.applier import Applier
from engine.transfer.transfer import Transfer
from engine.wire.event_loop import run
from tests.support.comparison import assert_settled
from tests.support.library import Run, copying, migrating
from tests.support.own_keys import assert_tidy
from tests.support.raw_replica import POSITION_KEY, batch_of
from tests.support.servers import ServerFactory, known

# One way. A portion of the stream is read after some milliseconds: dozens go within a round trip.
DELAY = 0.1
_PAUSE = 0.012

Write = Callable[[redis.Redis], Any]


@pytest.fixture
def ends(server_factory: ServerFactory) -> Iterator[tuple[Server, Server, Proxy]]:
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    with Proxy(target.host, target.port) as far:
        yield source, target, far


def under_way(work: Transfer) -> int:
    """How many transactions are under way just now."""
    follower = work._way.lanes[0]._follower  # type: ignore[union-attr]
    return follower.applier._pump.under_way if follower is not None else 0


def quick(work: Transfer) -> bool:
    """Whether the next batch goes at once."""
    follower = work._way.lanes[0]._follower  # type: ignore[union-attr]
    return follower is not None and follower._left is not None and follower.applier.several


def leaving(work: Transfer) -> bool:
    """Whether something wants a look before more is sent: a walk of the guard of TTLs, say."""
    follower = work._way.lanes[0]._follower  # type: ignore[union-attr]
    return follower is None or follower._left is None or follower._leaving is not None


def stall_line(run: Run, far: Proxy) -> None:
    """Let nothing through any more, as soon as nothing is under way."""
    run.wait_for(lambda: quick(run.work) and not under_way(run.work), "nothing is under way")
    far.stall()


def write_while_stalled(run: Run, source: Server, far: Proxy, *writes: Write) -> None:
    """Run `writes` on the source, each in a transaction of its own; the line lets none of them
    through until it is told to, unless something wants a look meanwhile."""
    stall_line(run, far)
    client, n = source.client(), 0
    for write in writes:
        write(client)
        n += 1
        run.wait_for(lambda n=n: under_way(run.work) >= n or leaving(run.work), "it is sent")  # type: ignore[misc]
        if under_way(run.work) < n:
            far.stall(False)
            stall_line(run, far)
            n = 0


def sent(run: Run, source: Server, *writes: Write) -> int:
    """Run `writes` on the source one after the other, each in a portion of its own; how many
    transactions were under way at the most."""
    run.wait_for(lambda: quick(run.work) and not under_way(run.work), "nothing is under way")
    client, most = source.client(), 0
    for write in writes:
        write(client)
        time.sleep(_PAUSE)
        most = max(most, under_way(run.work))
    return most


def far_away(run: Run, far: Proxy, source: Server) -> None:
    """Follow, with the target far away from then on: the link is made anew to find out."""
    run.following()
    applier = run.work._way.lanes[0]._follower.applier  # type: ignore[union-attr]
    before = applier.reconnects
    far.delay(DELAY)
    far.cut_now()
    source.client().set("far", 1)
    # A busy machine may have taken it for far before.
    run.wait_for(
        lambda: applier.reconnects > before and quick(run.work), "the target is known to be far"
    )
    run.following()


def moved(
    ends: tuple[Server, Server, Proxy],
    steer: Callable[[Run, Server, Server, Proxy], None],
) -> Run:
    """A migration that `steer` does something to while the target is far; compared at its end."""
    source, target, far = ends

    with migrating(source, far, retry_for=60.0) as run:
        far_away(run, far, source)
        steer(run, source, target, far)
        far.delay(0.0)
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert_tidy(target)
    assert_settled(source, target, 5)
    return run


def test_several_are_under_way(ends: tuple[Server, Server, Proxy]) -> None:
    def steer(run: Run, source: Server, target: Server, far: Proxy) -> None:
        incr: Write = lambda client: client.incr("count")  # noqa: E731
        write_while_stalled(run, source, far, *[incr] * 40)
        far.stall(False)

    moved(ends, steer)
    assert ends[1].client().get("count") == b"40"


def test_a_command_that_fails_with_others_behind_it(ends: tuple[Server, Server, Proxy]) -> None:
    """What is derived of a key that the target has otherwise, while the failure is on its way."""

    def steer(run: Run, source: Server, target: Server, far: Proxy) -> None:
        sent(run, source, lambda client: client.rpush("list", "a", "b", "c"))
        run.wait_for(lambda: target.client().llen("list") == 3, "the list is there")
        target.client().delete("list")
        target.client().set("list", "not a list")
        write_while_stalled(
            run,
            source,
            far,
            lambda client: client.rpush("list", "d"),
            lambda client: client.incr("count"),
            lambda client: client.copy("list", "copy"),
            lambda client: client.rename("copy", "renamed"),
            lambda client: client.lmove("list", "other"),
            lambda client: client.incr("count"),
            lambda client: client.rename("other", "another"),
        )
        far.stall(False)
        sent(
            run,
            source,
            lambda client: client.sort("list", store="sorted", alpha=True),
            lambda client: client.rename("another", "last"),
        )

    moved(ends, steer)
    assert ends[1].client().get("count") == b"2"
    assert ends[1].client().lrange("renamed", 0, -1) == [b"a", b"b", b"c", b"d"]


def test_one_is_refused_and_those_behind_it_applied(ends: tuple[Server, Server, Proxy]) -> None:
    """A target that is out of memory for a moment: the position moves past what it refused."""
    target = ends[1]
    memory = target.client()

    def steer(run: Run, source: Server, target: Server, far: Proxy) -> None:
        for turn in range(20):
            a, b, c = f"a:{turn}", f"b:{turn}", f"c:{turn}"
            writes: list[Write] = [
                lambda client, a=a: client.set(a, 1),
                lambda client, b=b: client.rpush(b, "x"),
                lambda client, a=a: client.incr(a),
                lambda client, a=a, c=c: client.copy(a, c),
                lambda client, b=b: client.rpush(b, "y"),
                lambda client, a=a: client.incr(a),
                lambda client, b=b, c=c: client.rename(b, c),
                lambda client: memory.config_set("maxmemory", 1),
                lambda client, c=c: client.rpush(c, "z"),
                lambda client, a=a: client.incr(a),
                lambda client: memory.config_set("maxmemory", 0),
                lambda client, a=a: client.incr(a),
                lambda client, c=c: client.rpush(c, "z"),
            ]
            sent(run, source, *writes)
            if run.progress.repaired_keys:
                return

    run = moved(ends, steer)
    assert run.report.repaired_keys, "no transaction was refused with one behind it applied"
    assert target.client().get("a:0") == b"5"
    assert target.client().lrange("c:0", 0, -1) == [b"x", b"y", b"z", b"z"]


def test_all_are_refused_for_a_while(ends: tuple[Server, Server, Proxy]) -> None:
    """Then each is applied once, in its order, when the target takes it."""

    def steer(run: Run, source: Server, target: Server, far: Proxy) -> None:
        sent(run, source, lambda client: client.ping())
        target.client().config_set("maxmemory", 1)
        incr: Write = lambda client: client.incr("count")  # noqa: E731
        push: Write = lambda client: client.rpush("list", client.incr("count"))  # noqa: E731
        write_while_stalled(run, source, far, *[incr, push] * 10)
        far.stall(False)
        # The first of them was refused by then.
        run.wait_for(lambda: "out of memory" in run.progress.reason, "the refusal")
        target.client().config_set("maxmemory", 0)

    run = moved(ends, steer)
    assert ends[1].client().get("count") == b"20"
    assert ends[1].client().llen("list") == 10
    assert run.report.repaired_keys == 0


def counts(turn: int, n: int) -> Write:
    return lambda client: client.incr(f"count:{n % 5}")


def pushes(turn: int, n: int) -> Write:
    return lambda client: client.rpush(f"list:{n % 3}", f"{turn}:{n}")


def test_links_cut_with_several_under_way(ends: tuple[Server, Server, Proxy]) -> None:
    chance = random.Random(11)

    def steer(run: Run, source: Server, target: Server, far: Proxy) -> None:
        most = 0
        for turn in range(3):
            writes: list[Write] = [
                chance.choice([counts(turn, n), pushes(turn, n)]) for n in range(12)
            ]
            cut = threading.Timer(chance.uniform(0.02, 0.3), far.cut_now)
            cut.start()
            most = max(most, sent(run, source, *writes))
            cut.join()
        assert most > 1

    moved(ends, steer)


@pytest.mark.parametrize("denied", ["-client|kill", "-client|setname"])
def test_a_user_who_may_not_end_connections_has_one_under_way(
    ends: tuple[Server, Server, Proxy], denied: str
) -> None:
    source, target, far = ends
    rules = "on", ">secret", "~*", "&*", "+@all", denied
    target.client().execute_command("ACL", "SETUSER", "mover", *rules)  # type: ignore[no-untyped-call]
    far.delay(0.02)
    seen: list[int] = []

    user = f"redis://mover:secret@{far.host}:{far.port}"
    with copying(source, user, one_go=False, source_type="replica") as run:
        run.following()
        incr: Write = lambda client: client.incr("count")  # noqa: E731
        for _ in range(10):
            incr(source.client())
            time.sleep(_PAUSE)
            seen.append(under_way(run.work))
        assert not run.work._way.lanes[0]._follower.applier.several  # type: ignore[union-attr]
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert max(seen) <= 1
    assert_settled(source, target, 5)


def test_an_engine_that_lost_its_link_ends_what_was_under_way(
    ends: tuple[Server, Server, Proxy],
) -> None:
    """What is still on its way over the lost link does not arrive behind what the next one sends:
    the first link is held up, and let go once the next one has gone on."""
    target = ends[1]

    def steer(run: Run, source: Server, target: Server, far: Proxy) -> None:
        incr: Write = lambda client: client.incr("count")  # noqa: E731
        sent(run, source, *[incr] * 20)
        applier = run.work._way.lanes[0]._follower.applier  # type: ignore[union-attr]
        first = applier.link.client
        assert first is not None
        # To the engine the link is lost; to the target it is not.
        assert applier.link.connection is not None
        applier.link.connection.fail(LinkError("lost", fault="target"))
        run.wait_for(lambda: applier.link.client not in (None, first), "a new link")
        ids = [int(each["id"]) for each in target.client().client_list()]
        assert first not in ids
        sent(run, source, *[incr] * 20)

    moved(ends, steer)
    assert target.client().get("count") == b"40"


def test_a_target_that_is_emptied_with_several_under_way(
    ends: tuple[Server, Server, Proxy],
) -> None:
    """Those behind the one that found it emptied leave no position there: what is gone is not taken
    for there."""
    source, target, far = ends
    source.client().mset({f"old:{n}": n for n in range(50)})

    with migrating(source, far, retry_for=60.0) as run:
        far_away(run, far, source)
        incr: Write = lambda client: client.incr("count")  # noqa: E731
        while under_way(run.work) < 2:
            far.stall(False)
            write_while_stalled(run, source, far, *[incr] * 5)
        target.client().flushall()
        far.stall(False)
        run.wait_for(lambda: run.progress.phase in ENDS, "the end")
    assert run.report.status == "stopped", (run.report, run.events)
    assert "has lost this migration's position" in run.report.errors[0]


def test_a_target_whose_data_went_back_with_several_under_way(
    ends: tuple[Server, Server, Proxy], server_factory: ServerFactory
) -> None:
    """It was a replica of an older copy meanwhile: those that come behind move the position on over
    what it lacks, and everything is copied again."""
    target, older = ends[1], server_factory(known("redis-7.0"))
    older.client().config_set("repl-diskless-sync-delay", 0)
    target.client().config_set("repl-diskless-sync-delay", 0)

    def become_copy(server: Server, primary: Server) -> None:
        """`server` becomes a copy of `primary`, and a primary again."""
        client = server.client()
        client.replicaof(primary.host, primary.port)  # type: ignore[no-untyped-call]
        wait_for(lambda: client.info()["master_link_status"] == "up", "the copy")
        client.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]

    def steer(run: Run, source: Server, target: Server, far: Proxy) -> None:
        incr: Write = lambda client: client.incr("count")  # noqa: E731
        put: Write = lambda client: client.set("lost", 1)  # noqa: E731
        sent(run, source, incr)
        run.wait_for(lambda: target.client().get("count") == b"1", "what was written")
        become_copy(older, target)
        sent(run, source, put)
        run.wait_for(lambda: target.client().exists("lost"), "what gets lost")
        run.wait_for(lambda: not under_way(run.work), "its answer")
        while under_way(run.work) < 2:
            far.stall(False)
            write_while_stalled(run, source, far, *[incr] * 10)
        become_copy(target, older)
        assert not target.client().exists("lost")
        far.stall(False)
        run.wait_for(lambda: run.progress.full_syncs == 2, "another full sync")

    moved(ends, steer)
    assert target.client().get("count") == ends[0].client().get("count")


def test_answers_that_are_read_while_others_are_told_of_keep_their_order(
    server_factory: ServerFactory,
) -> None:
    """Whoever is told of an answer sends the next transaction, and may read what has come."""
    target = server_factory(known("redis-7.0"))
    batch = batch_of(("INCR", "count"))
    answered: list[tuple[bytes, bool]] = []

    async def main() -> None:
        endpoint = Endpoint.parse(target.url)
        applier = Applier(endpoint, TransferSettings(), POSITION_KEY, on_event=lambda _: None)
        await applier.open()
        connection = applier.link.connection
        assert connection is not None
        applier.link.several = True

        def told(sent: Sent) -> None:
            answered.append((sent.position, sent.applied))
            if sent.position == b"1":
                assert applier.start(batch, b"4", told)
                connection.rest(60.0)
            elif sent.position == b"2":
                time.sleep(0.1)
                applier.look()

        try:
            connection.rest(60.0)
            for position in (b"1", b"2", b"3"):
                assert applier.start(batch, position, told)
            await soon(lambda: target.client().get("count") == b"3", "all are applied")
            await asyncio.sleep(0.1)
            applier.look()
            await soon(lambda: len(answered) == 4, "all answers")
        finally:
            await applier.close()

    run(main())
    assert answered == [(b"1", True), (b"2", True), (b"3", True), (b"4", True)]
