"""The way of a source that replicates: snapshot, catch up, follow, cut over.

    CONNECT ─▶ SNAPSHOT ─▶ CATCH_UP ─▶ FOLLOW ─▶ CUT_OVER ─▶ DONE
       └── a position on the target ──▶┘

What is true at every moment, whatever breaks:

- Before the first write to the target the checkpoint holds this migration's token, and before
  anything is taken away or moved on there the target has this engine's claim, by which it refuses
  whatever an engine before this one has still under way (`transfer.claim`).
- While the target has no position under that token, it holds part of a snapshot at the most: the
  next attempt begins with a full sync, and empties a target that was empty before the first one.
- From the snapshot's end on the position stands on the target, and is exact (`targets/applier`).
- Before the position is removed the checkpoint says that the target is open: an engine that comes
  back then has nothing to do but to tidy up, and never syncs into a target that is in use.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Iterator
from typing import Any

from engine._native import RecordBatch
from engine.errors import (
    EngineError,
    LinkError,
    ServerError,
    SourceLost,
    StateError,
    TransferFailed,
)
from engine.model.backoff import Backoff
from engine.model.endpoint import Endpoint
from engine.model.online import OnlineMark, dirty_key, position_key
from engine.model.position import StreamPosition, TargetPosition
from engine.model.progress import Phase
from engine.model.report import NAMED_KEYS_LIMIT
from engine.sources.replica import ReplicaSource
from engine.targets.applier import Applier, PositionMoved
from engine.targets.base import Acknowledged, ReadAgain
from engine.targets.retry import TRY_AGAIN
from engine.targets.writer import RestoreWriter
from engine.transfer.aside import cancelled
from engine.transfer.books import Books
from engine.transfer.checkpoint import CheckpointStore
from engine.transfer.claim import Claim
from engine.transfer.code import carry_code
from engine.transfer.copy import explain
from engine.transfer.cut_over import CutOver, not_carried_words
from engine.transfer.ends import Ends
from engine.transfer.fence import offset_in, readable_behind
from engine.transfer.follow import Follower
from engine.transfer.gate import GateInSync
from engine.transfer.held import HeldDeadlines
from engine.transfer.opening import Opening
from engine.transfer.refusals import explain_refusal
from engine.transfer.repair import Mender
from engine.transfer.stage import Stage
from engine.transfer.tuning import SourceTuning
from engine.transfer.words import place_words, size_words
from engine.wire import psync
from engine.wire.admin import Admin
from engine.wire.psync import FullSync, PartialSync

# How often progress is told, and the operator's word looked for, in seconds.
_TICK_SECONDS = 0.5
_LOOK_SECONDS = 0.05
# The same while all is well: a look costs as much as a hundred commands, and an operator's word
# ends the wait.
_CALM_LOOK_SECONDS = 0.25
# Keys that may still have to be read again when the fence goes up: it is done behind it, if it can.
_MENDED_BEHIND_FENCE = 1000
# Tries of a cut-over that nobody can repeat by hand (`migrate`).
_CUT_OVERS_MOST = 3
# How often the position may be found under another engine's name while the state has ours.
_OVERTAKEN_MOST = 3
# What either end says when it is there, and not now.
_NOT_NOW = psync.NOT_NOW | TRY_AGAIN.keys()


class Online:
    """Moves one source into one target while it is written to."""

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        stage: Stage,
        *,
        checkpoints: CheckpointStore,
        gate: GateInSync,
    ) -> None:
        self._stage = stage
        self._settings = stage.settings
        self._source = ReplicaSource(source, stage.settings)
        self._source.on_event = stage.on_event
        self._source.on_relinked = self._relinked
        self._source.on_late = self._read_late
        self._source.on_stalled = self._stalled
        self._writer = RestoreWriter(target, stage.settings)
        self._writer.on_event = stage.on_event
        self._writer.on_acknowledged = self._acknowledged
        self._writer.again = self._source.value_again
        ends = self._ends = Ends(source, target, stage.settings)
        books = self._books = Books(
            OnlineMark(token=secrets.token_hex(8)),
            checkpoints,
            stage,
            lambda: self._writer.info.identity if self._writer.opened else "",
        )
        books.take_repaired = self._take_repaired
        self._tuning = SourceTuning(ends, books, stage)
        self._deadlines = HeldDeadlines(
            ends, books, stage, self._source, lambda: self._writer.info, self._woke
        )
        self._opening = Opening(ends, books, stage, lambda: self._writer.info)
        self._cut_over = CutOver(
            ends,
            books,
            stage,
            self._deadlines,
            self._opening,
            gate,
            self._source,
        )
        # How the target tells this engine from those before it and behind it.
        self._engine = secrets.token_hex(4)
        self._overtaken = 0
        self._applier: Applier | None = None
        self._follower: Follower | None = None
        self._asking: Admin
        self._mender: Mender | None = None
        # Hashes of the snapshot whose fields have deadlines, which cannot be lifted.
        self._timed: set[tuple[int, bytes]] = set()
        # Keys of the snapshot that the target has refused, or the source.
        self._refused: dict[tuple[int, bytes], None] = {}
        # What the source has sent up to here was written before we caught up; None: not yet.
        self._behind_until: int | None = None
        self._catch_ups = 0
        # Another engine has the migration: what is on the target is that one's.
        self._replaced = False
        self._restarts = 0
        # Where the last follower stood, and the commands of all those before the one that runs.
        self._stood: dict[str, Any] = {}
        self._commands = 0
        self.left_out: list[str] = []
        stage.source_type = "replica"
        stage.figures = self._figures

    async def run(self) -> None:
        """Run to the end of the cut-over. Raises `EngineError` with the reason of a failure."""
        stage = self._stage
        # 1. Both ends are there; what the target holds of us says where to begin.
        with stage.step("connect"):
            await self._connect()
            if self._mark.opened:
                await self._opening.tidy_up()
                await self._cut_over.finish()
                stage.reason = "the target was open already"
                stage.enter(Phase.DONE)
                return
        backoff = Backoff(self._settings.retry_seconds)
        held: TargetPosition | None = None
        reached = before = None
        # Whether the target is to be asked for the position: somebody else may have moved it.
        ask = self._mark.begun
        while True:
            try:
                if ask:
                    held, ask = await self._held(), False
                    reached = held.position
                position = held.position if held is not None else None
                # 2. The source goes on from there, or sends everything.
                if position is None and self._settings.tune_source:
                    await self._tuning.tune()
                await self._deadlines.prepare(resumed=position is not None)
                doubtful = held.doubtful if held is not None else None
                sync = await self._source.open(position, doubtful)
                if isinstance(sync, FullSync):
                    # Whatever breaks from here on, what was there before is no place to go on from.
                    held = None
                await self._begin(sync, position)
                if isinstance(sync, FullSync):
                    held = await self._full_sync(sync)
                else:
                    assert held is not None
                    held = held.renamed(sync.replid)
                if stage.one_go and self._settings.until == "snapshot":
                    await self._opening.open()
                    stage.reason = "the snapshot is on the target; later writes are not"
                    break
                # 3. The stream, until the target is opened or something breaks.
                await self._follow(held)
                break
            except PositionMoved as exc:
                reached = self._reached(reached)
                reason, ask = await self._judge(exc), True
            except ReadAgain as exc:
                reason, held, reached = exc.reason, None, None
            except (LinkError, ServerError) as exc:
                if self._mark.opened or not _passes(exc):
                    raise
                reached = self._reached(reached)
                reason, ask = exc.message, self._mark.begun
            finally:
                await self._let_go()
            now = asyncio.get_running_loop().time()
            if reached is not None and reached != before:
                before = reached
                backoff.progress()
            if backoff.failed(now):
                stage.on_event(f"{reason}: going on from {place_words(reached)}")
            if backoff.exhausted(now):
                raise TransferFailed(
                    f"no progress for {self._settings.retry_seconds:g} s: {reason}"
                )
            self._restarts += 1
            await asyncio.sleep(backoff.delay())
        stage.enter(Phase.DONE)

    @property
    def fence_seconds(self) -> float | None:
        """From the fence to the open target."""
        return self._cut_over.fence_seconds

    @property
    def sealed(self) -> str:
        """The settings of the source that have it refuse writes, as they were before, or empty."""
        return self._mark.sealed

    @property
    def spooled_most(self) -> int:
        """Bytes that waited in the spool when there were most."""
        return self._source.spooled_most

    @property
    def _mark(self) -> OnlineMark:
        return self._books.mark

    @property
    def standing(self) -> str:
        """For a migration that is ended by force: what was in sync and what was not."""
        stage, lag = self._stage, self._figures().get("lag_bytes")
        if lag is None:
            return (
                f"in {stage.phase}, with {stage.tally.keys:,} of about {stage.total_keys:,} keys "
                "of the snapshot acknowledged"
            )
        return f"{size_words(lag)} behind the source, and not verified"

    async def close(self, *, resumable: bool, forced: bool = False) -> None:
        """Let go of both ends; unless it can be resumed, remove what we left on the target.

        `forced`: the operator has ended it, and may use the target from now on.
        """
        await self._let_go()
        if forced and not self._books.taken_up:
            # Ended before it began to look.
            self._deadlines.taken_up = self._books.take_up()
        await self._cut_over.take_away(at_once=True)
        with contextlib.suppress(EngineError):
            await self._tuning.untune()
        # What has not begun leaves no checkpoint behind: nobody would come back for it.
        begun = self._mark.begun
        over = self._mark.opened or self._replaced
        if not over and not (resumable and begun) and (begun or self._deadlines.importing):
            await self._take_back(forced)
        await self._source.close()
        await self._writer.close()

    async def abandon(self) -> None:
        """Nobody goes on with it: take away what an engine before us has left at both ends.

        Raises `LinkError`, `ServerError`, `AuthError` of a target that was open already.
        """
        self._deadlines.taken_up = self._books.take_up()
        if self._mark.opened:
            await self._writer.open()
            await self._opening.tidy_up()
            await self._cut_over.finish()
        await self.close(resumable=False, forced=True)

    async def _take_back(self, forced: bool) -> None:
        """Remove what we left on the target, if it is ours to do so."""
        ours = not self._mark.begun
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                if not self._writer.opened:
                    await self._writer.open()
                if not ours:
                    await self._held()
                    ours = True
        except (EngineError, TimeoutError) as exc:
            if isinstance(exc, StateError | TransferFailed):
                return
            self._stage.on_event(f"what we left on the target is still there: {exc}")
        if forced and self._mark.begun:
            # Before anything is removed: whoever comes after a crash must not sync into a target
            # that is in use.
            try:
                await self._books.save(opened=True)
            except StateError:
                return
        if not ours:
            return
        try:
            async with asyncio.timeout(self._settings.retry_seconds):
                await self._deadlines.give_back()
        except (EngineError, TimeoutError) as exc:
            self._stage.on_event(f"deadlines on the target stay a hundred years off: {exc}")
        with contextlib.suppress(EngineError, TimeoutError):
            async with asyncio.timeout(self._settings.connect_timeout):
                await self._opening.tidy_up()

    async def save_last(self, errors: list[str]) -> None:
        """Write the last checkpoint; a failure joins `errors` if there is none yet."""
        if not self._mark.begun:
            return
        try:
            await self._books.save()
        except StateError as exc:
            if not errors:
                errors.append(explain(exc))

    # --- 1. Connecting ---

    async def _connect(self) -> None:
        stage = self._stage
        again = self._deadlines.taken_up = self._books.take_up()
        self._writer.name = self._claim.client_name
        await stage.insist(self._writer.open, again=again)
        self._source.bulk_limit = self._writer.bulk_limit
        if not self._mark.begun:
            self._books.note(held_before=self._writer.info.keys > 0)
        await self._tuning.untune()
        if self._mark.opened:
            return
        await self._cut_over.take_away()
        if not self._mark.begun:
            # Whether the target lets us do what will be needed.
            applier = self._applier = self._new_applier(importing=False)
            await stage.insist(applier.open, again=again)
            await applier.close()

    @property
    def _claim(self) -> Claim:
        token = self._mark.token
        return Claim(position_key(token), token, self._engine, self._still_ours)

    async def _held(self) -> TargetPosition:
        """Claim the target; what it holds of us."""
        async with self._ends.admin("target") as end:
            return await self._claim.take(end)

    async def _claim_again(self) -> None:
        """Before values go over a new connection: nobody has taken over meanwhile."""
        await self._held()

    async def _begin(self, sync: FullSync | PartialSync, position: StreamPosition | None) -> None:
        """What has to be there before the first byte is taken in."""
        stage = self._stage
        stage.total_keys = self._source.total_keys
        if isinstance(sync, PartialSync):
            await self._books.save(partial_syncs=self._mark.partial_syncs + 1)
            return
        # A source of the same history has all that we have; what it deleted since it meant to.
        if position is None or position.replid != sync.replid:
            await self._check_source()
        if self._mark.begun:
            await self._make_room()
        else:
            await self._books.save(begun=True)
            await self._held()
        self._refused.clear()
        stage.tally.start_anew()
        await self._books.save(
            released=False,
            full_syncs=self._mark.full_syncs + 1,
            begun_at=time.time(),
        )

    async def _still_ours(self) -> None:
        """Raise unless the migration is ours, and not over: a position that is gone may have been
        removed by an engine that opened the target."""
        latest = await self._books.latest()
        if latest is not None and latest.opened:
            self._replaced = True
            raise TransferFailed(
                "another engine has opened the target",
                remedy="Nothing is left to do.",
                fault="user",
            )
        await self._books.save()

    async def _check_source(self) -> None:
        """A source that lost its data must not have its last copy emptied for its sake."""
        if not self._mark.begun:
            return
        held = self._stage.tally.keys
        if not self._mark.held_before:
            async with self._ends.admin("target") as end:
                held = max(held, (await end.info()).keys)
        if self._source.info.keys < held // 2:
            raise SourceLost(
                f"the source has {self._source.info.keys:,} keys left, and the target has {held:,} "
                "of those before",
                remedy="Restore the source's data and resume; or end it by force, and keep what "
                "the target has.",
            )

    async def _make_room(self) -> None:
        """Before another full sync: what an earlier one left, and the source has deleted since,
        must not stay. If another engine has taken over, this raises, and the target is as it was:
        it may be in use by now."""
        if self._mark.held_before:
            self._stage.on_event(
                "full sync again: keys that the source deleted meanwhile may stay on the target, "
                "which had keys of its own before"
            )
            # An old position beside a new snapshot would be taken for the snapshot's.
            command: tuple[str | bytes, ...] = ("DEL", dirty_key(self._mark.token))
        else:
            self._stage.on_event(
                "full sync again: the target, empty before this migration, is emptied"
            )
            command = ("FLUSHALL",)
        async with self._ends.admin("target") as end:
            await self._claim.clear(end, command)

    def _woke(self) -> None:
        """The target was restarted, and let keys expire until we were back: what is named from here
        on may be gone there."""
        self._books.note(released=True)
        if self._follower is not None:
            self._follower.suspect = True
            if self._stage.phase in (Phase.CATCH_UP, Phase.FOLLOW):
                self._catch_up(self._follower)

    # --- 2. The snapshot ---

    async def _full_sync(self, sync: FullSync) -> TargetPosition:
        stage = self._stage
        # Offsets behind another snapshot have nothing to do with those before it.
        self._stood = {"commands": self._commands}
        stage.enter(Phase.SNAPSHOT)
        with stage.step("snapshot"):
            if self._mark.full_syncs > 1:
                # Whatever the last attempt left half-way.
                self._writer.reset()
            if self._writer.closed:
                await self._writer.open()
            self._writer.import_source = self._deadlines.importing
            self._writer.on_dialled = self._claim_again
            await self._ticking(self._copy())
            await self._tuning.untune()
            await self._carry_code()
        position = StreamPosition(sync.replid, sync.offset, self._source.stream_db, False)
        # Before the position: with it the names must be there, whoever goes on from it.
        names = Mender.names_of(self._timed) + Mender.names_of(self._refused, refused=True)
        self._timed.clear()
        self._refused.clear()
        async with self._ends.admin("target") as end:
            for at in range(0, len(names), 1000):
                await end.call("SADD", dirty_key(self._mark.token), *names[at : at + 1000])
        self._applier = self._new_applier(importing=self._deadlines.importing)
        await self._applier.open()
        held = TargetPosition(self._mark.token, position, self._engine)
        await self._applier.begin(held.encode(), over=self._claim.bare.encode())
        return held

    async def _copy(self) -> None:
        async with contextlib.aclosing(self._source.snapshot()) as items:
            async for item in items:
                if isinstance(item, RecordBatch) and item.timed:
                    self._timed.update((item.db, key) for key in _unpacked(item.timed))
                await self._writer.send(item)
        await self._writer.drain()
        await self._writer.confirm()

    async def _carry_code(self) -> None:
        """Functions and scripts that the snapshot brought; they are no keys."""
        source = self._source
        self.left_out.extend(source.left_out)
        if not source.functions and not source.scripts:
            return
        async with self._ends.admin("target") as end:
            for what in await carry_code(end, source.functions, source.scripts):
                self._leave_out(what)

    def _acknowledged(self, acknowledged: Acknowledged) -> None:
        self._stage.tally.count(acknowledged, self._writer.info)
        self._books.dirty = True
        batch = acknowledged.batch
        if batch.streamed:
            self._source.value_arrived(batch)
        refused = [key for key, _ in batch.errors]
        refused += [batch.key(index) for index, _ in acknowledged.errors]
        # To read them again at once would be in vain.
        self._timed.difference_update((batch.db, key) for key in refused)
        for key in refused[: NAMED_KEYS_LIMIT - len(self._refused)]:
            self._refused[batch.db, key] = None

    # --- 3. The stream ---

    async def _follow(self, held: TargetPosition) -> None:
        """Follow until the target is open, or until something that `run` knows is raised."""
        stage = self._stage
        # Two connections: the follower asks for keys on one while we ask for offsets on the other.
        async with (
            self._ends.admin("source") as control,
            self._ends.admin("source") as self._asking,
        ):
            self._mender = Mender(
                control,
                self._source.info,
                self._writer.encoder,
                dirty_key(self._mark.token),
                self._writer.bulk_limit,
            )
            if self._applier is None or self._applier.closed:
                self._applier = self._new_applier(importing=self._deadlines.importing)
                found = await self._applier.open()
                # A target that came back older meanwhile, or was moved on by another engine: what
                # lies between the two positions would be left out, or applied twice.
                if not held.same_place(self._claim.ours(found)):
                    raise PositionMoved(found)
            follower = self._follower = Follower(
                self._source,
                self._applier,
                self._mender,
                held,
                not_carried=self._not_carried,
                carried=self._carried,
                left_out=self._leave_out,
            )
            follower.on_outage = self._outage
            self._deadlines.mender, self._deadlines.follower = self._mender, follower
            self._deadlines.hold()
            await self._take_up_dirty()
            self._catch_up(follower)
            with stage.step("follow"):
                await self._steer(follower)

    async def _take_up_dirty(self) -> None:
        """What an engine before us, or this one before a lost link, had still to mend."""
        mender, tally = self._mender, self._stage.tally
        assert mender is not None
        async with self._ends.admin("target") as end:
            mender.take_up(await end.call("SMEMBERS", dirty_key(self._mark.token)))
        # The books were written a moment before, or behind it.
        for db, key in mender.refused:
            tally.refuse(db, key, "the target refused it before")
        mender.spoil([key for key in tally.named_keys() if not mender.knows(key)])

    async def _steer(self, follower: Follower) -> None:
        """Run the follower beside the looks at where it stands and at what the operator wants."""
        stage = self._stage
        pump = asyncio.create_task(follower.run())
        word = asyncio.create_task(stage.word.wait())
        refused = 0
        told = 0.0
        loop = asyncio.get_running_loop()
        try:
            while True:
                await asyncio.wait(
                    {pump} if word.done() else {pump, word},
                    timeout=_CALM_LOOK_SECONDS if self._calm else _LOOK_SECONDS,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if pump.done():
                    pump.result()
                await self._look(follower)
                if loop.time() - told >= _TICK_SECONDS:
                    told = loop.time()
                    await self._tick()
                if stage.one_go and not stage.can_complete:
                    settled = self._near(follower) and follower.settled
                    if stage.tally.not_carried_total and settled:
                        raise TransferFailed(stage.reason)
                    continue
                if not stage.word.is_set():
                    continue
                # The operator's word.
                stage.word.clear()
                word = asyncio.create_task(stage.word.wait())
                try:
                    if stage.one_go and self._settings.until == "in-sync":
                        result = await self._cut_over.in_sync(follower, pump)
                    else:
                        result = await self._cut_over.run(follower, pump)
                except (PositionMoved, LinkError, ServerError) as exc:
                    why = explain(exc) if isinstance(exc, EngineError) else "the target has changed"
                    stage.on_event(f"cut-over refused: {why}")
                    if stage.one_go:
                        # Nobody can repeat it by hand.
                        stage.word.set()
                    raise
                if result.ok:
                    return
                refused += 1
                stage.on_event(f"cut-over refused: {result.reason}")
                if stage.one_go:
                    if refused >= _CUT_OVERS_MOST:
                        raise TransferFailed(result.reason)
                    stage.word.set()
        finally:
            word.cancel()
            if not pump.done():
                await cancelled(pump)

    @property
    def _calm(self) -> bool:
        """Whether nothing is awaited but the operator's word."""
        stage = self._stage
        return stage.can_complete and stage.phase is Phase.FOLLOW and not stage.one_go

    async def _look(self, follower: Follower) -> None:
        """Where the follower stands, as phase, gate and reason."""
        stage, exposed = self._stage, self._deadlines.exposed
        unread = follower.suspect or follower.late or follower.fields
        if (unread and stage.phase is Phase.FOLLOW) or (exposed and not follower.suspect):
            self._catch_up(follower)
        if stage.phase is Phase.CATCH_UP:
            if self._behind_until is None and exposed:
                # What is written by the time when it no longer is has to be passed.
                pass
            elif self._behind_until is None:
                # Asked of the source itself: what was written while nobody listened may not even
                # have begun to arrive.
                catch_ups = self._catch_ups
                asked = await self._source_offset()
                if catch_ups == self._catch_ups:
                    self._behind_until = asked
            elif follower.position.offset >= self._behind_until:
                # However much is being written: see `HeldDeadlines.exposed`.
                if follower.suspect and self._deadlines.importing:
                    self._books.note(released=False)
                follower.suspect = False
                if self._near(follower):
                    follower.late = follower.fields = False
                    stage.enter(Phase.FOLLOW)
        stage.can_complete, stage.reason = self._gates(follower)

    async def _source_offset(self) -> int | None:
        with contextlib.suppress(LinkError, ServerError):
            return offset_in(self._asking, await self._asking.call("INFO", "replication"))
        return None

    def _catch_up(self, follower: Follower) -> None:
        """What comes now was written some time ago: deadlines in it are not what they seem."""
        has_fields = self._source.field_deadlines
        self._behind_until = None
        self._catch_ups += 1
        follower.late = self._source.relative_deadlines
        follower.has_fields = follower.fields = has_fields and not self._deadlines.importing
        follower.suspect = follower.suspect or self._deadlines.doubtful
        self._stage.enter(Phase.CATCH_UP)

    def _relinked(self) -> None:
        self._books.note(partial_syncs=self._mark.partial_syncs + 1)
        if self._follower is not None:
            if self._stage.phase in (Phase.CATCH_UP, Phase.FOLLOW):
                self._catch_up(self._follower)
            self._follower.suspect = self._follower.suspect or self._deadlines.doubtful

    def _read_late(self) -> None:
        """The engine got no CPU for a while. What did not fit into the window has waited at the
        source, and comes on time by the look of it: it is all late up to the source's offset."""
        follower = self._follower
        if follower is None:
            return
        if self._stage.phase in (Phase.CATCH_UP, Phase.FOLLOW):
            self._catch_up(follower)
        else:
            # Behind the fence; a cut-over that is refused looks at it, see `_look`.
            follower.late = self._source.relative_deadlines
            follower.fields = follower.has_fields

    def _stalled(self) -> None:
        """The source's link may stand still."""
        fenced = self._stage.phase is Phase.CUT_OVER
        if not fenced or readable_behind(self._source.info, self._settings):
            self._read_late()
        # Else the source answers nobody, and sends nothing, for as long as our own fence stands.

    def _outage(self) -> None:
        """The target could not be reached for a while: what it holds has aged meanwhile."""
        if self._follower is None:
            return
        if self._stage.phase in (Phase.CATCH_UP, Phase.FOLLOW):
            self._catch_up(self._follower)
        else:
            self._follower.suspect = self._follower.suspect or self._deadlines.doubtful

    def _near(self, follower: Follower) -> bool:
        return follower.lag_bytes <= self._settings.max_lag_bytes

    def _gates(self, follower: Follower) -> tuple[bool, str]:
        """Whether a cut-over could begin now, and why not."""
        most, tally = self._settings.max_lag_bytes, self._stage.tally
        assert self._mender is not None
        if follower.lag_bytes > most:
            return False, f"lag {size_words(follower.lag_bytes)} > {size_words(most)}"
        if tally.not_carried_total:
            return False, not_carried_words(self._stage)
        if self._deadlines.trouble:
            return False, f"near deadlines cannot be lifted: {self._deadlines.trouble}"
        if self._deadlines.lifting_again:
            return False, "near deadlines are being lifted"
        if self._stage.phase is Phase.CATCH_UP:
            return False, "catching up with what was written before"
        if follower.in_doubt:
            return False, "looking through the last commands of the engine before this one"
        readable = readable_behind(self._source.info, self._settings)
        if self._mender.waiting > (_MENDED_BEHIND_FENCE if readable else 0):
            return False, f"{self._mender.waiting:,} keys are being read again from the source"
        return True, f"in sync: lag {size_words(follower.lag_bytes)}"

    # --- What breaks ---

    async def _judge(self, moved: PositionMoved) -> str:
        """What to say of a position that is not where we left it; raises if it is not for us to go
        on from where it is."""
        found = self._claim.ours(moved.found)
        if found is None:
            return "the target lost this migration's data"
        if found.engine != self._engine:
            # An engine after us: then this raises. Or one before us, of which something arrived
            # late, or whose position came back with an older copy of the target.
            await self._still_ours()
            self._overtaken += 1
            if self._overtaken > _OVERTAKEN_MOST:
                self._replaced = True
                raise TransferFailed(
                    "another engine moves the same migration on",
                    remedy="Let that one go on, or end it first.",
                    fault="user",
                )
        return "the target holds another position than the one we left"

    def _reached(self, position: StreamPosition | None) -> StreamPosition | None:
        """Where the target stands after the source's link went."""
        return self._follower.position if self._follower is not None else position

    async def _let_go(self) -> None:
        self._stage.can_complete = False
        self._books.count_repairs()
        self._mender = None
        await self._deadlines.let_go()
        if self._follower is not None:
            self._stood = self._where(self._follower)
            self._commands = self._stood["commands"]
            self._follower = None
        if self._applier is not None:
            await self._applier.close()
        self._deadlines.taken_up = self._deadlines.taken_up or self._mark.begun
        await self._source.close()

    # --- Telling and keeping ---

    async def _ticking(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_TICK_SECONDS)
                await self._tick()
            await task
        finally:
            if not task.done():
                await cancelled(task)

    async def _tick(self) -> None:
        self._stage.tell()
        await self._deadlines.keep_up()
        await self._cut_over.take_away()
        await self._books.save_now_and_then()

    def _take_repaired(self) -> int:
        if self._mender is None:
            return 0
        repaired, self._mender.repaired = self._mender.repaired, 0
        return repaired

    def _not_carried(self, db: int, key: bytes, message: str, value_type: int | None) -> None:
        reason = explain_refusal(message, value_type, self._writer.info)
        self._stage.tally.refuse(db, key, reason)
        self._books.dirty = True

    def _carried(self, db: int, key: bytes) -> None:
        self._stage.tally.carried(db, key)
        self._books.dirty = True

    def _leave_out(self, what: str) -> None:
        if what not in self.left_out:
            self.left_out.append(what)
            self._stage.on_event(f"not carried: {what}")

    def _figures(self) -> dict[str, Any]:
        follower, mender, applier = self._follower, self._mender, self._applier
        figures: dict[str, Any] = {
            "retries": self._writer.retries + self._restarts + (applier.retries if applier else 0),
            "reconnects": self._writer.reconnects + (applier.reconnects if applier else 0),
            "spool_bytes": self._source.spooled,
            "repaired_keys": self._mark.repaired_keys + (mender.repaired if mender else 0),
            "held_keys": mender.waiting if mender else 0,
            "partial_syncs": self._mark.partial_syncs,
            "full_syncs": self._mark.full_syncs,
        }
        return figures | (self._stood if follower is None else self._where(follower))

    def _where(self, follower: Follower) -> dict[str, Any]:
        return {
            "commands": self._commands + follower.commands,
            "applied_offset": follower.position.offset,
            "source_offset": self._source.received_offset,
            "lag_bytes": follower.lag_bytes,
            "lag_seconds": self._source.lag(follower.position.offset)[1],
        }

    # --- Ends ---

    def _new_applier(self, *, importing: bool) -> Applier:
        return Applier(
            self._ends.target,
            self._settings,
            position_key(self._mark.token),
            on_event=self._stage.on_event,
            importing=importing,
            on_woke=self._woke,
        )


def _passes(error: LinkError | ServerError) -> bool:
    """Whether it is worth going on after this error of one of the ends."""
    if error.fault not in ("source", "target"):
        return False
    if isinstance(error, LinkError):
        return True
    return error.code in _NOT_NOW


def _unpacked(names: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(names):
        end = at + 4 + int.from_bytes(names[at : at + 4], "little")
        yield names[at + 4 : end]
        at = end
