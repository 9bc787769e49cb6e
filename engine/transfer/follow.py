"""The stream, from the source to the target: one batch after the other, each exactly once.

    source ──CommandBatch──▶ applier ──position──▶ source (REPLCONF ACK)

The main flow is `_apply`: spread dirtiness, cut the batch where a reading belongs, transact. What
the target will not take from the stream is handed to the `KeyResync`.

Most batches need none of that: nothing is dirty, and no command is of a kind that wants a look.
Those are pumped (`_quickly`): the core's `Pump` takes them from the stream, encodes them, and sees
by the target's answers that they are there. A round is one turn (`_turn`), in a callback of either
socket: a task's turns would cost more than all else about a small batch. It comes to the same, and
what surfaces from the pump as out of the ordinary (another kind of command, an answer that is not
plain success, a lost link) is handed to the main flow where it stands.

To a target that is far several batches are under way. What one of them does not bring there is
dirty, and so is what those behind it derive of that (`_settle`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from dataclasses import field as of

from engine._native import (
    CMD_ACROSS,
    CMD_FLUSHES,
    CMD_KEYLESS,
    CMD_MEMBER_COUNT,
    CMD_MEMBER_TTL,
    CMD_MODULE,
    CMD_PAYLOAD,
    CMD_READS,
    CMD_READS_UNNAMED,
    CMD_SCRIPT,
    CMD_SLOT_MOVES,
    CMD_SWAPS,
    CMD_TTL,
    CMD_UNKNOWN,
    CMD_WRITES_UNNAMED,
    CommandBatch,
    NamedKeys,
    Pump,
    Sent,
    key_slot,
)
from engine.errors import LinkError, ServerError, TransferFailed
from engine.model.db_key import DbKey
from engine.model.doubt import Doubt
from engine.model.modules import HEAD_BYTES, TELEMETRY
from engine.model.position import StreamPosition, TargetPosition
from engine.model.server import same_process
from engine.model.slots import SlotSet
from engine.model.throttle import Flow
from engine.model.transient_errors import OF_SLOT
from engine.sources.replica import ReplicaSource
from engine.targets.applier import UNDER_WAY_BYTES, UNDER_WAY_MOST, Applier, PositionMoved
from engine.targets.base import ReadAgain
from engine.targets.crashing_values import REASON
from engine.targets.rebuilt_values import GONE, is_last
from engine.transfer.async_helpers import cancelled
from engine.transfer.crashing_commands import CrashingCommands
from engine.transfer.key_resync import KeyResync, Store
from engine.transfer.keys_with_extended_ttls import ExtendedKeys, taken_along
from engine.transfer.stream_trust import Trust
from engine.transfer.unfaithful_commands import UnfaithfulCommands
from engine.transfer.which_have_ttls import TargetTtls, Timed
from engine.wire.connection import Connection

# A reading is taken when the target is no further behind than this many bytes: until its offset is
# reached the keys stay as they are, and what reads them is marked dirty as well.
_READ_WITHIN = 1 << 20
_READ_AGAIN_SECONDS = 0.5
# Commands whose first argument is the name of a search alias or dictionary.
_OF_SEARCH = (b"FT.ALIAS", b"FT.DICT")
# Names of commands without a row in the core's table: so many are told of.
_UNKNOWN_NAMES_MOST = 100
# A command of these kinds may change what reading its keys again would not bring: it has to be on
# the target before what is behind it.
_IN_ORDER = (
    CMD_FLUSHES
    | CMD_KEYLESS
    | CMD_MODULE
    | CMD_PAYLOAD
    | CMD_READS_UNNAMED
    | CMD_SCRIPT
    | CMD_SWAPS
    | CMD_UNKNOWN
    | CMD_WRITES_UNNAMED
)

# What FUNCTION LOAD and FUNCTION DELETE are answered where they ran before.
_RUN_BEFORE = re.compile(r"already exists|not found")
# What these change is not said by the keys that they name.
_UNNAMED = CMD_READS_UNNAMED | CMD_WRITES_UNNAMED


@dataclass(slots=True)
class _Piece:
    """What goes in one transaction, and what became of it: keys that the target `refused`."""

    batch: CommandBatch
    stores: list[Store]
    unfit: list[tuple[int, bytes, str, int]]
    refused: set[DbKey] = of(default_factory=set)
    unseen: bool = False


@dataclass(slots=True)
class _Left:
    """What the pump leaves to the main flow: batches that were sent and not simply applied, all
    that were under way then, and one that is to be applied behind them."""

    unsettled: list[Sent] = of(default_factory=list)
    batch: CommandBatch | None = None


class Follower:
    """Applies what the source sends, from `target_position` on.

    What is in doubt there (`TargetPosition.since`) the source sends first: it is not applied, but
    its keys are marked dirty, before anything is written to the target that would forget the doubt.

    `trust` says what is read again of each batch; `note` is told of what the follower notices that
    belongs there. `extended` notes what passes by of keys whose TTLs are extended.

    `not_carried(db, key, message, type)` is told of keys that no reading can store: the target's
    message, the value's RDB type; `carried(db, key)` of those that one has stored; `left_out(what)`
    of commands without keys that it refuses. `unnamed(why)` is awaited before commands are applied
    that may have changed any key.
    """

    def __init__(
        self,
        source: ReplicaSource,
        applier: Applier,
        resync: KeyResync,
        target_position: TargetPosition,
        faith: UnfaithfulCommands,
        target_ttls: TargetTtls,
        crashing: CrashingCommands,
        trust: Trust,
        extended: ExtendedKeys,
        throttle: Flow,
        *,
        note: Callable[[Doubt], None],
        not_carried: Callable[[int, bytes, str, int | None], None],
        carried: Callable[[int, bytes], None],
        left_out: Callable[[str], None],
        unnamed: Callable[[str], Awaitable[None]],
    ) -> None:
        self._source = source
        self._applier = applier
        self._resync = resync
        self._not_carried = not_carried
        self._carried = carried
        self._left_out = left_out
        self._unnamed = unnamed
        self._faith = faith
        self._target_ttls = target_ttls
        self._crashing = crashing
        self.trust = trust
        """Whether what the stream does on the target may be relied on."""
        self._extended = extended
        self._throttle = throttle
        # What the throttle does not let through yet of a batch that was taken.
        self._ahead: CommandBatch | None = None
        self._note = note
        assert target_position.position is not None
        self._target_position = target_position
        self._position = target_position.position
        if target_position.doubtful is not None:
            trust.note(Doubt.UNSETTLED, 0.0)
        self._commands = 0
        self.differed = False
        """Whether a comparison has had keys read again: nothing else knows of them."""
        self.unseen = 0
        """Batches that were applied without their answer being seen."""
        self.on_unknown_command: Callable[[bytes, bool], None] = lambda name, known: None
        """Called once for each name of a command that the core's table does not have: the name,
        whether the source could tell which keys it names."""
        self.on_slot_moves: Callable[[], None] = lambda: None
        """Called where the stream tells of slots that are being moved."""
        self.on_slots_came: Callable[[int], Awaitable[None]] = _nothing
        """Awaited where a slot migration of the servers themselves to this source has ended, with
        the database that the stream is in there: of several the highest."""
        self.on_search: Callable[[bytes, str], None] = lambda name, why: None
        """Called with the name of a search alias or dictionary that a command did not change on the
        target, and why."""
        self.empty: Callable[[int, int | None], Awaitable[None]] | None = None
        """Awaited for FLUSHALL (None) or FLUSHDB at this offset, of this database, where the target
        does not get it, for it has keys of other lanes or of others, or is a cluster's node; None:
        it is sent."""
        self.audited = SlotSet()
        """Slots of which every key is being read again: what a command makes of keys of theirs is
        as doubtful as they are, also where it was read before."""
        self._named_keys: NamedKeys | None = None
        self.shares_libraries = False
        """Whether the target has its libraries of functions from several sources."""
        # Up to here commands may have run before they are sent.
        self._twice_to = target_position.begun or 0
        self._unknown_commands: set[bytes] = set()
        # Keys that were found to differ, until the key resync has them.
        self._found: dict[DbKey, None] = {}
        # The last reading failed, and when the next one may be tried.
        self._read_failed = False
        self._read_again = 0.0
        # What was in force when the batch was looked at that is being applied.
        self._look = trust.look()
        self._moved = asyncio.Event()
        self._waiting = 0
        # The pump, if it runs; what its transactions are written to; where its end is told, and
        # what it is going to leave once nothing is under way any more; and what asks the spool for
        # more.
        self._pump: Pump | None = None
        self._target: Connection | None = None
        self._left: asyncio.Future[_Left] | None = None
        self._leaving: _Left | None = None
        self._turning = False
        self._fetching: asyncio.Task[None] | None = None
        self._stopping = self._confirming = False

    async def run(self) -> None:
        """Follow until `stop`. Raises `LinkError` (the source's), `PositionMoved`, `AuthError`,
        `TransferFailed`."""
        self._throttle.on_change = self._source.interrupt
        try:
            await self._run()
        finally:
            self._throttle.on_change = lambda: None

    async def _run(self) -> None:
        source, resync, throttle = self._source, self._resync, self._throttle
        while True:
            rest = 0.0 if self._stopping else throttle.due
            if not self.trust.unsettled:
                if self._found:
                    resync.mark_dirty(self._found)
                    self._found.clear()
                if not (rest or resync.at_rest):
                    await self._resync_idle()
                if self._confirming:
                    await self._transact_nothing()
                    self._confirming = False
                    self._moved.set()
            if self._stopping and self.settled:
                return
            if rest:
                # The link stands, and what comes is received; nothing is written to the target.
                await source.rest(rest)
                continue
            batch, self._ahead = self._ahead, None
            if batch is None and throttle.free and self._plain:
                left = await self._quickly()
                batch = left.batch
                if left.unsettled:
                    await self._settle(left.unsettled)
                    if batch is None:
                        # What it made dirty is read before more is waited for.
                        continue
            if batch is None:
                if self._confirming or (self._stopping and self.settled):
                    continue
                # Also behind the quick way: what ended it may have left a batch to take.
                batch = source.next_commands()
            if batch is not None and self.trust.unsettled:
                batch = await self._doubt(batch)
                if self.trust.unsettled:
                    continue
            if batch is None:
                await self._more()
            else:
                if not throttle.free:
                    batch, self._ahead = self._parted(batch)
                await self._apply(batch)
                throttle.passed(batch.stream_commands, batch.end_offset - batch.start_offset)

    def _parted(self, batch: CommandBatch) -> tuple[CommandBatch, CommandBatch | None]:
        """What of the batch goes at once as the throttle lets it, one command at the least, and the
        rest."""
        commands, nbytes = self._throttle.portion()
        most = len(batch) if commands == math.inf else min(int(commands), len(batch))
        start = batch.start_offset
        while most > 1 and batch.offset(most - 1) - start > nbytes:
            most //= 2
        # (A batch that is split in a command that its reader has put together is not.)
        cut = batch.offset(most - 1) if 0 < most < len(batch) else batch.end_offset
        if not start < cut < batch.end_offset:
            return batch, None
        return batch.split(cut)

    async def _more(self) -> None:
        """Wait until the source has brought more, or there is something to read again, a reading
        that failed among it."""
        again = self._resync.again_in
        if self._read_failed and self._resync.to_read:
            left = max(self._read_again - asyncio.get_running_loop().time(), 0.0)
            again = left if again is None else min(again, left)
        if again is None:
            await self._source.more()
            return
        # A source that is not written to sends nothing for seconds.
        waking = asyncio.get_running_loop().call_later(again + 0.05, self._source.interrupt)
        try:
            await self._source.more()
        finally:
            waking.cancel()

    def stop(self) -> None:
        """End `run` between two transactions, as soon as there is nothing to mend."""
        self._stopping = True
        self._source.interrupt()

    async def confirm(self) -> None:
        """Wait until the target has shown once more that it holds everything up to `position`.

        It may have been restarted since the last transaction, with an older copy of the data, or be
        another engine's by now: then `run` raises.
        """
        self._confirming = True
        self._source.interrupt()
        await self._until(lambda: not self._confirming)

    def ask_target(self) -> None:
        """The same without waiting for it: `is_target_known` tells when it has."""
        if not self._confirming:
            self._confirming = True
            self._source.interrupt()

    @property
    def is_target_known(self) -> bool:
        """Whether nothing speaks against the target holding everything up to `position`. While the
        source is not written to, nothing else asks it what it holds."""
        return not (self._confirming or self._applier.closed)

    def read_again(self, keys: Iterable[DbKey], *, audited: bool = False) -> None:
        """Have these keys read again from the source: a comparison has found that they differ, or
        their slots are `audited`.

        `settle` waits until they are stored.
        """
        self.differed = self.differed or not audited
        self._found.update(dict.fromkeys(keys))
        self._source.interrupt()

    async def end_audit(self) -> None:
        """Every key of the slots `audited` was named to `read_again`: from here on the key resync
        knows what is made of those that are still to be read."""
        await self._until(lambda: not self._found)
        self.audited = SlotSet()

    async def has_room(self, keys: int) -> None:
        """Wait until no more keys than that wait to be read again."""
        await self._until(lambda: len(self._found) + self._resync.waiting <= keys)

    async def reach(self, offset: int) -> None:
        """Wait until everything up to `offset` is on the target."""
        with self._source.hurried():
            self._applier.look()
            await self._until(lambda: self.position.offset >= offset)

    async def pass_all(self) -> None:
        """Wait until all that was received, and each reading that was taken, is on the target."""
        await self.reach(max(self._source.received_offset, self._resync.next_offset or 0))

    async def _until(self, there: Callable[[], bool]) -> None:
        self._waiting += 1
        try:
            while not there():
                self._moved.clear()
                await self._moved.wait()
        finally:
            self._waiting -= 1

    async def settle(self) -> None:
        """Wait until there is nothing to mend."""
        await self._until(lambda: self.settled)

    @property
    def applier(self) -> Applier:
        """What the target is written with; at rest once `run` has returned."""
        return self._applier

    def hurry(self, on: bool) -> None:
        """Whether the source's writers are paused, and each round trip costs them time."""
        self._resync.hurried = on

    @property
    def named_keys(self) -> NamedKeys | None:
        """Where keys are named whose commands were applied, or that were read again and stored."""
        return self._named_keys

    @named_keys.setter
    def named_keys(self, named: NamedKeys | None) -> None:
        self._named_keys = named
        if self._pump is not None:
            self._pump.named_keys = named

    @property
    def settled(self) -> bool:
        """Whether there is nothing to mend, and nothing in doubt.

        The set on the target may still name keys that are clean: an engine that takes over reads
        them once more, and the promotion removes it.
        """
        return self._resync.nothing_dirty and not (self.trust.unsettled or self._found)

    @property
    def position(self) -> StreamPosition:
        """Everything up to here is on the target."""
        pump = self._pump
        if pump is not None and pump.offset != self._position.offset:
            self._position = StreamPosition(pump.replid, pump.offset, pump.db, pump.in_multi)
        return self._position

    @property
    def commands(self) -> int:
        """How many commands of the stream were applied."""
        return self._commands + (self._pump.commands if self._pump is not None else 0)

    @property
    def lag_bytes(self) -> int:
        """Bytes of the stream received and not applied."""
        return max(self._source.received_offset - self.position.offset, 0)

    # --- The pump ---

    @property
    def _plain(self) -> bool:
        """Whether batches may be pumped, if their commands allow it."""
        # What the target's process ended at once is passed by and by.
        quiet = self._resync.at_rest and not self.audited
        quiet = quiet and not self._crashing.ahead(self.position.offset)
        return quiet and self.trust.plain and not self._extended.noting

    async def _quickly(self) -> _Left:
        """Pump batches as long as each is plain; gives what is for the main flow, which may be
        nothing: look around."""
        source, held, at = self._source, self._target_position, self.position
        ready = self._applier.follow(self._answered, self._turn) if source.usable else None
        if ready is None:
            return _Left(batch=source.next_commands())
        pump, self._target, databases = ready
        self._look = self.trust.look()
        head, tail = held.frame()
        pump.follow(
            source.stream,
            self.trust,
            source.spool,
            noted=self._extended.sent,
            names=self._extended.names,
            head=head,
            tail=tail,
            replid=at.replid,
            offset=at.offset,
            db=at.db,
            in_multi=at.in_multi,
            databases=databases,
            doubtful=self._faith.flags,
            in_order=_IN_ORDER,
            bytes_limit=self._resync.bulk_limit,
            own_streams=TELEMETRY,
            several=self._applier.several,
            most=UNDER_WAY_MOST,
            bytes_most=UNDER_WAY_BYTES,
        )
        pump.named_keys = self._named_keys
        self._pump = pump
        self._left = left = asyncio.get_running_loop().create_future()
        source.on_more = self._turn
        try:
            self._turn()
            found: _Left = await left
        finally:
            self._left = self._leaving = None
            source.on_more = None
            self._position, self._commands = self.position, self.commands
            pump.named_keys = None
            self._pump = self._target = None
            self._applier.abandon()
            if self._fetching is not None:
                # To its end: it must not take a later waiter's place.
                await cancelled(self._fetching)
        return found

    def _turn(self) -> None:
        """One round: what the target has answered, then what may be sent now. Never raises."""
        left, pump, target, source = self._left, self._pump, self._target, self._source
        throttle = self._throttle
        if left is None or pump is None or target is None or left.done() or self._turning:
            return
        self._turning = True
        try:
            # 1. The answers, if they were left to the kernel.
            if target.resting and target.take() < 0:
                target.stop_resting()
            while pump.surfaced and (sent := pump.pop()) is not None:
                self._answered(sent)
            if pump.offset != source.applied:
                source.applied = pump.offset
                if source.ack_wanted is not None:
                    source.acknowledge(pump.offset)
                if self._waiting:
                    self._moved.set()
            # 2. The next batches.
            trust, resync = self.trust, self._resync
            while self._leaving is None and pump.room:
                # What the target's process ended at lies behind, or the pump would not run.
                plain = trust.plain and not self._extended.noting and resync.at_rest
                plain = plain and not self.audited
                asked = self._stopping or self._confirming or self._found or not throttle.free
                if asked or not plain or not source.usable or target.lost is not None:
                    self._leaving = _Left()
                    break
                batch = pump.next(source.replid)
                if batch is None:
                    if not source.at_rest:
                        self._at_the_end(pump)
                    break
                if isinstance(batch, CommandBatch):
                    self._leaving = _Left(batch=batch)
                    break
                target.write(batch, source.connection)
            # 3. What is left, if anything.
            if target.resting and not pump.under_way:
                target.stop_resting()
            if self._leaving is not None and not pump.under_way:
                left.set_result(self._leaving)
        except Exception as exc:
            if not left.done():
                left.set_exception(exc)
        finally:
            self._turning = False

    def _at_the_end(self, pump: Pump) -> None:
        """Nothing is at hand, and not for want of bytes from the socket."""
        if pump.under_way:
            self._fetch()
        else:
            self._leaving = _Left()

    def _answered(self, sent: Sent) -> None:
        """A batch has surfaced: it was not simply applied, or may have come late."""
        pump = self._pump
        if self._left is None or self._left.done() or pump is None:
            return
        unsettled = self._leaving is not None and self._leaving.unsettled
        doubtful = self.trust.every_key or self._counted_late(sent.batch, quick=True)
        if sent.applied and not doubtful and not unsettled:
            pump.passed(sent)
            return
        pump.surfacing = True
        if self._leaving is None:
            self._leaving = _Left()
        self._leaving.unsettled.append(sent)

    def _fetch(self) -> None:
        """Have what waits in the spool read meanwhile."""
        if self._fetching is not None:
            return

        def fetched(task: asyncio.Task[None]) -> None:
            self._fetching = None
            if not task.cancelled() and task.exception() is not None and self._leaving is None:
                # Raised again where nothing is under way.
                self._leaving = _Left()
            self._turn()

        self._fetching = asyncio.get_running_loop().create_task(self._source.more())
        self._fetching.add_done_callback(fetched)

    async def _settle(self, unsettled: Sequence[Sent]) -> None:
        """Deal with batches that were under way at once and not simply applied."""
        if len(unsettled) == 1:
            (only,) = unsettled
            await self._transact(only.batch, only)
            return
        links, resync = self._applier.reconnects, self._resync
        process = self._applier.identity
        settled = await self._applier.settle(unsettled)
        away = self._applier.reconnects != links
        if away:
            self._note(Doubt.OUTAGE)
        again: list[CommandBatch] = []
        for sent, result in zip(unsettled, settled, strict=True):
            batch = sent.batch
            if result is None:
                again.append(batch)
                continue
            if result.begun:
                await self._begun(batch)
                again.append(batch)
                continue
            # What those before it lack, its commands may have read.
            await resync.spread(batch)
            for index, message in result.failed:
                await self._leave(batch, index, message)
            missed = self.trust.missed(self._look, unseen=result.unseen)
            if missed or self.trust.every_key:
                self.unseen += result.unseen
                resync.mark_dirty(await resync.keys_in(batch))
            if self._counted_late(batch, quick=True):
                resync.mark_dirty(_changed(batch, CMD_MEMBER_COUNT))
            if away and self.trust.field_ttls:
                self._mark_fields_dirty(batch)
            await resync.spread(batch)
            self._commands += batch.stream_commands
            if self._named_keys is not None:
                self._named_keys.note(batch)
            self._pass(self._behind(batch, sent.replid))
        if again and not same_process(self._applier.identity, process):
            self._crashing.ended_at_one_of(again)
        for batch in again:
            await self._apply(batch)

    # --- One batch ---

    async def _doubt(self, batch: CommandBatch) -> CommandBatch:
        """Mark dirty the keys of what was applied without its answer being read; the rest of
        `batch`."""
        cut = min(max(self.position.offset, batch.start_offset), batch.end_offset)
        try:
            applied, rest = batch.split(cut)
        except ValueError:
            raise ReadAgain("the source's stream is another one than the target has") from None
        self._resync.mark_dirty(await self._resync.keys_in(applied))
        if cut >= self.position.offset:
            self.trust.settle(Doubt.UNSETTLED)
        return rest

    async def _apply(self, batch: CommandBatch) -> None:
        """Apply `batch`; where it holds a SWAPDB, that one by itself, and FLUSHALL where it is not
        sent.

        The names of dirty keys have the databases that the keys are in at the target's position. In
        a transaction with more than the SWAPDB, or less than the batch, they would be those
        before it for some commands and those behind it for others.
        """
        alone = CMD_SWAPS
        if self.empty is not None:
            alone |= CMD_FLUSHES
        for cut in _around(batch, alone):
            if batch.start_offset < cut < batch.end_offset:
                head, batch = batch.split(cut)
                await self._apply_part(head)
        await self._apply_part(batch)

    async def _apply_part(self, batch: CommandBatch) -> None:
        resync, trust = self._resync, self.trust
        self._look = trust.look()
        self._extended.sent(batch)
        # 1. What the batch makes dirty by itself, and what reads a dirty key.
        moved = taken_along(batch)
        # A part of it was read late, or all.
        late = trust.ttls
        doubts = self._faith.doubts(batch)
        if doubts.unnamed:
            # Before they are applied: an engine that goes on from behind them must know.
            await self._unnamed(doubts.unnamed)
        resync.move(batch)
        resync.mark_dirty(doubts.values)
        resync.mark_ttls_dirty(doubts.ttls)
        await self._mark_timed_dirty(doubts.if_timed)
        for index in batch.naming(TELEMETRY) if trust.own_streams else ():
            resync.mark_dirty(await resync.keys_of(batch, index) or ())
        if batch.holds(CMD_ACROSS):
            await self._look_across(batch)
        if batch.holds(CMD_UNKNOWN):
            await self._distrust(batch)
        if trust.every_key:
            resync.mark_dirty(await resync.keys_in(batch))
        if trust.field_ttls:
            self._mark_fields_dirty(batch)
        if self.audited:
            await self._distrust_audited(batch)
        await resync.spread(batch)
        self._extended.looked_at(batch, moved)
        if late:
            resync.mark_ttls_dirty(moved)
            resync.mark_ttls_dirty(_changed(batch, CMD_TTL))
        # 2. A reading is stored at exactly its offset.
        while (cut := self._resync.next_offset) is not None:
            if not batch.start_offset < cut < batch.end_offset:
                break
            head, batch = batch.split(cut)
            await self._transact(head)
            await resync.spread(batch)
        # 3. The rest.
        await self._transact(batch)

    async def _mark_timed_dirty(self, doubtful: Sequence[Timed]) -> None:
        """Mark dirty those of them that have a TTL on the target: one that is lost by the batch."""
        resync = self._resync
        # A reading that is stored before the command may bring one.
        awaited = resync.awaited((each.db, each.key) for each in doubtful)
        found = [each for each in doubtful if (each.db, each.key) in awaited]
        found += await self._target_ttls.of(
            [each for each in doubtful if (each.db, each.key) not in awaited]
        )
        for db, key, field in found:
            mark_dirty = resync.mark_ttls_dirty if field is None else resync.mark_dirty
            mark_dirty([(db, key)])

    def _mark_fields_dirty(self, batch: CommandBatch) -> None:
        kinds = CMD_MEMBER_TTL | (CMD_MEMBER_COUNT if self.trust.field_counts else 0)
        for index in batch.doubtful(kinds):
            self._resync.mark_dirty(batch.changes(index) or ())

    async def _look_across(self, batch: CommandBatch) -> None:
        """What the target does not get, because its keys are not in one of the lane's slots alone,
        or the rules do not take all of them: those that are the lane's are read again."""
        if batch.swaps_across:
            raise ReadAgain(
                "the source's clients swapped databases (SWAPDB), and the target is a cluster, or "
                "has other keys: everything is copied again"
            )
        if batch.slot_moves:
            self.on_slot_moves()
            came = [
                batch.db(index)
                for index in batch.slot_moves
                if _ends_slot_migration(batch.command(index))
            ]
            if came:
                await self.on_slots_came(max(came))
        for index in batch.across:
            flags = batch.flags(index)
            if flags & CMD_UNKNOWN:
                continue
            self._resync.mark_dirty(await self._resync.keys_of(batch, index) or ())
            if flags & CMD_WRITES_UNNAMED and not flags & (CMD_SCRIPT | CMD_SLOT_MOVES):
                name = batch.argument(index, 0).decode("ascii", "backslashreplace")
                await self._unnamed(f"the command {name} changes keys that it does not name")

    async def _distrust_audited(self, batch: CommandBatch) -> None:
        """What commands make of keys that may not have been read yet is read again."""
        for index in batch.indices(CMD_READS | CMD_READS_UNNAMED | CMD_SCRIPT):
            unnamed = batch.flags(index) & CMD_READS_UNNAMED
            if unnamed or any(key_slot(key) in self.audited for key in batch.keys(index) or ()):
                self._resync.mark_dirty(await self._resync.keys_of(batch, index) or ())

    async def _distrust(self, batch: CommandBatch) -> None:
        """What a command of an unknown name does to its keys on the target is not known: they are
        read again."""
        for index in batch.indices(CMD_UNKNOWN):
            name = batch.argument(index, 0).upper()
            keys = await self._resync.keys_of(batch, index, elsewhere=True)
            self._resync.mark_dirty(batch.within(keys or ()))
            shown = name[:64].decode("ascii", "backslashreplace")
            if not keys:
                await self._unnamed(f"what the command {shown} changes is not known")
            if (
                name not in self._unknown_commands
                and len(self._unknown_commands) < _UNKNOWN_NAMES_MOST
            ):
                self._unknown_commands.add(name)
                self.on_unknown_command(name, bool(keys))

    def _counted_late(self, batch: CommandBatch, *, quick: bool) -> bool:
        """Whether a batch that is on the target now has counted up fields that may have expired
        there before it came. `quick`: it went the quick way, where such commands are looked at only
        while their hashes are read anyway."""
        trust = self.trust
        if not trust.field_ttls or not batch.holds(CMD_MEMBER_COUNT):
            return False
        came = self._source.receive_time_of(batch.start_offset + 1)
        age = None if came is None else time.monotonic() - came
        return trust.counted_late(age, None if quick else self._look)

    def _behind(self, batch: CommandBatch, replid: str = "") -> StreamPosition:
        """`replid`: the stream's name when it was sent; empty: what it is now."""
        return StreamPosition(
            replid or self._source.replid, batch.end_offset, batch.db_after, batch.in_multi_after
        )

    def _position_value(self, batch: CommandBatch) -> bytes:
        # Every answer up to `position` was seen, and what failed is dirty, and named by now, or in
        # this transaction.
        seen = self.position
        if batch.end_offset == seen.offset:
            # Nothing of the stream: that it was written must show all the same.
            self._target_position = self._target_position.anew()
        return self._target_position.encode_span(
            self._source.replid,
            (batch.end_offset, batch.db_after, batch.in_multi_after),
            (seen.offset, seen.db, seen.in_multi),
        )

    async def _transact(self, batch: CommandBatch, sent: Sent | None = None) -> None:
        """`sent`: the batch was sent, and this is what became of it."""
        readings = self._resync.due(batch.end_offset)
        stores = [store for reading in readings for store in reading.stores]
        self._throttle.passed(len(stores), sum(len(store[2]) for store in stores))
        unfit = [each for reading in readings for each in reading.unfit]
        whole = _Piece(batch, stores, unfit)
        suspect = sent is None and self._crashing.suspect(batch, stores)
        if suspect or not await self._transact_piece(whole, sent):
            await self._transact_in_pieces(whole)
            for db, key, why, _ in unfit:
                whole.refused.add((db, key))
                self._refused(db, key, why)
            if unfit:
                await self._resync.spread(batch)
        resync = self._resync
        resync.stored(readings, seen=not whole.unseen)
        if self._named_keys is not None:
            for db, key in (key for each in readings for key in each.keys):
                self._named_keys.add(db, key)
        if not whole.unseen:
            for db, key in (key for each in readings if each.values for key in each.keys):
                if (db, key) not in whole.refused:
                    self._carried(db, key)

    async def _transact_in_pieces(self, whole: _Piece) -> None:
        """Apply it in pieces, for the target's process has ended at it."""
        for part, some in self._crashing.pieces(whole.batch, whole.stores):
            piece = _Piece(part, some, [])
            if not await self._transact_piece(piece):
                await self._transact_in_pieces(piece)
            whole.refused |= piece.refused
            whole.unseen = whole.unseen or piece.unseen

    async def _transact_piece(self, piece: _Piece, sent: Sent | None = None) -> bool:
        """Apply it; False: the target's process ends at it, and it is to be parted."""
        batch, stores, refused, quick = piece.batch, piece.stores, piece.refused, sent is not None
        behind = self._behind(batch)
        resync, links = self._resync, self._applier.reconnects
        skip: set[int] = set()
        if sent is None:
            skip = await self._leave_out_refused(batch) | await self._leave_out_long(batch)
            skip |= await self._leave_out_unfit(batch) | await self._leave_out_crashing(batch)
            skip |= await self._leave_out_flush(batch)
        while True:
            try:
                result = await self._applier.apply(
                    batch,
                    sent.position if sent is not None else self._position_value(batch),
                    skip=skip,
                    extras=[(db, raw) for db, _, raw, _ in stores],
                    # What became dirty just now may be stored by it.
                    notes=resync.notes(),
                    sent=sent,
                )
            except PositionMoved:
                if self._applier.ended and self._crashing.ended(batch, stores):
                    self._leave_out_stores(stores)
                raise
            sent = None
            if result.begun:
                await self._begun(batch)
                if not result.ended:
                    continue
            if result.ended:
                if self._crashing.ended(batch, stores):
                    refused |= self._leave_out_stores(stores)
                    skip |= await self._leave_out_crashing(batch)
                    continue
                if self._crashing.parted(batch, stores):
                    return False
                continue
            if not result.refused:
                break
            # Nothing was applied: again, without what the target would not even queue.
            left_out = set()
            for index, message in sorted(result.refused):
                if index >= 0:
                    skip.add(index)
                    await self._leave(batch, index, message)
                else:
                    refused.add(self._store_failed(stores, -1 - index, message))
                    left_out.add(-1 - index)
            stores[:] = _without(stores, left_out)
            # What comes behind them in the batch reads their keys as they are.
            await resync.spread(batch)
        resync.noted()
        for index, message in result.failed:
            if index >= 0:
                await self._leave(batch, index, message)
            else:
                refused.add(self._store_failed(stores, -1 - index, message))
        for db, key, why, _ in piece.unfit:
            refused.add((db, key))
            self._refused(db, key, why)
        if result.failed or piece.unfit:
            await resync.spread(batch)
        if result.unseen:
            # Which of its commands failed is unknown.
            self.unseen += 1
            piece.unseen = True
        else:
            self._crashing.passed(stores)
        if self.trust.missed(self._look, unseen=result.unseen):
            # Some of it may have failed, or found its key expired.
            resync.mark_dirty(await resync.keys_in(batch))
            resync.mark_dirty((store[0], store[1]) for store in stores)
        if self._applier.reconnects != links:
            # The target was away: what had a TTL there may have passed before this batch came.
            self._note(Doubt.OUTAGE)
            if self.trust.every_key:
                resync.mark_dirty(await resync.keys_in(batch))
            if self.trust.field_ttls:
                self._mark_fields_dirty(batch)
        if self._counted_late(batch, quick=quick):
            resync.mark_dirty(_changed(batch, CMD_MEMBER_COUNT))
        self._commands += batch.stream_commands
        if self._named_keys is not None:
            self._named_keys.note(batch)
        self._pass(behind)
        return True

    async def _begun(self, batch: CommandBatch) -> None:
        """Any of it may have run, and is applied again: what that does to its keys is put right."""
        resync = self._resync
        self._twice_to = max(self._twice_to, batch.end_offset)
        resync.mark_dirty(await resync.keys_in(batch))
        if batch.holds(_UNNAMED):
            await self._unnamed("a command that changes what it does not name may have run twice")
        await resync.spread(batch)

    async def _leave_out_refused(self, batch: CommandBatch) -> set[int]:
        """Commands that name a key which the target refused: their other keys are read instead."""
        resync = self._resync
        left_out = await resync.left_out_of(batch)
        if left_out:
            for keys in left_out.values():
                resync.mark_dirty(keys)
            # What they were to write, the commands behind them may read.
            await resync.spread(batch)
        return set(left_out)

    async def _leave_out_long(self, batch: CommandBatch) -> set[int]:
        """Commands with an argument that is longer than the target takes: it would not answer with
        an error, but end the connection. Their keys are read instead, for a value that is long as
        an argument may be short as a payload."""
        limit = self._resync.bulk_limit
        found = batch.longer(limit)
        for index in found:
            await self._leave(batch, index, f"it is longer than the target takes ({limit:,} bytes)")
        if found:
            await self._resync.spread(batch)
        return set(found)

    async def _leave_out_unfit(self, batch: CommandBatch) -> set[int]:
        """RESTORE of a value that the target must not get, as it lacks the module."""
        found = set()
        for index in batch.doubtful(CMD_PAYLOAD):
            if why := self._resync.refusal(batch.argument(index, 3, HEAD_BYTES)):
                found.add(index)
                await self._leave(batch, index, why)
        if found:
            await self._resync.spread(batch)
        return found

    async def _leave_out_flush(self, batch: CommandBatch) -> set[int]:
        """FLUSHALL, where the lane's keys are removed one by one in its place."""
        if self.empty is None or not batch.flushes:
            return set()
        for index in batch.indices(CMD_FLUSHES):
            whole = batch.argument(index, 0).upper() == b"FLUSHALL"
            await self.empty(batch.end_offset, None if whole else batch.db(index))
        return set(batch.indices(CMD_FLUSHES))

    async def _leave_out_crashing(self, batch: CommandBatch) -> set[int]:
        """A command that the target's process ended at: its keys are not sent any more."""
        if self._crashing.idle or len(batch) != 1 or not self._crashing.crashing(batch):
            return set()
        self._crashing.leave_out(*(await self._resync.keys_of(batch, 0) or ()))
        await self._leave(batch, 0, REASON)
        await self._resync.spread(batch)
        return {0}

    def _leave_out_stores(self, stores: list[Store]) -> set[DbKey]:
        """The value of one key, which the target's process ended at: it is not sent any more."""
        keys = {store[:2] for store in stores}
        for db, key in keys:
            self._crashing.leave_out((db, key))
            self._refused(db, key, REASON)
        stores.clear()
        return keys

    def _pass(self, position: StreamPosition) -> None:
        self._position = position
        self._source.acknowledge(position.offset)
        self._moved.set()

    def _store_failed(self, stores: list[Store], place: int, message: str) -> DbKey:
        if place >= len(stores):
            raise TransferFailed(
                f"the target refuses the engine's own command: {message}",
                remedy="Correct that on the target, then start the migration anew.",
            )
        db, key, _, value_type = stores[place]
        if message.partition(" ")[0] in OF_SLOT:
            # It is on its way to another node, or there: once more by and by.
            self._resync.postpone((db, key))
        elif GONE in message:
            # A value that was made there by commands: its time was over, or it was evicted, or this
            # runs for the second time.
            if why := self._resync.read_once_more((db, key)):
                self._refused(db, key, why, value_type)
        else:
            self._refused(db, key, message, value_type)
        return db, key

    def _refused(self, db: int, key: bytes, message: str, value_type: int | None = None) -> None:
        self._resync.refuse((db, key))
        self._not_carried(db, key, message, value_type)

    async def _leave(self, batch: CommandBatch, index: int, message: str) -> None:
        """A command that did not run on the target: its keys are read from the source instead."""
        keys = await self._resync.keys_of(batch, index)
        if keys:
            self._resync.mark_dirty(keys)
        else:
            verb = batch.argument(index, 0)
            name = verb.decode("ascii", "backslashreplace")
            if verb.upper().startswith(_OF_SEARCH):
                # One that has no argument names nothing.
                with contextlib.suppress(IndexError):
                    self.on_search(batch.argument(index, 1), message)
            # Another lane's source has said the same, or this one before its link was lost.
            before = self.shares_libraries or batch.start_offset < self._twice_to
            if before and verb.upper() == b"FUNCTION" and _RUN_BEFORE.search(message):
                return
            self._left_out(f"the command {name}, which has no keys: {message}")

    # --- Mending ---

    async def _read(self) -> None:
        """A reading now; or later, if the source cannot be asked."""
        now = asyncio.get_running_loop().time()
        if now < self._read_again:
            return
        self._read_failed = False
        try:
            await self._resync.read()
        except (LinkError, ServerError):
            # The link that matters is another one, and mends itself or says why not.
            self._read_again, self._read_failed = now + _READ_AGAIN_SECONDS, True

    async def _resync_idle(self) -> None:
        """Take readings while the target is close behind; store those that belong right here."""
        resync = self._resync
        while self.lag_bytes <= _READ_WITHIN:
            self._look = self.trust.look()
            if resync.to_read:
                await self._read()
            if not resync.due(self.position.offset) and not resync.unnoted:
                return
            await self._transact_nothing()
            if self._throttle.due:
                return

    async def _transact_nothing(self) -> None:
        at = self.position
        await self._transact(CommandBatch.empty(at.offset, at.db, at.in_multi))


def _without(stores: list[Store], left_out: set[int]) -> list[Store]:
    """The stores but for those at these places; of a value made by commands all or none, for it
    would get its key's name with the expire time that it has aside."""
    rebuilt = {store[:2] for store in stores if is_last(store[2])}
    parted = rebuilt & {stores[place][:2] for place in left_out}
    return [
        store
        for place, store in enumerate(stores)
        if place not in left_out and store[:2] not in parted
    ]


def _changed(batch: CommandBatch, flags: int) -> list[DbKey]:
    """The keys that commands of this kind (a sum of CMD_…) may change."""
    found: list[DbKey] = []
    for index in batch.indices(flags):
        found += batch.changes(index) or ()
    return found


def _around(batch: CommandBatch, kinds: int) -> list[int]:
    """The offsets before and behind each command of these kinds in the batch, in order."""
    if not batch.holds(kinds):
        return []
    found = []
    for index in batch.indices(kinds):
        found += [batch.offset(index - 1)] if index else []
        found.append(batch.offset(index))
    return found


async def _nothing(_db: int) -> None:
    """Do nothing."""


def _ends_slot_migration(command: Sequence[bytes]) -> bool:
    """Whether a Valkey tells its replicas by this that slots have come to it, or have not."""
    return [word.upper() for word in command[1:3]] == [b"SYNCSLOTS", b"FINISH"]
