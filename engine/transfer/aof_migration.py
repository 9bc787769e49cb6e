"""The way of an append-only file: its snapshot, its commands, then as of any file.

    snapshot ──▶ RESTORE …          claimed, no position
    commands ──▶ MULTI … SET position EXEC      exactly once, as a replica's (`targets.applier`)

INCR is not to be applied twice, so what must hold is what holds for a source that is followed
(`transfer.lane`), with the bytes of the files in the place of a stream:

- The migration's token is in the state before the first write to the target, and its claim on the
  target before everything else.
- A position stands there once the whole snapshot does. It names the very bytes of the files
  (`AofSurvey.identity`), and moves with the data in one transaction. The next engine reads from
  there, also where the target came back with older data.
- Without a position, or with that of other files, the target is emptied, and everything begins
  again. It was empty before: commands change what they find, so nothing else is let in.
- Before the position is removed the state says that the target is open.

A server lets nothing expire while it loads its file. Every expire time is extended meanwhile, and
set back when the last command is applied (`transfer.extended_ttls`). So are those of hash fields
(`transfer.restore_field_ttls`), unless the target has import mode, which keeps fields. Where one
cannot be extended the hash is named and the gate is closed.

A command that the target refuses is left out and its keys are named. What names them behind that is
left out as well, for it would leave fragments. There is no source that could be asked for their
values.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from engine._native import ExtendedNames
from engine.errors import (
    AuthError,
    EngineError,
    LinkError,
    ServerError,
    StateError,
    TransferFailed,
    TransferStopped,
)
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.evictions import Evictions
from engine.model.modules import GRAPH_MODULE, GRAPH_PART_TYPE
from engine.model.online_checkpoint import (
    EXTEND_MS,
    LEFT_KEY,
    POSITION_DB,
    POSITION_KEY,
    OnlineCheckpoint,
    OwnKeys,
    dirty_key,
)
from engine.model.position import StreamPosition, TargetPosition
from engine.model.progress import Phase
from engine.model.report import key_of
from engine.model.retry import Attempts
from engine.model.slots import ALL_SLOTS
from engine.sources.aof_files import AofFiles
from engine.sources.aof_findings import AofSurvey, is_known, size_in
from engine.sources.aof_source import AofSnapshot
from engine.sources.aof_survey import survey_aof
from engine.targets.applier import Applier, PositionMoved
from engine.targets.import_mode import (
    import_source,
    in_import_mode,
    leave_import_mode,
)
from engine.targets.rebuilt_values import remove_asides
from engine.targets.restore_writer import RestoreWriter
from engine.transfer.aof_replay import Replay
from engine.transfer.async_helpers import cancelled
from engine.transfer.checkpoint_store import CheckpointStore
from engine.transfer.control_connections import Endpoints
from engine.transfer.copy import Copy
from engine.transfer.crashing_commands import CrashingCommands
from engine.transfer.cut_over_check import CutOverCheckResult, FilesCutOverCheck, compared
from engine.transfer.extended_ttls import ExtendedTtls
from engine.transfer.functions_and_scripts import carry_code, is_library
from engine.transfer.graph_telemetry import GraphTelemetry, look_at
from engine.transfer.graphs_in_parts import FILE_REMEDY, IN_FILE_PARTS
from engine.transfer.leftovers import find as find_leftovers
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.restore_field_ttls import restore_fields
from engine.transfer.server_protection import ServerProtection
from engine.transfer.switch_hook import SwitchHook
from engine.transfer.target_claim import TargetClaim, beaten, foreign, not_ours
from engine.transfer.target_monitor import LOOK_SECONDS, TargetMonitor
from engine.transfer.unfaithful_commands import UnfaithfulCommands
from engine.transfer.unfinished_aof_transaction import check_tail
from engine.wire import functions_and_indexes
from engine.wire.control_connection import Admin, admin
from engine.wire.engine_key_count import count_own
from engine.wire.functions_and_indexes import carry_of_file
from engine.wire.search_indexes import raw_name

_CUT = "left out: "
_ALL_THE_SAME = (
    "resume-migration, then complete-migration --skip-verification, cuts over nevertheless"
)
# How often progress is told, in seconds.
_TICK_SECONDS = 0.5

NOT_EMPTY = (
    "The commands of an append-only file change what they find. Empty the target (FLUSHALL), or "
    "give another one."
)
"""What to do about keys on the target."""


def not_empty(keys: int) -> str:
    """Why a target with keys is refused."""
    return f"the target holds {keys:,} keys, and an append-only file needs an empty one"


class AppendOnly:
    """Moves an append-only file into one target."""

    follows = False

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        context: MigrationContext,
        *,
        checkpoints: CheckpointStore,
        gate: FilesCutOverCheck,
    ) -> None:
        assert source.aof_path is not None
        self._path = source.aof_path
        self._source_endpoint = source
        self._target_endpoint = target
        self._context = context
        self._settings = context.settings
        self._ends = Endpoints(source, target, context.settings)
        self._checkpoints = checkpoints
        self._gate = gate
        self._reading: asyncio.Task[None] | None = None
        self._writer = RestoreWriter(target, context.settings)
        self._writer.on_event = context.event_of("target")
        self._writer.on_trouble = context.trouble_of("the target")
        self._crashing = CrashingCommands(self._writer.suspects)
        token = f"aof-{secrets.token_hex(8)}"
        self._checkpoint = CheckpointWriter(
            OnlineCheckpoint(token),
            checkpoints,
            context,
            lambda: self._identity if self._opened else "",
        )
        self._opened = False
        self._identity = ""
        self._files: AofFiles | None = None
        # Bytes that the files have grown by since an engine before this one has opened them.
        self._beyond = 0
        # The target has commands of these files by an engine before this one.
        self._resumed = False
        self._survey: AofSurvey | None = None
        self._claim: TargetClaim | None = None
        self._applier: Applier | None = None
        self._commands: Replay | None = None
        self._copy: Copy | None = None
        # What was left out so far, with the reasons.
        self._recalled: dict[DbKey, str] = {}
        # The keys whose expire times may be extended, if they are known.
        self._names = ExtendedNames()
        # The same of hashes whose fields' expire times may be extended.
        self._fields = ExtendedNames()
        # Of the snapshot: hashes whose fields' expire times could not be extended.
        self._stuck: list[DbKey] = []
        # The target is in import mode: nothing expires there.
        self._importing = False
        # Keys that the target holds, once everything is applied.
        self._target_keys: int | None = None
        self._target_watch = TargetMonitor(target, context, lambda: None)
        self.left_out: list[str] = []
        """What the files hold and the target did not get."""
        self.doubts: list[str] = []
        """What may be otherwise there than on the server that wrote the files."""
        context.source_type = "file"
        context.figures = self._figures
        self._protection = ServerProtection("target", target, context)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Look at the target again and again meanwhile, and at what it suffers."""
        async with self._target_watch.watching(), self._protection.watching():
            yield

    @property
    def begun(self) -> bool:
        """Whether the target has something of this transfer, so that it can be gone on with."""
        return self._checkpoint.mark.begun and not self._checkpoint.mark.opened

    @property
    def held_before(self) -> bool | None:
        """Whether the target had keys of its own: it never has."""
        return False

    @property
    def how_far(self) -> str:
        """For a migration that is aborted: how far it has come."""
        if self._context.phase in (Phase.COPIED, Phase.CUT_OVER):
            return "everything the files hold is applied"
        survey, commands = self._survey, self._commands
        if survey is None or commands is None:
            return f"in {self._context.phase}, before a command was applied"
        at = commands.position.offset
        return f"in {self._context.phase}, at byte {at:,} of {survey.end:,}"

    # --- The main flow ---

    async def run(self) -> None:
        """Run to the end of the cut-over. Raises `EngineError` with the reason of a failure."""
        context = self._context
        # 1. Both ends are there; the files are sound; the target is ours.
        with context.step("connect"):
            self._checkpoint.take_up()
            if self._checkpoint.mark.opened:
                await self._tidy()
                context.reason = "the target was promoted before"
                context.enter(Phase.DONE)
                return
            await self._open()
        assert self._files is not None
        assert self._survey is not None
        # What is compared in the end is read while the target works.
        self._reading = asyncio.create_task(self._gate.read(self._files, self._survey))
        while True:
            # 2. Everything in the files is on the target.
            context.enter(Phase.SNAPSHOT)
            with context.step("snapshot"):
                await self._ticking(self._move())
                await context.insist(self._count_keys, "target")
                self._publish_keys()
            context.reason = (
                "applied: what the files had when the migration began, without "
                f"{self._beyond_words}"
                if self._beyond
                else "applied: all that the files hold"
            )
            try:
                # 3. The operator's word, and the cut-over.
                await self._cut_over()
            except PositionMoved:
                context.on_event("the target came back with older data: going on from what it has")
                context.word.set()
            else:
                return

    async def _wait_for_word(self) -> None:
        """In COPIED; a pause that begins or ends meanwhile is told."""
        context, reason = self._context, self._context.reason
        with context.step("wait"):
            while True:
                context.can_complete, context.reason = True, reason
                if context.phase is Phase.COPIED:
                    context.publish()
                else:
                    context.enter(Phase.COPIED)
                paused = context.throttle.paused
                while not context.word.is_set() and context.throttle.paused == paused:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            await context.word.wait()
                if context.word.is_set() and await context.takes_word():
                    return

    async def _cut_over(self) -> None:
        """Raises `PositionMoved` where the target has lost some of it again."""
        context = self._context
        if self._settings.until != "cut-over" and context.one_go:
            await self._settle_ttls()
            result = await self._pass_gate()
            self._publish_keys()
            if not result.ok:
                raise TransferStopped(result.reason)
            await self._end()
            return
        while True:
            # A gate that refuses leads back here.
            await self._wait_for_word()
            # Expire times run again, and the target is the users'.
            context.can_complete = False
            context.enter(Phase.CUT_OVER)
            with context.step("verify"):
                await self._settle_ttls()
                result = await self._pass_gate()
            # (Behind the step: none of them has gone through it.)
            self._publish_keys()
            context.reason = result.reason
            if result.ok:
                break
            context.report_refusal(result.reason)
            if context.one_go:
                raise TransferStopped(result.reason)
        await SwitchHook(
            self._source_endpoint,
            self._target_endpoint,
            self._settings,
            context.on_switch,
            context.on_event,
        ).run()
        await self._end()

    async def _open(self) -> None:
        context = self._context
        # The files first: what is wrong with them is wrong before anything is written.
        await context.insist(self._writer.open, "target")
        await self._writer.close()
        self._opened = True
        self._identity = self._writer.info.identity
        before: StreamPosition | None = None
        if self._checkpoint.mark.begun:
            found: TargetPosition | None = None

            async def look() -> None:
                nonlocal found
                async with self._ends.admin("target") as end:
                    found = await _position_on(end)

            await context.insist(look, "target")
            before = found.position if found is not None else None
        await self._read_files(before)
        assert self._survey is not None
        if GRAPH_PART_TYPE in self._survey.modules and GRAPH_MODULE in self._writer.info.modules:
            raise TransferFailed(IN_FILE_PARTS, remedy=FILE_REMEDY, fault="source")
        await context.insist(self._look_at_tail, "target")
        if self._survey.cut:
            self._leave_out(f"{_CUT}{self._survey.cut}")
        context.total_keys = sum(self._survey.keys.values())
        if context.stats.evictions.base is None:
            context.stats.evictions = Evictions().after(self._writer.info)
        else:
            await context.insist(self._target_watch.look, "target")

    async def _read_files(self, before: StreamPosition | None) -> None:
        """Open the files, and survey them. `before`: how far the target has come with those of an
        engine before this one, of which no more is read where they have grown."""
        limit = None if before is None else size_in(before.replid)
        self._files = await asyncio.to_thread(AofFiles, self._path, limit=limit)
        applied_to = 0
        if before is not None and limit is not None:
            if await is_known(self._files, before.replid):
                applied_to, self._beyond = before.offset, self._files.beyond
                self._resumed = True
            else:
                self._files.close()
                self._files = await asyncio.to_thread(AofFiles, self._path)
        self._survey = await survey_aof(
            self._files, self._settings, value_limit=self._writer.bulk_limit, applied_to=applied_to
        )
        if self._beyond:
            self._leave_out(f"{_CUT}{self._beyond_words}: the migration goes on with those")

    @property
    def _beyond_words(self) -> str:
        return (
            f"{self._beyond:,} bytes written since the migration began with the files as they were"
        )

    async def _look_at_tail(self) -> None:
        assert self._survey is not None
        if self._survey.tail is not None:
            async with self._ends.admin("target") as end:
                await check_tail(end, self._survey)

    async def _move(self) -> None:
        """Everything, whatever the target does meanwhile."""
        applier: Applier | None
        context = self._context
        patience = context.patience(
            "the files",
            ended="no progress",
            next_step="they are read on from what the target has",
            fault="target",
        )
        reached, learned = -1, 0
        async for attempt in Attempts(patience):
            try:
                target_position, applier = await self._settled(), None
                await self._extend_fields(target_position)
                if target_position.position is None:
                    target_position, applier = await self._restore(target_position)
                await self._apply(target_position, applier)
                return
            except PositionMoved as moved:
                found = None if moved.found is None else TargetPosition.decode(moved.found)
                if found is not None and found.transfer != self._checkpoint.mark.token:
                    raise beaten(found) from None
                reason = "the target came back with older data, or with none"
            except LinkError as exc:
                if exc.fault != "target":
                    raise
                reason = exc.message
            at = self._commands.position.offset if self._commands is not None else -1
            if at > reached or self._writer.learned > learned:
                reached, learned = max(at, reached), self._writer.learned
                patience.progress()
            attempt.failed(reason, event=f"{reason}: going on from what it has")

    # --- Whose the target is ---

    async def _settled(self) -> TargetPosition:
        """Claim the target; what it holds of these files then, which is nothing or a position."""
        target_position: TargetPosition | None = None

        async def settle() -> None:
            nonlocal target_position
            async with self._ends.admin("target") as end:
                target_position = await self._settle(end)

        await self._context.insist(settle, "target")
        assert target_position is not None
        return target_position

    async def _settle(self, end: Admin) -> TargetPosition:
        mark, survey = self._checkpoint.mark, self._survey
        assert survey is not None
        # Our claim is older than all that we have brought: without it nothing there is ours.
        if not mark.begun or await _position_on(end) is None:
            return await self._begin(end)
        self._claim = self._new_claim(first=False)
        target_position = await self._claim.take(end)
        if target_position.opened:
            raise TransferFailed(
                f"{end.name}was promoted at the end of this migration", fault="target"
            )
        position = target_position.position
        if self._context.stats.evictions.known:
            self._context.on_event(
                "the target has evicted keys: it is emptied, and the files are applied from their "
                "start"
            )
        elif position is not None and position.replid == survey.identity:
            if self._commands is None:
                # Another engine has extended some.
                self._names.give_up()
                self._fields.give_up()
            await self._recall(end)
            for what, why in self._checkpoint.mark.lost:
                self._lose(what, why)
            self._doubt_unanswered(target_position)
            return target_position
        elif position is not None:
            self._context.on_event(
                "these are other files than before: the target is emptied, and they are applied "
                "from their start"
            )
        return await self._empty(end)

    async def _begin(self, end: Admin) -> TargetPosition:
        """The target is another's, or has keys, or becomes ours."""
        found = await _position_on(end)
        left = await find_leftovers(None, end, self._settings)
        await end.select(POSITION_DB)
        ended = found is not None and found.opened
        other = None if ended else found
        if other is not None and not self._settings.take_over:
            raise foreign(other, end.name)
        own = await count_own(end)
        keys = sum(each.keys for each in (await end.info()).keyspace) - own
        was_empty = [each for each in (other, left) if each is not None and not each.held_before]
        theirs = self._settings.take_over and was_empty
        if keys > 0 and not theirs:
            raise TransferFailed(not_empty(keys), remedy=NOT_EMPTY, fault="user")
        self._claim = self._new_claim(first=True)
        self._forget()
        await self._checkpoint.save(begun=True)
        target_position = await self._claim.take(end)
        self._claim.first = False
        if keys > 0:
            self._context.on_event(
                "the target is taken over from a migration that was not completed: it was empty "
                "before that, and is emptied"
            )
            return await self._empty(end)
        return target_position

    async def _empty(self, end: Admin) -> TargetPosition:
        assert self._claim is not None
        await self._claim.clear(end, ("FLUSHALL",))
        self._forget()
        self._context.stats.evictions = Evictions().after(await end.info())
        return self._claim.bare

    def _forget(self) -> None:
        """Nothing of what was brought is there any more."""
        self._resumed = False
        evictions = self._context.stats.evictions
        self._context.stats.start_anew()
        self._context.stats.evictions = evictions
        self._names.clear()
        self._fields.clear()
        self._stuck.clear()
        self._recalled.clear()
        self.left_out = [what for what in self.left_out if what.startswith(_CUT)]
        self.doubts.clear()
        self._checkpoint.note(answered=0, released=False, lost=())
        self._context.lost.clear()
        self._commands = None

    def _new_claim(self, *, first: bool) -> TargetClaim:
        async def ours() -> None:
            # Raises where another process has the migration.
            await asyncio.to_thread(self._checkpoints.load)

        return TargetClaim(
            OwnKeys(self._checkpoint.mark.token),
            secrets.token_hex(4),
            ours,
            first=first,
            lost=self._lost,
            take_over=self._settings.take_over,
        )

    async def _lost(self, end: Admin) -> None:
        """Our claim is gone from a target that had it: if it is empty it may be filled again.
        Raises `TransferStopped`."""
        if keys := (await end.info()).keys:
            raise not_ours(end.name, keys)

    async def _confirm(self) -> None:
        """Before values go over a new connection: no engine has taken over meanwhile, and a target
        that came back empty is claimed again."""
        assert self._claim is not None
        async with self._ends.admin("target") as end:
            await self._claim.take(end)

    async def _recall(self, end: Admin) -> None:
        """What was left out on the way to where the target stands, by the notes on it."""
        self._recalled.clear()
        await end.select(POSITION_DB)
        notes = await end.call("HGETALL", dirty_key(self._checkpoint.mark.token))
        pairs = (
            notes.items() if isinstance(notes, dict) else zip(notes[::2], notes[1::2], strict=True)
        )
        for name, reason in pairs:
            db, _, key = name.partition(b" ")
            # (Also that a hash may lack fields, see `replay`.)
            self._recalled[(int(db), key)] = reason.decode("utf-8", "replace")

    def _doubt_unanswered(self, target_position: TargetPosition) -> None:
        """Commands whose answers no engine has read. (One that stopped in order has read them.)"""
        since, at = target_position.doubtful, target_position.position
        if since is None or at is None:
            return
        begin = max(since.offset, self._checkpoint.mark.answered)
        if begin < at.offset:
            self._doubt(
                f"whether each command succeeded between byte {begin:,} and {at.offset:,} is not "
                "known: the engine that sent them was killed before it read the answer"
            )

    # --- The snapshot ---

    async def _restore(self, target_position: TargetPosition) -> tuple[TargetPosition, Applier]:
        """The snapshot that the files begin with, and the first position behind it."""
        context, survey, files, claim = self._context, self._survey, self._files, self._claim
        assert survey is not None
        assert files is not None
        assert claim is not None
        if survey.snapshot:
            writer = self._writer
            writer.name = claim.client_name
            writer.own = OwnKeys(self._checkpoint.mark.token)
            writer.on_dialled = self._confirm
            await context.insist(writer.open, "target")
            self._identity = writer.info.identity
            source = AofSnapshot(
                files, survey, self._settings, EXTEND_MS, self._names, self._extending_fields
            )
            source.bulk_limit = writer.bulk_limit
            await source.open(None)
            async with self._ends.admin("target") as end:
                await remove_asides(end, writer.own, ALL_SLOTS)
            self._copy = Copy(
                source,
                writer,
                self._settings,
                context.stats,
                position=None,
                on_event=context.on_event,
                compare=_nothing_to_compare,
                throttle=context.throttle.copying,
                patience=context.patience(
                    "the copy",
                    ended="no progress",
                    next_step="reading starts again",
                    fault="engine",
                ),
            )
            await self._copy.run()
            await writer.close()
            self._stuck = source.stuck
            for what in source.reader.left_out:
                self._leave_out(f"not migrated: {what}")
            functions, scripts = source.reader.functions, source.reader.scripts
            search = survey.search

            async def carry() -> None:
                async with self._ends.admin("target") as end:
                    for what, why in (await carry_code(end, functions, scripts)).items():
                        if is_library(what):
                            self._lose(what, why)
                        else:
                            self._leave_out(f"not migrated: {what}: {why}")
                    if search.there:
                        for what, why in (await carry_of_file(end, search)).items():
                            self._lose(what, why)

            if functions or scripts or search.there:
                await context.insist(carry, "target")
        # With the position on the target the next engine does not look at the snapshot again.
        await self._checkpoint.save()
        begin = survey.begins[0].offset
        first = TargetPosition(
            target_position.transfer, StreamPosition(survey.identity, begin), target_position.engine
        )
        applier = await self._dialled(target_position)
        await applier.begin(
            first.encode(),
            over=target_position.encode(),
            # Without a snapshot no value is there that could be lacking.
            process=self._writer.info.identity if survey.snapshot else None,
        )
        await self._checkpoint.save()
        return first, applier

    # --- The commands ---

    async def _apply(self, target_position: TargetPosition, applier: Applier | None) -> None:
        survey, files = self._survey, self._files
        assert survey is not None
        assert files is not None
        assert target_position.position is not None
        if applier is None:
            applier = await self._dialled(target_position)
        begun = target_position.position.offset > survey.begins[0].offset
        if not begun:
            # Of the snapshot: what names them behind it is left out too.
            for each in self._context.stats.not_carried:
                self._recalled[(each.db, key_of(each.key))] = each.reason
        self._commands = commands = Replay(
            self._context,
            applier,
            self._writer,
            target_position,
            UnfaithfulCommands(survey.info, self._writer.info),
            self._crashing,
            self._notes_of_graphs(survey),
            lose=self._lose,
            note_key=dirty_key(self._checkpoint.mark.token),
            lost=self._recalled,
            noted=begun,
            names=self._names,
            fields=self._extending_fields,
            stuck=self._stuck,
            commands=survey.applied if begun else 0,
            before=self._commands.counts if self._commands is not None else None,
        )
        try:
            await commands.run(files, survey)
        finally:
            applier.abandon()
        for what in commands.doubts(fields=self._fields_passed):
            self._doubt(what)
        await self._checkpoint.save()

    def _notes_of_graphs(self, survey: AofSurvey) -> GraphTelemetry | None:
        """What tells the keys that FalkorDB writes for itself; None: none of the ends has it."""
        graphs = survey.graphs
        if graphs is None:
            graphs = GRAPH_MODULE in self._writer.info.modules

        async def look(keys: Sequence[DbKey]) -> dict[DbKey, bool]:
            async with self._ends.admin("target") as end:
                return await look_at(end, keys)

        return GraphTelemetry(look) if graphs else None

    async def _extend_fields(self, target_position: TargetPosition) -> None:
        """Where the target has import mode, TTLs of fields wait there for the end as well."""
        if not self._writer.info.capabilities.import_mode:
            return

        async def enter() -> None:
            async with self._ends.dialled() as connection:
                if target_position.position is not None and not await in_import_mode(connection):
                    self._woke()
                self._importing = await import_source(connection)

        await self._context.insist(enter, "target")
        self._writer.import_source = self._importing

    def _woke(self) -> None:
        """TTLs of fields may have passed on the target before all commands were applied."""
        commands, survey = self._commands, self._survey
        if survey is None or commands is None or commands.position.offset < survey.end:
            self._checkpoint.note(released=True)

    async def _dialled(self, target_position: TargetPosition) -> Applier:
        """Raises `PositionMoved` where the target does not hold what it did."""
        if self._applier is None:
            self._applier = Applier(
                self._target_endpoint,
                self._settings,
                POSITION_KEY,
                on_event=self._context.event_of("target"),
                on_trouble=self._context.trouble_of("the target"),
                importing=self._importing,
                on_doubt=lambda _: self._woke(),
                full=True,
            )
        applier = self._applier
        await applier.close()
        await self._context.insist(applier.open, "target")
        if applier.found != target_position.encode():
            raise PositionMoved(applier.found)
        return applier

    # --- The end ---

    async def _settle_ttls(self) -> None:
        """Expire times run from now on; what is over goes."""
        context = self._context
        ended = 0

        async def restore() -> None:
            nonlocal ended
            async with self._ends.admin("target") as end:
                extended = ExtendedTtls(end)
                try:
                    await extended.restore_known(self._names)
                finally:
                    ended += extended.ended

        await context.insist(restore, "target")
        context.stats.expired += ended
        if self._survey is not None and self._survey.fields:
            await context.insist(self._restore_fields, "target")

        async def leave_mode() -> None:
            async with self._ends.dialled() as connection:
                await leave_import_mode(connection)

        if self._importing:
            await context.insist(leave_mode, "target")

    async def _restore_fields(self) -> None:
        async with self._ends.admin("target") as end:
            await restore_fields(end, self._fields)

    async def _pass_gate(self) -> CutOverCheckResult:
        context, commands, survey = self._context, self._commands, self._survey
        assert commands is not None
        assert survey is not None
        try:
            await self._look_at_lost(survey)
            if lost := (context.stats.lost_words() or context.lost_words):
                return CutOverCheckResult(False, lost)
            await self._target_watch.look()
            # The target still holds all of it.
            await commands.confirm()
            await self._count_keys()
        except EngineError as exc:
            return CutOverCheckResult(
                False, f"the target could not be looked at: {exc.in_one_line}"
            )
        evictions = context.stats.evictions
        if evicted := evictions.words_in_one_go if context.one_go else evictions.words:
            return CutOverCheckResult(False, evicted)
        keys = self._target_keys
        if self._fields_passed and not context.skip_verification and commands.fieldless:
            return CutOverCheckResult(False, f"{commands.fieldless_words}; {_ALL_THE_SAME}")

        async def compare() -> CutOverCheckResult:
            assert self._files is not None
            if self._reading is not None:
                reading, self._reading = self._reading, None
                await reading
            return await self._gate(self._files, survey)

        found = await compared(context, compare)
        context.verification = found.verification
        if not found.ok:
            return found
        counted = f"{commands.counts.commands:,} commands"
        if snapshot := sum(survey.keys.values()):
            counted = f"a snapshot of {snapshot:,} keys and {counted}"
        return replace(
            found,
            reason=f"the target holds {keys:,} keys by {counted}, up to byte {survey.end:,}; "
            f"{found.reason}",
        )

    async def _count_keys(self) -> None:
        async with self._ends.admin("target") as end:
            own = await count_own(end)
            self._target_keys = sum(each.keys for each in (await end.info()).keyspace) - own

    def _publish_keys(self) -> None:
        """No command says how many keys there are: the target does."""
        if self._target_keys is not None:
            stats = self._context.stats
            stats.keys = self._context.total_keys = self._target_keys
            if self._resumed:
                # How many of them came in this run is not known, and no rate is made of them.
                stats.keys_before = stats.keys

    async def _end(self) -> None:
        """The target is its users' from here on: nothing is written to it any more but to remove
        what is ours."""
        await self._checkpoint.save(opened=True)
        await self._tidy()
        self._context.enter(Phase.DONE)

    async def _tidy(self) -> None:
        async def tidy() -> None:
            async with self._ends.admin("target") as end:
                found = await _position_on(end)
                if found is not None and found.transfer == self._checkpoint.mark.token:
                    await end.call("DEL", POSITION_KEY, dirty_key(self._checkpoint.mark.token))

        await self._context.insist(tidy, "target")
        await self._checkpoint.save(tidied=True)

    async def close(self, *, resumable: bool, forced: bool = False) -> None:
        """Let go of both ends; unless it can be resumed, say on the target what is left there."""
        del forced
        if self._applier is not None:
            await self._applier.close()
        await self._writer.close()
        if self._reading is not None:
            await cancelled(self._reading)
        if self._files is not None:
            self._files.close()
            self._files = None
        mark = self._checkpoint.mark
        if resumable or not mark.begun or mark.opened:
            return
        for event in await leave(self._target_endpoint, mark.token, self._settings.connect_timeout):
            self._context.on_event(event)

    async def save_last(self, errors: list[str]) -> None:
        """Write the last checkpoint; a failure joins `errors` if there is none yet."""
        if not self._checkpoint.mark.begun:
            return
        self._note_answered()
        try:
            await self._checkpoint.save()
        except StateError as exc:
            if not errors:
                errors.append(exc.in_one_line)

    # --- What is told ---

    def _lose(self, what: str, why: str) -> None:
        self._context.lost[what] = why
        self._checkpoint.note(lost=tuple(self._context.lost.items()))
        self._leave_out(f"not migrated: {what}: {why}")

    async def _look_at_lost(self, survey: AofSurvey) -> None:
        """What is named as lost may have been made by hand. Raises `LinkError`."""
        context = self._context
        if not context.lost:
            return
        async with self._ends.admin("target") as end:
            target_position = await functions_and_indexes.ask(
                end, map(raw_name, survey.search.dictionaries)
            )
        for what in functions_and_indexes.made_by_hand(
            context.lost, target_position, survey.search
        ):
            del context.lost[what]
            line = f"not migrated: {what}: "
            self.left_out = [each for each in self.left_out if not each.startswith(line)]
            context.on_event(f"{what} was missing on the target, and is there now")
        self._checkpoint.note(lost=tuple(context.lost.items()))

    def _doubt(self, what: str) -> None:
        if what not in self.doubts:
            self.doubts.append(what)
            self._context.on_event(what)

    def _leave_out(self, what: str) -> None:
        if what not in self.left_out:
            self.left_out.append(what)
            self._context.on_event(what)

    def _figures(self) -> dict[str, Any]:
        applier, commands, survey = self._applier, self._commands, self._survey
        figures: dict[str, Any] = {
            "retries": self._context.failed_dials
            + self._writer.retries
            + (applier.retries if applier else 0),
            "rebuilt_keys": self._writer.rebuilt,
            "reconnects": self._writer.reconnects + (applier.reconnects if applier else 0),
        }
        if commands is not None and survey is not None:
            figures["commands"] = commands.counts.commands
            figures["applied_offset"] = commands.position.offset
            figures["source_offset"] = survey.end
        return figures

    @property
    def _extending_fields(self) -> ExtendedNames | None:
        """Where the hashes are noted whose fields' expire times are extended; None: none are."""
        if self._importing or self._survey is None or not self._survey.fields:
            return None
        return self._fields

    @property
    def _fields_passed(self) -> bool:
        return not self._importing or self._checkpoint.mark.released

    def _note_answered(self) -> None:
        if self._commands is not None:
            self._checkpoint.note(answered=self._commands.position.offset)

    async def _ticking(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`; meanwhile tell the progress, and write the checkpoint now and then."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_TICK_SECONDS)
                self._note_answered()
                self._checkpoint.dirty = True
                await self._checkpoint.save_now_and_then()
                self._context.publish()
            await task
        finally:
            if not task.done():
                await cancelled(task)


async def _nothing_to_compare(db: int, keys: list[bytes]) -> list[bytes]:
    del db
    return keys


async def _position_on(end: Admin) -> TargetPosition | None:
    await end.select(POSITION_DB)
    found = await end.call("GET", POSITION_KEY)
    return TargetPosition.decode(found) if isinstance(found, bytes) else None


async def leave(target: Endpoint, token: str, timeout: float) -> list[str]:
    """Our position becomes the mark of a migration that was not completed. What an operator has to
    know; never raises `EngineError`."""
    try:
        async with admin(target, timeout=timeout, fault="target") as end:
            found = await _position_on(end)
            if found is not None and found.transfer == token:
                await end.call("RENAME", POSITION_KEY, LEFT_KEY)
                await end.call("DEL", dirty_key(token))
            if (await end.info()).capabilities.import_mode:
                with contextlib.suppress(AuthError, ServerError):
                    await end.call("CONFIG", "SET", "import-mode", "no")
    except EngineError as exc:
        return [f"what this migration leaves on the target is not marked: {exc}"]
    return []
