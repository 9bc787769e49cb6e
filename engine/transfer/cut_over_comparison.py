"""The comparison of both ends that a cut-over asks for: before the fence, and behind it.

    prepare ─▶ (the fence goes up, all is drained) ─▶ run ─▶ the target may be opened, or not

Before the fence (`transfer.pre_fence_comparison`) no writer waits: what takes its time is done
there. Behind it every moment counts: one look, within a budget, by as few round trips as it takes,
over connections that are there already. A key that differs is read again from the source and
compared again, in both places; only then is the cut-over refused, with the keys named. Counts that
differ do not say which keys they are: so the fence is taken away, every name is looked up at the
other end, and the cut-over is tried again (`again`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from engine import logs
from engine.errors import AuthError, EngineError, StateError, TransferFailed
from engine.model import silent_commands
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import EXTEND_MS
from engine.model.progress import Phase
from engine.model.report import printable_key
from engine.model.server import ServerInfo
from engine.model.verification import (
    LENGTH_UNKNOWN,
    NAMED_LIMIT,
    AtFence,
    Besides,
    Counts,
    Difference,
    Verification,
    not_compared_words,
)
from engine.transfer.async_helpers import beside, cancelled, together
from engine.transfer.checks.check_result import Side
from engine.transfer.comparison_permissions import AGAIN_SECONDS, objection
from engine.transfer.control_connections import Endpoints
from engine.transfer.cut_over_check import (
    NOT_COMPARED,
    Comparison,
    CutOverCheckInSync,
    CutOverCheckResult,
    Settle,
    compared,
    offering,
)
from engine.transfer.follow import Follower
from engine.transfer.formatting import size_words
from engine.transfer.full_proof import FullProof, Proven
from engine.transfer.functions_and_scripts import carry_code, of_libraries
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.pre_fence_comparison import ALWAYS, GROUPS, PreFenceComparison, some_words
from engine.wire.functions_and_indexes import LIST_LIBRARIES, SEARCH, carry_absent

_log = logs.logger(__name__)
# So many keys that were equal before, and may not be any more, are compared behind the fence.
_AGAIN_AT_FENCE = 2000
_SILENT = "values of its type change by commands that are not replicated"
# So many keys are read again behind the fence at the most.
_RESYNCED_AT_FENCE = 200
# Between two looks at the other gates, in seconds.
_LOOK_SECONDS = 0.05
# Before what the target lacks beside keys is looked for again, in seconds.
_LOST_SECONDS = 5.0
# How long that may take.
_LOST_LIMIT = 2.0
_FOLLOWING = (Phase.CATCH_UP, Phase.FOLLOW)
# How often a cut-over is tried again by itself for what its comparison has found.
_AGAIN_MOST = 2


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the source's writes are taken, which is what the target is to be equal to.

    `primary`: of a source that is a replica, or is looked up; `readable`: while its writers are
    paused; `unasked`: why the primary is not known, or cannot be asked; `is_above`: the source is a
    replica of it, and is read while all clients of the primary are paused. Of what a primary
    changes without a word its replica has nothing.
    """

    primary: Endpoint | None = None
    readable: bool = True
    unasked: str = ""
    is_above: bool = False


class FenceInfo(Protocol):
    """What the source told in the moment in which the fence was put up."""

    @property
    def info(self) -> ServerInfo | None:
        """Of itself; None: it can still be asked."""
        ...

    @property
    def silent_calls(self) -> silent_commands.Calls | None:
        """As `PreFenceComparison.calls`; None: not known."""
        ...


class CutOverComparison:
    """One migration's comparison. `beat(reason)` is awaited now and then before the fence.

    Without a `comparison` there is `gate` alone, behind the fence.
    """

    def __init__(
        self,
        ends: Endpoints,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        gate: CutOverCheckInSync,
        comparison: Comparison | None,
        beat: Callable[[str], Awaitable[None]],
    ) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._gate = gate
        self._comparison = comparison
        self._beat = beat
        self._sweep: PreFenceComparison | None = None
        if comparison is not None:
            self._sweep = PreFenceComparison(
                comparison, context, beat, lambda: checkpoint.mark.partial_syncs > 0
            )
        self._besides = Besides(0, {}, {})
        # Of a fence that came to nothing: keys that differed, and whether names are looked up.
        self._found: dict[DbKey, str] = {}
        self._walk = False
        # Those that may differ by now, and are too many for the fence; with the reasons.
        self._unlooked: dict[DbKey, str] = {}
        # How often a string may have been lengthened since they were compared; None: not known.
        self._lengthened: int | None = 0
        self._origin = Origin()
        self._tries = 0
        # Both ends are being compared.
        self._busy = False
        self._look_at = 0.0
        if comparison is not None:
            context.uncomparable = None
        # By the loop's clock: when it is asked again whether both ends can be compared.
        self._ask_at = 0.0
        self._asking: asyncio.Task[None] | None = None
        self.proof: FullProof | None = None
        """What compares every key, where that is wanted."""
        self.looked = False
        """Whether what is named as lost (`MigrationContext.lost`) was looked at again."""
        self.again = False
        """Whether the cut-over that was refused last is worth another try by itself."""

    def require(self, kind: str, reason: str) -> None:
        """Have more keys compared before the next cut-over: "all" is every key of the source.

        It is kept in the state, for an engine that comes after this one. `reason` is told.
        """
        if kind == "all" and not self._checkpoint.mark.compare_all:
            self._checkpoint.note(compare_all=reason)
        if self._sweep is not None:
            self._sweep.require(kind, reason)

    # --- Before the fence ---

    async def prepare(
        self, follower: Follower, pump: asyncio.Task[None], origin: Origin
    ) -> CutOverCheckResult | None:
        """Compare while no writer waits, and choose what is compared behind the fence.

        None: nothing speaks against a cut-over; else why it is refused. Raises what the follower's
        task (`pump`) raises, and `StateError`.
        """
        self.again = False
        comparison, sweep = self._comparison, self._sweep
        if comparison is None or sweep is None or self._context.skip_verification:
            return None
        if self._checkpoint.mark.compare_all:
            sweep.require("all", self._checkpoint.mark.compare_all)
        await self.let_go()
        self._busy, self._origin = True, origin
        try:
            await self._beat("comparing both ends before the cut-over")
            comparison.search_names = self._checkpoint.search_names
            own = self._ends.own_keys(self._checkpoint.mark.token).all
            await comparison.open(own, extend_ms=EXTEND_MS, primary=origin.primary)
            self._besides = await self._carry_code(await comparison.besides())
            found, walk = self._found, self._walk or comparison.doubted
            with logs.timed(_log, "Compare both ends before the fence"):
                differ = await sweep.run(follower, pump, first=found, walk=walk)
            self._found, self._walk = {}, False
            # First what is not proven, or may differ again by now.
            again = list((_resynced(sweep) | dict.fromkeys(sweep.silent, _SILENT)).items())
            # What the primary alone has of them the replica cannot tell.
            most = 0 if self._reads_replica else _AGAIN_AT_FENCE
            self._unlooked = dict(again[most:])
            first = [*sweep.unsure, *dict(again[:most])]
            sampled = [key for key in sweep.sampled if key not in self._unlooked]
            await comparison.choose(first, sampled)
            if self._reads_replica:
                await comparison.read_replica()
        except TransferFailed as error:
            if pump.done():
                raise
            return self._refuse(error.in_one_line)
        except EngineError as error:
            if pump.done() or isinstance(error, StateError):
                raise
            if isinstance(error, AuthError):
                # The rights were taken away since, or are for other keys.
                self._context.uncomparable = None
            return self._refuse(f"both ends could not be compared: {error}")
        if differ:
            why = f"{len(differ):,} keys differ, though they were read again: {some_words(differ)}"
            return self._refuse(why, differ)
        if self._besides.lost:
            self._context.lost = dict(self._besides.lost)
            return self._refuse(self._context.lost_words)
        if sweep.walked and sweep.counts is not None and sweep.counts.wrong:
            return self._refuse_counts(sweep.counts)
        # A comparison takes its time, and whatever closed another gate meanwhile (the engine got no
        # CPU for a moment, say) may pass by itself.
        return await self._gates(pump, "both ends are equal before the cut-over", lambda: True)

    async def passing(self, pump: asyncio.Task[None]) -> CutOverCheckResult | None:
        """Wait while a gate is closed by what passes in a moment (`MigrationContext.passing`).

        None: all are open; else why one is not. Raises what `pump` raises.
        """
        context = self._context
        return await self._gates(pump, context.reason, lambda: context.passing)

    async def _gates(
        self, pump: asyncio.Task[None], doing: str, worth: Callable[[], bool]
    ) -> CutOverCheckResult | None:
        """Wait for the other gates as long as it is `worth` it, and no longer than a cut-over may
        take."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._context.settings.cut_over_timeout
        while True:
            await self._beat(doing)
            if pump.done():
                pump.result()
            if self._context.can_complete:
                return None
            if loop.time() >= until or not worth():
                return CutOverCheckResult(False, self._context.reason + self._context.advice)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _carry_code(self, besides: Besides) -> Besides:
        """Load the libraries that the target lacks, or has otherwise, once more; and make the
        search indexes that it lacks."""
        assert self._comparison is not None
        lost = self._lost(besides)
        code = [text for name, text in besides.code.items() if f"library {name}" in lost]
        search = any(what.startswith(SEARCH) for what in besides.lost)
        if not code and not search:
            return replace(besides, lost=lost)
        async with self._ends.admin("target") as end:
            refused = await carry_code(end, code, ())
            if search:
                async with self._ends.admin("source") as source:
                    refused |= await carry_absent(source, end, self._checkpoint.search_names)
        again = await self._comparison.besides()
        # What was taken now, and cannot be listed, is there.
        taken = {f"library {name}" for name in besides.code} & lost.keys() - refused.keys()
        still = {
            what: refused.get(what, why)
            for what, why in self._lost(again).items()
            if what in again.lost or what not in taken
        }
        return replace(again, lost=still)

    def _lost(self, besides: Besides) -> dict[str, str]:
        """What the target lacks. Where libraries cannot be listed at both ends, those that it has
        refused are among them: nothing else would tell."""
        if not any(each.startswith(LIST_LIBRARIES) for each in besides.denied):
            return dict(besides.lost)
        refused = {what: why for what, why in self._context.lost.items() if of_libraries(what)}
        return refused | dict(besides.lost)

    async def look(self) -> None:
        """Now and then while the source is followed: what is named as lost may be there by now, and
        the users may have been granted what a comparison takes."""
        if self._context.phase in _FOLLOWING:
            self.ask_rights()
        now = asyncio.get_running_loop().time()
        if self._busy or not self._context.lost or self._comparison is None or now < self._look_at:
            return
        self._look_at = now + _LOST_SECONDS
        try:
            # What else is to be done now and then must not wait for it.
            async with asyncio.timeout(_LOST_LIMIT):
                self._comparison.search_names = self._checkpoint.search_names
                await self._comparison.open()
                found = await self._carry_code(await self._comparison.besides())
                self._context.lost, self.looked = dict(found.lost), True
        except (EngineError, TimeoutError):
            # It is looked for again.
            return
        finally:
            await self._comparison.close()

    def ask_rights(self, told: Mapping[Side, ServerInfo] | None = None) -> None:
        """Ask whether the users may compare both ends, beside all else; the context is told
        (`MigrationContext.uncomparable`). `told`: what the ends have said of themselves."""
        now = asyncio.get_running_loop().time()
        if self._context.uncomparable == "" or self._busy or now < self._ask_at:
            return
        if self._asking is None or self._asking.done():
            self._ask_at = now + AGAIN_SECONDS
            self._asking = asyncio.create_task(self._ask_rights(told))

    async def _ask_rights(self, told: Mapping[Side, ServerInfo] | None) -> None:
        context, ends = self._context, self._ends
        try:
            async with asyncio.timeout(_LOST_LIMIT):
                why = await objection(ends.source, ends.target, ends.settings, told)
        except (EngineError, TimeoutError):
            # What it takes is found out by the comparison itself then.
            why = ""
        if why and context.uncomparable is None:
            context.on_event(why)
        context.uncomparable = why

    async def let_go(self) -> None:
        """Nothing is followed any more: what is being asked is given up."""
        asking, self._asking = self._asking, None
        if asking is not None:
            await cancelled(asking)

    @property
    def _reads_replica(self) -> bool:
        """Whether the primary was compared before the fence, and behind it a replica of it is."""
        return self._origin.is_above and not self._origin.readable

    def before(self, calls: silent_commands.Calls | None = None) -> CutOverCheckResult:
        """What `prepare` has shown, where nothing is compared behind a fence. `calls`: as
        `PreFenceComparison.calls`, when writers were stopped; None: not known."""
        if self._sweep is None or self._context.skip_verification:
            return CutOverCheckResult(True, NOT_COMPARED)
        sweep = self._sweep
        restless = self._restless(calls)
        left = {key: _SILENT for key, kind in sweep.silent.items() if kind in restless}
        left |= _resynced(sweep) | sweep.unsure
        return self._passed(None, left, "and may differ by now", dict(sweep.unknown), restless)

    def _restless(self, calls: silent_commands.Calls | None) -> frozenset[str]:
        """The kinds of keys that may have changed without a word since they were compared."""
        assert self._sweep is not None
        if silent_commands.more(silent_commands.READ_PENDING, calls, self._sweep.calls) == 0:
            return frozenset(ALWAYS) - {GROUPS}
        return frozenset(ALWAYS)

    # --- Behind the fence ---

    async def run(
        self,
        follower: Follower,
        pump: asyncio.Task[None],
        readable: bool,
        settle: Settle,
        fence: FenceInfo,
    ) -> CutOverCheckResult:
        """Compare while the source's writers are paused; everything is applied.

        `readable`: whether the source can be read now; `fence`: what it told of itself when its
        writers were stopped. `settle` waits until the last expire times are
        set back, those of keys that were read again as well. Raises what the follower's task
        (`pump`) raises, and `StateError`.
        """
        self.again = False
        if self._comparison is None:
            own_key = self._ends.own_keys(self._checkpoint.mark.token).position
            if not readable:
                return CutOverCheckResult(
                    True, "the source cannot be read while it is paused: not compared"
                )
            return await compared(self._context, lambda: self._gate(own_key))
        if self._context.skip_verification:
            # What an earlier one has found says nothing of what is opened now.
            self._context.verification = None
            return CutOverCheckResult(True, NOT_COMPARED)
        if not readable:
            return await self._count(pump, settle, fence)
        return await self._run(follower, pump, settle, fence)

    async def _count(
        self, pump: asyncio.Task[None], settle: Settle, fence: FenceInfo
    ) -> CutOverCheckResult:
        """Where no client can read the source: what was compared before, and the numbers of
        keys."""
        comparison, sweep = self._comparison, self._sweep
        assert comparison is not None
        assert sweep is not None
        try:
            info = fence.info
            counts = await comparison.counts_of(info, settle) if info is not None else None
        except EngineError as error:
            if pump.done() or isinstance(error, StateError):
                raise
            return self._refuse(f"the target's keys could not be counted: {error}")
        if counts is not None and counts.wrong:
            return self._refuse_counts(counts)
        sweep.counts = counts if counts is not None else sweep.counts
        return self.before(fence.silent_calls)

    async def _run(
        self,
        follower: Follower,
        pump: asyncio.Task[None],
        settle: Settle,
        fence: FenceInfo,
    ) -> CutOverCheckResult:
        comparison, sweep = self._comparison, self._sweep
        assert comparison is not None
        assert sweep is not None
        limit = self._context.settings.check_seconds
        try:
            async with asyncio.timeout(limit) as clock:
                if self.proof is not None:
                    self.proof.behind_fence = 0
                    if why := self.proof.objection_at_fence():
                        self.again = self._worth_another
                        return self._refuse(why)
                found = await self._at_fence(comparison, settle)
                wrong = found.differ
                # (A primary that answers nobody is not read from.)
                if wrong and len(wrong) <= _RESYNCED_AT_FENCE and not self._reads_replica:
                    follower.read_again(wrong)
                    await beside(follower.settle(), pump)
                    await settle()
                    found = await self._at_fence(comparison, settle)
                    sweep.repaired += len(wrong.keys() - found.differ.keys())
                differ = found.differ
        except TimeoutError:
            if not clock.expired():
                raise
            return self._refuse(
                f"the comparison during the fence was not finished within {limit:g} s",
            )
        except EngineError as error:
            if pump.done() or isinstance(error, StateError):
                raise
            return self._refuse(f"both ends could not be compared: {error}")
        if differ:
            self._found = dict(differ)
            self.again = self._worth_another
            return self._refuse(f"{len(differ):,} keys differ: {some_words(differ)}", differ)
        if found.lost:
            self._context.lost = dict(found.lost)
            self.again = self._worth_another
            return self._refuse(self._context.lost_words)
        if found.counts is None:
            # (Beyond the limit above: other lanes may take their time.)
            try:
                found = replace(found, counts=await comparison.counts_together())
            except EngineError as error:
                if pump.done():
                    raise
                return self._refuse(f"the keys of both ends could not be counted: {error}")
        counts = found.counts
        if counts is not None and counts.wrong:
            return self._refuse_counts(counts)
        calls = fence.silent_calls if self._reads_replica else found.silent_calls
        self._lengthened = 0
        if comparison.lengthens:
            more = silent_commands.more(silent_commands.LENGTHEN, calls, sweep.calls)
            if more != 0 and self._worth_another:
                self.again = True
                return self._refuse("BITFIELD was called since the strings were compared")
            self._lengthened = more
        why = f"over the limit of {size_words(self._context.settings.check_bytes)} behind the fence"
        if any(what.startswith(LENGTH_UNKNOWN) for what in comparison.over_budget.values()):
            why += ", or of an unknown length"
        restless = self._restless(calls)
        doubted = comparison.over_budget | self._unlooked
        if self._reads_replica:
            why = "and may differ by now"
        left = {
            key: what
            for key, what in doubted.items()
            if key in sweep.resynced
            or key in sweep.unsure
            or sweep.silent.get(key) in (None, *restless)
        }
        return self._passed(
            found,
            left,
            why,
            # Keys that are read behind the fence are of those that were compared before.
            {
                kind: max(sweep.unknown[kind], found.unknown.get(kind, 0))
                for kind in sweep.unknown.keys() | found.unknown.keys()
            },
            restless,
        )

    async def _at_fence(self, comparison: Comparison, settle: Settle) -> AtFence:
        """The look behind the fence, and beside it what is left of the full proof."""
        proof, found = self.proof, list[AtFence]()
        differ: dict[DbKey, str] = {}

        async def look() -> None:
            found.append(await comparison.at_fence(settle))

        async def prove() -> None:
            if proof is not None:
                differ.update(await proof.at_fence())

        await together([look(), prove()])
        return replace(found[0], differ={**differ, **found[0].differ})

    @property
    def _worth_another(self) -> bool:
        self._tries += 1
        if self._tries <= _AGAIN_MOST:
            return True
        # The operator's next word has as many.
        self._tries = 0
        return False

    async def close(self) -> None:
        """Hang up. A second call does nothing."""
        self._busy = False
        if self._comparison is not None:
            await self._comparison.close()

    # --- What is told ---

    def _refuse_counts(self, counts: Counts) -> CutOverCheckResult:
        # Which keys they are is found where no writer waits; where it was just done, it is done
        # again, and what still differs then is never called in sync.
        assert self._sweep is not None
        self._walk, self.again = True, self._worth_another
        why = ", and no name is at one end alone" if self._sweep.walked else ""
        return self._refuse(f"{counts.wrong}{why}")

    def _refuse(self, reason: str, differ: Mapping[DbKey, str] | None = None) -> CutOverCheckResult:
        reason = offering(self._context, reason)
        unknown = dict(self._sweep.unknown) if self._sweep is not None else {}
        result = self._verification(False, reason, differ or {}, None, {}, unknown)
        self._context.verification = result
        return CutOverCheckResult(False, reason, result)

    def _passed(
        self,
        found: AtFence | None,
        left: Mapping[DbKey, str],
        why: str,
        unknown: Mapping[str, int],
        restless: frozenset[str],
    ) -> CutOverCheckResult:
        assert self._sweep is not None
        assert self._comparison is not None
        counts = found.counts if found is not None else self._sweep.counts
        if self._ends.settings.rules:
            counted = "not counted (rules choose keys)"
        elif not self._comparison.counts_are_known:
            counted = "not counted (the target had keys of its own)"
        elif counts is None:
            counted = "not counted (the source is written to)"
        else:
            counted = counts.words
        proven = self._proven(counts)
        if proven is not None:
            # What is not of those kinds is proven as long as no command names it.
            left = {key: what for key, what in left.items() if key in self._sweep.silent}
            unknown = proven.unknown
        unproven = {key: what for key, what in self._sweep.unsure.items() if key in left}
        compared = self._sweep.compared - sum(unknown.values()) - len(unproven)
        keys = proven.words if proven is not None else f"{compared:,} keys compared, 0 differ"
        names = "every name looked up at the other end"
        if not self._sweep.walked:
            names = f"{self._sweep.names:,} names looked up at the other end, no time for the rest"
        words = [f"in sync; {counted}; {names}; {keys}"]
        if repaired := self._repaired:
            words.append(f"{repaired:,} keys differed and were read again")
        if unknown:
            words.append(not_compared_words(unknown))
        before = {key: what for key, what in left.items() if key not in unproven}
        if before:
            words.append(
                f"{len(before):,} keys were compared only before the fence, {why}: "
                f"{some_words(before)}"
            )
        if unproven:
            words.append(
                f"{len(unproven):,} keys not compared, as they are written to all the time: "
                f"{some_words(unproven)}"
            )
        if more := sum(self._sweep.silent_more[kind] for kind in restless):
            words.append(f"{more:,} more keys were compared only before the fence: {_SILENT}")
        if self._lengthened != 0:
            times = "" if self._lengthened is None else f" {self._lengthened:,} times"
            words.append(
                f"not compared: what BITFIELD, which was called{times} since, only lengthens"
            )
        if self._origin.unasked:
            words.append(f"compared with a replica of the source: {self._origin.unasked}")
        if self._besides.denied:
            denied = ", ".join(self._besides.denied)
            words.append(f"not compared, as the user may not run it: {denied}")
        reason = "; ".join(words) + "."
        result = self._verification(True, reason, {}, found, left, unknown)
        if proven is not None:
            result = replace(result, compared=proven.compared, full=proven.full)
        self._context.verification = result
        return CutOverCheckResult(True, reason, result)

    def _proven(self, counts: Counts | None) -> Proven | None:
        """What the full proof has come to; None where none was wanted."""
        if self.proof is None:
            return None
        return self.proof.come_to(None if counts is None else round(counts.source / counts.lanes))

    @property
    def _repaired(self) -> int:
        assert self._sweep is not None
        return self._sweep.repaired + (self.proof.repaired if self.proof is not None else 0)

    def _verification(
        self,
        ok: bool,
        reason: str,
        differ: Mapping[DbKey, str],
        found: AtFence | None,
        left: Mapping[DbKey, str],
        unknown: Mapping[str, int],
    ) -> Verification:
        assert self._sweep is not None
        assert self._comparison is not None
        sweep = self._sweep
        counts = found.counts if found is not None else sweep.counts
        unproven = [key for key in sweep.unsure if key in left]
        return Verification(
            ok=ok,
            reason=reason,
            keys_source=counts.source if counts is not None else 0,
            keys_target=counts.target if counts is not None else 0,
            compared=sweep.compared - sum(unknown.values()) - len(unproven),
            different=len(differ),
            differences=_named(differ),
            counted=counts is not None,
            counted_lanes=counts.lanes if counts is not None else 1,
            not_compared=tuple(sorted(unknown.items())),
            over_budget=_named(
                {
                    key: f"written to all the time; when both ends were read: {what}"
                    if key in unproven
                    else what
                    for key, what in left.items()
                }
            ),
            repaired=self._repaired,
            libraries=self._besides.count,
            lost=tuple(f"{what}: {why}" for what, why in self._besides.lost.items()),
        )


def _resynced(sweep: PreFenceComparison) -> dict[DbKey, str]:
    return {key: f"{what}; read again since" for key, what in sweep.resynced.items()}


def _named(differ: Mapping[DbKey, str]) -> tuple[Difference, ...]:
    items = list(differ.items())[:NAMED_LIMIT]
    return tuple(Difference(db, printable_key(key), what) for (db, key), what in items)
