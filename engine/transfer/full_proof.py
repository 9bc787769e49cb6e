"""The full proof: every key is compared while the source is followed, and again what changes.

Writers wait for none of it. All keys of the source are gone through once; what the stream names
meanwhile is remembered in the core (`NamedKeys`), and compared again, in further rounds: by name
where the names are kept, else by another walk that passes over what was not named. Once what is
left can be compared in a moment, the cut-over may begin, and behind the fence exactly that is
compared.

Invariant: a key counts as proven only if it was equal at both ends at a moment after the last
command that names it was applied. So a key is named once the target has answered that the command
ran there, and once what was read again of it is stored; names are taken out of what is remembered
before the keys are read for comparing, and a comparison that fails puts them back. What may change
keys that it does not name leaves nothing proven. So does another follower, for what passed by
between two of them is not known here; and so does another process at either end, behind a restart
or a failover: what was compared is not what it has.

Of a source that is a replica its primary is compared: what is read at the primary's offset is what
the stream leads to, and a replica lacks what its primary changes without a word. Which servers are
dialled is settled when both ends are opened, and looked at again before and behind each comparison:
of servers that are not those of the migration any more it says nothing.

What is changed on the target by another client behind a key's comparison is in no stream, and is
not seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine._native import NamedKeys
from engine.errors import EngineError, LinkError, TransferFailed
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import EXTEND_MS
from engine.model.pace import Pace
from engine.model.progress import Phase
from engine.model.verification import STOP_AT, Compared, full_words, not_compared_words
from engine.transfer.cut_over_check import Comparison
from engine.transfer.follow import Follower
from engine.transfer.formatting import seconds_words
from engine.transfer.migration_context import MigrationContext
from engine.transfer.pre_fence_comparison import some_words

# So many keys are compared at once where many are left, and where the fence may go up meanwhile.
_AT_ONCE, _AT_ONCE_NEAR = 2048, 256
# With a rate as many as it lets through in this time, and so many before their length is known.
_PORTION_SECONDS, _PORTION_FIRST = 0.25, 16
# Behind what was compared in a walk there is a rest of this share of the time that it took.
_REST = 0.5
# What is compared in this time, at the rate that was measured, may be left to the fence; so many
# keys at least and at the most.
_FENCE_SECONDS = 0.1
_FENCE_LEAST, _FENCE_MOST = 100, 5_000
# Keys that are read again behind the fence come to those.
_BEHIND_FENCE_MOST = 4 * _FENCE_MOST
# Between two rounds that are by name.
_ROUND_SECONDS = 0.05
# Behind keys that differed, and were read again.
_DIFFER_SECONDS = 0.5
# A key that was read again so often, and differs, is told of.
_ROUNDS = 3
_TROUBLE_SECONDS = 1.0
# While the target is waited for: from one look at which servers are compared to the next.
_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 0.1
_OTHERS = "an end was restarted, or another server has taken its place"
# Keys that cannot be compared are kept by name, so many of them.
_UNKNOWN_MOST = 10_000
# The newest measurement's part of the rate.
_NEWEST = 0.2


@dataclass(frozen=True, slots=True)
class Proven:
    """What a proof has come to, in `words`: so many keys were compared, and of each type so many
    could not be (`unknown`). `full`: those are all."""

    compared: int
    unknown: Mapping[str, int]
    full: bool
    words: str


class FullProof:
    """One lane's. `total()`: about how many keys its source has; `primary()`: the server that takes
    the writes where the source is a replica of it, it raises `TransferFailed` where that is not
    known; `ends()`: names what is followed and what is written to, another one behind a restart or
    a failover; `rate`: so many bytes a second are read from both ends together while no writer
    waits, 0: there is no bound."""

    def __init__(
        self,
        comparison: Comparison,
        context: MigrationContext,
        total: Callable[[], int],
        primary: Callable[[], Awaitable[Endpoint | None]],
        ends: Callable[[], tuple[str, ...]],
        rate: int = 0,
    ) -> None:
        self._comparison = comparison
        self._context = context
        self._total = total
        self._primary, self._ends = primary, ends
        # Those that are compared, and their run ids.
        self._compared_ends: tuple[str, ...] = ()
        self._processes: tuple[str, str] | None = None
        self._follower: Follower | None = None
        self._began = False
        # One comparison at a time.
        self._turn = asyncio.Lock()
        self._open = self._broken = False
        # Named since they were compared; those that a round by name has taken out of it; and while
        # a walk goes on what it passes over the others of (None: no walk, or it passes over none).
        self._named = NamedKeys()
        self._taken: list[DbKey] = []
        self._walking = True
        self._among: NamedKeys | None = None
        self._why = ""
        self._seen = 0
        self._rate = 0.0
        # What was read and is not in the pace yet, and the bytes of a key.
        self._pace, self._unpaced, self._key_bytes = Pace(rate), 0, 0.0
        # When the last walk began.
        self._walk_began = 0.0
        self._differing: dict[DbKey, tuple[int, str]] = {}
        self._unknown: dict[DbKey, str] = {}
        self._unknown_more: Counter[str] = Counter()
        # A walk over all keys has come to its end, and its keys; a source may have none.
        self._walked_all = False
        self.walked = 0
        """Keys of the last walk over all of them, if one has come to its end."""
        self.repaired = 0
        """Keys that differed, were read again, and are equal now."""
        self.behind_fence = 0
        """Keys that were compared while writers waited, in the last cut-over."""
        self.trouble = ""
        """Why nothing can be compared just now."""

    # --- Beside the follower ---

    def attend(self, follower: Follower) -> None:
        """`follower` is going to run: nothing is proven."""
        self._context.on_event(
            "every key is compared from the beginning: both ends were connected to again"
            if self._began
            else "every key is to be compared while the source is followed: none is yet"
        )
        self._began = True
        self._follower = follower
        self._start_over()

    async def run(self) -> None:
        """Prove until it is cancelled."""
        try:
            while True:
                if self._context.phase not in (Phase.FOLLOW, Phase.CUT_OVER):
                    await asyncio.sleep(_WAIT_SECONDS)
                    continue
                try:
                    await self._dial()
                    self._open, self._broken = True, False
                    await self._prove()
                except EngineError as error:
                    # (What the follower raises, its own task does.)
                    self.trouble = error.message
                finally:
                    self._open = False
                    await self._comparison.close()
                await asyncio.sleep(_TROUBLE_SECONDS)
        finally:
            self.let_go()

    async def _dial(self) -> None:
        """Both ends as they are by now. Raises `EngineError`."""
        self._compared_ends = self._ends()
        await self._comparison.open(extend_ms=EXTEND_MS, primary=await self._primary())
        self._look_at_ends()
        before, self._processes = self._processes, self._comparison.processes
        if before is not None and before != self._processes:
            self.doubt(_OTHERS)

    def _look_at_ends(self) -> None:
        """Raises `LinkError` where what is compared is not what is followed and written to."""
        if self._ends() != self._compared_ends:
            raise LinkError(f"{_OTHERS}: the engine connects to both ends again", fault="engine")

    async def _reach(self, offset: int) -> None:
        """Wait until the target has what the source had at `offset`. Raises as `_look_at_ends`."""
        assert self._follower is not None
        while True:
            # (A server that is not followed any more may be further than what is followed comes.)
            self._look_at_ends()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._follower.reach(offset)
                    return

    def let_go(self) -> None:
        """No follower runs any more."""
        if self._follower is not None:
            self._follower.named_keys = None
        self._follower = None

    def doubt(self, why: str) -> None:
        """Any key may have changed without being named, and why."""
        self._why = why
        self._named.doubt()

    def _fresh(self) -> NamedKeys:
        seed = int.from_bytes(os.urandom(8), "little")
        return NamedKeys(self._total(), seed=seed)

    def _start_over(self) -> None:
        """Nothing is proven."""
        self._walking, self._among, self._taken = True, None, []
        self._walked_all, self.walked, self._seen = False, 0, 0
        self._unknown, self._unknown_more = {}, Counter()
        self._name_anew()

    def _name_anew(self) -> NamedKeys:
        """From here on what is named is kept apart from what was."""
        before, self._named = self._named, self._fresh()
        if self._follower is not None:
            self._follower.named_keys = self._named
        return before

    async def _prove(self) -> None:
        while True:
            await self._context.throttle.unpaused()
            self._look_at_ends()
            if self._named.everything:
                why = self._why or "commands of the stream may have changed any key"
                self._context.on_event(f"{why}: every key is compared from the beginning")
                self._why = ""
                self._start_over()
            if self._walking:
                await self._walk()
            elif not self._taken and not len(self._named):
                await asyncio.sleep(_ROUND_SECONDS)
                async with self._our_turn():
                    self.trouble = ""
            elif self._taken or self._named.complete:
                await self._round()
            else:
                self._among, self._walking = self._name_anew(), True

    @contextlib.asynccontextmanager
    async def _our_turn(self) -> AsyncIterator[None]:
        """While nothing is compared behind a fence. Raises `TransferFailed` where that was given up
        in the middle."""
        async with self._turn:
            if self._broken:
                raise TransferFailed("the comparison behind the fence was given up")
            yield

    async def _walk(self) -> None:
        """Go through all keys, and compare those that may have been named, or all of them."""
        among, loop = self._among, asyncio.get_running_loop()
        self._seen, self._walk_began = 0, loop.time()
        async with contextlib.aclosing(self._comparison.every_key()) as pages:
            while True:
                began = loop.time()
                async with self._our_turn():
                    page = await anext(pages, None)
                if page is None:
                    break
                busy, differed = loop.time() - began, False
                db, keys = page
                wanted = keys if among is None else among.among(db, keys)
                while wanted:
                    most = self._portion(len(wanted))
                    some, wanted = wanted[:most], wanted[most:]
                    began = loop.time()
                    async with self._our_turn():
                        differed |= await self._compare(db, some)
                    busy += loop.time() - began
                    await self._keep_pace()
                    if among is None and self._named.everything:
                        return
                self._seen += len(keys)
                await asyncio.sleep(_DIFFER_SECONDS if differed else _REST * busy)
        self._walking, self._among = False, None
        if among is None:
            self._walked_all, self.walked = True, self._seen
            self._context.on_event(
                f"every key was compared: {self.walked:,} keys; what is written to is compared "
                "again until the cut-over"
            )

    def _portion(self, most: int) -> int:
        """How many keys are compared at once, of `most` at the most."""
        if not self._pace.rate:
            return most
        if not self._key_bytes:
            return min(most, _PORTION_FIRST)
        return max(1, min(most, int(self._pace.rate * _PORTION_SECONDS / self._key_bytes)))

    async def _keep_pace(self) -> None:
        """Rest as long as the rate wants it. Not in our turn: what is compared behind a fence does
        not wait for that."""
        read, self._unpaced = self._unpaced, 0
        await self._pace.read(read)
        throttle = self._context.throttle.comparing
        throttle.passed(0, read)
        if not throttle.free:
            await throttle.wait()

    async def _round(self) -> None:
        """Compare the keys that were named, by name."""
        if not self._taken:
            self._taken = self._name_anew().names()
        few = len(self._taken) <= self._fence_most
        while self._taken and not self._named.everything:
            async with self._our_turn():
                differed = await self._compare_taken()
            await self._keep_pace()
            # (No rest as in a walk: what is named meanwhile waits for it.)
            await asyncio.sleep(_DIFFER_SECONDS if differed else 0)
        if few:
            await asyncio.sleep(_ROUND_SECONDS)

    async def _compare_taken(self) -> bool:
        """Compare some of those that were taken out, all of one database; whether any differs."""
        if not self._taken:
            return False
        db = self._taken[-1][0]
        some: list[bytes] = []
        most = self._portion(_AT_ONCE if self.left > self._fence_most else _AT_ONCE_NEAR)
        # (What is taken out is named again where the comparison fails.)
        while self._taken and self._taken[-1][0] == db and len(some) < most:
            some.append(self._taken.pop()[1])
        return await self._compare(db, some)

    async def _compare(self, db: int, keys: list[bytes]) -> bool:
        """Compare some keys, and have read again what differs; whether any does."""
        follower = self._follower
        assert follower is not None
        loop = asyncio.get_running_loop()
        began, before = loop.time(), self._comparison.read
        try:
            self._look_at_ends()
            found = await self._comparison.compare(db, keys, self._reach)
            self._look_at_ends()
        except BaseException:
            self._name((db, key) for key in keys)
            raise
        finally:
            read = self._comparison.read - before
            self._unpaced += read
            mean = read / len(keys)
            # (Some that are longer than those before are not waited for to fade.)
            self._key_bytes = max(mean, self._key_bytes + (mean - self._key_bytes) * _NEWEST)
        self.trouble = ""
        took = max(loop.time() - began, 1e-6)
        rate = len(keys) / took
        if len(keys) >= _AT_ONCE_NEAR or not self._rate:
            self._rate += (rate - self._rate) * (_NEWEST if self._rate else 1.0)
        self._judge(db, keys, found)
        if found.differ:
            follower.read_again(found.differ)
        return bool(found.differ)

    def _name(self, keys: Iterable[DbKey]) -> None:
        for db, key in keys:
            self._named.add(db, key)

    def _note(self, db: int, keys: Iterable[bytes], found: Compared) -> None:
        """What of these keys is not proven."""
        self._name(found.differ)
        self._name(found.unsure)
        for key in keys:
            each = (db, key)
            if each in found.unknown_keys:
                self._note_unknown(each, found.unknown_keys[each])
            elif self._unknown:
                self._unknown.pop(each, None)

    def _judge(self, db: int, keys: Iterable[bytes], found: Compared) -> None:
        """What a comparison of these keys has come to. Raises `TransferFailed` for too many."""
        self._note(db, keys, found)
        repaired: dict[DbKey, str] = {}
        for key in keys:
            each = (db, key)
            if each in found.differ:
                rounds = self._differing.get(each, (0, ""))[0] + 1
                self._differing[each] = rounds, found.differ[each]
            elif self._differing and each in self._differing and each not in found.unsure:
                repaired[each] = self._differing.pop(each)[1]
        if repaired:
            self.repaired += len(repaired)
            self._context.on_event(
                f"{len(repaired):,} keys of the target differed from the source, and were read "
                f"again: {some_words(repaired)}"
            )
        if len(self._differing) >= STOP_AT:
            raise TransferFailed(
                f"{len(self._differing):,} keys differ: {some_words(self._differing_words)}",
                remedy="Start the migration again: a full sync copies every key again.",
            )

    def _note_unknown(self, key: DbKey, kind: str) -> None:
        if key in self._unknown or len(self._unknown) < _UNKNOWN_MOST:
            self._unknown[key] = kind
        else:
            self._unknown_more[kind] += 1

    # --- What is told ---

    @property
    def left(self) -> int:
        """How many keys are to be compared again: as far as they are known, at least."""
        return len(self._taken) + len(self._named)

    @property
    def unknown(self) -> Mapping[str, int]:
        """How many keys of each type cannot be compared."""
        return Counter(self._unknown.values()) + self._unknown_more

    @property
    def _fence_most(self) -> int:
        return int(min(max(self._rate * _FENCE_SECONDS, _FENCE_LEAST), _FENCE_MOST))

    @property
    def _differing_words(self) -> dict[DbKey, str]:
        return {key: what for key, (_, what) in self._differing.items()}

    @property
    def stuck(self) -> str:
        """Keys that differ though they were read again, in words; empty: there are none."""
        wrong = {key: what for key, (n, what) in self._differing.items() if n >= _ROUNDS}
        if not wrong:
            return ""
        count = (
            "1 key differs, though it was"
            if len(wrong) == 1
            else f"{len(wrong):,} keys differ, though they were"
        )
        return f"{count} read again: {some_words(wrong)}"

    def objection(self) -> tuple[str, bool]:
        """Why a cut-over cannot begin yet, empty: it can; whether that passes in a moment."""
        if self.trouble:
            return (
                f"every key is to be compared, and that is not possible now: {self.trouble}",
                False,
            )
        if self._open and self._ends() != self._compared_ends:
            return f"{_OTHERS}, and every key is compared again", False
        if why := self.stuck:
            return why, False
        if not self._walked_all:
            seen, total = self._seen, self._expected
            words = f"every key is being compared: {seen:,} of about {total:,}"
            if seen:
                seconds = asyncio.get_running_loop().time() - self._walk_began
                rate = seen / max(seconds, 1e-6)
                left = max(total - seen, 0) / rate
                words += f", {rate:,.0f} a second, about {seconds_words(left)} left"
            return words, False
        if self._walking or not self._named.complete:
            words = (
                f"at least {self.left:,} of {self.walked:,} keys were written to since they were"
            )
            return f"{words} compared, and are compared again", False
        if self._differing:
            return (
                f"keys differed, and are compared again: {some_words(self._differing_words)}",
                True,
            )
        if self.left > self._fence_most:
            words = f"{self.left:,} keys were written to since they were compared"
            return f"{words}, and are compared again, above {self._fence_most:,}", True
        return self._unknown_words, False

    @property
    def _unknown_words(self) -> str:
        """Keys that cannot be compared; empty: there are none."""
        if not self.unknown:
            return ""
        return f"{not_compared_words(self.unknown)}: {some_words(self._unknown)}"

    @property
    def _expected(self) -> int:
        return self.walked if self._walked_all else max(self._seen, self._total())

    def figures(self) -> dict[str, Any]:
        """Members of `Progress`."""
        if not self._began:
            return {}
        compared = self.walked if self._walked_all else self._seen
        proven = max(compared - self.left, 0)
        return {"proven_keys": proven, "keys_to_prove": self._expected}

    def come_to(self, count: int | None) -> Proven:
        """What it has shown of the `count` keys that the source has; None: it was not counted."""
        unknown, left = self.unknown, self.left
        total = max(self.walked if count is None else count, sum(unknown.values()))
        if not self._walked_all:
            return Proven(0, unknown, False, "not every key was compared")
        compared = max(total - sum(unknown.values()) - left, 0)
        if not left:
            words = full_words(compared, unknown)
        else:
            words = (
                f"{compared:,} of {total:,} keys compared, none differs; {left:,} were written to "
                "since, and could not be compared once writers waited"
            )
        if self.behind_fence:
            words += f" ({self.behind_fence:,} of them behind the fence)"
        return Proven(compared, unknown, not left, words)

    # --- Behind the fence ---

    def objection_at_fence(self) -> str:
        """Why what is left cannot be compared while writers wait; empty: it can."""
        if not self._open:
            why = self.trouble or "both ends are dialled again"
            return f"keys are left to be compared, and cannot be: {why}"
        if self._walking or not self._named.complete:
            return "more keys were written to in the last moments than are kept by name"
        if self.left > _BEHIND_FENCE_MOST:
            return f"{self.left:,} keys were written to in the last moments, and are not compared"
        return ""

    async def at_fence(self) -> Mapping[DbKey, str]:
        """Compare what is left, and return what differs; all is applied, and nothing changes.

        Raises `LinkError`, `AuthError`, `ServerError`."""
        differ: dict[DbKey, str] = {}
        async with self._turn:
            if why := self.objection_at_fence():
                raise TransferFailed(why)
            self._look_at_ends()
            # Given up in the middle its connections are of no use any more.
            self._broken = True
            self._taken += self._name_anew().names()
            by_db: dict[int, list[bytes]] = {}
            for db, key in dict.fromkeys(self._taken):
                by_db.setdefault(db, []).append(key)
            for db, keys in by_db.items():
                compared = await self._comparison.at_rest(db, keys)
                self._note(db, keys, compared)
                self.behind_fence += len(keys)
                differ |= compared.differ
            self._look_at_ends()
            self._taken.clear()
            self._broken = False
        if why := self._unknown_words:
            raise TransferFailed(why)
        return differ
