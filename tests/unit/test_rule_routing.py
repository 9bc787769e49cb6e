"""What of a stream goes over by rules, against slow Python.

Invariant: nothing that is sent names a key that the rules leave; and each change of a key that they
take is sent, or the key is read again. The reference is `tests/reference/routing.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import (
    CMD_FLUSHES,
    CommandBatch,
    KeyFilter,
    KeyRules,
    NamedKeys,
    StreamReader,
    key_slot,
)
from engine.model.rules import rules_of
from engine.model.slots import SlotSet
from tests.reference import routing as reference
from tests.reference.stream import command
from tests.support.feeding import push
from tests.unit.test_slot_routing import KEYS, filter_of, lanes_of, random_stream, read

RULES = (
    "prefix:a",
    "prefix:k",
    "prefix:{",
    "glob:*b*",
    "regex:[0-9]$",
    "db:0",
    "db:3,prefix:k",
    "db:0,glob:?",
    "prefix:x{",
)


def some_rules(rng: random.Random) -> tuple[tuple[str, ...], tuple[str, ...]]:
    include = tuple(rng.sample(RULES, rng.randint(0, 3)))
    return include, tuple(rng.sample(RULES, rng.randint(0 if include else 1, 2)))


def takes_of(rules: KeyRules) -> Callable[[int, bytes], bool]:
    return lambda db, key: rules.takes(db, key) is True


def batches_of(data: bytes, rng: random.Random, **how: object) -> list[CommandBatch]:
    reader = StreamReader(1000, batch_commands=rng.choice([1, 5, 8192]), **how)  # type: ignore[arg-type]
    push(reader, data, rng.choice([None, [1], [7, 3]]))
    reader.flush()
    return reader.take()


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_what_goes_over_is_what_the_reference_says(seed: int) -> None:
    """By rules alone, and by slots and rules."""
    rng = random.Random(seed)
    data, sent = random_stream(rng, 12)
    found = rules_of(*some_rules(rng))
    rules = found.compiled()
    for lane in (None, *lanes_of(rng, 2)):
        slots = None if lane is None else filter_of(lane)
        wanted = []
        for args, db in sent:
            wanted += reference.route(
                args,
                db,
                None if lane is None else set(lane),
                False,
                takes_of(rules),
                found.takes_db,
            )
        assert read(batches_of(data, rng, slots=slots, rules=rules)) == wanted


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_no_change_is_lost_and_no_neighbour_named(seed: int) -> None:
    rng = random.Random(seed)
    data, sent = random_stream(rng, 8)
    rules = rules_of(*some_rules(rng)).compiled()
    takes = takes_of(rules)
    changes: list[tuple[int, bytes]] = []
    named = NamedKeys(100, seed=seed)
    for batch in batches_of(data, rng, rules=rules):
        across = batch.across
        named.note(batch)
        for index in range(len(batch)):
            found = batch.changes(index)
            if found is None:
                assert index in across
                continue
            changes += found
            assert all(takes(*each) for each in found)
            args = batch.command(index)
            row = reference.row_of(args)
            if index not in across and row is not None and row[0]:
                here = reference.keys_of(args, row[0], batch.db(index))
                assert all(takes(each.db, each.key) for each in here)
        keys, _ = batch.changed()
        assert all(takes(*each) for each in keys)
        dirty = [(db, key) for db in (0, 3) for key in KEYS if takes(db, key)]
        assert all(takes(*each) for each in batch.derived(dirty)[0])
    wanted: list[tuple[int, bytes]] = []
    for args, db in sent:
        row = reference.row_of(args)
        try:
            keys_of = reference.keys_of(args, row[0], db) if row is not None and row[0] else []
        except reference.Unknown:
            continue
        wanted += [(each.db, each.key) for each in keys_of if each.written]
    assert sorted(changes) == sorted(each for each in wanted if takes(*each))
    if named.complete:
        assert all(takes(*each) for each in named.names())


def test_what_each_kind_of_command_becomes() -> None:
    rules = rules_of(("prefix:a",), ("db:5",)).compiled()

    def became(*commands: tuple[bytes, ...], db: int = 0) -> list[tuple[list[bytes], bool]]:
        reader = StreamReader(0, rules=rules)
        reader.feed(command(b"SELECT", b"%d" % db))
        for args in commands:
            reader.feed(command(*args))
        reader.flush()
        return [
            (batch.command(index), index in batch.across)
            for batch in reader.take()
            for index in range(len(batch))
        ]

    assert became((b"SET", b"a1", b"v"), (b"SET", b"b", b"v")) == [([b"SET", b"a1", b"v"], False)]
    assert became((b"DEL", b"b", b"a1", b"c", b"a2")) == [([b"DEL", b"a1", b"a2"], False)]
    mset = (b"MSET", b"a", b"1", b"b", b"2", b"a3", b"3")
    assert became(mset) == [([b"MSET", b"a", b"1", b"a3", b"3"], False)]
    assert became((b"MSET", b"a", b"1", b"a3", b"3")) == [
        ([b"MSET", b"a", b"1", b"a3", b"3"], False)
    ]
    for args in (
        (b"RENAME", b"a", b"b"),
        (b"RENAME", b"b", b"a"),
        (b"SINTERSTORE", b"a", b"a1", b"b"),
        (b"LMOVE", b"a", b"b", b"LEFT", b"LEFT"),
        (b"MSETNX", b"a", b"1", b"b", b"2"),
        (b"MOVE", b"a", b"5"),
        (b"COPY", b"b", b"a"),
        (b"EVAL", b"return 1", b"1", b"a"),
        (b"EVAL", b"return 1", b"1", b"b"),
        (b"EVAL", b"return 1", b"0"),
        (b"SORT", b"a", b"BY", b"w_*", b"STORE", b"a2"),
        (b"SWAPDB", b"0", b"1"),
        (b"SWAPDB", b"5", b"1"),
        (b"NOSUCH", b"b"),
        (b"FT.DROPINDEX", b"i", b"DD"),
    ):
        assert became(args) == [(list(args), True)], args
    for args in (
        (b"COPY", b"a", b"b"),
        (b"SINTERSTORE", b"b", b"a"),
        (b"COPY", b"a", b"a2", b"DB", b"5"),
        (b"PUBLISH", b"a", b"message"),
        (b"FUNCTION", b"FLUSH"),
        (b"SCRIPT", b"FLUSH"),
        (b"FT.CREATE", b"a"),
        (b"SWAPDB", b"5", b"5"),
        (b"UNLINK", b"b", b"c"),
    ):
        assert became(args) == [], args
    for args in ((b"FLUSHALL",), (b"FLUSHDB",), (b"RENAME", b"a", b"a2")):
        assert became(args) == [(list(args), False)], args
    assert became((b"FLUSHDB",), (b"SET", b"a", b"v"), (b"DEL", b"a", b"b"), db=5) == []
    assert became((b"FLUSHALL",), db=5) == [([b"FLUSHALL"], False)]


def test_a_move_out_of_the_rules_makes_what_is_gone_dirty() -> None:
    rules = rules_of(("db:3,prefix:a",), ()).compiled()
    reader = StreamReader(0, 3, rules=rules)
    reader.feed(command(b"MOVE", b"a", b"4") + command(b"COPY", b"a", b"a2", b"DB", b"3"))
    reader.feed(command(b"RENAME", b"a1", b"b"))
    reader.flush()
    (batch,) = reader.take()
    assert [batch.changes(index) for index in batch.across] == [[(3, b"a")], [(3, b"a1")]]
    assert batch.within([(3, b"a"), (0, b"a"), (3, b"b")]) == [(3, b"a")]
    assert batch.command(1) == [b"COPY", b"a", b"a2", b"DB", b"3"]
    assert not batch.holds(CMD_FLUSHES)


def test_a_filter_takes_what_both_take() -> None:
    rules = rules_of(("prefix:a",), ()).compiled()
    one = filter_of(SlotSet.of([key_slot(b"a")]))
    both = KeyFilter(one, rules)
    assert both.takes(0, b"a")
    assert not both.takes(0, b"ab")
    assert not both.takes(0, b"{a}b")
    assert KeyFilter(None, rules).takes(0, b"ab")
    assert KeyFilter(one, None).takes(0, b"{a}b")
    assert (both.slots, both.rules) == (one, rules)
    for types in (("type:hash",), ("type:set,prefix:a",)):
        with pytest.raises(ValueError, match="type of a key"):
            StreamReader(0, rules=rules_of(types, ()).compiled())


def test_which_databases_rules_take() -> None:
    for include, exclude, wanted in (
        ((), ("db:3",), {0, 5}),
        (("db:3,prefix:a", "db:5"), (), {3, 5}),
        (("prefix:a",), ("db:0,prefix:a",), {0, 3, 5}),
        ((), ("db:5,type:hash",), {0, 3, 5}),
    ):
        found = rules_of(include, exclude)
        rules = found.compiled()
        for db in (0, 3, 5):
            assert rules.takes_db(db) == found.takes_db(db) == (db in wanted)
    rules = rules_of(("prefix:a", "type:hash"), ()).compiled()
    # (What hangs on the type may go.)
    assert rules.chosen(0, [b"a", b"b"]) == [b"a", b"b"]
    assert rules_of(("prefix:a",), ()).compiled().chosen(0, [b"b", b"a", b"ab"]) == [b"a", b"ab"]
