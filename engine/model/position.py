"""How far a transfer has come: what a checkpoint holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
