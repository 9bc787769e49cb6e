"""The replication stream in slow, obvious Python: what the core's reader must agree with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

# The core's table: the keys of each command, as it notes them ("" for none).
ROWS: dict[str, str] = dict(
    re.findall(
        r'^    \("([^"]+)", "([^"]*)", "[^"]*"\),$',
        (Path(__file__).resolve().parents[2] / "ext" / "command_table.pxi").read_text(),
        re.MULTILINE,
    )
)
HAVE_KEYS = {name.upper().encode() for name, keys in ROWS.items() if keys}
TAKEN_OUT = {b"PING", b"REPLCONF", b"SELECT", b"MULTI", b"EXEC"}
MESSAGES = {b"PUBLISH", b"SPUBLISH"}
SENTINELS = b"__sentinel__:hello"


class Broken(ValueError):
    """These bytes are no replication stream."""


def command(*args: bytes) -> bytes:
    """A command on the wire."""
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in args)


@dataclass
class Step:
    """One thing of the stream: `args` None where it is taken out. The state is that behind it."""

    end_offset: int
    args: list[bytes] | None
    db: int
    in_multi: bool


@dataclass
class Stream:
    """A stream that was read as far as it goes; `rest` is an unfinished command."""

    start_offset: int
    db_before: int = 0
    in_multi_before: bool = False
    steps: list[Step] = field(default_factory=list)
    rest: bytes = b""

    @property
    def commands(self) -> list[Step]:
        """The steps that are passed on."""
        return [step for step in self.steps if step.args is not None]

    @property
    def boundaries(self) -> dict[int, tuple[int, bool]]:
        """Every offset at which the stream may be cut, with the state there."""
        found = {self.start_offset: (self.db_before, self.in_multi_before)}
        return found | {step.end_offset: (step.db, step.in_multi) for step in self.steps}

    @property
    def unit_ends(self) -> set[int]:
        """Offsets outside of MULTI, where a batch may close."""
        return {step.end_offset for step in self.steps if not step.in_multi}


def line(data: bytes, at: int, kind: bytes) -> tuple[int, int] | None:
    """The number in the header at `at`, and where it ends; None if it is not whole."""
    end = data.find(b"\r\n", at)
    text = data[at:] if end < 0 else data[at:end]
    if text[:1] not in (kind, b"") or (end >= 0 and not text):
        raise Broken
    digits = text[1:]
    if end < 0:
        digits = digits.removesuffix(b"\r") if digits != b"\r" else digits
        if digits and not digits.isdigit():
            raise Broken
        if len(digits) > 10 or (len(digits) > 1 and digits[:1] == b"0"):
            raise Broken
        return None
    if not digits.isdigit() or len(digits) > 10 or (len(digits) > 1 and digits[:1] == b"0"):
        raise Broken
    return int(digits), end + 2


def read_command(data: bytes, at: int) -> tuple[list[bytes], int] | None:
    """The command at `at` and where it ends; None if it is not whole."""
    header = line(data, at, b"*")
    if header is None:
        return None
    count, at = header
    if not 0 < count <= 1 << 30:
        raise Broken
    args = []
    for _ in range(count):
        header = line(data, at, b"$")
        if header is None:
            return None
        size, at = header
        if size > 1 << 30:
            raise Broken
        if len(data) < at + size + 2:
            return None
        if data[at + size : at + size + 2] != b"\r\n":
            raise Broken
        args.append(data[at : at + size])
        at += size + 2
    return args, at


def database(text: bytes) -> int:
    """The number of a database."""
    if not text.removeprefix(b"-").isdigit() or not 0 <= int(text) < 2**31 or len(text) > 19:
        raise Broken
    return int(text)


def read(data: bytes, offset: int = 0, db: int = 0, in_multi: bool = False) -> Stream:
    """Read a stream from `offset` on. Raises `Broken`."""
    stream = Stream(offset, db, in_multi)
    at = 0
    while at < len(data):
        if data[at : at + 1] == b"\r" and at + 1 == len(data):
            break
        args: list[bytes] | None = None
        if data[at : at + 1] == b"\n":
            at += 1
        elif data[at : at + 2] == b"\r\n":
            at += 2
        else:
            found = read_command(data, at)
            if found is None:
                break
            args, at = found
            name = args[0].upper()
            if name == b"SELECT":
                if len(args) != 2:
                    raise Broken
                db = database(args[1])
            elif name == b"SWAPDB":
                if len(args) != 3:
                    raise Broken
                database(args[1])
                database(args[2])
            elif name in (b"MULTI", b"EXEC"):
                in_multi = name == b"MULTI"
            elif len(args) == 1 and name in HAVE_KEYS:
                raise Broken
            if name in TAKEN_OUT or (name in MESSAGES and args[1:2] == [SENTINELS]):
                args = None
        stream.steps.append(Step(offset + at, args, db, in_multi))
    stream.rest = data[at:]
    return stream


def transaction(
    commands: list[tuple[int, bytes]],
    position_key: bytes,
    position: bytes,
    *,
    db: int,
    position_db: int = 0,
) -> tuple[bytes, list[int | None]]:
    """What has to go out for (database, command) pairs; which of them sits at each slot."""
    out = command(b"MULTI")
    slots: list[int | None] = []

    def put(to: int, data: bytes, index: int | None) -> None:
        nonlocal out, db
        if to != db:
            out += command(b"SELECT", b"%d" % to)
            slots.append(None)
            db = to
        out += data
        slots.append(index)

    for index, (to, data) in enumerate(commands):
        put(to, data, index)
        found = read_command(data, 0)
        assert found is not None
        args = found[0]
        if args[0].upper() == b"SWAPDB":
            pair = {int(args[1]), int(args[2])}
            if len(pair) == 2 and position_db in pair:
                (other,) = pair - {position_db}
                put(other, command(b"DEL", position_key), None)
    put(position_db, command(b"SET", position_key, position), None)
    out += command(b"EXEC") + command(b"WATCH", position_key) + command(b"GET", position_key)
    return out, slots
