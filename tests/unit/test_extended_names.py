"""The set of keys whose deadlines are lifted, against a set of Python."""

from __future__ import annotations

import random
import time

import pytest

from engine._native import ExtendedNames, StreamReader, encode_command
from engine.model.online_checkpoint import EXTEND_MS

YEAR_MS = 365 * 86_400_000


def listed(names: ExtendedNames, most: int = 7) -> list[tuple[int, bytes]]:
    return [name for page in names.pages(most) for name in page]


def batch_of(*commands: tuple[str | bytes | int, ...], lift: bool = True) -> StreamReader:
    """A batch of commands whose near deadlines are lifted."""
    reader = StreamReader(0, 3)
    if lift:
        reader.extend_before = int(time.time() * 1000) + YEAR_MS
        reader.extend_by = EXTEND_MS
    for command in commands:
        reader.feed(encode_command(*command))
    reader.flush()
    (batch,) = reader.take()
    return batch


def test_it_holds_each_name_once() -> None:
    names, model = ExtendedNames(), dict[tuple[int, bytes], None]()
    assert not names.known
    names.add(0, b"before the first clear")
    assert listed(names) == []
    names.clear()
    assert names.known
    rng = random.Random(5)
    for _ in range(20_000):
        name = rng.randrange(16), rng.randbytes(rng.choice((0, 1, 2, 7, 8, 9, 100)))
        names.add(*name)
        model[name] = None
    assert len(names) == len(model)
    assert listed(names, 1000) == list(model)
    assert names.nbytes < 4_000_000
    names.clear()
    assert names.known
    assert len(names) == names.nbytes == 0
    assert listed(names) == []


@pytest.mark.parametrize("bound", [{"names_most": 10}, {"bytes_most": 10 * (8 + 4)}])
def test_what_does_not_fit_is_not_known(bound: dict[str, int]) -> None:
    names = ExtendedNames(**bound)
    names.clear()
    for _ in range(2):
        for n in range(10):
            names.add(1, b"%4d" % n)
    assert names.known
    assert len(names) == 10
    names.add(2, b"   0")
    assert not names.known
    assert len(names) == names.nbytes == 0
    names.add(1, b"key")
    assert not names.known
    assert listed(names) == []


def test_names_that_are_added_or_go_while_they_are_read() -> None:
    names = ExtendedNames()
    names.clear()
    for n in range(5):
        names.add(0, b"%d" % n)
    pages = names.pages(3)
    assert len(next(pages)) == 3
    names.add(0, b"later")
    assert next(pages) == [(0, b"3"), (0, b"4"), (0, b"later")]
    pages = names.pages(2)
    next(pages)
    names.clear()
    names.add(0, b"a longer name than those before")
    assert list(pages) == []


def test_the_keys_of_commands() -> None:
    now = int(time.time() * 1000) + 60_000
    names = ExtendedNames()
    names.clear()
    names.add_commands(
        batch_of(
            ("SET", "set", "value", "PXAT", now),
            ("set", "plain", "value"),
            ("PEXPIREAT", "expires", now),
            ("PeXpIrEaT", "expires", now),
            ("GETEX", "got", "PXAT", now),
            ("RESTORE", "restored", now, b"payload", "ABSTTL"),
            ("RESTORE-ASKING", "asked for", now, b"payload", "ABSTTL"),
            ("MSETEX", 2, "one", "value", "two", "value", "PXAT", now),
            ("INCREX", "counted", "PXAT", now),
            ("PEXPIREAT", "far", now + 2 * YEAR_MS),
            ("DEL", "set"),
        )
    )
    assert names.known
    keys = (b"set", b"expires", b"got", b"restored", b"asked for", b"one", b"two", b"counted")
    assert listed(names) == [(3, key) for key in keys]
    names.add_commands(batch_of(("PEXPIREAT", "other", now), lift=False))
    assert len(names) == len(keys)
