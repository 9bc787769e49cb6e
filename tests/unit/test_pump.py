"""The pump against the same in slow Python, step by step, on bytes cut anywhere.

Invariant: the position moves on only past the oldest transaction under way, of which every command
ran, and behind which the target showed the very position that was set; all else surfaces, in order,
and nothing is passed behind something that has surfaced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import (
    CMD_KEYLESS,
    CMD_MEMBER_COUNT,
    CMD_MOVES,
    CMD_PAYLOAD,
    CMD_SETS_STRING,
    CMD_SWAPS,
    CMD_UNKNOWN,
    CommandBatch,
    ExtendedNames,
    ProtocolError,
    Pump,
    Sent,
    StreamReader,
    Transaction,
    TransactionEncoder,
    TransactionReader,
    TransactionResult,
)
from engine.model.position import StreamPosition, TargetPosition
from tests.reference.stream import command
from tests.support.feeding import push

KEY = b"startmigration:position"
REPLID = "0123456789abcdef0123456789abcdef01234567"
OTHER = "76543210fedcba9876543210fedcba9876543210"
HELD = TargetPosition("t", StreamPosition(REPLID, 100, 0, False), "e")
DOUBTFUL, IN_ORDER, LIMIT = CMD_SETS_STRING, CMD_KEYLESS, 5000
KNOWN = frozenset({0, 1, 70})


@dataclass
class Trust:
    """The attributes that the pump asks for."""

    kinds: int = CMD_UNKNOWN
    every_key: bool = False
    field_ttls: bool = False
    own_streams: bool = False


@dataclass
class Spool:
    size: int = 0


@dataclass
class Held:
    """A transaction under way, in slow Python."""

    batch: CommandBatch
    transaction: Transaction
    position: bytes
    before: bytes | None
    replid: str
    outcome: TransactionResult | Exception | None = None
    applied: bool = False


@dataclass
class Slow:
    """What the pump does, one thing after the other; `noted` counts batches."""

    stream: StreamReader
    trust: Trust
    spool: Spool
    names: ExtendedNames
    several: bool
    most: int
    found: bytes | None = HELD.encode()
    at: StreamPosition = HELD.position or StreamPosition("", 0)
    noted: list[int] = field(default_factory=list)
    under_way: deque[Held] = field(default_factory=deque)
    surfaced: list[Held] = field(default_factory=list)
    replies: TransactionReader = field(default_factory=TransactionReader)
    encoder: TransactionEncoder = field(default_factory=lambda: TransactionEncoder(KEY, 0))
    in_order: bool = False
    surfacing: bool = False
    commands: int = 0

    def next(self, replid: str) -> Transaction | CommandBatch | None:
        if self.under_way:
            enough = len(self.under_way) >= self.most
            if not self.several or self.in_order or enough:
                return None
        batch = self.stream.next(not self.spool.size)
        if batch is None:
            return None
        in_order = self.several and batch.holds(IN_ORDER)
        if (
            batch.holds(self.trust.kinds | CMD_SWAPS)
            or batch.doubtful(DOUBTFUL | CMD_PAYLOAD)
            or batch.nbytes > LIMIT
            or (self.trust.own_streams and batch.naming(b"own{"))
            or (in_order and self.under_way)
            or not batch.databases <= KNOWN
        ):
            return batch
        if self.names.known and batch.holds(CMD_MOVES):
            self.noted.append(batch.end_offset)
        at, seen = (batch.end_offset, batch.db_after, batch.in_multi_after), self.at
        position = HELD.encode_span(replid, at, (seen.offset, seen.db, seen.in_multi))
        over = self.several and bool(self.under_way)
        transaction = self.encoder.encode(batch, position, db=0, over=over)
        before = self.under_way[-1].position if self.under_way else self.found
        self.under_way.append(Held(batch, transaction, position, before, replid))
        self.replies.expect(transaction.queued)
        self.in_order = in_order
        return transaction

    def received(self, data: bytes, cuts: Iterable[int]) -> None:
        push(self.replies, data, list(cuts))
        for result in self.replies.take():
            sent = self.under_way.popleft()
            sent.outcome = result
            sent.applied = result.stands(sent.position)
            if sent.applied:
                self.found = sent.position
            late = self.trust.field_ttls and sent.batch.holds(CMD_MEMBER_COUNT)
            if not sent.applied or self.surfacing or self.surfaced or self.trust.every_key or late:
                self.surfaced.append(sent)
            else:
                self.passed(sent)

    def passed(self, sent: Held) -> None:
        batch = sent.batch
        self.at = StreamPosition(
            sent.replid, batch.end_offset, batch.db_after, batch.in_multi_after
        )
        self.commands += batch.stream_commands

    def lost(self, error: Exception) -> None:
        for sent in self.under_way:
            sent.outcome = error
        self.surfaced += self.under_way
        self.under_way.clear()


COMMANDS = [
    command(b"SET", b"k", b"v" * 30),
    command(b"INCR", b"n"),
    command(b"INCR", b"n"),
    command(b"SELECT", b"1"),
    command(b"SELECT", b"70"),
    command(b"SELECT", b"2"),
    command(b"SELECT", b"90"),
    command(b"SELECT", b"0"),
    command(b"SELECT", b"0"),
    command(b"PING"),
    command(b"MULTI") + command(b"INCR", b"n") + command(b"LPUSH", b"l", b"x") + command(b"EXEC"),
    command(b"MULTI") + command(b"SELECT", b"1"),
    command(b"EXEC"),
    command(b"SET", b"f", b"1.5"),
    command(b"SWAPDB", b"0", b"1"),
    command(b"RENAME", b"k", b"l"),
    command(b"HINCRBY", b"h", b"f", b"1"),
    command(b"XADD", b"own{g}", b"1-1", b"f", b"v"),
    command(b"PUBLISH", b"c", b"m"),
    command(b"NO.SUCH", b"k"),
    command(b"RESTORE", b"k", b"0", b"\x0f" + b"x" * 12),
    command(b"SET", b"long", b"v" * 5000),
]
ERROR = b"-WRONGTYPE Operation against a key\r\n"


def bulk(value: bytes | None) -> bytes:
    return b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value)


def answer(sent: Held, kind: str) -> bytes:
    """What a target answers to a transaction."""
    queued, position = sent.transaction.queued, sent.position
    got = {"another": b"v2 x y", "gone": None}.get(kind, position)
    value = b"$-1\r\n" if got is None else b"$%d\r\n%s\r\n" % (len(got), got)
    before = (
        b"$-1\r\n" if sent.before is None else b"$%d\r\n%s\r\n" % (len(sent.before), sent.before)
    )
    watch = b"+OK\r\n"
    replies = [b"+OK\r\n", b":1\r\n", b"$3\r\na\r\n\r\n", b"*2\r\n:1\r\n*0\r\n"]
    body = b"".join(replies[n % len(replies)] for n in range(queued))
    many = b"+QUEUED\r\n" * queued
    if kind == "refused":
        one = b"-OOM command not allowed\r\n" + b"+QUEUED\r\n" * (queued - 1)
        return b"+OK\r\n" + one + b"-EXECABORT Transaction discarded\r\n" + watch + before
    if kind == "raced":
        return b"+OK\r\n" + many + b"*-1\r\n" + watch + b"$6\r\nv2 x y\r\n"
    if kind == "failed":
        body = ERROR + b"+OK\r\n" * (queued - 1)
    if kind == "unguarded":
        watch, value = b"-LOADING\r\n", b"-LOADING\r\n"
    return b"+OK\r\n" + many + b"*%d\r\n" % queued + body + watch + value


KINDS = ["fine"] * 12 + ["failed", "refused", "raced", "another", "gone", "unguarded"]
steps = st.one_of(
    st.tuples(st.just("feed"), st.lists(st.sampled_from(COMMANDS), max_size=5), st.integers(0, 40)),
    st.tuples(st.just("next"), st.sampled_from([REPLID] * 4 + [OTHER]), st.just(0)),
    st.tuples(st.just("next"), st.sampled_from([REPLID] * 4 + [OTHER]), st.just(0)),
    st.tuples(
        st.just("answer"),
        st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
        st.lists(st.integers(1, 60), max_size=8),
    ),
    st.tuples(
        st.just("trust"),
        st.sampled_from(["every_key", "field_ttls", "own_streams", "spool", "known", "none"]),
        st.just(0),
    ),
    st.tuples(st.sampled_from(["surface", "look", "look"]), st.just(0), st.just(0)),
)


def seen(pump: Pump | Slow) -> tuple[object, ...]:
    if isinstance(pump, Slow):
        at = pump.at
        counts = len(pump.under_way), sum(each.batch.nbytes for each in pump.under_way)
        return (*counts, len(pump.surfaced), at, pump.commands, pump.found)
    at = StreamPosition(pump.replid, pump.offset, pump.db, pump.in_multi)
    counts = pump.under_way, pump.under_way_bytes
    return (*counts, pump.surfaced, at, pump.commands, pump.found)


def same(one: Sent, other: Held) -> None:
    """What has surfaced is the same."""
    assert (one.position, one.before, one.replid, one.applied) == (
        other.position,
        other.before,
        other.replid,
        other.applied,
    )
    assert one.batch.end_offset == other.batch.end_offset
    assert bytes(one.transaction) == bytes(other.transaction)
    if isinstance(other.outcome, TransactionResult):
        assert repr(one.outcome) == repr(other.outcome)
    else:
        assert one.outcome is other.outcome


def pumping(
    several: bool, most: int, noted: list[int] | None = None
) -> tuple[Pump, StreamReader, Slow]:
    """A pump and its reader; the same in slow Python, with its own. Both ask one trust."""
    trust, spool, names = Trust(), Spool(), ExtendedNames()
    readers = [StreamReader(100), StreamReader(100)]
    pump = Pump(TransactionEncoder(KEY, 0), HELD.encode(), 0)
    head, tail = HELD.frame()
    told: list[int] = [] if noted is None else noted
    pump.follow(
        readers[0],
        trust,
        spool,
        noted=lambda batch: told.append(batch.end_offset),
        names=names,
        head=head,
        tail=tail,
        replid=REPLID,
        offset=100,
        db=0,
        in_multi=False,
        databases=KNOWN,
        doubtful=DOUBTFUL,
        in_order=IN_ORDER,
        bytes_limit=LIMIT,
        own_streams=b"own{",
        several=several,
        most=most,
        bytes_most=1 << 20,
    )
    return pump, readers[0], Slow(readers[1], trust, spool, names, several, most)


@settings(max_examples=120)
@given(st.lists(steps, max_size=40), st.booleans(), st.integers(1, 4), st.booleans())
def test_the_pump_agrees_with_slow_python(
    plan: list[tuple[str, object, object]], several: bool, most: int, cut: bool
) -> None:
    noted: list[int] = []
    pump, reader, slow = pumping(several, most, noted)
    gone = False
    for what, first, second in plan:
        if what == "feed":
            data = b"".join(first)  # type: ignore[arg-type]
            for each in (reader, slow.stream):
                push(each, data, [second or len(data)] * (len(data) + 1))  # type: ignore[operator]
        elif what == "next":
            one, other = pump.next(first), slow.next(first)  # type: ignore[arg-type]
            assert type(one) is type(other)
            if isinstance(one, Transaction) and isinstance(other, Transaction):
                assert bytes(one) == bytes(other)
            elif isinstance(one, CommandBatch) and isinstance(other, CommandBatch):
                assert one.end_offset == other.end_offset
                # What surfaces ends this way for a time.
                gone = True
        elif what == "answer":
            due = list(slow.under_way)[: len(first)]  # type: ignore[arg-type]
            data = b"".join(answer(sent, kind) for sent, kind in zip(due, first, strict=False))  # type: ignore[call-overload]
            push(pump, data, second)  # type: ignore[arg-type]
            slow.received(data, second)  # type: ignore[arg-type]
        elif what == "trust":
            if first == "spool":
                slow.spool.size ^= 1
            elif first == "known":
                slow.names.clear()
            elif first != "none":
                setattr(slow.trust, str(first), not getattr(slow.trust, str(first)))
        elif what == "surface":
            pump.surfacing = slow.surfacing = True
        while what == "look" and (sent := pump.pop()) is not None:
            held = slow.surfaced.pop(0)
            same(sent, held)
            if sent.applied:
                pump.passed(sent)
                slow.passed(held)
        assert seen(pump) == seen(slow)
        if gone:
            break
    assert noted == slow.noted
    if cut:
        error = OSError("lost")
        pump.lost(error)
        slow.lost(error)
        while (sent := pump.pop()) is not None:
            same(sent, slow.surfaced.pop(0))
        assert not slow.surfaced
        assert seen(pump)[0] == 0
    else:
        pump.forget()
        assert (pump.under_way, pump.under_way_bytes, pump.surfaced) == (0, 0, 0)
        assert pump.surfacing
        assert pump.pop() is None


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
def test_a_plain_round_moves_the_position_and_nothing_surfaces(size: int) -> None:
    pump, reader, slow = pumping(False, 1)
    for n in range(3):
        data = command(b"SET", b"k", b"v%d" % n) * 50
        push(reader, data)
        push(slow.stream, data)
        sent, other = pump.next(REPLID), slow.next(REPLID)
        assert isinstance(sent, Transaction)
        assert other is not None
        # One at a time is under way to a target that is near.
        push(reader, command(b"PING"))
        assert pump.next(REPLID) is None
        assert not pump.room
        data = answer(slow.under_way[0], "fine")
        push(pump, data[:-1], [size] * (len(data) // size + 1))
        assert (pump.under_way, pump.offset) == (1, slow.at.offset)
        push(pump, data[-1:])
        slow.received(data, [])
        assert seen(pump) == seen(slow)
        assert (pump.under_way, pump.surfaced, pump.commands) == (0, 0, 50 * (n + 1))
        push(slow.stream, command(b"PING"))


def test_what_is_no_reply_is_told_and_an_answer_to_something_else_is_another_s() -> None:
    pump, reader, _ = pumping(False, 1)
    with pytest.raises(ProtocolError):
        push(pump, b"+OK\r\n")
    pump, reader, _ = pumping(False, 1)
    push(reader, command(b"INCR", b"n"))
    reader.flush()
    (batch,) = reader.take()
    transaction = TransactionEncoder(KEY, 0).encode(batch, b"1", db=0)
    pump.expect(transaction)
    held = Held(batch, transaction, b"1", None, "")
    push(pump, answer(held, "fine"))
    result = pump.other()
    assert result is not None
    assert result.stands(b"1")
    # The pump has not sent it: where the position is, is for the sender to say.
    assert (pump.found, pump.offset, pump.other()) == (HELD.encode(), 100, None)


def test_a_position_that_would_be_too_long_is_refused() -> None:
    pump, reader, _ = pumping(False, 1)
    push(reader, command(b"INCR", b"n"))
    with pytest.raises(ValueError, match="name is too long"):
        pump.next("x" * 4000)
