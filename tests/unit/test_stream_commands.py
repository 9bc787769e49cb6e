"""Commands that make a stream: replayed on a slow one, which refuses what servers refuse, they come
to what the slow decoder finds."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.support.encoded_values import compressed, length, payload, string
from engine._native import ProtocolError, ValueCommands
from tests.reference import values as reference
from tests.unit.test_value_commands import given_by
from tests.unit.test_value_decoder import node, stream
from tests.unit.test_value_encode import sealed

Id = tuple[int, int]
MOST = 2**63 - 1
TYPES = (15, 19, 21, 26, 27)


def identity(text: bytes) -> Id:
    ms, _, seq = text.partition(b"-")
    return int(ms), int(seq)


def text(wanted: Id) -> bytes:
    return b"%d-%d" % wanted


class SlowStream:
    """What a server makes of these commands, from 7.0 on or (`counters`) before."""

    def __init__(self, *, consumers: bool, counters: bool) -> None:
        self.consumers, self.counters = consumers, counters
        self.entries: dict[Id, list[bytes]] = {}
        self.last = self.deleted = (0, 0)
        self.added = 0
        self.groups: dict[bytes, dict[str, Any]] = {}

    def run(self, command: list[bytes]) -> None:
        verb, *rest = command
        if verb == b"XREADGROUP":
            assert not self.consumers
            word, group, name, streams, key, last = rest
            assert (word, streams, key) == (b"GROUP", b"STREAMS", b"{aside}")
            assert last == text((2**64 - 1, 2**64 - 2))
            self.groups[group]["consumers"].setdefault(name, set())
            return
        if verb == b"XGROUP":
            verb, *rest = b"XGROUP " + rest[0], *rest[1:]
        assert rest.pop(0) == b"{aside}"
        getattr(self, verb.decode().lower().replace(" ", "_"))(*rest)

    def xadd(self, number: bytes, *fields: bytes) -> None:
        new = identity(number)
        assert new > self.last
        assert fields
        assert len(fields) % 2 == 0
        self.entries[new] = list(fields)
        self.last = new
        self.added += 1

    def xsetid(self, number: bytes, *options: bytes) -> None:
        last = identity(number)
        told = dict(zip(options[::2], options[1::2], strict=True))
        assert self.counters or not told
        assert not self.entries or last >= max(self.entries)
        if self.counters:
            assert last >= self.deleted
        if b"ENTRIESADDED" in told:
            self.added = int(told[b"ENTRIESADDED"])
            assert self.added >= len(self.entries)
        if b"MAXDELETEDID" in told:
            deleted = identity(told[b"MAXDELETEDID"])
            assert (0, 0) < deleted <= last
            self.deleted = deleted
        self.last = last

    def xgroup_create(self, name: bytes, last: bytes, *options: bytes) -> None:
        assert name not in self.groups
        # A stream has to be there.
        assert self.added
        read = -1
        if self.counters:
            assert options[0] == b"ENTRIESREAD"
            read = int(options[1])
            assert -1 <= read <= self.added
        else:
            assert not options
        self.groups[name] = {"last": last, "read": read, "pending": {}, "consumers": {}}

    def xgroup_createconsumer(self, group: bytes, name: bytes) -> None:
        assert self.consumers
        assert name not in self.groups[group]["consumers"]
        self.groups[group]["consumers"][name] = set()

    def xclaim(self, group: bytes, name: bytes, idle: bytes, *rest: bytes) -> None:
        at = rest.index(b"TIME")
        _, when, count_word, count, *flags = rest[at:]
        assert (idle, count_word, flags) == (b"0", b"RETRYCOUNT", [b"FORCE", b"JUSTID"])
        of = self.groups[group]
        assert rest[:at]
        for each in map(identity, rest[:at]):
            assert each in self.entries
            assert each not in of["pending"]
            of["pending"][each] = [int(when), int(count)]
            of["consumers"].setdefault(name, set()).add(each)

    def xtrim(self, word: bytes, most: bytes) -> None:
        assert word == b"MAXLEN"
        for each in sorted(self.entries)[: max(len(self.entries) - int(most), 0)]:
            del self.entries[each]

    def xdel(self, *numbers: bytes) -> None:
        for each in map(identity, numbers):
            del self.entries[each]
            self.deleted = max(self.deleted, each)

    @property
    def shown(self) -> list[Any]:
        """As the reference shows it, without what no command tells."""
        return [
            [[text(each), *fields] for each, fields in sorted(self.entries.items())],
            text(self.last),
            *((text(self.deleted), self.added) if self.counters else (-1, -1)),
            [
                [name, of["last"], of["read"],
                 [[text(each), *told] for each, told in sorted(of["pending"].items())],
                 {who: [text(each) for each in sorted(ids)]
                  for who, ids in sorted(of["consumers"].items())}]
                for name, of in sorted(self.groups.items())
            ],
        ]  # fmt: skip


def wanted(found: list[Any], *, counters: bool, from_15: bool) -> list[Any]:
    """The same of what the reference has found."""
    entries, last, deleted, added, groups, *_ = found
    shown = []
    for name, group_last, read, pending, consumers, *_ in groups:
        if from_15 and counters:
            read = guessed(entries, last, group_last)
        held = {who: ids for who, _, _, ids in consumers}
        told = sorted(pending, key=lambda each: identity(each[0]))
        shown.append([name, group_last, read if counters else -1, told, dict(sorted(held.items()))])
    if not counters:
        deleted = added = -1
    elif from_15:
        deleted, added = None, len(entries)
    return [entries, last, deleted, added, sorted(shown, key=lambda each: each[0])]


def guessed(entries: list[list[bytes]], last: bytes, group_last: bytes) -> int:
    """What servers from 7.0 on take a group to have read, of a form that does not say it."""
    if not entries:
        return 0
    at, first = identity(group_last), identity(entries[0][0])
    if at == identity(last):
        return len(entries)
    if at > identity(last):
        return -1
    return 0 if at < first else 1 if at == first else -1


def compare(data: bytes, *, consumers: bool, counters: bool) -> None:
    _, found = reference.decode(data)
    made = ValueCommands(data, consumers=consumers, counters=counters)
    slow = SlowStream(consumers=consumers, counters=counters)
    commands = given_by(made)
    for each in commands:
        slow.run(each)
    shown = slow.shown
    expected = wanted(found, counters=counters, from_15=data[0] == 15)
    if expected[2] is None or (made.lost & 2 and counters):
        # Of one whose form does not say it, or says that none was deleted, more is known.
        expected[2] = shown[2]
    assert shown == expected
    assert (made.kind, made.count) == ("stream", len(found[0]))
    assert made.pending == sum(len(group[3]) for group in found[4])
    assert bool(made.lost & 8) == any(group[4] for group in found[4])
    assert given_by(made) == commands


IDS = st.tuples(st.integers(0, 6), st.integers(0, 4)).filter(any)
NAMES = st.sampled_from([b"a", b"12", b"", b"long" * 9])
TIMES = st.integers(0, 3).map(lambda n: 1_700_000_000_000 + n // 2)


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, bytes]:
    """A stream of any form, as servers may have one: what is pending may have no entry."""
    number = draw(st.sampled_from(TYPES))
    ids = sorted(draw(st.sets(IDS, max_size=8)))
    gone = draw(st.sets(st.sampled_from(ids), max_size=8)) if ids else set()
    kept = [each for each in ids if each not in gone]
    entries = []
    for each in kept:
        same = draw(st.booleans())
        values = [draw(NAMES)] if same else [draw(NAMES), draw(NAMES)]
        entries.append(node(each, (2 if same else 0, *each, values)))
    last = draw(IDS)
    if kept:
        last = max(last, kept[-1])
    body = length(len(entries)) + b"".join(entries) + length(len(kept))
    body += length(last[0]) + length(last[1])
    if number != 15:
        deleted = draw(st.just((0, 0)) | IDS.filter(lambda each: each <= last))
        added = len(ids) + draw(st.integers(0, 2))
        first = kept[0] if kept else (0, 0)
        body += b"".join(map(length, (*first, *deleted, added)))
    groups = draw(st.lists(NAMES, unique=True, max_size=3))
    body += length(len(groups))
    for name in groups:
        body += (compressed if draw(st.booleans()) else string)(name)
        body += b"".join(map(length, draw(IDS)))
        if number != 15:
            body += length(draw(st.sampled_from([0, 1, 2, 2**64 - 1])))
        pending = sorted(draw(st.sets(st.sampled_from(ids), max_size=8))) if ids else []
        consumers = draw(st.lists(NAMES, unique=True, min_size=bool(pending), max_size=3))
        body += length(len(pending))
        for each in pending:
            body += struct.pack(">QQ", *each) + struct.pack("<Q", draw(TIMES))
            body += length(draw(st.integers(0, 1)))
        owners = [draw(st.sampled_from(consumers)) for _ in pending]
        body += length(len(consumers))
        for who in consumers:
            body += (compressed if draw(st.booleans()) else string)(who) + struct.pack("<q", 5)
            body += struct.pack("<q", 6) if number > 19 else b""
            its = [each for each, owner in zip(pending, owners, strict=True) if owner == who]
            body += length(len(its)) + b"".join(struct.pack(">QQ", *each) for each in its)
        if number >= 27:
            body += length(0)
    if number >= 26:
        body += length(100) + length(100) + length(0) + length(0) + length(0)
    return number, sealed(payload(number, body))


@pytest.mark.parametrize("version", [(False, False), (True, False), (True, True)])
def test_streams_of_every_form(version: tuple[bool, bool]) -> None:
    """Into servers of 5.0, 6.2 and 7.0."""
    consumers, counters = version

    @settings(max_examples=150)
    @given(streams())
    def one(made: tuple[int, bytes]) -> None:
        compare(made[1], consumers=consumers, counters=counters)

    one()


@pytest.mark.parametrize("number", TYPES[:-1])
def test_one_of_each_form(number: int) -> None:
    data = sealed(stream(number))
    compare(data, consumers=True, counters=True)
    made = ValueCommands(data, counters=False)
    assert made.lost & 2 == (2 if number != 15 else 0)
    assert bool(made.lost & 4) == (number == 26)


def test_what_consumers_have_given_back_has_no_commands() -> None:
    made = ValueCommands(sealed(stream(27)))
    assert made.released == 1
    with pytest.raises(ValueError, match="given back"):
        made.give(b"k", lambda *_: None)


def test_many_pending_entries() -> None:
    """Those with one time and one count go together, and each is found among all."""
    rng = random.Random(5)
    count = 5000
    entries = [node((n + 1, 0), (2, n + 1, 0, [b"v"])) for n in range(0, count, 3)]
    body = length(len(entries)) + b"".join(entries) + length(len(entries))
    body += length(count) + length(0) + b"".join(map(length, (1, 0, count, 0, count)))
    body += length(1) + string(b"group") + length(count) + length(0) + length(count)
    owners = [rng.randrange(3) for _ in range(count)]
    body += length(count)
    for n in range(count):
        body += struct.pack(">QQ", n + 1, 0) + struct.pack("<Q", 1_700_000_000_000 + n // 1000)
        body += length(1 + (n % 1000 == 0) * 20_000)
    body += length(3)
    for who in range(3):
        its = [n for n, owner in enumerate(owners) if owner == who]
        body += string(b"%d" % who) + struct.pack("<qq", 5, 6) + length(len(its))
        body += b"".join(struct.pack(">QQ", n + 1, 0) for n in its)
    data = sealed(payload(21, body))
    compare(data, consumers=True, counters=True)
    claims = [each for each in given_by(ValueCommands(data)) if each[0] == b"XCLAIM"]
    assert len(claims) < 40


def test_what_is_wrong_with_what_is_pending() -> None:
    def made(pending: list[int], *held: list[int], fields: int = 1) -> ValueCommands:
        body = length(1) + node((9, 0), (2, 9, 0, [b"v"] * fields), names=(b"f",) * fields)
        body += length(1) + length(9) + length(0) + length(1) + string(b"g") + length(0) + length(0)
        body += length(len(pending))
        for each in pending:
            body += struct.pack(">QQ", each, 0) + struct.pack("<Q", 5) + length(1)
        body += length(len(held))
        for n, ids in enumerate(held):
            body += string(b"%d" % n) + struct.pack("<q", 5) + length(len(ids))
            body += b"".join(struct.pack(">QQ", each, 0) for each in ids)
        return ValueCommands(sealed(payload(15, body)))

    assert made([1, 2, 9], [2], [1, 9]).pending == 3
    for pending, held, why in (
        ([2, 1], ([1, 2],), "in their order"),
        ([1, 1], ([1, 1],), "in their order"),
        ([1, 2], ([1, 3],), "among what is pending"),
        ([1, 2], ([1], [1]), "with one consumer"),
    ):
        with pytest.raises(ProtocolError, match=why):
            made(pending, *held)
    with pytest.raises(ProtocolError, match="1 to 500,000 fields"):
        made([], fields=0)
