"""The commands of an append-only file, from the file to the target: each exactly once.

    file ──CommandBatch──▶ transaction with the position ──▶ target

While the target works on one batch, the next one is read, and sent up to its EXEC: so the target
has something to do while its answer is read. A batch of which nothing has to be known goes from
reader to socket; the others take the main flow (`_transact`), which leaves out what the target will
not take, and what its process ends at (`transfer.crashing_commands`).
"""

from __future__ import annotations

import asyncio
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from engine._native import (
    CMD_MEMBER_TTL,
    CMD_MODULE,
    CMD_MOVES,
    CMD_PAYLOAD,
    CMD_SCRIPT,
    CMD_SWAPS,
    CMD_UNKNOWN,
    CommandBatch,
    ExtendedNames,
    Sent,
    early_field_ttls,
    encode_command,
    stuck_hashes,
)
from engine.errors import TransferFailed
from engine.model.db_key import DbKey, placed
from engine.model.modules import HEAD_BYTES, TELEMETRY, TELEMETRY_WORDS
from engine.model.online_checkpoint import EXTEND_MS, POSITION_DB
from engine.model.position import StreamPosition, TargetPosition
from engine.model.report import NAMED_KEYS_LIMIT, printable_key
from engine.sources.aof_files import AofFiles
from engine.sources.aof_findings import AofSurvey
from engine.sources.aof_source import AofCommands
from engine.targets.applier import Applier, PositionMoved
from engine.targets.crashing_values import REASON
from engine.targets.known_forms import too_long_words
from engine.targets.restore_writer import RestoreWriter
from engine.transfer.crashing_commands import CrashingCommands
from engine.transfer.graph_telemetry import GraphTelemetry
from engine.transfer.migration_context import MigrationContext
from engine.transfer.newer_commands import lacks
from engine.transfer.unfaithful_commands import UnfaithfulCommands

# Commands that leave nothing of a key that could not be carried.
_DELETES = frozenset({b"DEL", b"UNLINK"})
# So much of each word of a RESTORE beside its key and value; and the bytes behind a value.
_WORD_BYTES = 64
_FOOTER_BYTES = 10
# So many keys are named in a line.
_NAMED_IN_A_LINE = 3
# So many hashes that may lack fields have a line of the report, and an event, each.
_DOUBTED_MOST = 100
_LACKING = "may lack fields: their TTL has passed, but a later command had extended it in time"
# Beside a key's name in the notes on the target: it is not left out, but may lack fields.
_FIELDS = "?fields"


def lacking_fields(hashes: Collection[DbKey]) -> Iterator[str]:
    """A line for each of the first hashes that may lack fields, and one for all others."""
    for db, key in islice(hashes, _DOUBTED_MOST):
        yield f"'{printable_key(key)[:80]}' (database {db}) {_LACKING}"
    further = len(hashes) - _DOUBTED_MOST
    if further > 0:
        yield f"{further:,} further {'hash' if further == 1 else 'hashes'} {_LACKING}"


@dataclass(frozen=True, slots=True)
class _Form:
    """The command that is sent for a RESTORE, and what the value loses (bits of
    `model.carried_with_loss`). `why`: there is none."""

    command: bytes
    lost: int
    why: str = ""


class Counts:
    """What was applied, over all dials. `offset`: up to there the target has `commands` of the
    files' commands at the start."""

    def __init__(self, offset: int, commands: int) -> None:
        self.unseen = 0
        # Behind each batch that was applied: the offset, and how many commands come before it.
        self._offsets = array("Q", [offset])
        self._commands = array("Q", [commands])
        # Commands that may lead elsewhere, by why; and some of the keys that they change.
        self.again: Counter[str] = Counter()
        self.keys: dict[str, dict[DbKey, None]] = {}

    @property
    def commands(self) -> int:
        """How many of the files' commands the target has."""
        return self._commands[-1]

    def go_back(self, offset: int) -> None:
        """The target has them up to there alone."""
        kept = max(bisect_right(self._offsets, offset), 1)
        del self._offsets[kept:], self._commands[kept:]

    def passed(self, batch: CommandBatch) -> None:
        """The batch is on the target."""
        self._offsets.append(batch.end_offset)
        self._commands.append(self.commands + batch.stream_commands)


class Replay:
    """Applies the commands from `target_position` on, over one connection. `commands`: how many of
    the files' commands the target has then; `before`: the counts of the dial before, which know
    that too.

    `lost`: keys that could not be carried so far, with the reasons; `noted`: the target has them in
    its notes. `crashing`: what its process has ended at. `lose(what, why)` is told of commands
    without keys that the target refuses. `names` get the keys whose expire times are extended,
    `fields` the hashes whose fields' are; None: those run. `stuck`: hashes whose fields' expire
    times could not be extended so far. `graphs`: tells what FalkorDB notes for itself; None: there
    is none.
    """

    def __init__(
        self,
        context: MigrationContext,
        applier: Applier,
        writer: RestoreWriter,
        target_position: TargetPosition,
        faith: UnfaithfulCommands,
        crashing: CrashingCommands,
        graphs: GraphTelemetry | None,
        *,
        lose: Callable[[str, str], None],
        note_key: bytes,
        lost: dict[DbKey, str],
        noted: bool,
        names: ExtendedNames,
        fields: ExtendedNames | None,
        stuck: Iterable[DbKey],
        commands: int,
        before: Counts | None,
    ) -> None:
        assert target_position.position is not None
        self._context = context
        self._applier = applier
        self._writer = writer
        self._target_position = target_position
        self._crashing = crashing
        self._graphs = graphs
        self._lose = lose
        self._names = names
        self._fields = fields
        self._note_key = note_key
        self.token = target_position.transfer
        self.counts = before or Counts(target_position.position.offset, commands)
        self.counts.go_back(target_position.position.offset)
        self.position = target_position.position
        """Everything up to here is on the target."""
        self.lost: set[DbKey] = set()
        """Keys that were left out: no command that names one is applied."""
        self.fieldless: dict[DbKey, None] = {}
        """Hashes that may lack fields whose TTLs were put off in time."""
        # Both, as they stand on the target behind the next transaction.
        self._notes: list[tuple[int, bytes]] = []
        # A server that loads the file loses the TTLs that the writing server has kept.
        self._kinds = tuple(kind for kind in faith.kinds if not kind.timed)
        self._flags = CMD_MEMBER_TTL
        for kind in self._kinds:
            self._flags |= kind.flag
        for (db, key), why in lost.items():
            if why == _FIELDS:
                self.fieldless[(db, key)] = None
            else:
                self.lost.add((db, key))
                self._context.stats.refuse(db, key, why)
                if not noted:
                    self._note("HSET", db, key, why)
        for db, key in stuck:
            self._name_fieldless(db, key)

    async def run(self, files: AofFiles, survey: AofSurvey) -> None:
        """Apply everything. Raises `PositionMoved`, `TransferFailed`, `AuthError`, `LinkError`."""
        at = self.position
        reader = AofCommands(
            files,
            survey,
            at.offset,
            at.db,
            at.in_multi,
            extend_by=EXTEND_MS,
            names=self._context.settings.stream_names,
            extend_fields=self._fields is not None,
            directory=self._context.settings.spool_directory,
            lacks=lacks(self._writer.info),
        )
        batch, plain = await asyncio.to_thread(self._next, reader)
        throttle = self._context.throttle.following
        while batch is not None:
            if not throttle.free:
                await throttle.wait()
            # While the target works on one batch, the next one is read.
            answer = self._start(batch) if plain else None
            ahead = asyncio.create_task(self._read_ahead(reader))
            try:
                sent = await answer if answer is not None else None
                if sent is None:
                    await self._transact(batch, None)
                elif sent.applied:
                    self._pass(batch)
                else:
                    await self._transact(batch, sent)
                throttle.passed(batch.stream_commands, batch.nbytes)
            finally:
                # The thread uses files that are closed behind us.
                await asyncio.wait({ahead})
                if not ahead.cancelled():
                    ahead.exception()
            batch, plain = ahead.result()
        await self.confirm()

    async def confirm(self) -> None:
        """Have the target show that it holds everything up to `position`. Raises as `run`."""
        at = self.position
        await self._transact(CommandBatch.empty(at.offset, at.db, at.in_multi), None)

    @property
    def fieldless_words(self) -> str:
        """Which hashes may lack fields, in one line with the first names; empty: none."""
        total = len(self.fieldless)
        if not total:
            return ""
        some = list(self.fieldless)[:_NAMED_IN_A_LINE]
        names = ", ".join(f"'{printable_key(key)[:80]}' (database {db})" for db, key in some)
        words = "1 hash has" if total == 1 else f"{total:,} hashes have"
        return (
            f"{words} or had fields whose TTL could not be extended, such as {names}: a field "
            "whose TTL has passed is missing there, also if a later command of the file extends it"
        )

    def doubts(self, *, fields: bool) -> Iterable[str]:
        """What may be otherwise than on the server that wrote the file, a line each; `fields`:
        those of hashes may be gone."""
        counts = self.counts
        for why, number in counts.again.items():
            names = ", ".join(
                f"'{printable_key(key)[:80]}' (database {db})" for db, key in counts.keys[why]
            )
            such = f", such as of {names}" if names else ""
            yield f"{number:,} commands{such} may have another result when they run again: {why}"
        if fields:
            yield from lacking_fields(self.fieldless)
        if counts.unseen:
            yield (
                f"the target's answer to {counts.unseen:,} transactions was lost with the link: "
                "whether each of their commands succeeded is not known"
            )

    # --- One batch ---

    def _next(self, reader: AofCommands) -> tuple[CommandBatch | None, bool]:
        """The next batch, and whether nothing of its commands is to be looked at; on a thread,
        while the target works on the one before."""
        batch = reader.next()
        if batch is None:
            return None, False
        self._note_ttls(batch)
        self._note_fields(batch)
        special = (
            batch.nbytes > self._writer.bulk_limit
            or batch.holds(CMD_SWAPS)
            or batch.holds(CMD_PAYLOAD)
            or (self._graphs is not None and batch.naming(TELEMETRY))
        )
        return batch, not special

    async def _read_ahead(self, reader: AofCommands) -> tuple[CommandBatch | None, bool]:
        """As `_next`; the batch is sent up to its EXEC, if the one before it is under way."""
        batch, plain = await asyncio.to_thread(self._next, reader)
        ahead = batch is not None and plain and self._context.throttle.following.free
        if batch is not None and ahead and self._is_simple(batch):
            self._applier.send_ahead(batch, self._value(batch))
        return batch, plain

    def _is_simple(self, batch: CommandBatch) -> bool:
        """Whether a batch that is plain can be sent without a look at its commands."""
        return not (self.lost or self._notes or self._crashing.suspect(batch, ()))

    def _start(self, batch: CommandBatch) -> asyncio.Future[Sent] | None:
        """Send it at once, if nothing has to be known of it; None: it is for `_transact`."""
        if not self._is_simple(batch):
            return None
        answer: asyncio.Future[Sent] = asyncio.get_running_loop().create_future()

        def answered(sent: Sent) -> None:
            if not answer.done():
                answer.set_result(sent)

        value = self._value(batch)
        return answer if self._applier.start(batch, value, answered) else None

    def _note_fields(self, batch: CommandBatch) -> None:
        """Hashes of which a field's TTL has passed, or may pass, and is not extended: the field is
        gone then. Where the file puts it off in time, the target lacks it from then on."""
        found: list[int] = []
        if batch.holds(CMD_MEMBER_TTL):
            found += early_field_ttls(batch, time.time_ns() // 1_000_000)
        if self._fields is not None and batch.holds(CMD_PAYLOAD):
            found += stuck_hashes(batch)
        for index in found:
            for db, key in batch.changes(index) or ():
                self._name_fieldless(db, key)

    def _name_fieldless(self, db: int, key: bytes) -> None:
        if (db, key) in self.fieldless:
            return
        self.fieldless[(db, key)] = None
        if len(self.fieldless) <= NAMED_KEYS_LIMIT:
            self._note("HSET", db, key, _FIELDS)

    def _note_ttls(self, batch: CommandBatch) -> None:
        """Note the keys whose expire times may be extended behind this batch, and the hashes."""
        self._note_extended(batch, self._names, members=False)
        if self._fields is not None:
            self._note_extended(batch, self._fields, members=True)

    @staticmethod
    def _note_extended(batch: CommandBatch, names: ExtendedNames, *, members: bool) -> None:
        if not names.known:
            return
        names.add_commands(batch, members=members)
        if batch.holds(CMD_SWAPS | CMD_UNKNOWN | CMD_SCRIPT):
            # The numbers of databases in the names are no longer right; or what moved is not known.
            names.give_up()
        elif batch.holds(CMD_MOVES):
            for index in batch.indices(CMD_MOVES):
                for db, key in batch.changes(index) or ():
                    names.add(db, key)

    async def _transact(self, batch: CommandBatch, sent: Sent | None) -> None:
        done = 0
        for index, form in ({} if sent is not None else self._other_forms(batch)).items():
            # It is stored where its command stands.
            if index > done:
                before, batch = batch.split(batch.offset(index - done - 1))
                await self._transact_whole(before, None)
            one, batch = batch.split(batch.offset(0))
            await self._transact_piece(one, None, form)
            done = index + 1
        if not done or batch.end_offset > batch.start_offset:
            await self._transact_whole(batch, sent)

    async def _transact_whole(self, batch: CommandBatch, sent: Sent | None) -> None:
        suspect = sent is None and self._crashing.suspect(batch, ())
        if suspect or not await self._transact_piece(batch, sent):
            await self._transact_in_pieces(batch)

    async def _transact_in_pieces(self, batch: CommandBatch) -> None:
        """Apply it in pieces, for the target's process has ended at it."""
        for piece, _ in self._crashing.pieces(batch, ()):
            if not await self._transact_piece(piece, None):
                await self._transact_in_pieces(piece)

    async def _transact_piece(
        self, batch: CommandBatch, sent: Sent | None, form: _Form | None = None
    ) -> bool:
        """Apply it; False: the target's process ends at it, and it is to be parted.

        `form`: it is one command, for which another one is sent."""
        skip = (
            set() if sent is not None else self._unfit(batch) | await self._notes_of_graphs(batch)
        )
        if form is not None and form.why and not skip:
            skip.add(0)
            self._leave(batch, 0, form.why)
        while True:
            if sent is None:
                skip |= self._left_out(batch, skip) | self._left_out_crashing(batch, skip)
            notes, instead = self._noted(), list[tuple[int, bytes]]()
            if form is not None and not skip:
                instead = [(batch.db(0), form.command)]
            try:
                result = await self._applier.apply(
                    batch,
                    sent.position if sent is not None else self._value(batch),
                    skip={0} if instead else skip,
                    extras=[*instead, *notes],
                    sent=sent,
                )
            except PositionMoved:
                if self._applier.ended:
                    self._crashing.ended(batch, ())
                raise
            sent = None
            if result.ended:
                # Nothing was applied.
                if not self._crashing.ended(batch, ()) and self._crashing.parted(batch, ()):
                    return False
                continue
            if not result.refused:
                break
            # Nothing was applied: again, without what the target would not even queue.
            for index, message in sorted(result.refused):
                place = _of_batch(index, message, instead)
                skip.add(place)
                self._leave(batch, place, _refusal(batch, place, message))
        del self._notes[: len(notes)]
        for index, message in result.failed:
            self._leave(batch, _of_batch(index, message, instead), message)
        if instead and form is not None and form.lost and not result.failed:
            for db, key in batch.changes(0) or ():
                self._context.stats.lose(db, key, form.lost)
        self.counts.unseen += result.unseen
        self._pass(batch)
        return True

    def _pass(self, batch: CommandBatch) -> None:
        if batch.end_offset > self.position.offset:
            self.counts.passed(batch)
        if batch.holds(self._flags):
            self._look(batch)
        self.position = StreamPosition(
            self.position.replid, batch.end_offset, batch.db_after, batch.in_multi_after
        )

    def _look(self, batch: CommandBatch) -> None:
        for kind in self._kinds:
            if batch.holds(kind.flag):
                found = batch.doubtful(kind.flag)
                found = [at for at in found if not batch.flags(at) & kind.unless]
                self._note_again(batch, found, kind.why)

    def _note_again(self, batch: CommandBatch, indices: Sequence[int], why: str) -> None:
        if not indices:
            return
        counts = self.counts
        counts.again[why] += len(indices)
        some = counts.keys.setdefault(why, {})
        for index in indices[:_NAMED_IN_A_LINE]:
            for key in batch.changes(index) or ():
                if len(some) < _NAMED_IN_A_LINE:
                    some[key] = None

    def _value(self, batch: CommandBatch) -> bytes:
        return self._target_position.encode_span(
            self.position.replid,
            (batch.end_offset, batch.db_after, batch.in_multi_after),
            (batch.start_offset, batch.db_before, batch.in_multi_before),
        )

    # --- What goes in another form ---

    def _other_forms(self, batch: CommandBatch) -> dict[int, _Form]:
        """RESTOREs of values in a form that the target does not know, or with a footer that it
        refuses, by their places."""
        found: dict[int, _Form] = {}
        encoder = self._writer.encoder
        for index in batch.indices(CMD_PAYLOAD):
            words = batch.command(index, _WORD_BYTES)
            if len(words) < 4 or len(payload := batch.argument(index, 3)) <= _FOOTER_BYTES:
                continue
            known: bytes | None = payload
            lost = 0
            if encoder.transcoder is not None:
                known, lost = encoder.transcoder.payload(payload)
            if known is None:
                assert encoder.transcoder is not None
                found[index] = _Form(b"", 0, too_long_words(encoder.transcoder.most))
            elif (known := encoder.stamped(known)) is not payload:
                words[1], words[3] = batch.argument(index, 1), known
                found[index] = _Form(encode_command(*words), lost)
        return found

    # --- What is left out ---

    def _unfit(self, batch: CommandBatch) -> set[int]:
        """Values of modules that the target must not get, and arguments that it does not take."""
        found: set[int] = set()
        guard = self._writer.encoder.guard
        for index in batch.doubtful(CMD_PAYLOAD):
            if guard is not None and (why := guard.refusal(batch.argument(index, 3, HEAD_BYTES))):
                found.add(index)
                self._leave(batch, index, why)
        limit = self._writer.bulk_limit
        for index in batch.longer(limit):
            found.add(index)
            self._leave(batch, index, f"it is longer than the target takes ({limit:,} bytes)")
        return found

    def _left_out(self, batch: CommandBatch, skip: set[int]) -> set[int]:
        """Commands that name a key which was left out; one that deletes it makes it whole."""
        found: set[int] = set()
        if not self.lost:
            return found
        swaps = batch.swaps
        for index in batch.mentioning({key for _, key in self.lost}):
            if index in skip:
                continue
            named = placed(batch.db(index), batch.keys(index) or (), swaps)
            lost = self.lost.intersection(named)
            if not lost:
                continue
            if batch.argument(index, 0).upper() in _DELETES:
                for db, key in lost:
                    self.lost.discard((db, key))
                    self._context.stats.carried(db, key)
                    self._note("HDEL", db, key)
                continue
            found.add(index)
            self._leave(batch, index, "it is derived from a key that was not migrated")
        return found

    def _left_out_crashing(self, batch: CommandBatch, skip: set[int]) -> set[int]:
        """A command that the target's process ended at."""
        if self._crashing.idle or skip or len(batch) != 1 or not self._crashing.crashing(batch):
            return set()
        self._crashing.leave_out(*(batch.changes(0) or ()))
        self._leave(batch, 0, REASON)
        return {0}

    async def _notes_of_graphs(self, batch: CommandBatch) -> set[int]:
        """Commands of what FalkorDB notes for itself; what they make of it is not carried."""
        if self._graphs is None:
            return set()
        found = await self._graphs.left_out(batch)
        for own, beside in found.values():
            for key in own:
                self._context.stats.leave(*key)
            self._lose_keys(beside, f"it is derived from {TELEMETRY_WORDS}")
        return set(found)

    def _leave(self, batch: CommandBatch, index: int, message: str) -> None:
        """A command that does not run on the target: its keys are named."""
        keys = batch.changes(index)
        if not keys:
            name = batch.argument(index, 0, 64).decode("ascii", "backslashreplace")
            self._lose(f"the command {name.upper()}", message)
            return
        self._lose_keys(keys, message)

    def _lose_keys(self, keys: Iterable[DbKey], message: str) -> None:
        for db, key in keys:
            if (db, key) in self.lost:
                continue
            self._context.stats.refuse(db, key, message)
            if len(self.lost) < NAMED_KEYS_LIMIT:
                self.lost.add((db, key))
                self._note("HSET", db, key, message)

    def _note(self, verb: str, db: int, key: bytes, *more: str) -> None:
        name = b"%d %b" % (db, key)
        self._notes.append((POSITION_DB, encode_command(verb, self._note_key, name, *more)))

    def _noted(self) -> list[tuple[int, bytes]]:
        return list(self._notes)


def _refusal(batch: CommandBatch, index: int, message: str) -> str:
    """Why the target would not even queue a command: of a module's that it does not know, that."""
    if batch.flags(index) & CMD_MODULE and "unknown command" in message:
        name = batch.argument(index, 0, 64).decode("ascii", "backslashreplace")
        return f"{name.upper()} is a command of a module, which the target does not have"
    return message


def _of_batch(index: int, message: str, instead: Sequence[tuple[int, bytes]]) -> int:
    """Which command of the batch was refused; `instead`: what was sent for its only one. Raises
    `TransferFailed` where it is another extra, which is the engine's."""
    if index == -1 and instead:
        return 0
    if index < 0:
        raise TransferFailed(
            f"the target refuses the engine's own command: {message}",
            remedy="Correct that on the target, then start the migration anew.",
        )
    return index
