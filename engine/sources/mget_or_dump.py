"""How values are asked for: by MGET or by DUMP, with their TTLs or without.

DUMP makes the source try to compress a string, and sum it up in a CRC; MGET does neither, and looks
a command up once for many keys. For what is no string MGET brings nothing, and the key is asked for
again, with its TTL. So MGET is used while it pays: both ways of asking show what share of the keys
are strings, and how long they are.

A TTL is a third of what a short string costs the source. Where no key of a database has an expire
time the pipeline can do without and prove it afterwards (ext/scan_without_ttls.pxi); what was not
proven is read again. So after a proof that failed TTLs are asked for, for a while, and then one
small run tries whether a proof holds again.
"""

from __future__ import annotations

from typing import Protocol

# CPU time of the source, in µs: what MGET saves for a string, for each of its bytes, and what it
# costs for another value, whose TTL is asked for twice (Redis 7.0, values that do not compress).
_GAIN_EACH = 0.9
_GAIN_BYTE = 0.0045
_LOSS_EACH = 1.5
# The share of strings is that of about so many keys, the newest.
_WINDOW = 4096
# Keys of one MGET, and before it is known how long the values are.
_MGET_MOST = 64
_MGET_FIRST = 16
# Bytes of values in one MGET: the source's other clients wait for it.
_MGET_BYTES = 256 << 10
# Bytes of a reply, on average, above which a TTL more or less does not matter.
_SHORT = 1024
# Keys answered before that average means anything, and keys of a run that only tries.
_TRIAL = 256
# Keys that are asked for with TTLs after a proof that failed; doubled from failure to failure.
_PAUSE_FIRST = 16 << 10
_PAUSE_MOST = 1 << 20


class Seen(Protocol):
    """What a `ScanPipeline` has read so far: totals that only grow."""

    @property
    def answered(self) -> int:
        """Keys."""
        ...

    @property
    def bytes_received(self) -> int:
        """Bytes of all replies."""
        ...

    @property
    def strings(self) -> int:
        """Values that were strings."""
        ...

    @property
    def string_bytes(self) -> int:
        """Bytes of their payloads."""
        ...

    @property
    def others(self) -> int:
        """Values of other types."""
        ...

    @property
    def proven(self) -> int:
        """Proofs that came out true."""
        ...

    @property
    def unproven(self) -> int:
        """Proofs that did not."""
        ...

    @property
    def mget_refused(self) -> bool:
        """The source answered MGET with an error."""
        ...


class FetchPolicy:
    """Decides for one database.

    Args:
        mget: the source may be asked by MGET.
        strings: only strings are asked for (SCAN … TYPE string).
        unexpiring: INFO said that no key of the database has an expire time.
        batch_bytes: what the pipeline holds at the most while it is not proven.
    """

    def __init__(self, *, mget: bool, strings: bool, unexpiring: bool, batch_bytes: int) -> None:
        self._may_mget = mget
        self._only_strings = strings
        self._unexpiring = unexpiring
        self._batch_bytes = batch_bytes
        # Of the newest keys; and the totals that they were taken from.
        self._strings = self._string_bytes = self._others = 0.0
        self._last = (0, 0, 0)
        self._average = 0
        self._answered = 0
        # Proofs.
        self._proofs = (0, 0)
        self._trying = True
        self._tried_at: tuple[int, int] | None = None
        self._pause = _PAUSE_FIRST
        self._paused_until = _TRIAL

    def look(self, seen: Seen) -> None:
        """Take in what was read meanwhile."""
        now = (seen.strings, seen.string_bytes, seen.others)
        strings, string_bytes, others = (a - b for a, b in zip(now, self._last, strict=True))
        self._last = now
        keep = _WINDOW / max(_WINDOW, self._strings + self._others + strings + others)
        self._strings = (self._strings + strings) * keep
        self._string_bytes = (self._string_bytes + string_bytes) * keep
        self._others = (self._others + others) * keep
        self._answered = seen.answered
        if seen.answered:
            self._average = seen.bytes_received // seen.answered
        if seen.mget_refused:
            self._may_mget = False
        proven, unproven = self._proofs
        self._proofs = (seen.proven, seen.unproven)
        if seen.unproven > unproven:
            # Several may have been under way: they failed for one reason.
            if not self._trying or self._tried_at is not None:
                self._paused_until = self._answered + self._pause
                self._pause = min(self._pause * 2, _PAUSE_MOST)
            self._trying, self._tried_at = True, None
        elif seen.proven > proven:
            self._trying, self._tried_at = False, None
            self._pause = _PAUSE_FIRST

    @property
    def mget(self) -> int:
        """Keys of one MGET; 0: by DUMP."""
        if not self._may_mget:
            return 0
        if not self._strings:
            return _MGET_FIRST if self._only_strings or not self._others else 0
        average = self._string_bytes / self._strings
        gain = self._strings * (_GAIN_EACH + _GAIN_BYTE * average)
        if not self._only_strings and gain <= self._others * _LOSS_EACH:
            return 0
        return max(1, min(_MGET_MOST, int(_MGET_BYTES / average)))

    def without_ttl(self) -> int:
        """Keys of the next run that may go without TTLs; 0: with them."""
        if not self._unexpiring or self._average > _SHORT or self._answered < self._paused_until:
            return 0
        if not self._trying:
            return max(1, self._batch_bytes // 2 // max(self._average, 1))
        if self._tried_at is not None:
            return 0
        self._tried_at = self._proofs
        return _TRIAL
