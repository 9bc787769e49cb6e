"""Commands and values of the stream at which the target's process ends, found and left out.

As `targets.crashing_values` for a snapshot's values. A target that keeps its data comes back with
the position before the transaction that was under way; sent again as it was, it would end the next
process. So a transaction that was under way twice goes in pieces, a command or a key's value each,
of more than a thousand commands the root of their number at a time; so does a piece at which the
process ends again. What was under way alone is left out, and its keys are named as not carried. A
target that comes back older, or empty, is sent other batches: so what is remembered is the stream's
offsets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from engine._native import CommandBatch
from engine.model.db_key import DbKey
from engine.targets.crashing_values import CrashSuspects, at_once

# (database, key, the command that stores it, its value's RDB type or None).
Store = tuple[int, bytes, bytes, int | None]

# Spans that are remembered; the oldest goes first.
_SPANS_MOST = 32


@dataclass(slots=True)
class _Span:
    """Offsets of the stream under way when the process ended, `ends` times; `crashing`: alone."""

    start: int
    end: int
    ends: int = 1
    crashing: bool = False


class CrashingCommands:
    """What was under way when the target's process ended. Offsets are those of one history."""

    def __init__(self, suspects: CrashSuspects) -> None:
        self._suspects = suspects
        self._spans: list[_Span] = []
        self._stores: Counter[DbKey] = Counter()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look for in a batch."""
        return not self._spans

    def ahead(self, offset: int) -> bool:
        """Whether there is something to look for behind `offset`."""
        return any(each.end > offset for each in self._spans)

    def suspect(self, batch: CommandBatch, stores: Sequence[Store]) -> bool:
        """Whether the transaction is to go in pieces."""
        return any(each.ends > 1 for each in self._overlapping(batch)) or any(
            self._stores[store[:2]] > 1 for store in stores
        )

    def crashing(self, batch: CommandBatch) -> bool:
        """Whether this batch, of one command, is to be left out."""
        return any(each.crashing for each in self._overlapping(batch))

    def ended(self, batch: CommandBatch, stores: Sequence[Store]) -> bool:
        """The process ended while this transaction was under way; whether it is known by now what
        is to be left out: all of it."""
        keys = {store[:2] for store in stores}
        for key in keys:
            self._stores[key] += 1
        if not len(batch):
            return len(keys) == 1 and self._stores[next(iter(keys))] > 1
        known = self._overlapping(batch)
        for span in known:
            before = span.end - span.start
            span.start = max(span.start, batch.start_offset)
            span.end = min(span.end, batch.end_offset)
            span.ends += 1
            if span.ends == 2 or span.end - span.start < before:
                self._suspects.learn()
        if not known:
            span = _Span(batch.start_offset, batch.end_offset)
            self._spans = [*self._spans[1 - _SPANS_MOST :], span]
        alone = bool(known) and len(batch) == 1 and not stores
        if alone:
            known[0].crashing = True
        return alone

    def ended_at_one_of(self, batches: Sequence[CommandBatch]) -> None:
        """The process ended while these were under way at once, one behind the other."""
        if not any(map(self._overlapping, batches)):
            span = _Span(batches[0].start_offset, batches[-1].end_offset)
            self._spans = [*self._spans[1 - _SPANS_MOST :], span]

    def parted(self, batch: CommandBatch, stores: Sequence[Store]) -> bool:
        """Whether a transaction that the process ended at is to go in pieces, and can."""
        several = len(batch) > 1 or len({store[:2] for store in stores}) + bool(len(batch)) > 1
        return several and self.suspect(batch, stores)

    def pieces(
        self, batch: CommandBatch, stores: Sequence[Store]
    ) -> Iterator[tuple[CommandBatch, list[Store]]]:
        """The transaction in pieces: its commands, where they are suspect a few at a time, then one
        key's value each, behind them all."""
        for count in self._portions(batch):
            if count < len(batch):
                head, batch = batch.split(batch.offset(count - 1))
                yield head, []
        if batch.end_offset > batch.start_offset:
            yield batch, []
        for _, several in groupby(stores, key=lambda store: store[:2]):
            yield (
                CommandBatch.empty(batch.end_offset, batch.db_after, batch.in_multi_after),
                list(several),
            )

    def _portions(self, batch: CommandBatch) -> Iterator[int]:
        """How many commands go together, one number behind the other."""
        suspect = [each for each in self._overlapping(batch) if each.ends > 1]
        ends = [batch.offset(index) for index in range(len(batch))]
        starts = [batch.start_offset, *ends]

        def span_of(index: int) -> int | None:
            start, end = starts[index], ends[index]
            return next((n for n, s in enumerate(suspect) if s.start < end and start < s.end), None)

        for span, group in groupby(range(len(ends)), key=span_of):
            count = len(list(group))
            most = at_once(count)
            while count > 0:
                yield min(count, count if span is None else most)
                count -= count if span is None else most

    def passed(self, stores: Sequence[Store]) -> None:
        """These are on the target."""
        for store in stores:
            self._stores.pop(store[:2], None)

    def leave_out(self, *keys: DbKey) -> None:
        """Nothing of the keys of one command, or value, is sent any more. Raises as
        `CrashSuspects.leave_out`."""
        self._suspects.leave_out(*keys)

    def _overlapping(self, batch: CommandBatch) -> list[_Span]:
        start, end = batch.start_offset, batch.end_offset
        return [each for each in self._spans if each.start < end and start < each.end]
