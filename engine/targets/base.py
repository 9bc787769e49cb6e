"""What a target is to the rest: something that takes batches, and says what it has acknowledged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from engine._native import RecordBatch
from engine.model.server import ServerInfo


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """What the target answered to one batch, after all retries.

    `carried` records were stored, `existing` were refused with BUSYKEY (and only counted), and
    `errors` are (index of the record, the target's message).
    """

    batch: RecordBatch
    carried: int
    existing: int
    errors: tuple[tuple[int, str], ...]


class ReadAgain(Exception):
    """The source has to be read again: from the acknowledged position, or from its start.

    Raised by `send` and `drain` when the window cannot be sent again, because a value that went
    through in pieces is part of it. With `from_start` what was acknowledged may be gone as well:
    the server at the target's address is another process than before. Either way the target has
    forgotten all that was not acknowledged. `reason` and `remedy` are for people.
    """

    def __init__(self, reason: str, remedy: str = "", *, from_start: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy
        self.from_start = from_start


class Target(Protocol):
    """Where batches go. `on_acknowledged` is called in the order of `send`."""

    info: ServerInfo
    on_acknowledged: Callable[[Acknowledged], None]
    retries: int
    reconnects: int
    bulk_limit: int
    """Bytes of the longest value that the target takes."""

    @property
    def learned(self) -> int:
        """How many ends of its process have told more of the value that it ends at; bounded."""
        ...

    @property
    def mid_value(self) -> bool:
        """A streamed value has been sent in part."""
        ...

    async def open(self) -> None:
        """Dial. Raises `LinkError`, `AuthError`, `ServerError`."""
        ...

    def leave_telemetry(self, leave: bool) -> None:
        """Whether the streams in which FalkorDB notes queries are not sent from now on."""
        ...

    async def send(self, item: RecordBatch | bytes) -> None:
        """Send a batch, or the next piece of the streamed one before it; waits for room.

        Raises `ReadAgain`, `TransferFailed` (with the reason), `AuthError`.
        """
        ...

    async def drain(self) -> None:
        """Wait until everything sent is acknowledged. Raises as `send` does."""
        ...

    async def confirm(self) -> None:
        """Drain, and make sure that the data set which acknowledged it all is still there.

        A target that was a replica for a moment has lost it without a word. Raises as `send` does.
        """
        ...

    def reset(self) -> None:
        """Forget what was sent and not acknowledged, a half-sent value with it."""
        ...

    async def close(self) -> None:
        """Let go of the connection. Never raises."""
        ...
