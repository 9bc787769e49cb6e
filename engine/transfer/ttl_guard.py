"""TTLs while a target is behind: none may pass there before the source says so.

A target with import mode keeps them by itself. On another the near ones are extended
(`extended_ttls`), kept so however long the stream is followed, and restored before the target is
promoted.

    extended ──restore──▶ restored but for the nearest ──settle──▶ restored, the target is promoted
       ▲                              │
       └──────── extend_again ◀───────┘ the cut-over did not come off
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable

from engine import logs
from engine._native import RecordBatch
from engine.errors import EngineError, TransferFailed
from engine.model.db_key import DbKey
from engine.model.doubt import Doubt
from engine.model.online_checkpoint import EXTEND_MS
from engine.model.server import ServerInfo
from engine.sources.replica import ReplicaSource
from engine.targets.import_mode import import_source, in_import_mode
from engine.transfer.async_helpers import beside, cancelled
from engine.transfer.control_connections import Endpoints
from engine.transfer.extended_ttls import VALID_SECONDS, ExtendedTtls
from engine.transfer.follow import Follower
from engine.transfer.keys_with_extended_ttls import ExtendedKeys
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter

_log = logs.logger(__name__)
# By how much a clock may be off, and a catch-up last, in seconds; half of a short horizon.
_HORIZON_MARGIN = 120.0
# By how much a TTL that is restored is due later than the cut-over can end, in seconds.
_SLACK = 5.0
# How long before a TTL may be due what is named by the stream is read again, in seconds.
_EARLY = 1.0
# Before what could not be extended is tried again, in seconds.
_AGAIN_SECONDS = 1.0
_UNDER_WAY = math.inf


class TtlGuard:
    """How TTLs are kept from passing, and the way back. `on_doubt`: told that the target let some
    pass."""

    def __init__(
        self,
        ends: Endpoints,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        source: ReplicaSource,
        target: Callable[[], ServerInfo],
        on_doubt: Callable[[Doubt], None],
    ) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._source = source
        self._target = target
        self._on_doubt = on_doubt
        self.follower: Follower | None = None
        """The one that runs."""
        self.importing = False
        """The target is in import mode."""
        self.taken_up = False
        """Another engine, or this one before it had to begin anew, may have extended some."""
        self.extended = ExtendedKeys()
        """What passes by of keys whose TTLs on the target may be extended."""
        self.trouble = ""
        """Why what is near could not be extended."""
        # They are extended until the cut-over, where the target has no import mode.
        self._extending = False
        self._restoring = False
        # By the loop's clock: before it no TTL that this process has restored is due.
        self._safe_until = 0.0
        # By the loop's clock: until then a script that was sent may still be run. `_UNDER_WAY` from
        # before the first one until the last one's answer; it stays so if that never comes.
        self._quiet_at = 0.0
        self._extender: asyncio.Task[None] | None = None
        # The connection over which TTLs are restored, from `restore` on, and what its scripts
        # are told: behind the fence there is no time to dial.
        self._end: contextlib.AsyncExitStack | None = None
        self._extended: ExtendedTtls | None = None
        self._ended = 0
        # Whether it has extended any, perhaps.
        self._gone_through = False
        self._extend_at = 0.0

    async def prepare(self, *, resumed: bool) -> None:
        """Before a byte is read: no TTL may pass on a target that is behind."""
        # TTLs that an engine without import mode has extended want to be restored at the end.
        self.importing = (
            self._target().capabilities.import_mode
            # It is the whole server's: what it has beside would not expire.
            and not self._ends.settings.rules
            and not (resumed and self._checkpoint.mark.lifted)
            and await self._enter_import_mode(resumed)
        )
        alone = self._ends.settings.until == "snapshot" and self._context.one_go
        self._extending = not (self.importing or alone)
        self.hold()
        if resumed and self._checkpoint.mark.lifted:
            # The engine before us may have sent some.
            self._quiet_at = asyncio.get_running_loop().time() + VALID_SECONDS
        if not self._extending:
            self.extended.names.give_up()
        elif not resumed and not (
            self._checkpoint.mark.lifted and self._checkpoint.mark.held_before
        ):
            # Of what was extended before this full sync nothing is left.
            self.extended.names.clear()
        self._checkpoint.note(lifted=self._extending)

    def note_records(self, batch: RecordBatch) -> None:
        """A batch of a snapshot is sent: note whose TTLs are extended in it."""
        self.extended.names.add_records(batch, int(time.time() * 1000) + EXTEND_MS // 2)

    def attend(self, follower: Follower) -> None:
        """`follower` is going to run, from what the target has. One that came back from before
        they were extended last has those of then: they are extended anew, and what is named until
        that is done is read again (`exposed`)."""
        self.follower = follower
        mark = self._checkpoint.mark
        if mark.lifted and follower.position.offset <= mark.extended_at:
            self._checkpoint.note(released=True)
        if not self._source.info.capabilities.script_effects_alone:
            # Its stream may hold scripts, which rename and copy keys without naming them there.
            self.extended.names.give_up()
        self.hold()

    async def _enter_import_mode(self, resumed: bool) -> bool:
        async with self._ends.dialled() as connection:
            if resumed and not await in_import_mode(connection):
                self._on_doubt(Doubt.LAPSED)
            return await import_source(connection)

    def hold(self) -> None:
        """Near is what is near now: to be called again and again."""
        if not self._extending or self._restoring:
            return
        self._hold(self._source.now_ms + int(self._ends.settings.extend_horizon * 1000))

    def _hold(self, before: int) -> None:
        self._source.hold(before, EXTEND_MS)
        self.extended.before, self.extended.by = before, EXTEND_MS

    # --- While the source is followed ---

    @property
    def exposed(self) -> bool:
        """Whether a TTL that is not extended may be due on the target by now: see
        `Doubt.EXPOSED` (`trust`)."""
        if not self._extending:
            return False
        if self._checkpoint.mark.released:
            return asyncio.get_running_loop().time() >= self._safe_until
        return not 0 <= self._age < self._ends.settings.extend_horizon - self._margin

    @property
    def extending_again(self) -> bool:
        """Whether what became near is being extended now."""
        return self._extender is not None

    async def keep_up(self) -> None:
        """Now and then while the source is followed: extend what has become near.

        Raises `StateError`.
        """
        if not self._extending or self._restoring:
            return
        self.hold()
        if self.exposed and not self._checkpoint.mark.released:
            await self._checkpoint.save(released=True)
        if self._extender is not None:
            if self._extender.done():
                await self._end_extender()
        elif self._wanting and asyncio.get_running_loop().time() >= self._extend_at:
            self._extender = asyncio.create_task(self._extend_all())

    @property
    def _age(self) -> float:
        return time.time() - self._checkpoint.mark.begun_at

    @property
    def _margin(self) -> float:
        return min(_HORIZON_MARGIN, self._ends.settings.extend_horizon / 2)

    @property
    def _wanting(self) -> bool:
        """Whether it is time to go through the target's keys."""
        if self.follower is None:
            return False
        half = (self._ends.settings.extend_horizon - self._margin) / 2
        return self._checkpoint.mark.released or not 0 <= self._age < half

    async def _extend_all(self) -> None:
        """Extend what is nearer than the horizon by now, however it arrived."""
        await self._quiet()
        began = time.time()
        horizon = self._ends.settings.extend_horizon
        follower = self.follower
        assert follower is not None
        # What was parsed before `hold` was told so is there before it is looked for.
        self.extended.watch()
        await follower.pass_all()
        async with self._ends.admin("target") as end:
            extended = ExtendedTtls(end, self._ends.route.target_slots, of=self._ends.keys)
            self._gone_through = True
            while True:
                self._quiet_at = _UNDER_WAY
                with logs.timed(_log, "Extend near TTLs on the target", extra={"end": "target"}):
                    await extended.extend_all(horizon, self.extended.names)
                await follower.reach(self._source.received_offset)
                if not self.extended.swapped:
                    await extended.extend(self.extended.moved, horizon)
                    break
                self.extended.watch()
        self._quiet_at = self._safe_until = 0.0
        await self._checkpoint.save(
            released=False, begun_at=began, extended_at=follower.position.offset
        )

    async def _end_extender(self) -> None:
        extender, self._extender = self._extender, None
        assert extender is not None
        try:
            await extender
        except EngineError as exc:
            if exc.message != self.trouble:
                self._context.on_event(
                    "could not extend TTLs that end soon on the target, which is tried again: "
                    f"{exc.in_one_line}"
                )
            self.trouble = exc.message
            self._extend_at = asyncio.get_running_loop().time() + _AGAIN_SECONDS
        else:
            self.trouble = ""
        finally:
            self.extended.end_watch()

    async def let_go(self) -> None:
        """The follower ends. Raises nothing but the caller's own cancellation, which must not be
        lost: what was to stop would go on for ever. It may be called again then."""
        if self._extender is not None:
            await cancelled(self._extender)
            self._extender = None
        if self._quiet_at == _UNDER_WAY:
            self._quiet_at = asyncio.get_running_loop().time() + VALID_SECONDS
        self._restoring = False
        self.extended.end_watch()
        await self._close_end()
        self.extended.before = 0
        self.follower = None

    async def _quiet(self) -> None:
        """Wait until no script that was sent before can be run any more."""
        now = asyncio.get_running_loop().time()
        if self._quiet_at == _UNDER_WAY:
            self._quiet_at = now + VALID_SECONDS
        await asyncio.sleep(max(self._quiet_at - now, 0))

    # --- The way back ---

    async def restore(self, follower: Follower, pump: asyncio.Task[None]) -> list[DbKey]:
        """Give the target its keys' TTLs; returns the keys that are due before the cut-over
        can end, which stay extended. It may begin at once then, and last for `cut_over_timeout`.

        Raises `TransferFailed` when it takes too long, and what `ExtendedTtls` raises;
        `extend_again` is to be called then, as behind a cut-over that did not come off.
        """
        if not self._extending:
            return []
        if self._extender is not None:
            raise TransferFailed("TTLs that end soon are still being extended on the target")
        self._context.reason = "restoring TTLs that were extended on the target"
        self._context.publish()
        loop, last = asyncio.get_running_loop(), self._ends.settings.cut_over_timeout
        self._restoring = True
        limit = last
        try:
            async with asyncio.timeout(limit) as bound:
                await self._quiet()
                extended = await self._open_end()
                await extended.prepare()
                # 1. Until when it may take, and so which TTLs are too near.
                limit = max(last, await extended.seconds(self.extended.names))
                until = loop.time() + limit
                bound.reschedule(until)
                due_by = until + last + _SLACK
                before = max(self._source.now_ms, await extended.now_ms())
                self._safe_until = due_by - _EARLY
                await self._checkpoint.save(released=True)
                # 2. What comes from now on is extended only if it is as near as that.
                self._hold(before + int((due_by - loop.time()) * 1000))
                self.extended.watch(extended=True)
                await beside(follower.pass_all(), pump)
                if not self._extended_any:
                    return []
                # 3. What is on the target.
                self._quiet_at = _UNDER_WAY
                near = await beside(extended.restore_known(self.extended.names, due_by), pump)
                # 4. It took less: what is due behind the cut-over's own time.
                due_by = loop.time() + last + _SLACK
                self._safe_until = min(self._safe_until, due_by - _EARLY)
                near = await beside(extended.restore(near, due_by), pump)
                self._quiet_at = 0.0
        except TimeoutError:
            raise TransferFailed(
                f"TTLs that were extended on the target could not be restored within {limit:g} s",
                remedy="Is the target slow, or its link? Try again.",
                fault="target",
            ) from None
        return near

    @property
    def _extended_any(self) -> bool:
        """Whether a TTL on the target may be extended."""
        came = self._source.extended_count or self.extended.read
        return bool(self.taken_up or self._gone_through or came)

    async def settle(self, near: list[DbKey]) -> None:
        """The rest, in one round trip for some thousands of keys: everything is applied, and
        nothing more is written. May be called again, for what was read again meanwhile."""
        # However near they are: if the cut-over does not come off, what is named then is doubtful.
        self._safe_until = 0.0
        keys = dict.fromkeys(near) | self.extended.seen
        if not keys and not self.extended.swapped:
            return
        extended = self._extended or await self._open_end()
        self._quiet_at = _UNDER_WAY
        if self.extended.swapped:
            # The numbers of databases in the names are no longer right.
            await extended.restore_all()
        else:
            await extended.restore(keys)
        self._quiet_at = 0.0
        # What comes into these from now on is still to be restored.
        self.extended.forget(keys)

    @property
    def ended(self) -> int:
        """So many keys of the target have ended when their TTLs were restored: the source may
        still count them, as it lets none expire while its writers are paused."""
        return self._ended + (self._extended.ended if self._extended is not None else 0)

    async def _open_end(self) -> ExtendedTtls:
        await self._close_end()
        self._end = contextlib.AsyncExitStack()
        self._extended = ExtendedTtls(
            await self._end.enter_async_context(self._ends.admin("target")),
            self._ends.route.target_slots,
            of=self._ends.keys,
        )
        return self._extended

    async def _close_end(self) -> None:
        self._ended = self.ended
        end, self._end, self._extended = self._end, None, None
        if end is not None:
            await end.aclose()

    def extend_again(self) -> None:
        """The cut-over did not come off: TTLs that come from now on are extended as before, and
        those that are there as soon as may be. To be called before writers are let on."""
        self.extended.end_watch()
        self._restoring = False
        self.hold()
        if self.follower is not None:
            self.follower.trust.expose(self.exposed, asyncio.get_running_loop().time())
        if self._extending and self._checkpoint.mark.released and self._extender is None:
            self._extender = asyncio.create_task(self._extend_all())

    async def give_back(self) -> None:
        """For a target that is left as it is: nothing on it may live for a hundred years."""
        if self.importing or not (self._extending or self.taken_up):
            return
        await self._quiet()
        async with self._ends.admin("target") as end:
            extended = ExtendedTtls(end, self._ends.route.target_slots, of=self._ends.keys)
            await extended.restore_known(self.extended.names)
