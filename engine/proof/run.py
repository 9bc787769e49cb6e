"""`verify` from its first dial to its report.

1. Both ends say what they are: servers, slots, databases, offsets.
2. Both ends are walked over, database by database (`key_walks`).
3. What seemed to differ is looked at again until that is known (`second_looks`).
5. Functions and search indexes; then, where that is asked for, what differs is repaired, and 4
again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from functools import partial

from engine._native import LookComparer, LookReader, ValueDecoder
from engine.errors import UsageError
from engine.model import losses
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import POSITION_DB, POSITION_KEY
from engine.model.proof import (
    NAMED_MOST,
    STOP_AT,
    KeyDifference,
    NotCompared,
    Outcome,
    ProofProgress,
    ProofReport,
    ProofSettings,
)
from engine.model.report import printable_key
from engine.model.retry import Attempts, Deadline
from engine.proof import long_values, repair
from engine.proof.asked_server import AskedServer
from engine.proof.deployment import (
    Asked,
    Deployment,
    databases,
    describe,
    is_owned,
    look,
    offset_in,
    position_in,
    refuses,
    replid_in,
    slots_moving,
    written,
)
from engine.proof.key_walks import TTL_BOUND_MS, KeyWalks
from engine.proof.relinking import until_linked
from engine.proof.report_file import ReportFile
from engine.proof.second_looks import Found, SecondLooks, Servers, Side
from engine.proof.shown_difference import shown
from engine.proof.walk import Pace
from engine.wire import functions_and_indexes
from engine.wire.control_connection import Admin, admin, all_of

OnProgress = Callable[[ProofProgress], None]
EXTENDED_MS = 100 * 365 * 86_400_000
"""By so much a migration that is under way may have extended an expire time on the target."""
# A migration that follows is waited for so long, behind each look.
_PASSED_SECONDS, _PASSED_PAUSE = 10.0, 0.02
_LIBRARY = "library or index"


async def prove(
    source: Endpoint,
    target: Endpoint,
    settings: ProofSettings,
    *,
    report: str | None = None,
    on_progress: OnProgress | None = None,
) -> ProofReport:
    """Compare two deployments; nothing is written to either, but for `settings.repair`. `report`:
    the path of a file of JSON lines, with a page beside it.

    Raises `LinkError`, `AuthError`, `ServerError` where an end cannot be asked, and `UsageError`
    for a file that cannot be written, or a repair while a migration has the target.
    """
    for end in (source, target):
        if end.file_path is not None:
            raise UsageError("two servers are compared, and a file is none")
    seed = int.from_bytes(os.urandom(8), "little") if settings.seed is None else settings.seed
    settings = replace(settings, seed=seed)
    file = None if report is None else ReportFile(report)
    try:
        return await _Proof(source, target, settings, file, on_progress or _ignore).run()
    finally:
        if file is not None:
            file.close()


class _Proof:
    """One comparison."""

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        settings: ProofSettings,
        file: ReportFile | None,
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
        # What was found.
        self._comparers: list[LookComparer] = []
        self._differences: list[KeyDifference] = []
        self._different: dict[DbKey, tuple[str, ...]] = {}
        self._kinds: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._not_compared: list[NotCompared] = []
        self._left_out: list[str] = []
        self._own = 0
        self._libraries = 0
        self._repaired: set[DbKey] = set()
        # Keys that cannot be told; and what is no key's, or a part of one, and cannot.
        self._untold: set[DbKey] = set()
        # Databases that one end has not.
        self._lacking: dict[int, str] = {}
        self._repairing = False
        self._decoder = ValueDecoder(self._key)

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
            if not {each.run_id for each in asked[0].infos if each.run_id}.isdisjoint(
                each.run_id for each in asked[1].infos
            ):
                self._unsure("both ends are one server, or have one in common")
            await self._moving(ends, admins)
            extended = EXTENDED_MS if owned else 0
            again = await self._second_looks(stack, ends, admins, asked, extended)
            self._tell("comparing", total=self._total(asked))
            found = [await until_linked(partial(databases, end)) for side in admins for end in side]
            walks = KeyWalks(
                ends,
                settings,
                self._key,
                self._pace,
                again,
                extended,
                lambda named: self._tell(keys=self._progress.keys + named, doubtful=len(again)),
                lambda: self._stopped,
            )
            await self._over(sorted(set().union(*found)), walks, admins)
            self._comparers += walks.comparers
            self._own = walks.own
            self._tell("looking again")
            await again.settle()
            if settings.match is None:
                await self._beside(admins)
            if settings.repair and self._different:
                self._tell("repairing")
                await self._repair(ends, admins, again)
            await until_linked(partial(self._moving, ends, admins))
            if [each.layout for each in ends] != [
                each.layout for each in await until_linked(self._look)
            ]:
                self._unsure("slots moved meanwhile: keys that moved may not have been compared")
            return self._report(asked, again)

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

    async def _moving(self, ends: Sequence[Deployment], admins: Sequence[Sequence[Admin]]) -> None:
        """Slots that are being moved: their keys are at two nodes, or on the way."""
        for deployment, side in zip(ends, admins, strict=True):
            if deployment.told is not None and (slots := await slots_moving(side)):
                why = f"slots of the {deployment.fault} are being moved ({slots.words})"
                self._unsure(f"{why}: keys in them may not have been compared")

    # --- What is there ---

    async def _look(self) -> tuple[Deployment, Deployment]:
        settings = self._settings
        source, target = await asyncio.gather(
            look("source", self._named[0], settings.addresses, settings.timeout),
            look("target", self._named[1], settings.addresses, settings.timeout),
        )
        return source, target

    def _total(self, asked: Sequence[Asked]) -> int:
        return sum(each.keys for each in asked)

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
        extended: int,
    ) -> SecondLooks:
        limit = self._settings.timeout

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

        if extended and (ends[0].told is not None or ends[1].told is not None):
            self._leave_out("of a migration of clusters, how far its target is: it was not awaited")

        async def passed() -> bool:
            if extended and ends[0].told is None and ends[1].told is None:
                return await until_linked(partial(_passed, admins[0][0], admins[1][0]))
            return True

        comparer = LookComparer(self._key, ttl_bound=TTL_BOUND_MS, extended=extended)
        self._comparers.append(comparer)
        return SecondLooks(
            servers,
            comparer,
            passed,
            lambda: until_linked(partial(written, [each for side in admins for each in side])),
            long_value,
            self._found,
            self._pace,
        )

    def _found(self, found: Found) -> None:
        """A key differs, or it cannot be told whether it does."""
        key = printable_key(found.key)
        if found.kinds and found.reason:
            # What is known of it outweighs the rest.
            self._unsure(found.reason)
        if not found.kinds:
            if (found.db, found.key) in self._untold:
                return
            self._untold.add((found.db, found.key))
            self._reasons[found.reason] += 1
            unknown = NotCompared(found.db, key, found.reason)
            if len(self._not_compared) < NAMED_MOST:
                self._not_compared.append(unknown)
            if self._file is not None:
                self._file.not_compared(unknown)
            return
        if (found.db, found.key) in self._different:
            return
        self._different[found.db, found.key] = found.kinds
        if self._repairing:
            # It stays different, as was told.
            return
        self._kinds.update(found.kinds)
        difference = KeyDifference(found.db, key, found.kinds, *shown(found, self._decoder))
        self._name(difference)
        self._tell(different=len(self._different))

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
        done = await until_linked(partial(repair.repair, ends, admins[0], admins[1], keys, owned))
        if done.owned:
            # It has begun meanwhile.
            self._leave_out("not repaired any more: a migration has the target by now")
        before, self._different = self._different, {}
        untold, self._untold = self._untold, set()
        self._repairing = True
        for db, key in keys:
            again.add(db, key)
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
            self._leave_out(f"of {count:,} keys that were repaired: {losses.WORDS[bit]}")

    # --- What it has come to ---

    def _unsure(self, why: str) -> None:
        """Something was not compared that may differ."""
        self._reasons[why] += 1

    def _leave_out(self, what: str) -> None:
        """Say once what was left out."""
        if what not in self._left_out:
            self._left_out.append(what)

    def _report(self, asked: Sequence[Asked], again: SecondLooks) -> ProofReport:
        sums = [0, 0]
        for comparer in self._comparers:
            for end, digest in enumerate(comparer.digests):
                sums[end] += int.from_bytes(digest, "little")
        if self._stopped:
            self._unsure("there are so many of them that the rest was not looked at")
        libraries = self._kinds[_LIBRARY]
        left = len(self._different) - len(self._repaired) + libraries
        outcome: Outcome = "equal"
        if left:
            outcome = "different"
        elif self._reasons:
            outcome = "unknown"
        equal = sum(each.equal for each in self._comparers)
        if self._own:
            self._left_out.append(f"{self._own:,} keys of the engine's own on the target")
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
            compared=equal + len(self._different) - len(self._repaired),
            bytes=sum(each.values for each in self._comparers),
            different=len(self._different) + libraries,
            resolved=again.resolved - len(self._repaired),
            unknown=len(self._untold),
            repaired=len(self._repaired),
            libraries=self._libraries,
            stopped=self._stopped,
            kinds={name: count for name, count in self._kinds.items() if count},
            reasons=dict(self._reasons),
            digests=tuple(f"{each % (1 << 128):032x}" for each in sums),  # type: ignore[arg-type]
            differences=tuple(self._differences),
            not_compared=tuple(self._not_compared),
            left_out=tuple(self._left_out),
        )
        if self._file is not None:
            self._file.end(report)
        self._tell("done")
        return report

    def _tell(self, step: str | None = None, **changes: int) -> None:
        self._progress = replace(
            self._progress,
            step=step or self._progress.step,
            bytes=self._pace.bytes,
            seconds=time.monotonic() - self._clock,
            **changes,
        )
        self._on_progress(self._progress)


async def _passed(source: Admin, target: Admin) -> bool:
    """Wait until the target's position has passed the source's offset of now, for a while; whether
    it has."""
    told = await source.call("INFO", "replication")
    offset = offset_in(told)
    if offset is None:
        return True
    replid = replid_in(told)
    deadline = Deadline(_PASSED_SECONDS, _PASSED_PAUSE)
    target.choose(POSITION_DB)
    async for attempt in Attempts(deadline):
        value = await target.call("GET", POSITION_KEY)
        found = position_in(value)
        if found is None or found.opened or found.position is None:
            return True
        if found.position.offset >= offset and found.position.replid == replid:
            return True
        if not deadline.left:
            return False
        attempt.failed("the target has not passed the offset")
    return False


def _ignore(_: ProofProgress) -> None:
    pass
