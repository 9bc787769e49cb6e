"""What a source is to the rest: something that gives batches, in order, from a position on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Protocol

from engine._native import RecordBatch
from engine.model.position import ScanPosition
from engine.model.server import ServerInfo

# A batch, or the next bytes of the value of the streamed batch before it.
Item = RecordBatch | bytes


class Source(Protocol):
    """One shard of a source, or a file. Opened, read to its end or closed; opened again after a
    failure."""

    info: ServerInfo
    """What the server says of itself; set by `open`."""
    paces: bool
    """Whether it keeps to the throttle by itself: it does not ask for more than may be moved."""
    bulk_limit: int
    """Bytes of the longest value that the target takes in one argument."""

    @property
    def telemetry(self) -> bool:
        """Whether FalkorDB was seen there, which notes queries in streams of its own."""
        ...

    @property
    def total_keys(self) -> int:
        """Keys in the chosen databases, as the server counts them at `open`."""
        ...

    async def open(self, position: ScanPosition | None) -> None:
        """Dial and prepare to give everything behind `position` (None: everything).

        Raises `LinkError`, `AuthError`, `ServerError`.
        """
        ...

    def items(self) -> AsyncGenerator[Item, None]:
        """Batches in order; a streamed batch is followed by the pieces of its value.

        Raises `LinkError` when the link goes (open it again), `ServerError` when the server
        refuses to go on, `ProtocolFault` for bytes that are no reply.
        """
        ...

    def continues(self, position: ScanPosition) -> bool:
        """Whether `position` means anything to the process that answers now."""
        ...

    def position_after(self, batch: RecordBatch) -> ScanPosition | None:
        """The position once `batch` and all before it are acknowledged; None: unchanged."""
        ...

    async def close(self) -> None:
        """Let go of the connection. Never raises."""
        ...


def unpacked_names(names: bytes) -> Iterator[bytes]:
    """Names that stand behind one another, each behind its length (`RecordBatch.timed`)."""
    at = 0
    while at < len(names):
        end = at + 4 + int.from_bytes(names[at : at + 4], "little")
        yield names[at + 4 : end]
        at = end
