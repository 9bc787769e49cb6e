"""`verify` from its first dial to its report.

1. Both ends say what they are: servers, slots, databases, offsets.
2. Both ends are walked over, database by database (`key_walks`).
3. What seemed to differ is looked at again until that is known (`second_looks`); 2 and 3 are done
   anew where a server was restarted or replaced meanwhile.
4. Functions and search indexes are compared; then, where that is asked for, what differs is
   repaired, and looked at again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from functools import partial

from engine._native import LookComparer, LookReader, ValueDecoder
from engine.errors import FaultOf, UsageError
from engine.model import carried_with_loss
from engine.model.cluster_topology import Topology
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import EXTEND_MS
from engine.model.pace import Pace
from engine.model.proof import (
    NAMED_MOST,
    STOP_AT,
    ComparedRun,
    KeyDifference,
    NotCompared,
    Outcome,
    ProofProgress,
    ProofReport,
    ProofSettings,
)
from engine.model.report import printable_key
from engine.model.slots import SlotSet
from engine.proof import long_values, repair, saved_proof
from engine.proof.asked_server import AskedServer
from engine.proof.deployment import (
    Asked,
    Deployment,
    databases,
    describe,
    is_owned,
    look,
    refuses,
    slots_moved,
    told_by_all,
    written,
)
from engine.proof.key_walks import TTL_BOUND_MS, KeyWalks
from engine.proof.migration_positions import Follower
from engine.proof.relinking import until_linked
from engine.proof.repair_long_values import own_keys
from engine.proof.report_file import ReportFile
from engine.proof.same_names import both_at_rest
from engine.proof.saved_proof import SavedProof
from engine.proof.second_looks import Found, SecondLooks, Servers, Side
from engine.proof.shown_difference import shown
from engine.proof.track import COMPARED, NAMED, REPAIRED, FoundKey, Track, Tracks
from engine.wire import functions_and_indexes
from engine.wire.control_connection import Admin, admin, all_of

OnProgress = Callable[[ProofProgress], None]
_LIBRARY = "library or index"
_TRIES = 3
"""So often all is walked over while servers are restarted."""
_REPLACED = "a server was restarted or replaced meanwhile: what it has now may not be compared"
_HIDDEN = "hides its run_id, and when it has started: a restart meanwhile would not be noticed"
_MOVED = "slots moved meanwhile: keys that moved may not have been compared"


async def prove(
    source: Endpoint,
    target: Endpoint,
    settings: ProofSettings,
    *,
    report: str | None = None,
    resume: bool = False,
    fresh: bool = False,
    on_progress: OnProgress | None = None,
) -> ProofReport:
    """Compare two deployments; nothing is written to either, but for `settings.repair`. `report`:
    the path of a file of JSON lines, with a page beside it; with `resume` the comparison of that
    report, which was cut off, goes on, and with `fresh` it is forgotten.

    Raises `LinkError`, `AuthError`, `ServerError` where an end cannot be asked, and `UsageError`
    for a file that cannot be written, a comparison to resume that is not there or was one of other
    ends or settings, or a repair while a migration has the target.
    """
    for end in (source, target):
        if end.file_path is not None:
            raise UsageError("verify compares two servers, not a file")
    if report is None:
        if resume:
            raise UsageError("it takes the path of its report to go on with a comparison")
        settings = _seeded(settings)
        return await _Proof(source, target, settings, None, None, on_progress or _ignore).run()
    file, saved = ReportFile(report), None
    try:
        if not resume:
            settings = _seeded(settings)
        if fresh:
            # (No other process writes this report: it is ours from here on.)
            saved_proof.remove(file.state)
        saved = SavedProof(file.state, _head(source, target, settings), resume=resume)
        settings = replace(settings, seed=saved.seed)
        proof = _Proof(source, target, settings, file, saved, on_progress or _ignore)
        try:
            found = await proof.run()
        except BaseException:
            proof.save()
            raise
        saved.remove()
        return found
    finally:
        if saved is not None:
            saved.close()
        file.close()


def _seeded(settings: ProofSettings) -> ProofSettings:
    if settings.seed is not None:
        return settings
    return replace(settings, seed=int.from_bytes(os.urandom(8), "little"))


def _head(source: Endpoint, target: Endpoint, settings: ProofSettings) -> dict[str, object]:
    """What a comparison that goes on has to have in common with the one that was cut off."""
    return {
        "source": source.address,
        "target": target.address,
        "mode": settings.mode,
        "match": settings.match,
        "sample": settings.sample,
        "seed": settings.seed,
        "repair": settings.repair,
        "address map": [str(pair) for pair in settings.addresses.pairs],
    }


class _Proof:
    """One comparison."""

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        settings: ProofSettings,
        file: ReportFile | None,
        saved: SavedProof | None,
        on_progress: OnProgress,
    ) -> None:
        self._named = source, target
        self._settings = settings
        self._file = file
        self._on_progress = on_progress
        assert settings.seed is not None
        self._key = settings.seed.to_bytes(16, "little")
        self._pace = Pace(settings.rate)
        self._began = time.time()
        self._clock = time.monotonic()
        self._progress = ProofProgress()
        self._extended = 0
        self._saved = saved
        self._tracks = Tracks(saved, self._comparer, self._keep)
        # Clusters, as their nodes have told them last.
        self._told: dict[FaultOf, Topology] = {}
        # What was found.
        self._differences: list[KeyDifference] = []
        self._different: dict[DbKey, tuple[str, ...]] = {}
        self._kinds: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        # Of each run.
        self._found_by: Counter[int] = Counter()
        self._not_compared: list[NotCompared] = []
        self._left_out: list[str] = []
        self._libraries = 0
        self._repaired: set[DbKey] = set()
        # Keys that cannot be told; and what is no key's, or a part of one, and cannot.
        self._untold: set[DbKey] = set()
        # Databases that one end has not.
        self._lacking: dict[int, str] = {}
        self._repairing = False
        self._decoder = ValueDecoder(self._key)
        if saved is not None:
            self._reasons.update(saved.reasons)
            self._left_out += saved.left_out
            self._began = saved.runs[0][0] if saved.runs else self._began

    async def run(self) -> ProofReport:
        """Compare."""
        settings, limit = self._settings, self._settings.timeout
        async with AsyncExitStack() as stack:
            ends = await self._look()
            admins = [
                await all_of(
                    stack,
                    (
                        admin(each.endpoint, timeout=limit, fault=deployment.fault)
                        for each in deployment.shards
                    ),
                )
                for deployment in ends
            ]
            asked = [
                await describe(each, deployment.shards)
                for each, deployment in zip(admins, ends, strict=True)
            ]
            owned = await is_owned(admins[1])
            if owned and settings.repair:
                raise UsageError(
                    "a migration has the target: it stores what the source has by itself",
                    remedy="Complete or abort it, or compare without --repair.",
                )
            self._begin(asked)
            if asked[0].shares_with(asked[1]):
                self._unsure("both ends are the same server, or have a server in common")
            for deployment, each in zip(ends, asked, strict=True):
                for info, server in zip(each.infos, each.servers, strict=True):
                    if not info.process:
                        self._unsure(f"the {deployment.fault} {server.address} {_HIDDEN}")
            await self._moving(ends, admins)
            self._extended = EXTEND_MS if owned else 0
            again = await self._second_looks(stack, ends, admins, asked)
            self._tell("comparing", total=sum(each.keys for each in asked))
            walks = KeyWalks(
                ends,
                settings,
                self._key,
                self._pace,
                again,
                self._tracks,
                self._extended,
                lambda db: until_linked(partial(both_at_rest, admins, db)),
                lambda: self._tell(
                    keys=self._tracks.named, earlier=self._tracks.earlier, doubtful=len(again)
                ),
                lambda: self._stopped,
            )
            ids = await self._over_all(
                asked[0].processes | asked[1].processes, walks, ends, admins, again
            )
            if settings.repair and not self._stopped:
                # Behind it nothing tells that they differed.
                self._tracks.mark_all(again)
            if settings.match is None:
                await self._beside(admins)
            if settings.repair and self._different:
                self._tell("repairing")
                await self._repair(ends, admins, again)
            await until_linked(partial(self._named_more, admins[0]))
            await until_linked(partial(self._moving, ends, admins))
            now = await until_linked(partial(_processes, ends, settings.timeout))
            if now != ids and not self._stopped:
                self._unsure(_REPLACED)
            return self._report(asked, again)

    def save(self) -> None:
        """It is cut off: save what was compared. What is there holds where that fails."""
        with contextlib.suppress(UsageError):
            self._tracks.save_marked()

    async def _over_all(
        self,
        ids: set[str],
        walks: KeyWalks,
        ends: Sequence[Deployment],
        admins: Sequence[Sequence[Admin]],
        again: SecondLooks,
    ) -> set[str]:
        """Walk over all databases, and look again at what seemed to differ: what was compared is
        all of the same servers, which are there at the end. Where one is another process by then
        (it may be back without what was compared), the walks that asked the one before begin anew.
        `ids`: those that the servers had before, by which processes are told apart; gives those
        that they have now."""
        dbs: set[int] = set()
        for tried in range(_TRIES):
            if tried:
                self._tell("comparing")
                # Walks at their end whose servers are still the same have nothing more to do.
                self._tracks.mark_all(again)
            walks.processes.clear()
            for end in (end for side in admins for end in side):
                dbs |= await until_linked(partial(databases, end))
            dbs |= self._tracks.dbs
            await self._over(sorted(dbs), walks, admins)
            self._tell("looking again")
            await again.settle()
            before = ids
            ids = await until_linked(partial(_processes, ends, self._settings.timeout))
            # (Of a shard whose primary is another one by now nothing counts that came before.)
            await until_linked(partial(self._moving, ends, admins))
            if self._stopped or (before == ids and walks.processes <= ids):
                return ids
        self._unsure(_REPLACED)
        return ids

    async def _over(
        self, dbs: Sequence[int], walks: KeyWalks, admins: Sequence[Sequence[Admin]]
    ) -> None:
        """Walk over these databases."""
        for db in dbs:
            lacks = [await until_linked(partial(refuses, side, db)) for side in admins]
            if lacks == [False, False]:
                await walks.over(db)
                continue
            if all(lacks):
                continue
            there = lacks.index(False)
            self._lacking[db] = "source" if there else "target"
            await walks.alone(db, there, partial(self._alone, db, there))

    def _alone(self, db: int, there: int, key: bytes) -> None:
        """A key is in a database that the other end has not."""
        sides = Side(True, 0, None), Side(False, 0, None)
        kind = "extra" if there else "missing"
        self._found(Found(db, key, (kind,), sides[there], sides[1 - there]))

    async def _named_more(self, source: Sequence[Admin]) -> None:
        """Say how many names came that the source has no keys for by now: of keys that are gone,
        or that SCAN has named twice, which it may while a table shrinks."""
        if self._settings.match is not None or self._settings.sample < 1 or self._stopped:
            return
        keys = sum([(await end.info()).keys for end in source])
        if (more := self._tracks.sums(COMPARED).named - keys) > 0:
            self._leave_out(
                f"{more:,} names that SCAN gave are of keys that are gone by now, or came twice: a "
                "key that comes twice counts twice"
            )

    async def _moving(self, ends: Sequence[Deployment], admins: Sequence[Sequence[Admin]]) -> None:
        """Say which slots are being moved, whose keys are at two nodes, or on the way; and whether
        any have moved since this was asked last."""
        for deployment, side in zip(ends, admins, strict=True):
            if deployment.told is None:
                continue
            told = await told_by_all(side)
            if slots := SlotSet.of({each.slot for each in told.moves}):
                why = f"slots of the {deployment.fault} are being moved ({slots.words})"
                self._unsure(f"{why}: keys in them may not have been compared")
            if slots_moved(self._told.get(deployment.fault), told, deployment.told):
                self._unsure(_MOVED)
            self._told[deployment.fault] = told

    # --- What is there ---

    async def _look(self) -> tuple[Deployment, Deployment]:
        settings = self._settings
        source, target = await asyncio.gather(
            look("source", self._named[0], settings.addresses, settings.timeout),
            look("target", self._named[1], settings.addresses, settings.timeout),
        )
        return source, target

    def _begin(self, asked: Sequence[Asked]) -> None:
        if self._file is not None:
            self._file.begin(self._told_settings(), asked[0].servers, asked[1].servers, self._began)

    def _told_settings(self) -> dict[str, object]:
        told = asdict(self._settings)
        del told["addresses"]
        return told

    @property
    def _stopped(self) -> bool:
        return len(self._different) + len(self._untold) >= STOP_AT

    # --- What seemed to differ ---

    async def _second_looks(
        self,
        stack: AsyncExitStack,
        ends: tuple[Deployment, Deployment],
        admins: Sequence[Sequence[Admin]],
        asked: Sequence[Asked],
    ) -> SecondLooks:
        limit, extended = self._settings.timeout, self._extended

        async def dialled(deployment: Deployment) -> list[AskedServer]:
            return [
                await stack.enter_async_context(
                    AskedServer(
                        each.endpoint,
                        partial(LookReader, self._key),
                        deployment.fault,
                        limit,
                    )
                )
                for each in deployment.shards
            ]

        servers = Servers(
            await dialled(ends[0]),
            await dialled(ends[1]),
            ends,
            self._key,
            self._settings,
        )

        async def long_value(db: int, key: bytes) -> tuple[int, bytes]:
            parts = ends[0].part_of(key), ends[1].part_of(key)
            async with AsyncExitStack() as own:
                pair = [
                    await own.enter_async_context(
                        AskedServer(
                            deployment.shards[part].endpoint,
                            partial(
                                LookReader,
                                self._key,
                                held=long_values.WHOLE_BYTES,
                                held_together=long_values.WHOLE_BYTES,
                            ),
                            deployment.fault,
                            limit,
                        )
                    )
                    for deployment, part in zip(ends, parts, strict=True)
                ]
                found = await long_values.compare_whole(pair[0], pair[1], db, key, self._key)
            await self._pace.read(sum(each.read for each in pair))
            if found is not None:
                return found
            infos = asked[0].infos[parts[0]], asked[1].infos[parts[1]]
            return await long_values.compare_in_windows(
                admins[0][parts[0]],
                admins[1][parts[1]],
                infos,
                db,
                key,
                self._key,
                self._leave_out,
            )

        follower = Follower(*admins)

        async def passed() -> bool:
            return not extended or await until_linked(follower.passed)

        return SecondLooks(
            servers,
            passed,
            lambda: until_linked(partial(written, [each for side in admins for each in side])),
            long_value,
            self._found,
            self._pace,
        )

    def _found(self, found: Found, track: Track | None = None) -> None:
        """A key differs, or it cannot be told whether it does."""
        name = found.db, found.key
        known = name in (self._different if found.kinds else self._untold)
        if known and (track is None or self._repairing):
            return
        if found.kinds and self._repairing:
            # It stays different, as was told.
            self._different[name] = found.kinds
            return
        ends = shown(found, self._decoder) if found.kinds else ("", "")
        key = FoundKey(*name, found.kinds, *ends, found.reason, self._tracks.run)
        if not known:
            self._keep(key)
        if track is not None:
            # Each walk that came by it: another one may begin anew.
            self._tracks.found(track, key)

    def _keep(self, found: FoundKey) -> None:
        """A key was found, by this run or by an earlier one; by several walks it counts once."""
        if (found.db, found.key) in (self._different if found.kinds else self._untold):
            return
        key = printable_key(found.key)
        if found.reason:
            # (What is known of it, if anything is, outweighs the rest.)
            self._reasons[found.reason] += 1
        if found.kinds:
            self._different[found.db, found.key] = found.kinds
            self._found_by[found.run] += 1
            self._kinds.update(found.kinds)
            self._name(KeyDifference(found.db, key, found.kinds, found.source, found.target))
            self._tell(different=len(self._different))
            return
        self._untold.add((found.db, found.key))
        unknown = NotCompared(found.db, key, found.reason)
        if len(self._not_compared) < NAMED_MOST:
            self._not_compared.append(unknown)
        if self._file is not None:
            self._file.not_compared(unknown)

    def _name(self, difference: KeyDifference) -> None:
        if len(self._differences) < NAMED_MOST:
            self._differences.append(difference)
        if self._file is not None:
            self._file.difference(difference)

    # --- What is no key's ---

    async def _beside(self, admins: Sequence[Sequence[Admin]]) -> None:
        """Functions and search indexes; each server of an end is to have the same ones."""
        ours = await until_linked(partial(functions_and_indexes.ask, admins[0][0]))
        self._libraries = ours.count
        for end in admins[1]:
            theirs = await until_linked(partial(functions_and_indexes.ask, end))
            for denied in (*ours.denied, *theirs.denied):
                self._unsure(f"{denied} is not allowed")
            lost = functions_and_indexes.lacking(ours, theirs, extra=True)
            for what, why in lost.items():
                self._kinds[_LIBRARY] += 1
                self._name(KeyDifference(0, what, (_LIBRARY,), "", why))

    # --- Repair ---

    async def _repair(
        self,
        ends: tuple[Deployment, Deployment],
        admins: Sequence[Sequence[Admin]],
        again: SecondLooks,
    ) -> None:
        keys = [each for each in self._different if each[0] not in self._lacking]
        for db, end in self._lacking.items():
            self._leave_out(f"not repaired: database {db}, which the {end} has not")
        owned = partial(is_owned, admins[1])
        done = await until_linked(
            partial(
                repair.repair,
                ends,
                admins[0],
                admins[1],
                keys,
                owned,
                own_keys(),
                self._settings.timeout,
            )
        )
        if done.owned:
            # It has begun meanwhile.
            self._leave_out("nothing more is repaired: a migration has the target by now")
        before, self._different = self._different, {}
        untold, self._untold = self._untold, set()
        self._repairing = True
        for db, key in keys:
            again.add(db, key, self._tracks.track(REPAIRED, db, 0))
        await again.settle()
        self._repairing = False
        left, self._different = self._different, before
        # (Nothing is known of what cannot be told now.)
        self._repaired = set(keys) - set(left) - self._untold
        self._untold |= untold
        names = {(db, printable_key(key)) for db, key in self._repaired}
        self._differences = [
            replace(each, repaired=True) if (each.db, each.key) in names else each
            for each in self._differences
        ]
        if self._file is not None:
            for db, name in sorted(names):
                self._file.repaired(db, name)
        for (db, key), why in list(done.refused.items())[:NAMED_MOST]:
            self._leave_out(f"not repaired: database {db}, {printable_key(key)}: {why}")
        for bit, count in sorted(done.lost.items()):
            self._leave_out(f"of {count:,} keys that were repaired: {carried_with_loss.WORDS[bit]}")

    # --- What it has come to ---

    def _unsure(self, why: str) -> None:
        """Say once what was not compared that may differ."""
        if why in self._reasons:
            return
        self._reasons[why] = 1
        if self._saved is not None:
            self._saved.reasons[why] = 1

    def _leave_out(self, what: str) -> None:
        """Say once what was left out."""
        if what not in self._left_out:
            self._left_out.append(what)
            if self._saved is not None:
                self._saved.left_out.append(what)

    def _comparer(self) -> LookComparer:
        return LookComparer(self._key, ttl_bound=TTL_BOUND_MS, extended=self._extended)

    def _report(self, asked: Sequence[Asked], again: SecondLooks) -> ProofReport:
        sums = self._tracks.sums()
        if self._stopped:
            self._unsure("there are so many of them that the rest was not looked at")
        libraries = self._kinds[_LIBRARY]
        left = len(self._different) - len(self._repaired) + libraries
        outcome: Outcome = "equal"
        if left:
            outcome = "different"
        elif self._reasons:
            outcome = "unknown"
        # The engine's own are where a migration keeps them.
        if own := self._tracks.sums(NAMED).own:
            self._left_out.append(f"{own:,} keys of the engine's own on the target")
        if self._settings.sample < 1:
            self._left_out.append(
                f"keys that are not of the share of {self._settings.sample:g} that was chosen"
            )
        if self._settings.match is not None:
            self._left_out.append("keys that do not match, functions and search indexes")
        if self._settings.mode != "full":
            self._left_out.append("values" if self._settings.mode == "ttl" else "values and TTLs")
        else:
            self._left_out.append(
                "of streams when consumers were seen, and counts of what was ever added or read"
            )
        report = ProofReport(
            outcome,
            self._told_settings(),
            asked[0].servers,
            asked[1].servers,
            self._began,
            time.time(),
            compared=sum(sums.equal.values()) + len(self._different) - len(self._repaired),
            bytes=sums.values,
            different=len(self._different) + libraries,
            resolved=sums.resolved - len(self._repaired),
            unknown=len(self._untold),
            repaired=len(self._repaired),
            libraries=self._libraries,
            stopped=self._stopped,
            kinds={name: count for name, count in self._kinds.items() if count},
            reasons=dict(self._reasons),
            digests=(f"{sums.source:032x}", f"{sums.target:032x}"),
            differences=tuple(self._differences),
            not_compared=tuple(self._not_compared),
            left_out=tuple(self._left_out),
            runs=self._runs(sums.equal),
        )
        if self._file is not None:
            self._file.end(report)
        self._tell("done")
        return report

    def _runs(self, equal: Mapping[int, int]) -> tuple[ComparedRun, ...]:
        by_run = Counter(equal) + self._found_by
        # Those that were repaired are among the equal ones as well.
        by_run[self._tracks.run] -= len(self._repaired)
        if self._saved is not None:
            return self._saved.told(by_run)
        return (ComparedRun(self._began, time.time(), by_run[0]),)

    def _tell(self, step: str | None = None, **changes: int) -> None:
        self._progress = replace(
            self._progress,
            step=step or self._progress.step,
            bytes=self._pace.bytes,
            seconds=time.monotonic() - self._clock,
            **changes,
        )
        self._on_progress(self._progress)


async def _processes(ends: Sequence[Deployment], timeout: float) -> set[str]:
    """Those that serve the ends now, dialled anew, of servers that tell theirs. Raises
    `EngineError`."""
    found = set()
    for deployment in ends:
        for each in deployment.shards:
            async with admin(each.endpoint, timeout=timeout, fault=deployment.fault) as end:
                found.add((await end.info()).process)
    return found - {""}


def _ignore(_: ProofProgress) -> None:
    pass
