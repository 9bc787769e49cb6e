"""Which commands of a stream go to one lane, by slots or rules, in slow, obvious Python.

It reads the rows of the core's table, and finds keys and decides on its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.reference.crc import key_slot

ROWS: dict[str, tuple[str, frozenset[str]]] = {
    name: (keys, frozenset(flags.split()))
    for name, keys, flags in re.findall(
        r'^    \("([^"]+)", "([^"]*)", "([^"]*)"\),',
        (Path(__file__).resolve().parents[2] / "ext" / "command_table.pxi").read_text(),
        re.MULTILINE,
    )
}


class Unknown(ValueError):
    """The keys of these arguments cannot be told."""


@dataclass(frozen=True)
class Named:
    """A key of a command: which argument it is, its database, whether it may be changed."""

    at: int
    key: bytes
    db: int
    written: bool


@dataclass(frozen=True)
class Routed:
    """A command as it goes to the lane (`across`: it stays there, and is not sent)."""

    args: list[bytes]
    db: int
    across: bool = False
    dirty: tuple[tuple[int, bytes], ...] = ()


def row_of(args: Sequence[bytes]) -> tuple[str, frozenset[str]] | None:
    """Keys and flags of the command's row; None: it has none."""
    name = args[0].decode("latin-1").lower()
    found = ROWS.get(name)
    if found is not None and "container" in found[1]:
        if len(args) < 2:
            return None
        return ROWS.get(f"{name}|{args[1].decode('latin-1').lower()}")
    return found


def number(text: bytes) -> int:
    if not re.fullmatch(rb"-?[0-9]{1,18}", text):
        raise Unknown
    return int(text)


def keys_of(args: Sequence[bytes], notation: str, db: int) -> list[Named]:
    """Raises `Unknown`."""
    found: list[Named] = []
    name, end = args[0].lower(), len(args)
    if notation == "sort":
        stored = list(after_store(args, 2, sort=True))
        return [Named(1, args[1], db, False)] + [Named(at, args[at], db, True) for at in stored]
    if notation == "streams":
        return [Named(at, args[at], db, True) for at in streams(args)]
    if notation == "migrate":
        return [Named(at, args[at], db, True) for at in migrated(args)]
    for part in notation.split():
        letters, places = re.fullmatch(r"([rw]*)(.*)", part).groups()  # type: ignore[union-attr]
        written = "w" in letters
        if part.startswith("store"):
            stored = list(after_store(args, int(part[5:]), sort=False))
            found += [Named(at, args[at], db, True) for at in stored]
            continue
        places, _, step = places.partition("/")
        stride = int(step or 1)
        if places.endswith("#"):
            at = int(places[:-1])
            if at >= end:
                raise Unknown
            many = number(args[at])
            if many < 0 or many > (end - 1 - at) // stride:
                raise Unknown
            wanted = range(at + 1, at + 1 + many * stride, stride)
        else:
            first, _, last = places.partition("-")
            start = int(first)
            stop = start + 1 if not last else end if last == "*" else end - 1
            if stop <= start and not (found and last and stop == start):
                raise Unknown
            if stop > end:
                raise Unknown
            wanted = range(start, stop, stride)
        found += [Named(at, args[at], db, written) for at in wanted]
    if name == b"move":
        if end < 3:
            raise Unknown
        other = number(args[2])
        if not 0 <= other < 1 << 31:
            raise Unknown
        found.append(Named(1, args[1], other, True))
    if name == b"copy":
        for at in range(3, end):
            if args[at].lower() == b"db":
                if at + 1 == end or not 0 <= number(args[at + 1]) < 1 << 31:
                    raise Unknown
                moved = found[1]
                found[1] = Named(moved.at, moved.key, number(args[at + 1]), True)
                break
    return found


def after_store(args: Sequence[bytes], first: int, sort: bool) -> Iterator[int]:
    """The last argument behind STORE."""
    at, found = first, None
    while at < len(args):
        word = args[at].lower()
        if word == b"store" or (not sort and word == b"storedist"):
            if at + 1 < len(args):
                found = at + 1
            at += 2
        elif sort and word in (b"by", b"get"):
            at += 2
        elif sort and word == b"limit":
            at += 3
        else:
            at += 1
    if found is not None:
        yield found


def streams(args: Sequence[bytes]) -> list[int]:
    at = 1
    while at < len(args):
        word = args[at].lower()
        if word == b"group":
            at += 3
        elif word in (b"count", b"block", b"claim", b"maxcount", b"maxsize"):
            at += 2
        elif word == b"streams":
            left = len(args) - at - 1
            if not left or left % 2:
                raise Unknown
            return list(range(at + 1, at + 1 + left // 2))
        else:
            at += 1
    raise Unknown


def migrated(args: Sequence[bytes]) -> list[int]:
    if len(args) < 4:
        raise Unknown
    if args[3]:
        return [3]
    at = 6
    while at < len(args):
        word = args[at].lower()
        if word == b"keys" and at + 1 < len(args):
            return list(range(at + 1, len(args)))
        at += 2 if word == b"auth" else 3 if word == b"auth2" else 1
    raise Unknown


def has_pattern(args: Sequence[bytes]) -> bool:
    """Of SORT: whether it reads keys by a pattern."""
    at = 2
    while at < len(args):
        word = args[at].lower()
        if word in (b"by", b"get"):
            if at + 1 < len(args) and b"*" in args[at + 1]:
                return True
            at += 2
        elif word == b"limit":
            at += 3
        elif word == b"store":
            at += 2
        else:
            at += 1
    return False


Takes = Callable[[int, bytes], bool]
"""Whether rules take a key of a database."""


def parts_of(
    args: list[bytes], notation: str, db: int, slots: Collection[int] | None, takes: Takes
) -> list[list[bytes]] | None:
    """The command as one a slot, or as one where there are none; None: it cannot be taken apart."""
    step = int(notation.partition("/")[2] or 1)
    head, rest, options = [args[0]], args[1:], []
    counted = "#" in notation
    if counted:
        many = number(args[1])
        rest, options = args[2 : 2 + many * step], args[2 + many * step :]
        if {word.lower() for word in options} & {b"nx", b"xx"} or not many:
            return None
    if len(rest) % step:
        return None
    by_slot: dict[int, list[bytes]] = {}
    for at in range(0, len(rest), step):
        slot = 0 if slots is None else key_slot(rest[at])
        if (slots is None or slot in slots) and takes(db, rest[at]):
            by_slot.setdefault(slot, []).extend(rest[at : at + step])
    return [
        [*head, *([b"%d" % (len(some) // step)] if counted else []), *some, *options]
        for some in by_slot.values()
    ]


def keyless_by_rule(
    args: list[bytes], db: int, flags: frozenset[str], dbs: Callable[[int], bool]
) -> list[Routed]:
    """What a command without keys becomes where there are rules, which take keys of some `dbs`."""
    name = args[0].lower()
    if name == b"swapdb":
        one, other = int(args[1]), int(args[2])
        moved = one != other and (dbs(one) or dbs(other))
        return [Routed(args, db, across=True)] if moved else []
    if name == b"flushall" or (name == b"flushdb" and dbs(db)) or name == b"himport":
        return [Routed(args, db)]
    return [Routed(args, db, across=True)] if "writes-unnamed" in flags else []


def route(
    args: list[bytes],
    db: int,
    slots: Collection[int] | None,
    keyless: bool,
    takes: Takes | None = None,
    dbs: Callable[[int], bool] = lambda db: True,
) -> list[Routed]:
    """What one command becomes on the lane that has `slots` (None: all, and keys of several go in a
    command), and the keys that rules take, if there are any."""
    row, name = row_of(args), args[0].lower()
    if row is None:
        return [Routed(args, db, across=True)]
    notation, flags = row
    if "slot-moves" not in flags and "keyless" in flags and takes is not None:
        return keyless_by_rule(args, db, flags, dbs)
    if "slot-moves" not in flags and "keyless" in flags:
        assert slots is not None
        if name == b"swapdb":
            return [] if int(args[1]) == int(args[2]) else [Routed(args, db, across=True)]
        sent = Routed(args, db if name == b"flushdb" or "module" in flags else 0)
        if name == b"publish":
            return [sent] if keyless else []
        if name == b"spublish":
            return [sent] if len(args) > 1 and key_slot(args[1]) in slots else []
        if "writes-unnamed" in flags and "module" not in flags:
            return [Routed(args, sent.db, across=True)]
        return [sent]
    try:
        named = keys_of(args, notation, db)
    except Unknown:
        return [Routed(args, db, across=True)]
    by_rule, takes = takes is not None, takes or (lambda db, key: True)
    ours = [
        each
        for each in named
        if (slots is None or key_slot(each.key) in slots) and takes(each.db, each.key)
    ]
    dirty = tuple((each.db, each.key) for each in ours if each.written)
    across = [Routed(args, db, True, dirty)]
    if "slot-moves" in flags or not named:
        return across
    here = {0 if slots is None else key_slot(each.key) for each in named}
    if "script" in flags and by_rule:
        return across
    if len(ours) == len(named) and len(here) == 1:
        pattern = "reads-unnamed" in flags and "script" not in flags and has_pattern(args)
        return across if pattern else [Routed(args, db)]
    if "script" in flags:
        return across
    if not ours:
        return []
    if "parts" in flags:
        parts = parts_of(args, notation, db, slots, takes)
        return across if parts is None else [Routed(part, db) for part in parts]
    return across if dirty else []
