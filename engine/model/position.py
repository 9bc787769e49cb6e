"""How far a transfer has come: what a checkpoint holds."""

from __future__ import annotations

import contextlib
import itertools
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.errors import ProtocolFault


@dataclass(frozen=True, slots=True)
class ScanPosition:
    """Every key that SCAN named before `cursor` in database `db` has been acknowledged.

    A table that is scanned in ranges has a pair for each that is not over, in `ranges`: its cursor,
    and the cursor at which it ends (0: at the end of the table). `cursor` is 0 then.

    A cursor means something only to the process that gave it (the server's hash seed changes with
    a restart), so the position is void when the source's `run_id` is another one. Databases in
    `done` are finished; `cursor` 0 is the start of `db`.
    """

    run_id: str
    db: int
    cursor: int
    done: tuple[int, ...] = ()
    ranges: tuple[tuple[int, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ScanPosition:
        """Inverse of `to_dict`."""
        ranges = tuple((int(at), int(end)) for at, end in data.get("ranges", ()))
        done = tuple(data["done"])
        return cls(data["run_id"], int(data["db"]), int(data["cursor"]), done, ranges)


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Everything of the replication stream up to and including byte `offset` is applied.

    `+CONTINUE` repeats neither SELECT nor MULTI, so the position carries what they said: the stream
    goes on in database `db`, and inside a transaction if `in_multi`.
    """

    replid: str
    offset: int
    db: int = 0
    in_multi: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StreamPosition:
        """Inverse of `to_dict`."""
        return cls(data["replid"], int(data["offset"]), int(data["db"]), bool(data["in_multi"]))


_NUMBER = r"(0|[1-9][0-9]{0,18})"
_PLACE = rf"{_NUMBER} {_NUMBER} ([01])"
_V1 = re.compile(rf"v1 (?P<transfer>\S+) (?P<replid>\S+) {_PLACE}")
_V2 = re.compile(
    rf"v2 (?P<transfer>\S+) (?P<engine>\S+)(?: (?P<replid>\S+) {_PLACE} {_PLACE})?"
    r"(?P<held> held)?(?P<open> open)?"
)
# Which of the writes at this place it is, and up to where commands may have been applied.
_V3 = re.compile(
    r"v3 (?P<v2>.*?)(?: serial (?P<serial>[1-9][0-9]{0,18}))?"
    r"(?: begun (?P<begun>0|[1-9][0-9]{0,18}))?"
)
# Of this process: the name of an engine is another one in each.
_serials = itertools.count(1)


@dataclass(frozen=True, slots=True)
class TargetPosition:
    """What lies on the target beside the data: whose it is, and which part of the stream it has.

    `transfer` names the transfer, `engine` the engine that wrote this last: what takes the
    transfer over writes its own name first, and what an engine before it still has under way is
    refused by the target from then on (`transfer.target_claim`). `position` None: there is part of
    a snapshot at the most.

    `since` is the place up to which the engine had seen the target's answers when it sent this. It
    may have died before it read the next ones, so that it is not known which of the commands behind
    `since` failed: their keys are in doubt up to `position`. None: nothing is.

    `opened`: the target was promoted at `position` (`transfer.promotion`): it belongs to its users,
    and no engine writes to it.

    `held_before`: the target had keys of its own before the transfer began. An engine that takes
    the target over from another transfer has to know.

    `begun`: the batches behind `position` go one command at a time (`ext/position_records.pxi`),
    and no command behind the offset `begun` was sent before this stood here. So commands between
    the two may have been applied, each for itself: whoever goes on from here applies them, and
    reads their keys again. None: nothing behind `position` was.

    `serial`: keys may be stored, and names noted, while the stream stands still. What is written
    then, and whenever an engine begins or goes on, has a number that this engine never gives again,
    so that no two states of the target have the same value here: one that comes back from before
    shows another. 0: none, as in what an older release wrote.

    Names are single words (`ValueError` otherwise); `engine` is empty in what an older release
    wrote.
    """

    transfer: str
    position: StreamPosition | None
    engine: str = ""
    since: StreamPosition | None = None
    opened: bool = False
    held_before: bool = False
    begun: int | None = None
    serial: int = 0

    def __post_init__(self) -> None:
        names = [self.transfer, self.engine or "-"]
        if self.position is not None:
            names.append(self.position.replid)
        if not all(re.fullmatch(r"\S+", name) for name in names):
            raise ValueError("the names of a transfer, an engine and a stream are words")
        if self.position is None and self.since is not None:
            raise ValueError("without a position nothing of the stream is in doubt")
        if self.position is None and self.serial:
            raise ValueError("without a position there is no other write at the same place")
        if self.position is None and self.opened:
            raise ValueError("a target is promoted at a position")
        if self.begun is not None and (self.position is None or self.opened):
            raise ValueError("commands are begun behind a position, on a target not yet promoted")
        if self.begun is not None and self.position and self.begun < self.position.offset:
            raise ValueError("commands are begun behind the position")

    @property
    def doubtful(self) -> StreamPosition | None:
        """Where what is in doubt begins; None: nothing is."""
        since, at = self.since, self.position
        return None if since is None or at is None or since.offset == at.offset else since

    def renamed(self, replid: str) -> TargetPosition:
        """The same place in a stream that has another name by now."""
        if self.position is None:
            return self
        since = None if self.since is None else replace(self.since, replid=replid)
        return replace(self, position=replace(self.position, replid=replid), since=since)

    def anew(self) -> TargetPosition:
        """The same place, as no write before this one has told it."""
        return self if self.position is None else replace(self, serial=next(_serials))

    def promoted(self) -> TargetPosition:
        """The same place, as what the target holds from its promotion on."""
        return replace(self, opened=True, begun=None)

    def same_place(self, other: TargetPosition | None) -> bool:
        """Whether `other` is the same but for the stream's name."""
        return other is not None and other.renamed("-") == self.renamed("-")

    def encode(self) -> bytes:
        """The value of the position key: `v2 <transfer> <engine>`, and behind that, if there is a
        position, `<replid> <offset> <db> <0|1> <since's offset> <db> <0|1>`; then `held`, `open`.

        If `serial` or `begun` is known, it begins with `v3`, and ends with `serial <number>`,
        `begun <offset>`.
        """
        version = "v2" if self.begun is None and not self.serial else "v3"
        words: list[str | int] = [version, self.transfer, self.engine or "-"]
        if self.position is not None:
            words.append(self.position.replid)
            for at in (self.position, self.since or self.position):
                words += [at.offset, at.db, int(at.in_multi)]
        if self.held_before:
            words.append("held")
        if self.opened:
            words.append("open")
        if self.serial:
            words += ["serial", self.serial]
        if self.begun is not None:
            words += ["begun", self.begun]
        return " ".join(map(str, words)).encode()

    def encode_span(
        self, replid: str, position: tuple[int, int, bool], since: tuple[int, int, bool]
    ) -> bytes:
        """As `encode`, with these (offset, db, in MULTI): for every transaction, so without
        objects."""
        (at, db, multi), (at0, db0, multi0) = position, since
        head, tail = self.frame()
        places = f"{replid} {at} {db} {int(multi)} {at0} {db0} {int(multi0)}"
        value = head + places.encode() + tail
        return value if self.begun is None or self.begun <= at else begun_up_to(value, self.begun)

    def frame(self) -> tuple[bytes, bytes]:
        """What stands in the value in front of the stream's name, and behind the two places, but
        for `begun`: the core's `Pump` puts `<replid> <offset> <db> <0|1> <offset> <db> <0|1>`
        between them."""
        tail = " held" if self.held_before else ""
        tail += f" serial {self.serial}" if self.serial else ""
        version = "v3" if self.serial else "v2"
        return f"{version} {self.transfer} {self.engine or '-'} ".encode(), tail.encode()

    @classmethod
    def decode(cls, value: bytes) -> TargetPosition:
        """Inverse of `encode`, and of what it was before (`v1 <transfer> <replid> <offset> <db>
        <0|1>`, in which nothing is in doubt). Raises `ProtocolFault` for any other value."""
        text = value.decode("utf-8", "replace")
        if (found := _V1.fullmatch(text)) is not None:
            transfer, replid, *place = found.groups()
            return cls(transfer, _place(replid, place))
        if (found := _V3.fullmatch(text)) is not None and any(found.groups()[1:]):
            marks, serial, begun = found.groups()
            with contextlib.suppress(ValueError, ProtocolFault):
                return replace(
                    cls.decode(f"v2 {marks}".encode()),
                    serial=int(serial or 0),
                    begun=None if begun is None else int(begun),
                )
        if (found := _V2.fullmatch(text)) is not None:
            transfer, engine, replid, *places, held, opened = found.groups()
            engine = "" if engine == "-" else engine
            if replid is None and opened is None:
                return cls(transfer, None, engine, held_before=held is not None)
            if replid is not None:
                position, since = _place(replid, places[:3]), _place(replid, places[3:])
                if since.offset <= position.offset:
                    doubt = None if since == position else since
                    marks = opened is not None, held is not None
                    return cls(transfer, position, engine, doubt, *marks)
        raise ProtocolFault(
            f"the target's position key holds {value[:80]!r}",
            remedy="Another program, or a newer version of this one, wrote it.",
            fault="target",
        )


def _place(replid: str, words: list[str]) -> StreamPosition:
    offset, db, in_multi = words
    return StreamPosition(replid, int(offset), int(db), in_multi == "1")


def begun_up_to(value: bytes, offset: int) -> bytes:
    """`value`, as `TargetPosition.encode` gave it, with `begun` at `offset` at the least: for every
    batch, so without objects."""
    head, _, before = value.partition(b" begun ")
    return b"v3%b begun %d" % (head[2:], max(offset, int(before or 0)))


def begun_of(value: bytes | None) -> int:
    """How far commands may be begun by `value`, as `TargetPosition.encode` gave it; 0: nowhere."""
    begun = (value or b"").partition(b" begun ")[2]
    return int(begun) if begun.isdigit() else 0
