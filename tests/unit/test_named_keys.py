"""Which keys a stream has named, against a set of Python."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from engine._native import (
    CommandBatch,
    NamedKeys,
    SlotFilter,
    StreamReader,
    encode_command,
    key_slot,
)

Key = tuple[int, bytes]


def batches(*commands: tuple[str | bytes | int, ...]) -> Iterator[CommandBatch]:
    reader = StreamReader(0, 0)
    for command in commands:
        reader.feed(encode_command(*command))
    reader.flush()
    yield from reader.take()


def noted(*commands: tuple[str | bytes | int, ...]) -> NamedKeys:
    named = NamedKeys()
    for batch in batches(*commands):
        named.note(batch)
    return named


@pytest.mark.parametrize("seed", range(3))
def test_every_key_that_was_named_is_among_them(seed: int) -> None:
    rng = random.Random(seed)
    named, model = NamedKeys(seed=seed), dict[Key, None]()
    for _ in range(30_000):
        name = rng.randrange(16), rng.randbytes(rng.choice((0, 1, 2, 7, 8, 9, 60)))
        named.add(*name)
        model[name] = None
    assert named.complete
    assert named.names() == list(model)
    assert len(named) == len(model)
    assert all(named.has(*each) for each in model)
    others = [rng.randbytes(12) for _ in range(10_000)]
    # A million bits, of which 20,000 are set: one in fifty.
    assert len(named.among(3, others)) < 400
    some = [key for db, key in model if db == 5]
    assert named.among(5, some) == some


def test_names_that_do_not_fit_are_found_all_the_same() -> None:
    named = NamedKeys(most_bytes=10_000)
    keys = [b"key:%d" % n for n in range(5_000)]
    for key in keys:
        named.add(0, key)
    assert not named.complete
    with pytest.raises(ValueError, match="not kept"):
        named.names()
    assert named.among(0, keys) == keys
    assert named.nbytes < 200_000
    assert 0 < len(named) <= len(keys)


def test_names_of_commands() -> None:
    named = noted(
        ("SET", "a", "1"),
        ("SELECT", 3),
        ("MULTI",),
        ("RENAME", "b", "c"),
        ("MSET", "d", "1", "e", "2"),
        ("EXEC",),
        ("COPY", "f", "g", "DB", 4),
        ("ZUNIONSTORE", "h", 2, "i", "j"),
        ("PING",),
        ("PUBLISH", "channel", "message"),
        ("DEL", "a"),
    )
    found = [(3, name) for name in (b"b", b"c", b"d", b"e", b"f")] + [(4, b"g")]
    found += [(3, name) for name in (b"h", b"i", b"j", b"a")]
    assert named.names() == [(0, b"a"), *found]
    assert not named.everything


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("SWAPDB", 0, 1),
        ("EVAL", "return 1", 1, "key"),
        ("NO.SUCH", "key"),
        ("FT.DROPINDEX", "index", "DD"),
        ("FT._DROPINDEXIFX", "index", "dd"),
        ("FT.DROP", "keepdocs"),
        ("FT._DROPIFX", "index"),
        # Not as the server would have sent it.
        ("ZUNIONSTORE", "h", 9, "i"),
    ],
)
def test_what_may_change_any_key(command: tuple[str | int, ...]) -> None:
    named = noted(("SET", "a", "1"), command, ("SET", "b", "1"))
    assert named.everything
    assert not named.complete
    assert named.has(7, b"whatever")
    assert named.among(0, [b"x", b"y"]) == [b"x", b"y"]


def test_an_index_that_leaves_its_documents() -> None:
    named = noted(
        ("FT.DROPINDEX", "dd"),
        ("FT._DROPINDEXIFX", "index", "_FORCEKEEPDOCS"),
        ("FT.DROP", "index", "KEEPDOCS"),
        ("FT.DROPINDEX",),
        ("FT.CREATE", "index", "SCHEMA", "dd", "TEXT"),
    )
    assert not named.everything
    assert not named.names()


def test_keys_of_other_lanes_are_not_named() -> None:
    ours = SlotFilter([(0, 8191)], keyless=False)
    reader = StreamReader(0, 0, slots=ours)
    keys = [b"key:%d" % n for n in range(200)]
    reader.feed(encode_command("MSET", *(each for key in keys for each in (key, b"1"))))
    reader.feed(encode_command("SINTERSTORE", *keys))
    reader.flush()
    named = NamedKeys()
    for batch in reader.take():
        named.note(batch)
    wanted = [(0, key) for key in keys if key_slot(key) <= 8191]
    assert sorted(named.names()) == sorted(wanted)
