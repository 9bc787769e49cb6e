"""Append-only files in slow, obvious Python: what the core's reader must agree with."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.reference.stream import HAVE_KEYS, TAKEN_OUT, Broken, database, read_command

ANNOTATION_BYTES_MOST = 1024


@dataclass
class Step:
    """A command, or an annotation (`args` None), and the state behind it."""

    end: int
    args: list[bytes] | None
    db: int
    in_multi: bool


@dataclass
class Aof:
    """One file without a snapshot. `end` lies behind the last whole unit, `open`: a MULTI is."""

    steps: list[Step] = field(default_factory=list)
    end: int = 0
    parsed: int = 0
    in_multi: bool = False
    times: list[int] = field(default_factory=list)
    cut: int | None = None

    def commands(self, until: int | None = None) -> list[tuple[int, int, list[bytes]]]:
        """(end, database, arguments) of what a target gets, up to that byte."""
        last = self.end if until is None else until
        return [
            (step.end, step.db, step.args)
            for step in self.steps
            if step.args is not None
            and step.end <= last
            and step.args[0].upper() not in TAKEN_OUT | {b"PUBLISH", b"SPUBLISH"}
        ]


def annotation(seconds: int) -> bytes:
    """A time, as a server writes it."""
    return b"#TS:%d\r\n" % seconds


def read(data: bytes, until: int | None = None) -> Aof:
    """Read a file. Raises `Broken` where a byte makes no sense."""
    found = Aof()
    at = db = multi_at = 0
    in_multi = False
    while at < len(data):
        begin = at
        args: list[bytes] | None = None
        if data[at : at + 1] == b"#":
            line = data[at : at + ANNOTATION_BYTES_MOST]
            size = line.find(b"\n") + 1
            if not size and len(line) == ANNOTATION_BYTES_MOST:
                raise Broken
            if not size:
                break
            seconds = line[:size].rstrip(b"\n").removesuffix(b"\r").removeprefix(b"#TS:")
            at += size
            if line.startswith(b"#TS:") and is_number(seconds):
                found.times.append(int(seconds))
                if until is not None and int(seconds) > until and found.cut is None:
                    found.cut = multi_at if in_multi else begin
        elif data[at : at + 1] == b"*":
            read_one = read_command(data, at)
            if read_one is None:
                break
            args, at = read_one
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
            elif name == b"MULTI":
                multi_at = multi_at if in_multi else begin
                in_multi = True
            elif name == b"EXEC":
                in_multi = False
            elif len(args) == 1 and name in HAVE_KEYS:
                raise Broken
        else:
            raise Broken
        found.steps.append(Step(at, args, db, in_multi))
    found.parsed, found.in_multi = at, in_multi
    found.end = multi_at if in_multi else at
    return found


def is_number(text: bytes) -> bool:
    """Whether the core reads it as a time."""
    return text.isdigit() and len(text) <= 19 and int(text) < 2**63
