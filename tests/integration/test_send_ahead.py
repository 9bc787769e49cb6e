"""A transaction that is sent up to its EXEC while the one before it is under way: it runs where
that one was applied, and else leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from benches.support.servers import Server
from benches.support.waiting import soon
from engine._native import CommandBatch, Sent
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.targets.applier import Applier, PositionMoved
from engine.wire.event_loop import run
from tests.reference.stream import command
from tests.support.library import copied
from tests.support.raw_replica import POSITION_KEY, batch_of
from tests.support.servers import known

Work = Callable[[Applier], Awaitable[None]]
ONE = batch_of(("INCR", "one"))
TWO = batch_of(("INCR", "two"), ("SET", "fine", "2"))


@pytest.fixture(scope="module")
def target() -> Iterator[Server]:
    with Server.start(known("redis-7.0"), "--save", "") as server:
        yield server


def applying(target: Server, work: Work) -> None:
    """`work` with an applier of the target, which is emptied before."""
    target.client().flushall()

    async def main() -> None:
        applier = Applier(
            Endpoint.parse(target.url),
            TransferSettings(retry_for=10.0),
            POSITION_KEY,
            on_event=lambda _: None,
        )
        try:
            await applier.open()
            await work(applier)
        finally:
            await applier.close()

    run(main())


def started(applier: Applier, batch: CommandBatch, position: bytes) -> asyncio.Future[Sent]:
    """What `start` makes of it, which must take it."""
    answer: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()
    assert applier.start(batch, position, answer.set_result)
    return answer


async def queued(target: Server, commands: int) -> None:
    """Until the target has so many commands in a transaction that is not ended."""

    def there() -> bool:
        clients = cast("list[dict[str, str]]", target.client().client_list())
        return str(commands) in {each["multi"] for each in clients}

    await soon(there, f"{commands} queued commands")


def test_exec_follows_the_answer_to_the_one_before(target: Server) -> None:
    async def work(applier: Applier) -> None:
        first = started(applier, ONE, b"1")
        applier.send_ahead(TWO, b"2")
        # A third one waits for its turn.
        applier.send_ahead(ONE, b"3")
        assert (await first).applied
        await queued(target, 3)
        assert target.client().mget("one", "two", POSITION_KEY) == [b"1", None, b"1"]
        assert (await started(applier, TWO, b"2")).applied
        assert applier.found == b"2"
        assert (await started(applier, ONE, b"3")).applied
        assert target.client().mget("one", "two", POSITION_KEY) == [b"2", b"1", b"3"]
        assert applier.reconnects == 0

    applying(target, work)


@pytest.mark.parametrize("fault", [("INCR", "text"), ("NO.SUCH", "key")])
def test_one_that_was_not_plainly_applied_lets_nothing_follow(
    target: Server, fault: tuple[str, ...]
) -> None:
    """It may be that what follows is to be left out by now."""
    batch = batch_of(("INCR", "one"), fault)

    async def work(applier: Applier) -> None:
        target.client().set("text", "no number")
        first = started(applier, batch, b"1")
        applier.send_ahead(TWO, b"2")
        sent = await first
        assert not sent.applied
        done = await applier.apply(batch, b"1", sent=sent)
        assert [index for index, _ in (*done.failed, *done.refused)] == [1]
        if done.refused:
            done = await applier.apply(batch, b"1", skip={1})
        assert target.client().mget("one", "two", POSITION_KEY) == [b"1", None, b"1"]
        await applier.apply(TWO, b"2", skip={0})
        assert target.client().mget("one", "two", POSITION_KEY) == [b"1", None, b"2"]

    applying(target, work)


def test_a_position_that_moved_in_between_lets_nothing_follow(target: Server) -> None:
    async def work(applier: Applier) -> None:
        first = started(applier, ONE, b"1")
        applier.send_ahead(TWO, b"2")
        assert (await first).applied
        await queued(target, 3)
        target.client().set(POSITION_KEY, "another engine's")
        sent = await started(applier, TWO, b"2")
        assert not sent.applied
        with pytest.raises(PositionMoved):
            await applier.apply(TWO, b"2", sent=sent)
        assert target.client().mget("one", "two") == [b"1", None]

    applying(target, work)


@pytest.mark.parametrize("how", ["another batch", "another position", "apply", "abandon"])
def test_what_was_sent_ahead_and_does_not_follow_is_dropped(target: Server, how: str) -> None:
    async def work(applier: Applier) -> None:
        first = started(applier, ONE, b"1")
        applier.send_ahead(TWO, b"2")
        assert (await first).applied
        await queued(target, 3)
        if how == "another batch":
            assert not applier.start(ONE, b"2", lambda _: None)
        elif how == "another position":
            assert not applier.start(TWO, b"3", lambda _: None)
        elif how == "abandon":
            applier.abandon()
        await applier.apply(ONE, b"2")
        assert target.client().mget("one", "two", POSITION_KEY) == [b"2", None, b"2"]

    applying(target, work)


def test_commands_that_fail_in_one_of_many_batches(
    target: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What names their keys in the batch that was sent ahead is left out, and all else is there
    once."""
    monkeypatch.setattr("engine.sources.aof_findings._BATCH_COMMANDS", 500)
    target.client().flushall()
    data = [command(b"INCR", b"n:%d" % (at % 10)) for at in range(10_000)]
    data[0] = command(b"SET", b"text", b"no number")
    for at in (3333, 3900, 7777):
        data[at] = command(b"LPUSH", b"text", b"more")
    data[4200] = command(b"COPY", b"text", b"copy")
    path = tmp_path / "appendonly.aof"
    path.write_bytes(b"".join(data))
    done = copied(f"aof:{path}", target)
    assert done.report.status == "stopped"
    assert {each.key for each in done.report.not_carried} == {"text", "copy"}
    client = target.client()
    assert sum(int(client.get(f"n:{at}")) for at in range(10)) == 10_000 - 5
    assert not client.exists("copy")
    assert client.get("text") == b"no number"
