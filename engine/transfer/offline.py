"""The way of a source that is not followed: copy, wait for the word, compare, open.

SCAN does not follow writes, and a file has none, so between the snapshot and the cut-over nothing
moves any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.errors import AuthError, EngineError, StateError, TransferFailed, TransferStopped
from engine.model.checkpoint import Checkpoint, FileIdentity
from engine.model.endpoint import Endpoint
from engine.model.evictions import Evictions
from engine.model.online_checkpoint import LEFT_KEY, POSITION_DB, POSITION_KEY, OwnKeys
from engine.model.position import ScanPosition, TargetPosition
from engine.model.progress import Phase
from engine.model.server import same_process
from engine.model.slots import ALL_SLOTS
from engine.sources.base import Source
from engine.sources.scan import ScanSource
from engine.targets.rebuilt_values import remove_asides
from engine.targets.restore_writer import RestoreWriter
from engine.transfer import timeseries_rules
from engine.transfer.async_helpers import cancelled
from engine.transfer.checkpoint_store import CheckpointStore
from engine.transfer.checks.databases import moved_databases
from engine.transfer.comparison_permissions import AGAIN_SECONDS, objection
from engine.transfer.control_connections import Endpoints
from engine.transfer.copy import Compare, Copy
from engine.transfer.cut_over_check import CutOverCheck, CutOverCheckResult, compared, offering
from engine.transfer.functions_and_scripts import carry_code, is_library
from engine.transfer.leftovers import NAME as LEFTOVERS
from engine.transfer.leftovers import REMEDY as LEFTOVERS_REMEDY
from engine.transfer.leftovers import Leftovers, token_of
from engine.transfer.leftovers import Source as FindSource
from engine.transfer.leftovers import find as find_leftovers
from engine.transfer.migration_context import MigrationContext
from engine.transfer.same_replication import APART, FEEDS_ITSELF, relation
from engine.transfer.server_protection import ServerProtection
from engine.transfer.stats import TransferStats
from engine.transfer.switch_hook import SwitchHook
from engine.transfer.target_claim import TargetClaim, foreign
from engine.transfer.target_monitor import LOOK_SECONDS, TargetMonitor
from engine.wire import functions_and_indexes
from engine.wire.control_connection import Admin, admin
from engine.wire.engine_key_count import count_own
from engine.wire.functions_and_indexes import FunctionsAndIndexes
from engine.wire.search_indexes import UNNAMED, UNTOLD, in_snapshot, raw_name, shown

if TYPE_CHECKING:
    from engine.sources.rdb_file import RdbFileSource

# How often progress is told and the checkpoint written, in seconds.
_TICK_SECONDS = 0.5


class Offline:
    """Moves one source, read by SCAN or from a file, into one target."""

    follows = False
    doubts: Sequence[str] = ()

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        context: MigrationContext,
        *,
        checkpoints: CheckpointStore,
        gate: CutOverCheck,
        compare: Compare,
        known_before: Callable[[], bool | None],
    ) -> None:
        self._known_before = known_before
        self._token = token_of(source, target)
        self._claim: TargetClaim | None = None
        # The migration that the target is taken over from, until what it has brought is gone.
        self._room_of = ""
        self.held_before: bool | None = None
        """Whether the target had keys of its own, where another migration's mark told it."""
        self._context = context
        self._settings = context.settings
        self._checkpoints = checkpoints
        self._gate = gate
        self._compare = compare
        self._ends = Endpoints(source, target, context.settings)
        self._source_endpoint = source
        self._target_endpoint = target
        # The same object twice: what a file holds beside its keys is asked of no other source.
        self._file: RdbFileSource | None = None
        if source.rdb_path is not None:
            from engine.sources.rdb_file import RdbFileSource

            self._file = RdbFileSource(source.rdb_path, context.settings)
        self._source: Source = self._file or ScanSource(
            source, context.settings, context.throttle.copying
        )
        self._target = RestoreWriter(target, context.settings)
        self._target.own = OwnKeys(self._token)
        self._target.on_event = context.event_of("target")
        self._target.on_trouble = context.trouble_of("the target")
        # What it finds is found again by the next engine: the base is in the checkpoint.
        self._target_watch = TargetMonitor(target, context, lambda: None)
        self._protections = [ServerProtection("target", target, context)]
        if self._file is None:
            self._protections.append(ServerProtection("source", source, context))
        self._copy: Copy | None = None
        # The next engine begins at the start.
        self._copied_again = False
        # The file that is written into the target, and whether an engine before this one has begun.
        self._mark: FileIdentity | None = None
        self._file_begun = False
        self.left_out: list[str] = []
        """What the source holds beside keys and the target did not get."""
        context.source_type = "scan" if self._file is None else "file"
        context.figures = self._figures

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at the target again and again meanwhile, and at what the ends suffer."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._target_watch.watching())
            for each in self._protections:
                await stack.enter_async_context(each.watching())
            yield

    async def run(self) -> None:
        """Run to the end of the cut-over. Raises `EngineError` with the reason of a failure."""
        context = self._context
        # 1. Both ends are there, and what was acknowledged before is known.
        with context.step("connect"):
            position = await self._open()
            await self._check_comparable()
        # 2. Every key that SCAN names, or the file holds, is acknowledged.
        context.enter(Phase.SNAPSHOT)
        with context.step("snapshot"):
            self._copy = Copy(
                self._source,
                self._target,
                self._settings,
                context.stats,
                position=position,
                on_event=context.on_event,
                compare=self._compare,
                throttle=context.throttle.copying,
                patience=context.patience(
                    "the copy",
                    ended="no progress",
                    next_step="reading starts again from what is acknowledged",
                    fault="engine",
                ),
            )
            await self._ticking(self._copy.run())
            if self._file is not None or self._settings.rules:
                stats = context.stats
                context.total_keys = stats.keys + stats.skipped + stats.not_carried_total
            await self._finish_file()
            await self._finish_scan()
        # 3. The operator's word; a gate that refuses leads back here.
        context.reason = (
            "copied; later writes to the source are not followed"
            if self._file is None
            else "copied: all that the file holds"
        )
        if self._settings.until != "cut-over" and context.one_go:
            if lost := self._lost():
                raise self._refused(lost)
            await self._target_watch.look()
            self._look_for_another_target()
            if evicted := context.stats.evictions.words_in_one_go:
                raise self._refused(evicted)
            context.enter(Phase.DONE)
            return
        while True:
            await self._wait_for_word()
            # 4. Cut-over: the target may be opened if both ends agree.
            context.can_complete = False
            context.enter(Phase.CUT_OVER)
            with context.step("verify"):
                result = await self._pass_gate()
            context.reason = result.reason
            if result.ok:
                break
            context.report_refusal(result.reason)
            if context.one_go:
                raise self._refused(result.reason)
        await SwitchHook(
            self._source_endpoint,
            self._target_endpoint,
            self._settings,
            context.on_switch,
            context.on_event,
        ).run()
        context.enter(Phase.DONE)

    async def _wait_for_word(self) -> None:
        """In COPIED, with the gate as it is."""
        context, copied = self._context, self._context.reason
        # What was heard before may be of a process that the copy has outlived.
        self._target_watch.identity = ""
        with context.step("wait"):
            while True:
                words, paused = await self._uncomparable(), context.throttle.paused
                if context.one_go and words:
                    raise self._refused(words)
                context.can_complete = not (words or paused)
                context.only_uncomparable = bool(words) and not paused
                context.reason = paused or (offering(context, words) if words else copied)
                if context.phase is Phase.COPIED:
                    context.publish()
                else:
                    context.enter(Phase.COPIED)
                again = asyncio.get_running_loop().time() + (AGAIN_SECONDS if words else math.inf)
                while (
                    not context.word.is_set()
                    and context.throttle.paused == paused
                    and asyncio.get_running_loop().time() < again
                ):
                    self._look_for_another_target()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            await context.word.wait()
                if context.word.is_set() and await context.takes_word():
                    return

    def _look_for_another_target(self) -> None:
        """Raises `TransferStopped` where the process that has acknowledged every key is not the
        target any more: what took its place may be older, and the source is not read once more."""
        found = self._target_watch.identity
        if found and not same_process(found, self._target.info.identity):
            raise self._refused(
                "the target was restarted or replaced since everything was copied, and may lack "
                "some of it: a resume copies everything again"
            )

    async def _check_comparable(self) -> None:
        """A cut-over in one go that will be refused is refused before anything is copied."""
        if not self._context.one_go or self._settings.until != "cut-over":
            return
        if words := await self._uncomparable():
            kind = TransferStopped if self._checkpoints.load() is not None else TransferFailed
            raise kind(words, fault="user")

    async def _uncomparable(self) -> str:
        """Why both ends cannot be compared with these users; empty: nothing is known against it."""
        if self._context.skip_verification:
            return ""
        try:
            return await objection(self._source_endpoint, self._target_endpoint, self._settings)
        except EngineError:
            # What it takes is found out by the comparison itself then.
            return ""

    @property
    def begun(self) -> bool:
        """Whether the target has something of this transfer, so that it can be gone on with."""
        return self._context.stats.arrived or self._file_begun

    @property
    def how_far(self) -> str:
        """For a migration that is aborted: what was in sync and what was not."""
        context = self._context
        if context.phase in (Phase.COPIED, Phase.CUT_OVER):
            named = "SCAN named" if self._file is None else "the file holds"
            return f"everything {named} is copied, and was not verified"
        return f"in {context.phase}, with {context.progress.keys_words} acknowledged"

    async def close(self, *, resumable: bool, forced: bool = False) -> None:
        """Let go of both ends; unless it can be resumed, say on the target what is left there."""
        del forced
        await self._let_go_of_target(resumable)
        await self._source.close()
        await self._target.close()

    def _refused(self, reason: str) -> TransferStopped:
        """A cut-over that is refused in one go: resuming copies everything again, for
        what has passed is not read twice."""
        self._copied_again = True
        return TransferStopped(reason)

    async def save_last(self, errors: list[str]) -> None:
        """Write the last checkpoint; a failure joins `errors` if there is none yet."""
        checkpoint = (
            self._context.stats.checkpoint(self._target.info.identity) if self._copy else None
        )
        if checkpoint is not None and self._copied_again:
            checkpoint = Checkpoint(ScanPosition("", 0, 0), self._target.info.identity)
        if checkpoint is None:
            return
        try:
            await asyncio.to_thread(self._checkpoints.save, checkpoint)
        except StateError as exc:
            if not errors:
                errors.append(exc.in_one_line)

    async def _finish_file(self) -> None:
        """What a file holds beside its keys; a server that is scanned does not show it."""
        if self._file is None:
            return
        context, reader = self._context, self._file.reader
        context.stats.expired = reader.expired
        for remark in self._file.remarks:
            context.on_event(remark)
        self.left_out.extend(reader.left_out)
        code = bool(reader.functions or reader.scripts or reader.module_data)
        if code and self._settings.rules:
            self.left_out.append("functions, scripts and search indexes, as keys are chosen")
        for what in self.left_out:
            context.on_event(f"not migrated: {what}")
        if code and not self._settings.rules:
            await context.insist(self._carry_code, "target")

    async def _finish_scan(self) -> None:
        """Libraries of functions, which SCAN does not name."""
        if self._file is not None:
            return
        context, settings = self._context, self._settings
        there: FunctionsAndIndexes | None = None

        async def ask() -> None:
            nonlocal there
            limit = settings.io_timeout
            async with admin(self._source_endpoint, timeout=limit, fault="source") as end:
                there = await functions_and_indexes.ask(end, self._search_names)

        await context.insist(ask, "source")
        assert there is not None
        what: list[str] = []
        unlisted = functions_and_indexes.unlisted(there)
        if settings.chooses_keys:
            what += [f"{name}, as keys are chosen: {words}" for name, words in unlisted.items()]
        else:
            self._lose(unlisted)
        if there.libraries and settings.chooses_keys:
            names = ", ".join(there.libraries)
            what.append(f"libraries of functions, as keys are chosen: {names}")
        elif there.libraries:
            code = list(there.libraries.values())
            await context.insist(lambda: self._load(code, ()), "target")
        if there.indexes:
            what += [UNTOLD, UNNAMED]
        named = [*there.named.aliases, *there.named.dictionaries]
        what += [
            f"{name}: the source has no search alias or dictionary of this name (--search-name)"
            for name in settings.search_names
            if name not in named
        ]
        if (there.indexes or named) and settings.chooses_keys:
            names = ", ".join(map(shown, sorted([*(there.indexes or ()), *named])))
            what.append(f"search indexes and the like, as keys are chosen: {names}")
        elif there.indexes or named:
            await context.insist(self._carry_indexes, "target")
        await context.insist(self._carry_rules, "target")
        for each in what:
            if each not in self.left_out:
                self.left_out.append(each)
                context.on_event(f"not migrated: {each}")

    async def _carry_indexes(self) -> None:
        async with self._ends.admin("source") as source, self._ends.admin("target") as target:
            self._lose(await functions_and_indexes.carry_absent(source, target, self._search_names))

    @property
    def _search_names(self) -> list[bytes]:
        return [raw_name(name) for name in self._settings.search_names]

    async def _carry_rules(self) -> None:
        """Compaction rules of time series, which DUMP leaves out."""
        async with self._ends.admin("source") as source, self._ends.admin("target") as target:
            info = await source.info()
            if (
                timeseries_rules.MODULE in info.modules
                and timeseries_rules.MODULE in self._target.info.modules
            ):
                databases = moved_databases(info, self._settings)
                self._lose(await timeseries_rules.carry_rules(source, target, databases))

    def _lose(self, lost: Mapping[str, str]) -> None:
        self._context.lost |= lost
        for what, why in lost.items():
            self.left_out.append(f"{what}: {why}")
            self._context.on_event(f"not migrated: {what}: {why}")

    async def _carry_code(self) -> None:
        assert self._file is not None
        reader = self._file.reader
        if reader.functions or reader.scripts:
            await self._load(reader.functions, reader.scripts)
        found = in_snapshot(reader.module_data)
        if found.there:
            async with self._ends.admin("target") as end:
                self._lose(await functions_and_indexes.carry_of_file(end, found))

    async def _load(self, functions: Sequence[bytes], scripts: Sequence[bytes]) -> None:
        settings, limit = self._settings, self._settings.io_timeout
        async with admin(self._target_endpoint, timeout=limit, fault="target") as end:
            refused = await carry_code(
                end, functions, scripts, replace=settings.if_exists == "replace"
            )
        for what, why in refused.items():
            self.left_out.append(f"{what}: {why}")
            self._context.on_event(f"not migrated: {what}: {why}")
            # With "skip" the target's own stay as they are.
            if is_library(what) and not (settings.if_exists == "skip" and "already exists" in why):
                self._context.lost[what] = why

    def _figures(self) -> dict[str, Any]:
        return {
            "retries": self._context.failed_dials
            + self._target.retries
            + (self._copy.restarts if self._copy else 0),
            "rebuilt_keys": self._target.rebuilt,
            "reconnects": self._target.reconnects,
        }

    async def _open(self) -> ScanPosition | None:
        context = self._context
        before = self._checkpoints.load()
        position: ScanPosition | None = None
        if self._file is not None and before is not None:
            # It has no position: all of it is copied again.
            self._mark, before = before.file, None
            self._file_begun = self._mark is not None
        if before is not None:
            assert isinstance(before.position, ScanPosition)
            position = before.position
        await context.insist(self._target.open, "target")
        await context.insist(self._remove_asides, "target")
        await context.insist(self._settle_target, "target")
        await self._settle_file()
        self._source.bulk_limit = self._target.bulk_limit
        await context.insist(lambda: self._source.open(position), "source")
        await self._check_apart()
        if position is not None and not position.run_id:
            context.on_event("an earlier cut-over was refused: everything is copied again")
            before = position = None
        elif position is not None and not self._source.continues(position):
            context.on_event("the source was restarted: the checkpoint is void")
            before = position = None
        if before is not None and not self._target.info.same_data_as(before.target_identity):
            context.on_event("the target was restarted or replaced: the checkpoint is void")
            before = position = None
            await self._source.close()
            await self._source.open(None)
        context.count_with(TransferStats(before))
        if context.stats.evictions.base is None:
            context.stats.evictions = Evictions().after(self._target.info)
        else:
            # What was evicted since the checkpoint; before anything can be completed.
            await context.insist(self._target_watch.look, "target")
        context.total_keys = self._source.total_keys
        return position

    async def _remove_asides(self) -> None:
        """Values that an engine before us has not finished."""
        async with self._ends.admin("target") as end:
            await remove_asides(end, self._target.own, ALL_SLOTS)

    async def _settle_file(self) -> None:
        """The file is the one of which a part is on the target already, or there is nothing of it.
        Raises `TransferStopped` where it is another one: what only the earlier file has would stay
        on the target, and no server tells which keys those are."""
        if self._file is None or not (identity := await self._file.identity()):
            return
        before, had_keys = self._mark, bool(self._known_before())
        if before is not None:
            had_keys = before.held_before
            if before.identity != identity:
                keys = 0

                async def count() -> None:
                    nonlocal keys
                    async with self._ends.admin("target") as end:
                        keys = (await end.info()).keys - await count_own(end)

                await self._context.insist(count, "target")
                if keys > 0:
                    raise self._other_file(keys, had_keys)
                had_keys = False
                self._context.on_event("the file is another one than before; the target is empty")
        self.held_before = had_keys if self.held_before is None else self.held_before
        self._mark = FileIdentity(identity, bool(self.held_before))
        checkpoint = Checkpoint(ScanPosition("", 0, 0), self._target.info.identity, file=self._mark)
        await asyncio.to_thread(self._checkpoints.save, checkpoint)

    def _other_file(self, keys: int, held_before: bool) -> TransferStopped:
        abort = "Abort that migration (complete-migration --force) and start anew"
        words = (
            f"{self._source_endpoint.address} is not the file of which this migration has loaded a "
            f"part before: what only that file has would stay on the target, which holds {keys:,} "
            "keys"
        )
        if held_before:
            return TransferStopped(
                f"{words}, some of them its own",
                remedy="Put the earlier file back and resume. Or delete the keys of the earlier "
                f"file by hand; then: {abort}. What the target holds then counts as its own.",
                fault="user",
            )
        return TransferStopped(
            words,
            remedy=f"{abort} with --take-over, which removes every key on the target. Or put the "
            "earlier file back, or empty the target by hand (FLUSHALL).",
            fault="user",
        )

    async def _check_apart(self) -> None:
        if self._file is not None:
            return
        if what := await relation(self._ends, self._target.info):
            kind = TransferFailed if self._checkpoints.load() is None else TransferStopped
            raise kind(f"{what}: {FEEDS_ITSELF}", remedy=APART, fault="user")

    async def _settle_target(self) -> None:
        """Whose the target is. Raises `Foreign` where a migration that follows its source has it,
        for what is scanned would be written into the middle of it, and `TransferFailed` for keys of
        one that was not completed; unless the operator has said what becomes of them."""
        limit = self._settings.io_timeout
        async with admin(self._target_endpoint, timeout=limit, fault="target") as end:
            target_position: TargetPosition | None = None
            left: Leftovers | None = None
            # A user that may not read the keys may not follow either: nothing of the kind is meant
            # here.
            with contextlib.suppress(AuthError):
                await end.select(POSITION_DB)
                found = await end.call("GET", POSITION_KEY)
                target_position = TargetPosition.decode(found) if isinstance(found, bytes) else None
                left = await find_leftovers(self._dial_source(), end, self._settings)
                await end.select(POSITION_DB)
            if target_position is not None and target_position.transfer == self._token:
                # An engine of this scan before us has left it.
                await self._take(end, target_position.held_before, first=False)
            elif target_position is not None and not target_position.opened:
                await self._take_over(end, target_position)
            elif left is not None and self._checkpoints.load() is None:
                await self._recognise(end, left)
            await self._make_room(end)

    async def _take_over(self, end: Admin, other: TargetPosition) -> None:
        settings = self._settings
        if not settings.take_over or self._file is not None or self._checkpoints.load() is not None:
            raise foreign(other, self._target_endpoint.address)
        self._room_of = other.transfer
        await self._take(end, other.held_before, first=True)

    async def _recognise(self, end: Admin, left: Leftovers) -> None:
        """As the way that follows does (`Lane`)."""
        settings, context = self._settings, self._context
        if left.held_before:
            await end.call("DEL", LEFT_KEY)
        elif settings.take_over:
            self._room_of = left.transfer
            await self._take(end, False, first=True)
        elif LEFTOVERS in settings.skip_checks:
            context.on_event(f"{left.words}: they count as the target's own, as asked")
            await end.call("DEL", LEFT_KEY)
        elif why := left.in_the_way:
            raise TransferFailed(why, remedy=LEFTOVERS_REMEDY, fault="user")
        else:
            await self._take(end, False, first=True)

    def _dial_source(self) -> FindSource | None:
        if self._file is not None:
            return None
        limit = self._settings.io_timeout
        return lambda: admin(self._source_endpoint, timeout=limit, fault="source")

    async def _take(self, end: Admin, held_before: bool, *, first: bool) -> None:
        """Hold the target, so that an engine that was shut out finds another one there."""
        self.held_before = held_before
        self._claim = self._new_claim(held_before, first=first)
        await self._claim.take(end)

    def _new_claim(self, held_before: bool, *, first: bool) -> TargetClaim:
        async def ours() -> None:
            """The state is looked at beside the checkpoints."""

        return TargetClaim(
            OwnKeys(self._token),
            secrets.token_hex(4),
            ours,
            held_before=held_before,
            first=first,
            take_over=self._settings.take_over,
        )

    async def _make_room(self, end: Admin) -> None:
        """What another migration has brought goes, unless the target had keys before that."""
        if self._claim is None or not self._room_of:
            return
        if not self.held_before and self._settings.rules:
            # There may be others' by now.
            self._context.on_event(
                f"the target is taken over from the migration {self._room_of}: its keys stay, as "
                "rules choose keys"
            )
            self.held_before = True
        elif not self.held_before:
            self._context.on_event(
                f"the target is taken over from the migration {self._room_of}: it was empty before "
                "that, and is emptied"
            )
            await self._claim.clear(end, ("FLUSHALL",))
        self._room_of = ""
        if self._file is not None:
            # No other engine is shut out, and a file's keys are counted without ours.
            await end.call("DEL", POSITION_KEY)
            self._claim = None

    async def _let_go_of_target(self, resumable: bool) -> None:
        """Our mark goes with us, or becomes that of a migration that was not completed."""
        done = self._context.phase is Phase.DONE
        if self._file is not None and self._mark is None:
            with contextlib.suppress(StateError):
                before = self._checkpoints.load()
                self._mark = before.file if before is not None else None
                self._file_begun = self._mark is not None
        if resumable or (self._claim is None and (done or not self.begun)):
            return
        had_keys = self._known_before() if self._claim is None else self.held_before
        if self._mark is not None:
            had_keys = self._mark.held_before
        mark = self._new_claim(bool(had_keys), first=False).bare.encode()
        limit = self._settings.connect_timeout
        try:
            async with admin(self._target_endpoint, timeout=limit, fault="target") as end:
                await end.select(POSITION_DB)
                found = await end.call("GET", POSITION_KEY)
                ours = isinstance(found, bytes) and (
                    TargetPosition.decode(found).transfer == self._token
                )
                if done and ours:
                    await end.call("DEL", POSITION_KEY)
                elif ours:
                    await end.call("RENAME", POSITION_KEY, LEFT_KEY)
                elif not done and found is None and had_keys is not None:
                    await end.call("SET", LEFT_KEY, mark)
        except EngineError as exc:
            self._context.on_event(f"what this migration leaves on the target is not marked: {exc}")

    async def _pass_gate(self) -> CutOverCheckResult:
        if self._context.lost:
            # What refused them may be mended.
            names = tuple(f"{what}: " for what in self._context.lost)
            self._context.lost.clear()
            self.left_out = [
                what
                for what in self.left_out
                if not is_library(what)
                and what not in (UNTOLD, UNNAMED)
                and not what.startswith(names)
            ]
            try:
                await (self._finish_scan() if self._file is None else self._carry_code())
            except EngineError as exc:
                return CutOverCheckResult(
                    False, f"libraries could not be loaded: {exc.in_one_line}"
                )
        if lost := self._lost():
            return CutOverCheckResult(False, lost)
        try:
            await self._target_watch.look()
        except EngineError as exc:
            return CutOverCheckResult(
                False, f"the target could not be looked at: {exc.in_one_line}"
            )
        self._look_for_another_target()
        evictions = self._context.stats.evictions
        evicted = evictions.words_in_one_go if self._context.one_go else evictions.words
        if evicted:
            return CutOverCheckResult(False, evicted)
        found = await compared(self._context, self._gate)
        self._context.verification = found.verification
        return found

    def _lost(self) -> str:
        """What was not carried, in words; empty if everything was."""
        return self._context.stats.lost_words() or self._context.lost_words

    async def _ticking(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`; meanwhile tell the progress and write the checkpoint."""
        task = asyncio.create_task(work)
        saved: ScanPosition | None = None
        stats = self._context.stats
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_TICK_SECONDS)
                checkpoint = stats.checkpoint(self._target.info.identity)
                if checkpoint is not None and checkpoint.position != saved:
                    # It was acknowledged before this line; the write may take its time.
                    await asyncio.to_thread(self._checkpoints.save, checkpoint)
                    assert isinstance(checkpoint.position, ScanPosition)
                    saved = checkpoint.position
                # A file announces its keys database by database; what rules leave is found out.
                before = stats.keys if self._settings.rules else self._context.total_keys
                self._context.total_keys = max(before or 0, self._source.total_keys)
                self._context.publish()
            await task
        finally:
            if not task.done():
                await cancelled(task)
