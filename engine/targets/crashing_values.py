"""Values at which the target's process ends: found, named, and not sent again.

A value can end a server that loads it: a module's that the target's version of it takes badly, or
one that meets a fault of the server. The process that ended says nothing of it, and an engine that
sends the same batch again ends the next one. So what was unanswered each time is remembered. What
was under way both times is *suspect*: from then on it goes alone, a portion at a time, and nothing
else is under way meanwhile. At the third end the portion is known, and with a portion of one the
value: it is left out, with its reason, and named as not carried.

A lost link is no end of the process: only another process (INFO's `run_id`) behind the same address
is. What is left out stays so to the end of the run, on whichever lane its key comes; the next run,
which an operator begins once he has mended what there was, sends it again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from math import isqrt

from engine._native import RecordBatch
from engine.errors import TransferStopped
from engine.model.db_key import DbKey

# So many suspects go one by one; of more, as many at a time as make the fewest ends likely.
_ONE_BY_ONE = 1000
# Values, or commands, that are left out for this reason before the fault is the target's own.
LEFT_OUT_MOST = 8
# As progress is made of it, it must not go on without end.
_LEARNED_MOST = 8 * LEFT_OUT_MOST
REASON = "the target's process ended each time when it was written"


class CrashSuspects:
    """What was under way when the target's process ended. `event(text)` is told what is done.

    A batch is a suspect if one of its keys is. Not for the way of every batch: `idle` says that
    there is nothing to look for.
    """

    def __init__(self, event: Callable[[str], None]) -> None:
        self._event = event
        self.on_change: Callable[[Collection[DbKey]], None] = lambda keys: None
        """Told of all keys that are left out when these are others."""
        # What was unanswered when the link went, until it is known whether the process ended.
        self._unanswered: list[RecordBatch] = []
        self._last: set[DbKey] = set()
        self._suspects: set[DbKey] = set()
        self._found = 0
        self.learned = 0
        """How many ends of the process have told more of what it ends at; bounded."""
        self.left_out: dict[DbKey, str] = {}
        """Keys that are not sent any more, and why."""

    @property
    def idle(self) -> bool:
        """Whether no key is suspect, or left out."""
        return not (self._suspects or self.left_out)

    def lost(self, unanswered: Iterable[RecordBatch]) -> None:
        """The link went while these were unanswered."""
        self._unanswered = list(unanswered) or self._unanswered

    def lives(self) -> None:
        """The process is still the same."""
        self._unanswered = []

    def ended(self) -> None:
        """The process was another one when it was dialled again.

        Raises as `leave_out`.
        """
        keys = {(b.db, b.key(i)) for b in self._unanswered for i in range(len(b))}
        self._unanswered = []
        if not keys:
            return
        again = keys & (self._suspects or self._last)
        alone = len(keys) == 1
        if alone and again:
            self.leave_out(*keys)
        elif again:
            self.learn()
            self._suspects = again
            self._event(
                f"the target's process ended again while the same {_keys(len(again))} under way: "
                "they are sent one at a time from now on, until it is known which of them it is"
            )
        else:
            # Somewhere else, or for the first time.
            self._suspects = set()
            self._last = keys

    def leave_out(self, *keys: DbKey) -> None:
        """These keys, of one value or command, are not sent any more. Raises `TransferStopped`
        where such values are too many."""
        new = [key for key in keys if key not in self.left_out]
        if not new:
            return
        if self._found == LEFT_OUT_MOST:
            raise TransferStopped(
                f"the target's process ended again and again, at {LEFT_OUT_MOST + 1} values that "
                "were written one at a time",
                remedy="Its log says why. Correct that (another version of the server, or of its "
                "module), then resume.",
                fault="target",
            )
        self._found += 1
        self.learn()
        self._suspects = set()
        self._last = set()
        for db, name in new:
            self.left_out[(db, name)] = REASON
            shown = name[:64].decode("utf-8", "backslashreplace")
            self._event(f"the key {shown!r} of database {db} is left out: {REASON}")
        self.on_change(self.left_out)

    def take_up(self, keys: Iterable[DbKey]) -> None:
        """These keys were left out before."""
        self.left_out.update(dict.fromkeys(keys, REASON))
        self.on_change(self.left_out)

    def learn(self) -> None:
        """An end of the process has told more."""
        self.learned = min(self.learned + 1, _LEARNED_MOST)

    def swap(self, one: int, other: int) -> None:
        """Two databases have changed their numbers."""
        numbers = {one: other, other: one}
        moved = {(numbers.get(db, db), key): why for (db, key), why in self.left_out.items()}
        self.left_out.clear()
        self.left_out.update(moved)
        self.on_change(self.left_out)

    def answered(self, batch: RecordBatch) -> None:
        """The target has stored all of `batch`, or refused it: it is none of these."""
        if self._suspects:
            self._suspects.difference_update((batch.db, batch.key(i)) for i in range(len(batch)))

    def parts(self, batch: RecordBatch) -> Iterator[tuple[RecordBatch, bool]]:
        """`batch` in parts, in order, without what is left out; whether a part goes alone."""
        for index in reversed(range(len(batch))):
            why = self.left_out.get((batch.db, batch.key(index)))
            if why is not None:
                batch.leave_out(index, why)
        alone = [(batch.db, batch.key(i)) in self._suspects for i in range(len(batch))]
        most = at_once(len(self._suspects))
        while alone:
            kind, n = alone[0], 1
            while n < len(alone) and alone[n] is kind and (not kind or n < most):
                n += 1
            del alone[:n]
            if alone:
                yield batch.take(n), kind
            else:
                yield batch, kind
                return
        yield batch, False


def at_once(count: int) -> int:
    """How many of `count` suspects go together."""
    return 1 if count <= _ONE_BY_ONE else isqrt(count)


def _keys(count: int) -> str:
    return "key was" if count == 1 else f"{count:,} keys were"
