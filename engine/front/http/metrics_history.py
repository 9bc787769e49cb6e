"""The last hour of each migration's figures, for a page that is opened in the middle of it.

In memory, and bounded; a server that has just started remembers nothing. The state holds only how
a migration stands now.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.groups.records import GroupRecord, TransferRecord

SAMPLE_SECONDS = 5.0
ROWS_MOST = 720
"""An hour of samples."""
GROUPS_MOST = 100

Row = tuple[float | int | None, ...]


@dataclass(slots=True)
class _Kept:
    transfer_id: int
    rows: deque[Row] = field(default_factory=lambda: deque(maxlen=ROWS_MOST))


class History:
    """The figures of the migrations that go on, and of those that ended lately."""

    def __init__(self) -> None:
        self._groups: OrderedDict[str, _Kept] = OrderedDict()
        self._noted_at = float("-inf")
        self._event: bytes | None = None

    def note(self, migrations: Iterable[tuple[GroupRecord, TransferRecord]], now: float) -> None:
        """Take a sample of each migration, unless the last one was a moment ago. `now` is seconds
        since the epoch."""
        # A clock that was set back has no say.
        if 0 <= now - self._noted_at < SAMPLE_SECONDS:
            return
        self._noted_at = now
        self._event = None
        for group, transfer in migrations:
            kept = self._groups.get(group.id)
            if kept is None or kept.transfer_id != transfer.id:
                kept = self._groups[group.id] = _Kept(transfer.id)
            self._groups.move_to_end(group.id)
            kept.rows.append(_row(transfer, now))
        while len(self._groups) > GROUPS_MOST:
            self._groups.popitem(last=False)

    def event(self) -> bytes:
        """All of it as an event of the feed: for each group its rows, oldest first, each of the
        time (seconds since the epoch), keys, value bytes, commands, applied offset, lag in bytes
        and in seconds, and bytes in the spool."""
        if self._event is not None:
            return self._event  # it may be megabytes, and many may ask within a moment
        rows = {name: list(kept.rows) for name, kept in self._groups.items()}
        text = json.dumps(rows, separators=(",", ":"))
        self._event = f"event: history\ndata: {text}\n\n".encode()
        return self._event


def _row(transfer: TransferRecord, now: float) -> Row:
    progress = transfer.progress
    return (
        round(now, 1),
        progress.keys,
        progress.bytes,
        progress.commands,
        progress.applied_offset,
        progress.lag_bytes,
        progress.lag_seconds,
        progress.spool_bytes,
    )
