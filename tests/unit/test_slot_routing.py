"""What of a stream goes to one lane of a cluster, against slow Python.

The reference is `tests/reference/routing.py`. Beside it stands what has to be true whatever the
rules: over lanes whose slots make up all of them, each change of a key goes to one lane exactly, or
is read again there; and nothing that is sent names keys of two slots.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import (
    CMD_ACROSS,
    CommandBatch,
    OrderedDigest,
    ProtocolError,
    SlotFilter,
    StreamReader,
    TransactionEncoder,
    key_slot,
)
from engine.model.lane_route import ONLY, Route
from engine.model.slots import ALL_SLOTS, SLOTS, SlotSet, slot_tag
from tests.reference import routing as reference
from tests.reference import stream as stream_reference
from tests.reference.stream import command
from tests.support.feeding import push

KEYS = [b"", b"a", b"b", b"{a}b", b"key:%d" % 7, b"{tag}1", b"{tag}2", b"x{", b"{}y", b"k" * 40]
NOW = 1_700_000_000_000

Lanes = list[SlotSet]


def filter_of(slots: SlotSet, *, keyless: bool = False) -> SlotFilter:
    return SlotFilter(slots.ranges, keyless=keyless)


def batches_of(
    data: bytes, slots: SlotFilter | None, sizes: Sequence[int] | None = None, **how: Any
) -> list[CommandBatch]:
    reader = StreamReader(1000, slots=slots, **how)
    push(reader, data, sizes)
    reader.flush()
    return reader.take()


def read(batches: Sequence[CommandBatch]) -> list[reference.Routed]:
    found = []
    for batch in batches:
        across = set(batch.across)
        assert across == set(batch.indices(CMD_ACROSS))
        for index in range(len(batch)):
            dirty = tuple(batch.changes(index) or ()) if index in across else ()
            found.append(
                reference.Routed(batch.command(index), batch.db(index), index in across, dirty)
            )
    return found


def lanes_of(rng: random.Random, count: int) -> Lanes:
    """A random partition of all slots, by ranges."""
    cuts = sorted(
        {0, SLOTS, *(key_slot(key) for key in rng.sample(KEYS, 4)), *rng.sample(range(SLOTS), 5)}
    )
    sets: list[set[int]] = [set() for _ in range(count)]
    for first, end in itertools.pairwise(cuts):
        sets[rng.randrange(count)].update(range(first, end))
    return [SlotSet.of(slots) for slots in sets]


def random_command(rng: random.Random) -> list[bytes]:
    """Any command of the table, with arguments by its row, or nearly."""
    name = rng.choice([*reference.ROWS, "del", "unlink", "mset", "msetex", "nosuch"])
    keys = reference.ROWS.get(name, ("w1-*", frozenset()))[0]
    args = [part.encode() for part in name.split("|")]
    if rng.random() < 0.3:
        args[0] = args[0].upper()

    def key() -> bytes:
        return rng.choice(KEYS)

    if name == "swapdb":
        return [*args, b"%d" % rng.randrange(3), b"%d" % rng.randrange(3)]
    if keys == "sort":
        args += [
            key(),
            *rng.choice([[], [b"BY", b"w_*"], [b"LIMIT", b"0", b"STORE"], [b"GET", b"#"]]),
        ]
        return args + rng.choice([[], [b"STORE", key()], [b"store", key(), b"STORE", key()]])
    if keys == "streams":
        args += [b"GROUP", b"g", b"c", b"STREAMS"]
        many = rng.randint(1, 3)
        return args + [key() for _ in range(many)] + [b">"] * (many - rng.choice([0, 0, 0, 1]))
    if keys == "migrate":
        alone = [b"host", b"1", key(), b"0", b"1"]
        return args + rng.choice([alone, [b"host", b"1", b"", b"0", b"1", b"KEYS", key(), key()]])
    for part in keys.split():
        if part.startswith("store"):
            args += [b"1", b"2", b"3", b"km", b"STORE", key()]
        elif "#" in part:
            step = int(part.partition("/")[2] or 1)
            at = int("".join(letter for letter in part.partition("#")[0] if letter.isdigit()))
            args += [b"0"] * (at - len(args))
            many = rng.randint(0 if rng.random() < 0.1 else 1, 4)
            args.append(b"%d" % many)
            for _ in range(many):
                args += [key(), *[b"v"] * (step - 1)]
        else:
            digits, _, rest = part.lstrip("rw").partition("-")
            step = int(rest.partition("/")[2] or 1)
            args += [b"0"] * (int(digits) - len(args))
            for _ in range(rng.randint(1, 5) if rest else 1):
                args += [key(), *[b"v"] * (step - 1)]
    if name == "msetex":
        args += rng.choice([[], [b"NX"], [b"PXAT", b"%d" % NOW], [b"KEEPTTL"], [b"xx", b"KEEPTTL"]])
    elif name == "copy":
        args += rng.choice([[], [b"DB", b"0"], [b"DB", b"3"], [b"REPLACE", b"db", b"0"]])
    elif name == "move":
        args.append(rng.choice([b"0", b"1", b"3", b"x"]))
    elif not keys:
        args += rng.choice([[], [key()], [key(), b"m"]])
    elif rng.random() < 0.4:
        args += rng.choice([[b"1"], [b"v", b"w"], [key()]])
    return args


def random_stream(rng: random.Random, many: int) -> tuple[bytes, list[tuple[list[bytes], int]]]:
    """Bytes, and the commands with their databases; PING, SELECT and MULTI among them."""
    data, found, db = b"", [], 0
    for _ in range(many):
        turn = rng.random()
        if turn < 0.05:
            data += command(rng.choice([b"PING", b"MULTI", b"EXEC"]))
        if turn > 0.93:
            db = rng.choice([0, 0, 0, 3])
            data += command(b"SELECT", b"%d" % db)
        args = random_command(rng)
        if args[0].lower() in (b"ping", b"select", b"multi", b"exec", b"replconf"):
            continue
        if len(args) == 1 and reference.ROWS.get(args[0].decode().lower(), ("",))[0]:
            continue
        data += command(*args)
        found.append((args, db))
    return data + command(b"EXEC"), found


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_each_lane_gets_what_the_reference_says(seed: int) -> None:
    rng = random.Random(seed)
    data, sent = random_stream(rng, 12)
    for at, lane in enumerate(lanes_of(rng, rng.randint(1, 4))):
        wanted = []
        for args, db in sent:
            wanted += reference.route(args, db, set(lane), at == 0)
        slots = filter_of(lane, keyless=at == 0)
        sizes = rng.choice([None, [1], [7, 3]])
        found = read(batches_of(data, slots, sizes, batch_commands=rng.choice([1, 5, 8192])))
        # (Of what has unknown keys the source is asked.)
        assert found == wanted


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_each_change_goes_to_one_lane(seed: int) -> None:
    rng = random.Random(seed)
    data, sent = random_stream(rng, 8)
    lanes = lanes_of(rng, rng.randint(2, 4))
    changes: list[tuple[int, bytes]] = []
    unknown = 0
    for lane in lanes:
        for batch in batches_of(data, filter_of(lane)):
            for index in range(len(batch)):
                found, named = batch.changes(index), batch.keys(index)
                if found is None:
                    assert index in batch.across
                    unknown += 1
                    continue
                assert all(key_slot(key) in lane for _, key in found)
                changes += found
                if index not in batch.across:
                    assert named is not None
                    assert len({key_slot(key) for key in named}) <= 1
    wanted: list[tuple[int, bytes]] = []
    lost = 0
    for args, db in sent:
        row = reference.row_of(args)
        try:
            if row is None:
                raise reference.Unknown
            named_of = reference.keys_of(args, row[0], db) if row[0] else []
        except reference.Unknown:
            lost += 1
            continue
        wanted += [(each.db, each.key) for each in named_of if each.written]
    assert sorted(changes) == sorted(wanted)
    assert unknown == lost * len(lanes)


@settings(max_examples=100)
@given(st.integers(0, 2**32))
def test_parts_come_to_the_same(seed: int) -> None:
    """DEL, UNLINK, MSET and MSETEX on a dictionary, and on one a lane."""
    rng = random.Random(seed)
    sent = []
    for _ in range(10):
        name = rng.choice([b"MSET", b"DEL", b"UNLINK", b"MSETEX", b"touch"])
        keys = [b"%d" % rng.randrange(30) for _ in range(rng.randint(1, 12))]
        pairs = [word for key in keys for word in (key, b"%d" % rng.randrange(99))]
        if name == b"MSETEX":
            sent.append([name, b"%d" % len(keys), *pairs, b"PXAT", b"%d" % NOW])
        else:
            sent.append([name, *(pairs if name == b"MSET" else keys)])
    data = b"".join(command(*args) for args in sent)
    whole: dict[bytes, bytes] = {}
    for args in sent:
        run(whole, args)
    together: dict[bytes, bytes] = {}
    for lane in lanes_of(rng, 3):
        here: dict[bytes, bytes] = {}
        batches = batches_of(data, filter_of(lane), rng.choice([None, [1], [11]]))
        for batch in batches:
            assert not batch.across
            for index in range(len(batch)):
                run(here, batch.command(index))
                assert batch.rewritten == []
        assert sum(batch.stream_commands for batch in batches) <= len(sent)
        assert not here.keys() & together.keys()
        together |= here
    assert together == whole


def run(into: dict[bytes, bytes], args: list[bytes]) -> None:
    name = args[0].upper()
    if name in (b"DEL", b"UNLINK"):
        for key in args[1:]:
            into.pop(key, None)
    elif name == b"MSET":
        into.update(zip(args[1::2], args[2::2], strict=True))
    elif name == b"MSETEX":
        assert args[-2] == b"PXAT"
        many = int(args[1])
        into.update(zip(args[2 : 2 + 2 * many : 2], args[3 : 3 + 2 * many : 2], strict=True))


STREAM = b"".join(
    [
        command(b"SELECT", b"0"),
        command(b"MSET", b"a", b"1", b"b", b"2", b"{a}b", b"3"),
        command(b"PING"),
        command(b"MULTI"),
        command(b"SET", b"a", b"1"),
        command(b"DEL", b"a", b"b", b"key:7", b"{tag}1", b"{tag}2", b"a"),
        command(b"RENAME", b"a", b"b"),
        command(b"EXEC"),
        command(b"MSETEX", b"2", b"a", b"1", b"b", b"2", b"KEEPTTL"),
        command(b"SELECT", b"4"),
        command(b"FLUSHALL"),
        command(b"FLUSHDB"),
        command(b"SET", b"a", b"1"),
        command(b"SCRIPT", b"LOAD", b"x"),
        command(b"SELECT", b"0"),
        command(b"RESTORE-ASKING", b"a", b"0", b"payload"),
        command(b"CLUSTER", b"SYNCSLOTS", b"FINISH"),
        command(b"SETEX", b"b", b"9", b"v"),
        command(b"UNLINK", *(b"%d" % n for n in range(40))),
    ]
)


@pytest.mark.parametrize("key", [b"a", b"b", b"key:7"])
def test_every_cut_gives_the_same(key: bytes) -> None:
    lane = filter_of(SlotSet.of([key_slot(key)]) | SlotSet(((0, 3000),)))
    how: dict[str, Any] = {"slots": lane, "anchor": True}

    def contents(sizes: list[int] | None, **more: Any) -> list[reference.Routed]:
        reader = StreamReader(1000, **how, **more)
        reader.now_ms = NOW
        push(reader, STREAM, sizes)
        reader.flush()
        return read(reader.take())

    whole = contents(None)
    assert any(each.across for each in whole)
    for cut in range(1, len(STREAM)):
        assert contents([cut, len(STREAM)]) == whole
    for size in range(1, 30):
        assert contents([size]) == whole
        assert contents([size], batch_bytes=1) == whole
        assert contents(None, batch_commands=1 + size % 3) == whole


def test_a_batch_splits_where_the_stream_does() -> None:
    """With the state that an unfiltered reader has there, also behind what was left out."""
    (plain,) = batches_of(STREAM, None, batch_commands=1 << 20)
    lane = filter_of(SlotSet.of([key_slot(b"a")]))
    (batch,) = batches_of(STREAM, lane, batch_commands=1 << 20)
    assert (batch.start_offset, batch.end_offset) == (plain.start_offset, plain.end_offset)
    ends, taken = [], 0
    for offset in range(plain.start_offset, plain.end_offset + 1):
        try:
            left, _ = plain.split(offset)
        except ValueError:
            with pytest.raises(ValueError, match="no boundary"):
                batch.split(offset)
            continue
        head, tail = batch.split(offset)
        assert (head.db_after, head.in_multi_after) == (left.db_after, left.in_multi_after)
        assert head.filter is not None
        assert head.filter.slots is lane
        assert tail.filter is head.filter
        assert read([head, tail]) == read([batch])
        assert taken <= len(head)
        taken = len(head)
        ends.append(offset)
    assert len(ends) == STREAM.count(b"*") + 1


def test_what_is_across_is_never_sent() -> None:
    lane = filter_of(SlotSet.of([key_slot(b"a")]))
    data = command(b"SELECT", b"2") + command(b"RENAME", b"a", b"b") + command(b"SELECT", b"0")
    data += command(b"SET", b"a", b"1") + command(b"RENAME", b"a", b"b")
    data += command(b"SINTERSTORE", b"b", b"a") + command(b"NOSUCH", b"a") + command(b"INCR", b"a")
    (batch,) = batches_of(data, lane)
    assert batch.across == [0, 2, 3]
    assert [batch.changes(index) for index in batch.across] == [[(2, b"a")], [(0, b"a")], None]
    assert batch.databases == {0}
    assert batch.stand_alone(0)
    encoder = TransactionEncoder(b"position", databases=1)
    for transaction in (encoder.encode(batch, b"p", db=0), encoder.encode_record(batch, b"p")):
        sent = bytes(memoryview(transaction))
        assert sent.count(b"\r\na\r\n") == 2
        for name in (b"RENAME", b"NOSUCH", b"SINTERSTORE"):
            assert name not in sent
        indices = [transaction.index_of(slot) for slot in range(transaction.queued)]
        assert [at for at in indices if at is not None] == [1, 4]


def test_dirtiness_spreads_to_keys_of_the_lane_alone() -> None:
    ours = SlotSet.of([key_slot(b"a"), key_slot(b"c")])
    lane = filter_of(ours)
    assert key_slot(b"b") not in lane
    data = command(b"RENAME", b"a", b"b") + command(b"COPY", b"a", b"c")
    data += command(b"SUNIONSTORE", b"{c}d", b"c") + command(b"EVAL", b"x", b"2", b"b", b"c")
    (batch,) = batches_of(data, lane)
    assert batch.across == [0, 1, 3]
    assert batch.changed() == ([(0, b"a"), (0, b"c"), (0, b"{c}d")], [])
    assert batch.derived([(0, b"a")]) == ([(0, b"c"), (0, b"{c}d")], [])
    assert batch.within([(0, b"a"), (1, b"a"), (0, b"b")]) == [(0, b"a"), (1, b"a")]


def test_slots_that_are_moved_are_told_of() -> None:
    data = command(b"RESTORE-ASKING", b"b", b"0", b"payload")
    data += command(b"SET", b"a", b"1") + command(
        b"CLUSTER", b"SYNCSLOTS", b"ESTABLISH", b"NAME", b"x"
    )
    data += command(b"TRIMSLOTS", b"RANGES", b"1", b"0", b"5")
    # Valkey tells its replicas who gets a slot.
    data += command(b"CLUSTER", b"SETSLOT", b"5", b"NODE", b"0" * 40)
    (batch,) = batches_of(data, filter_of(SlotSet.of([key_slot(b"a")])))
    assert batch.slot_moves == batch.across == [0, 2, 3, 4]
    assert batch.changes(0) == batch.changes(4) == []
    assert batch.command(2)[1] == b"SYNCSLOTS"


def test_what_is_left_out_is_counted() -> None:
    reader = StreamReader(0, slots=filter_of(SlotSet.of([key_slot(b"a")])))
    data = command(b"SET", b"a", b"1") + command(b"SET", b"b", b"1") + command(b"SELECT", b"1")
    data += command(b"SET", b"a", b"1") + command(b"SET", b"b", b"1")
    reader.feed(data)
    assert (reader.commands, reader.elsewhere) == (2, 2)
    assert reader.filter is not None
    reader.flush()
    (batch,) = reader.take()
    assert (len(batch), batch.end_offset, batch.db_after) == (2, len(data), 1)


def test_a_renamed_command_goes_in_parts_under_its_new_name() -> None:
    names = [(b"zap", b"DEL", b"xdel")]
    data = command(b"Zap", b"a", b"b") + command(b"ZAP", b"a") + command(b"zap", b"b")
    (batch,) = batches_of(data, filter_of(ALL_SLOTS), names=names)
    assert [batch.command(index) for index in range(len(batch))] == [
        [b"xdel", b"a"],
        [b"xdel", b"b"],
        [b"xdel", b"a"],
        [b"xdel", b"b"],
    ]


def test_a_near_ttl_that_has_to_be_extended_is_read_again() -> None:
    def across(at: int) -> list[int]:
        reader = StreamReader(0, slots=filter_of(ALL_SLOTS))
        reader.extend_before, reader.extend_by = NOW, 1000
        reader.feed(command(b"MSETEX", b"2", b"a", b"1", b"b", b"2", b"PXAT", b"%d" % at))
        reader.flush()
        return reader.take()[0].across

    assert across(NOW - 1) == [0]
    assert across(NOW + 1) == []


@pytest.mark.parametrize("memory", [8 << 20, 5000])
def test_long_commands_go_in_parts(memory: int, tmp_path: Path) -> None:
    """Also where they lie in a file, and with more keys than are grouped at once."""
    rng = random.Random(5)
    keys = [b"%d:" % n + b"x" * (n % 300) for n in range(10_000)]
    args = [b"MSET", *(word for key in keys for word in (key, rng.randbytes(5)))]
    count = 0

    lane = filter_of(SlotSet(((0, 8000),)))

    def file() -> int:
        nonlocal count
        count += 1
        return os.open(tmp_path / str(count), os.O_RDWR | os.O_CREAT)

    reader = StreamReader(0, slots=lane, file=file, memory_bytes=memory)
    reader.feed(command(*args) + command(b"DEL", *keys))
    reader.flush()
    wanted = dict(zip(args[1::2], args[2::2], strict=True))
    found: dict[bytes, bytes] = {}
    for batch in reader.take():
        assert batch.in_file == (memory == 5000)
        assert not batch.across
        assert batch.stream_commands == 1 or not batch.in_file
        for index in range(len(batch)):
            part = batch.command(index)
            assert len({key_slot(key) for key in batch.keys(index) or ()}) == 1
            if part[0] == b"MSET":
                run(found, part)
            else:
                assert all(found.pop(key) == wanted.pop(key) for key in part[1:])
    assert found == {}
    assert wanted
    assert all(key_slot(key) > 8000 for key in wanted)


@settings(max_examples=150)
@given(st.integers(0, 2**32))
def test_damaged_bytes(seed: int) -> None:
    """They are refused where a reader without slots refuses them; what comes before is routed by
    the reference's rules, whatever its arguments have become."""
    rng = random.Random(seed)
    damaged = bytearray(rng.choice([STREAM, random_stream(rng, 8)[0]]))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(damaged))
        damaged[at] = rng.choice([rng.randrange(256), damaged[rng.randrange(len(damaged))]])
    data, sizes = bytes(damaged), rng.choice([[1], [13], [4000]])
    lane = SlotSet.of(key_slot(key) for key in rng.sample(KEYS, 4))
    said = []
    for slots in (None, filter_of(lane, keyless=True), filter_of(ALL_SLOTS)):
        reader = StreamReader(1000, slots=slots)
        try:
            push(reader, data, sizes)
            said.append(("", reader.parsed_offset))
        except ProtocolError as exc:
            said.append((str(exc), exc.offset))
            continue
        reader.flush()
        if slots is None:
            continue
        wanted = []
        for step in stream_reference.read(data, 1000).commands:
            if step.end_offset <= reader.batched_offset:
                assert step.args is not None
                where = set(lane if slots.keyless else ALL_SLOTS)
                wanted += reference.route(step.args, step.db, where, slots.keyless)
        assert read(reader.take()) == wanted
    assert len(set(said)) == 1


def test_a_filter_holds_its_slots() -> None:
    slots = SlotFilter([(5, 9), (0, 0), (8, 20)], keyless=True)
    assert len(slots) == 17
    assert [slot for slot in range(-2, 20000) if slot in slots] == [0, *range(5, 21)]
    assert slots.keyless
    assert slots.ranges == ((5, 9), (0, 0), (8, 20))
    inside = SlotFilter([(key_slot(b"a"), key_slot(b"a"))], keyless=False)
    assert inside.takes(b"a")
    assert inside.takes(b"{a}x")
    assert not inside.takes(b"b")
    for wrong in ([(1, 0)], [(-1, 3)], [(0, 16384)]):
        with pytest.raises(ValueError, match="not a range of slots"):
            SlotFilter(wrong, keyless=False)
    with pytest.raises(TypeError):
        StreamReader(0, slots=OrderedDigest(b"k" * 16))  # type: ignore[arg-type]


def test_each_slot_has_a_tag() -> None:
    for slot in (0, 1, 5461, 16383, *random.Random(3).sample(range(SLOTS), 50)):
        tag = slot_tag(slot)
        assert len(tag) <= 4
        assert tag.isalnum()
        assert key_slot(b"startmigration:{%s}:position" % tag.encode()) == slot
    for wrong in (-1, SLOTS):
        with pytest.raises(ValueError, match="not a slot"):
            slot_tag(wrong)


def test_a_route_says_what_is_filtered() -> None:
    assert ONLY.filter is None
    half = SlotSet(((0, 8191),))
    assert Route(from_cluster=True).filter is not None
    there = Route(slots=half, to_cluster=True, leads=False).filter
    assert there is not None
    assert (there.ranges, there.keyless) == (half.ranges, False)
    back = Route(slots=half, from_cluster=True).filter
    assert back is not None
    assert back.keyless
