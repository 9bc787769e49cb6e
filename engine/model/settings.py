"""How one transfer is to run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from engine.errors import UsageError

SourceType = Literal["auto", "replica", "scan"]
IfExists = Literal["replace", "skip", "fail"]
MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """Settings of one transfer; immutable, kept in the state, the same after a resume.

    `databases` None means every database; `match` a glob as SCAN's MATCH; `key_type` as SCAN's
    TYPE. Sizes are bytes, times seconds.
    """

    source_type: SourceType = "scan"
    match: str | None = None
    key_type: str | None = None
    databases: tuple[int, ...] | None = None
    if_exists: IfExists = "replace"
    batch_bytes: int = 1 * MIB
    """A batch is handed on when its records reach this many bytes."""
    window_bytes: int = 8 * MIB
    """Bytes sent to the target and not yet acknowledged; above it the source's reader pauses."""
    stream_above: int = 4 * MIB
    """A value longer than this goes through in pieces and is never held whole."""
    connect_timeout: float = 10.0
    io_timeout: float = 60.0
    """No byte from a server that owes us replies for this long: the link counts as lost."""
    retry_seconds: float = 120.0
    """For how long without progress a lost link or a busy target is tried again."""

    spool_directory: str | None = None
    """Where a replica's stream waits for a slower target; None: $TMPDIR, else /var/tmp."""
    spool_bytes: int = 10 * GIB
    """Bytes that may wait there; above it the transfer fails, and the source is unharmed."""

    def __post_init__(self) -> None:
        if self.source_type not in get_args(SourceType):
            raise UsageError(
                f"source type {self.source_type!r} is not known",
                remedy=f"Known: {', '.join(get_args(SourceType))}.",
            )
        if self.if_exists not in get_args(IfExists):
            raise UsageError(f"--if-exists {self.if_exists!r}: expected replace, skip or fail")
        if self.databases is not None and any(db < 0 for db in self.databases):
            raise UsageError("a database number is not negative")
        if self.spool_bytes < 0:
            raise UsageError("the spool's size is not negative")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TransferSettings:
        """Inverse of `to_dict`; unknown names raise `UsageError` (a newer engine's state)."""
        data = dict(data)
        if data.get("databases") is not None:
            data["databases"] = tuple(data["databases"])
        try:
            return cls(**data)
        except TypeError:
            raise UsageError("the settings in the state were written by another version") from None
