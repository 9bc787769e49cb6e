"""How far a transfer has come: what a checkpoint holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import ProtocolFault


@dataclass(frozen=True, slots=True)
class ScanPosition:
    """Every key that SCAN named before `cursor` in database `db` has been acknowledged.

    A cursor means something only to the process that gave it (the server's hash seed changes with
    a restart), so the position is void when the source's `run_id` is another one. Databases in
    `done` are finished; `cursor` 0 is the start of `db`.
    """

    run_id: str
    db: int
    cursor: int
    done: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ScanPosition:
        """Inverse of `to_dict`."""
        return cls(data["run_id"], int(data["db"]), int(data["cursor"]), tuple(data["done"]))


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


@dataclass(frozen=True, slots=True)
class TargetPosition:
    """A stream position as it lies on the target, beside the data that it speaks of.

    `transfer` names the transfer that wrote it: one word (`ValueError` otherwise).
    """

    transfer: str
    position: StreamPosition

    def __post_init__(self) -> None:
        if not self.transfer or not self.position.replid or " " in self.transfer:
            raise ValueError("a transfer's name and a replid are words")

    def encode(self) -> bytes:
        """The value of the position key: `v1 <transfer> <replid> <offset> <db> <0|1>`."""
        at = self.position
        return f"v1 {self.transfer} {at.replid} {at.offset} {at.db} {int(at.in_multi)}".encode()

    @classmethod
    def decode(cls, value: bytes) -> TargetPosition:
        """Inverse of `encode`. Raises `ProtocolFault` for any other value."""
        words = value.decode("utf-8", "replace").split(" ")
        try:
            version, transfer, replid, offset, db, in_multi = words
            numbers = [offset, db, in_multi]
            if version == "v1" and all(each.isascii() and each.isdigit() for each in numbers):
                at = StreamPosition(replid, int(offset), int(db), in_multi != "0")
                # What we did not write ourselves (01, ten megabytes of digits) is not ours.
                if cls(transfer, at).encode() == value:
                    return cls(transfer, at)
        except ValueError:
            pass
        raise ProtocolFault(
            f"the target's position key holds {value[:80]!r}",
            remedy="Expected `v1 <transfer> <replid> <offset> <db> <0|1>`: another program, or a "
            "newer version of this one, wrote it.",
            fault="target",
        )
