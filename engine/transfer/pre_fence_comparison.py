"""The comparison before the fence: keys of kinds that the stream is not faithful to, and a sample.

Some changes leave no word in the stream (XREADGROUP raises delivery counts, BITFIELD … OVERFLOW
FAIL makes an empty key), or not all of it (HINCRBYFLOAT of Redis 8.0 forgets a field's TTL). They
can only be found by looking. So before writers are paused all keys of such kinds are compared,
and some of every other kind; while they are compared no writer waits.

What differs is read again from the source (`transfer.key_resync`), and compared again. A key that
is written to all the time may never be seen at rest: it is left to the comparison behind the fence.
So is what differed once, and may do so again, and whatever changes without a word. A sample in
which something differs is no longer enough: then every key is compared.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from engine.errors import TransferFailed
from engine.model import silent_commands
from engine.model.db_key import DbKey
from engine.model.report import printable_key
from engine.model.verification import STOP_AT, Counts
from engine.transfer.async_helpers import beside, cancelled
from engine.transfer.cut_over_check import Comparison
from engine.transfer.follow import Follower
from engine.transfer.migration_context import MigrationContext

T = TypeVar("T")
# Of names: (database, those that are at one end alone, how many were looked up).
_Page = tuple[int, list[bytes], int]
# So many pages of names wait to be taken at the most.
_PAGES_AHEAD = 8
# Counts of so many seconds ago are asked for again, once all names have been looked up.
_COUNTS_SECONDS = 5.0
# How often a key that differs is read again, and compared again.
_ROUNDS = 3
# How long what was read again may take to be stored, in seconds.
_STORED_SECONDS = 30.0
# How often it is told how far the comparison is, in seconds.
_PUBLISH_SECONDS = 0.5
GROUPS = "groups"
ALWAYS = (GROUPS, "fields")
"""The kinds of which every key is compared."""
SILENT_MOST = 10_000
"""So many keys of kinds that are always compared are kept by name."""
_NAMED = 3


class PreFenceComparison:
    """Compares before the fence. `beat(reason)` is awaited about twice a second meanwhile.

    `relinked`: whether the source may be another process than when it was copied.
    """

    def __init__(
        self,
        comparison: Comparison,
        context: MigrationContext,
        beat: Callable[[str], Awaitable[None]],
        relinked: Callable[[], bool],
    ) -> None:
        self._comparison = comparison
        self._context = context
        self._beat = beat
        self._relinked = relinked
        self._required: dict[str, str] = {}
        self._follower: Follower
        self._pump: asyncio.Task[None]
        self._published_at = 0.0
        self._differ: dict[DbKey, str] = {}
        # Of those that were written to all the time, in this sweep.
        self._read_again: set[DbKey] = set()
        self.compared = 0
        """Keys that were compared."""
        self.repaired = 0
        """Keys that differed, were read again, and were equal then; in all sweeps."""
        self.unknown: Counter[str] = Counter()
        """How many keys of each type could not be compared."""
        self.unsure: dict[DbKey, str] = {}
        """Keys that were written to all the time."""
        self.resynced: dict[DbKey, str] = {}
        """Keys that differed and were read again; in all sweeps. They may differ again by now."""
        self.silent: dict[DbKey, str] = {}
        """Keys of the kinds that are always compared, with the kind; `SILENT_MOST` at the most."""
        self.silent_more: Counter[str] = Counter()
        """How many of those are not kept by name, by kind."""
        self.calls: silent_commands.Calls | None = None
        """How often the source had been called by what leaves no word, when the sweep began."""
        self.sampled: list[DbKey] = []
        self.walked = False
        """Every name of both ends was looked up at the other one, in this sweep."""
        self.names = 0
        """How many were."""
        self.counts: Counts | None = None

    def require(self, kind: str, reason: str) -> None:
        """Have keys of one more kind compared: "all" is every key. `reason` is told."""
        self._required.setdefault(kind, reason)

    @property
    def required(self) -> Mapping[str, str]:
        """What is required beyond what is always compared, with the reasons."""
        return dict(self._required)

    async def run(
        self,
        follower: Follower,
        pump: asyncio.Task[None],
        *,
        first: Iterable[DbKey] = (),
        walk: bool = False,
    ) -> dict[DbKey, str]:
        """Compare, have read again what differs, and return what differs all the same.

        `first`: keys that are known to differ; `walk`: look up every name at the other end, however
        long that takes. Raises `TransferFailed` where it takes too long or differs too much, and as
        the comparison does.
        """
        self._follower, self._pump = follower, pump
        self.compared = 0
        self.unknown.clear()
        self.unsure, self.sampled, self._differ = {}, [], {}
        self.silent, self.silent_more = {}, Counter()
        self._read_again = set()
        self.walked, self.names, self.counts = False, 0, None
        limit = self._context.settings.sweep_seconds
        try:
            async with asyncio.timeout(limit), contextlib.AsyncExitStack() as stack:
                # 1. What was found behind a fence that came to nothing.
                if first := dict.fromkeys(first, "it differed during the fence"):
                    self.resynced |= first
                    self._follower.read_again(first)
                    await self._stored()
                for words in await self._comparison.stray_keys():
                    self._context.on_event(words)
                # Beside what comes next: a sample is chosen, then both ends are counted; and names
                # are looked up.
                repaired = self.repaired
                sample = _started(stack, self._sample())
                counting = _started(stack, self._count(sample))
                names = await stack.enter_async_context(_read_ahead(self._comparison))
                # 2. What the stream does not tell all of.
                self.calls = await self._comparison.silent_calls()
                # A string that was lengthened without a word is long ever since. Figures of before
                # a restart, or a reset, are gone.
                calls = self.calls
                gone = calls is None or silent_commands.was_reset(calls) or self._relinked()
                lengthened = gone or calls is None or calls[silent_commands.LENGTHEN] > 0
                if why := self._required.get("all"):
                    self._context.on_event(f"every key is compared before the cut-over: {why}")
                if "all" not in self._required:
                    for kind in ALWAYS:
                        await self._compare_all(self._comparison.doubtful({kind}), silent=kind)
                kinds = {*(("strings",) if lengthened else ()), *self._required}
                await self._compare_all(self._comparison.doubtful(kinds))
                await self._resync_differing()
                # 3. Some of all the others; all, if the sample is not equal.
                for db, keys in await sample:
                    self.sampled += [(db, key) for key in keys]
                    await self._compare(db, keys)
                if self._differ and "all" not in self._required:
                    differ = some_words(self._differ)
                    self._context.on_event(
                        f"every key is compared before the cut-over: some differ: {differ}"
                    )
                    await self._compare_anew()
                await self._resync_differing()
                if "all" in self._required:
                    for kind in ALWAYS:
                        async for db, keys in self._comparison.doubtful({kind}):
                            await self._publish()
                            self._name_silent(db, keys, kind)
                # 4. Names; and counts, once more where they may be others by now.
                counted_at, self.counts = await counting
                if self.repaired > repaired:
                    counted_at, self.counts = await self._count()
                wrong, repaired = self._counts_wrong, self.repaired
                await self._walk(names, must=walk or wrong)
                old = asyncio.get_running_loop().time() - counted_at > _COUNTS_SECONDS
                if wrong or old or self.repaired > repaired:
                    # What was at one end alone was mended.
                    _, self.counts = await self._count()
                if self._counts_wrong and not wrong:
                    async with _read_ahead(self._comparison) as again:
                        await self._walk(again, must=True)
                    _, self.counts = await self._count()
                # 5. What changes without a word may do so all the time: behind the fence it rests.
                for key in self._differ.keys() & self.silent.keys():
                    self.unsure[key] = self._differ.pop(key)
                return self._differ
        except TimeoutError:
            raise TransferFailed(
                f"the comparison before the cut-over was not through within {limit:g} s "
                f"({self.compared:,} keys compared)",
                remedy="Try again when there is less to do at both ends, or leave the comparison "
                "out (complete-migration --skip-verification).",
            ) from None

    async def _compare_all(
        self, portions: AsyncIterator[tuple[int, list[bytes]]], *, silent: str = ""
    ) -> None:
        async for db, keys in portions:
            if silent:
                self._name_silent(db, keys, silent)
            await self._compare(db, keys)

    def _name_silent(self, db: int, keys: list[bytes], kind: str) -> None:
        kept = keys[: max(SILENT_MOST - len(self.silent), 0)]
        self.silent.update(((db, key), kind) for key in kept)
        self.silent_more[kind] += len(keys) - len(kept)

    async def _compare_anew(self) -> None:
        """Compare every key, those that were compared already as well."""
        self.compared = 0
        self.unknown.clear()
        await self._compare_all(self._comparison.doubtful({"all"}))

    async def _compare(self, db: int, keys: list[bytes]) -> None:
        await self._publish()
        if not keys:
            return
        found = await self._comparison.compare(db, keys, self._reach)
        self.compared += found.keys
        self._differ.update(found.differ)
        self.unsure.update(found.unsure)
        self.unknown.update(found.unknown)
        if len(self._differ) + len(self.unsure) >= STOP_AT:
            raise TransferFailed(
                f"{len(self._differ):,} keys of {self.compared:,} that were compared differ: "
                f"{some_words(self._differ | self.unsure)}",
                remedy="Start the migration again: a full sync copies every key again.",
            )

    async def _sample(self) -> list[tuple[int, list[bytes]]]:
        return [portion async for portion in self._comparison.sample()]

    async def _count(self, behind: asyncio.Task[Any] | None = None) -> tuple[float, Counts | None]:
        """When both ends were counted, and what came of it; `behind`: once that is done."""
        if behind is not None:
            await asyncio.wait({behind})
        tell = self._comparison.counts_are_known
        counts = await self._comparison.counts(self._reach) if tell else None
        return asyncio.get_running_loop().time(), counts

    @property
    def _counts_wrong(self) -> bool:
        return self.counts is not None and bool(self.counts.wrong)

    async def _walk(self, pages: AsyncIterator[_Page], *, must: bool) -> None:
        """Look up every name of both ends at the other; names at one end alone are compared.

        Unless it `must` be, it is left where it is once it has taken half of the time."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._context.settings.sweep_seconds / 2
        self.walked, self.names = False, 0
        async for db, absent, count in pages:
            self.names += count
            if absent:
                await self._compare(db, absent)
            elif self._pump.done():
                self._pump.result()
            await self._publish(f"looking up names before the cut-over: {self.names:,} so far")
            if loop.time() >= until and not must:
                break
        else:
            self.walked = True
            self._comparison.names_looked_up()
        await self._resync_differing()

    async def _resync_differing(self) -> None:
        """Have what differs read again, and compare it again; what still differs stays named.

        A key that was written to while it was compared may be one of them: it is read again once.
        """
        for _ in range(_ROUNDS):
            hot = {key: what for key, what in self.unsure.items() if key not in self._read_again}
            if not self._differ and not hot:
                return
            wrong, self._differ = self._differ, {}
            self._read_again |= hot.keys()
            for each in hot:
                del self.unsure[each]
            self._follower.read_again(wrong | hot)
            await self._stored()
            by_db: dict[int, list[bytes]] = {}
            for db, key in wrong | hot:
                by_db.setdefault(db, []).append(key)
            for db, keys in by_db.items():
                await self._publish()
                found = await self._comparison.compare(db, keys, self._reach)
                self._differ.update(found.differ)
                self.unsure.update(found.unsure)
            equal = {key: what for key, what in wrong.items() if key not in self._differ}
            self.resynced |= equal
            self.repaired += len(equal)
            self.resynced |= {key: what for key, what in hot.items() if key not in self._differ}
            if equal:
                self._context.on_event(
                    f"{len(equal):,} keys of the target differed from the source, and were read "
                    f"again: {some_words(equal)}"
                )

    async def _stored(self) -> None:
        """Wait until what is to be read again is stored; not for ever, if more comes up always."""
        try:
            async with asyncio.timeout(_STORED_SECONDS):
                await beside(self._follower.settle(), self._pump)
        except TimeoutError:
            pass

    async def _reach(self, offset: int) -> None:
        limit = self._context.settings.cut_over_timeout
        try:
            async with asyncio.timeout(limit) as clock:
                await beside(self._follower.reach(offset), self._pump)
        except TimeoutError:
            if not clock.expired():
                raise
            raise TransferFailed(
                f"the target was not as far as the source within {limit:g} s, while both were "
                "compared before the cut-over",
                remedy="Is the target slow, or its link? Try again.",
                fault="target",
            ) from None

    async def _publish(self, doing: str = "") -> None:
        now = asyncio.get_running_loop().time()
        if now - self._published_at >= _PUBLISH_SECONDS:
            self._published_at = now
            await self._beat(
                doing or f"comparing keys before the cut-over: {self.compared:,} so far"
            )


def _started(stack: contextlib.AsyncExitStack, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """`work` as a task, which ends with `stack` at the latest."""
    task = asyncio.create_task(work)
    stack.push_async_callback(cancelled, task)
    return task


@contextlib.asynccontextmanager
async def _read_ahead(comparison: Comparison) -> AsyncIterator[AsyncIterator[_Page]]:
    """The pages of `Comparison.one_sided_names`, which are read while something else is done."""
    ready: asyncio.Queue[_Page | Exception | None] = asyncio.Queue(_PAGES_AHEAD)

    async def read() -> None:
        try:
            async with contextlib.aclosing(comparison.one_sided_names()) as pages:
                async for page in pages:
                    await ready.put(page)
        except Exception as error:  # raised where they are read
            await ready.put(error)
        await ready.put(None)

    async def pages() -> AsyncIterator[_Page]:
        while (page := await ready.get()) is not None:
            if isinstance(page, Exception):
                raise page
            yield page

    async with contextlib.AsyncExitStack() as stack:
        _started(stack, read())
        yield pages()


def some_words(differ: Mapping[DbKey, str]) -> str:
    """The first few keys of those that differ, with what is wrong; how many more there are."""
    words = [
        f"database {db}, key {printable_key(key)[:100]}: {what}"
        for (db, key), what in list(differ.items())[:_NAMED]
    ]
    more = len(differ) - len(words)
    return "; ".join(words) + (f"; and {more:,} more" if more > 0 else "")
