"""The fence at one source as the checkpoint has it: put up, taken away, or left after the
promotion.

What a crash leaves is in the checkpoint before it is at the source: `fenced` and what the write
block changes there. The engine that comes back takes the fence away if the target is not open
(`take_away`), and lets the clients go that wait behind it if the target is (`finish`). While it is
not known whether the target is open (`Promotion.in_doubt`) it does neither: the source goes on
refusing writes. Either is noted as done when it is, and tried again until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from functools import partial

from engine import logs
from engine.errors import EngineError, TransferFailed
from engine.model.calls_despite_write_block import Calls
from engine.model.endpoint import Endpoint
from engine.model.replication import Replication
from engine.model.retry import Attempts
from engine.model.server import ServerInfo
from engine.sources.replica import ReplicaSource
from engine.transfer import write_block
from engine.transfer.control_connections import Endpoints
from engine.transfer.fence import Fence, fence_of
from engine.transfer.fence_removal import FenceRemoval
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.promotion import Promotion
from engine.transfer.role_monitor import RoleMonitor
from engine.transfer.shared_source import SharedSource
from engine.transfer.switch_hook import SwitchHook
from engine.wire.control_connection import Admin, admin

_log = logs.logger(__name__)
# For how long the engine tries to let waiting clients of the source go once the target is open, in
# seconds.
_FINISH_SECONDS = 60.0
# How long the target may take to tell whether it is another migration's by now, in seconds; and how
# long while the source's writers wait for that.
_ASK_SECONDS = 5.0
_WRITERS_WAIT_SECONDS = 2.0


class FenceUpkeep:
    """Keeps the fence at one source and the checkpoint in step, also across a crash."""

    def __init__(
        self,
        ends: Endpoints,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        promotion: Promotion,
        source: ReplicaSource,
        roles: RoleMonitor,
        switch: SwitchHook,
        is_anothers: Callable[[Admin, bytes | None], Awaitable[bool]],
        shared: SharedSource,
    ) -> None:
        """`is_anothers`: whether the target, of which that is the position now, is another
        migration's, or was (`MigrationOwnership.is_anothers`)."""
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._promotion = promotion
        self._source = source
        self._roles = roles
        self._switch = switch
        self._is_anothers = is_anothers
        self._shared = shared
        shared.upkeeps.append(self)
        self.lost = False
        """Another migration may have cut over from the source, to this lane's target, since our
        fence was put up."""
        self._left = FenceRemoval(context, hook=ends.settings.fence == "hook")
        self._show_closed = context.trouble_of("a fence that is left")
        # Why waiting clients of the source could not be let go.
        self._not_let_go: EngineError | None = None
        # How many cut-overs came to nothing behind a fence.
        self._refused = 0
        # A cut-over is being tried: what may stand at the source is its own.
        self._trying = False

    async def begin(self) -> None:
        """A cut-over begins."""
        self._trying = True
        await self._left.quit()

    async def end(self) -> None:
        """It has come to its end, whatever that is."""
        self._trying = False
        self._left.show()
        await self.take_away()

    async def call_off(self, fence: Fence) -> None:
        """A cut-over came to nothing behind its fence: that is taken away, unless another migration
        has the target by now: it may have cut over behind this very fence while this engine stood
        still. Never raises `EngineError`."""
        self._refused += 1
        await self._look_for_another(_WRITERS_WAIT_SECONDS)
        if self._lost_any:
            self._report_left_closed()
        else:
            await self.remove(fence)

    @property
    def _lost_any(self) -> bool:
        """Whether the target of any lane of this source was lost: it is not ours to open then."""
        return any(each.lost for each in self._shared.upkeeps)

    # --- While it stands ---

    def fence_at(self, at: Endpoint, info: ServerInfo, address: str) -> Fence:
        fence = fence_of(
            at,
            info,
            self._ends.settings,
            name=f"the source's primary {address}" if address else "the source",
            before=self._checkpoint.mark.sealed,
            closed_before=self._checkpoint.mark.closed_before,
            calls_before=self._calls_before(),
            script_pause=self._checkpoint.mark.held,
            refused=self._refused,
            straight=bool(address),
            in_cluster=self._ends.source.cluster is not None,
        )
        fence.record = partial(self._record, fence)
        return fence

    async def _record(self, fence: Fence, lost: str) -> None:
        """The state has what a fence is about to change once the target is open."""
        await self._checkpoint.save(
            sealed=fence.before, closed_before=fence.closed_before, lost_writes=lost
        )

    def _calls_before(self) -> Calls | None:
        mark = self._checkpoint.mark
        return None if mark.scripts is None else Calls(mark.scripts, mark.writes)

    def note_before(self, fence: Fence) -> None:
        """What the source had run when this fence was put up."""
        calls = fence.calls
        self._checkpoint.note(
            scripts=None if calls is None else calls.scripts,
            writes=None if calls is None else calls.writes,
            scripts_run=None,
            writes_run=None,
            lost_writes="",
        )

    def step(self, what: str, **figures: object) -> AbstractContextManager[None]:
        """Log a step at the server that takes the source's writes."""
        at = self._checkpoint.mark.fenced_at
        of: dict[str, object] = {"end": "source", "fence": self._ends.settings.fence}
        if at:
            of["endpoint"] = at
        return logs.timed(_log, f"Cut-over: {what}", extra=of | figures)

    def of_history(self, replication: Replication, replid: str) -> None:
        """Raises `TransferFailed` where the fenced server is not the primary of this history."""
        if self._ends.settings.fence == "pause" and replication.is_replica:
            raise TransferFailed(
                f"the server that was fenced is {replication.place} by now: "
                "another one takes the writes",
                fault="source",
            )
        if replication.replid and replication.replid != replid:
            raise TransferFailed(
                "the replication id of the server that takes the writes is not the one that is "
                "followed: there was a failover, or it was restarted",
                remedy="The migration goes on. Complete it again once it is in sync.",
                fault="source",
            )

    async def not_moved(self, fence: Fence, replication: Replication | None = None) -> None:
        """Raises `TransferFailed` where the source fails over behind its fence. `replication`: its
        role as it was reported just now."""
        replication = replication or await fence.look()
        if replication is None:
            return
        history = self._source.replid or self._promotion.history
        if history or replication.is_replica:
            self.of_history(replication, history)
        await self._roles.no_second_primary(replication, history)

    # --- The target is not open ---

    async def take_away(self, *, at_once: bool = False, in_doubt: bool = False) -> None:
        """A fence that an engine before us, or a refused cut-over, has left; nothing if there is
        none.

        Returns at once, and goes on until it is away. `at_once`: it is tried once, now, and waited
        for. `in_doubt`: even while it is not known whether the target is open. Never raises.
        """
        if at_once:
            await self._left.quit()
            if self._stands(in_doubt):
                await self._take_away_once(in_doubt)
                self._left.show()
        elif self._stands() and not self._trying:
            self._left.keep_trying(self._take_away_once)

    def _stands(self, in_doubt: bool = False) -> bool:
        """Whether a fence may stand that is to be taken away."""
        mark = self._checkpoint.mark
        if self._lost_any and not in_doubt:
            return False
        return mark.fenced and not mark.opened and (in_doubt or not self._promotion.in_doubt)

    async def _take_away_once(self, in_doubt: bool = False) -> bool:
        """One try; whether there is nothing more to do."""
        if not self._stands(in_doubt):
            return True
        if not in_doubt:
            # It was not known when the promotion broke off.
            await self._look_for_another(_ASK_SECONDS)
            if self._lost_any:
                self._report_left_closed()
                return True
        try:
            fence = await self._fence_left()
        except EngineError as exc:
            self._not_taken_away(exc)
            return False
        try:
            await self.remove(fence)
        finally:
            await fence.remove()
        return not self._checkpoint.mark.fenced

    async def remove(self, fence: Fence) -> None:
        try:
            with self.step("remove the fence"):
                await fence.open()
        except EngineError as exc:
            self._not_taken_away(exc)
            return
        self._checkpoint.note(
            fenced=False,
            sealed="",
            fenced_at="",
            closed_before="",
            lets_scripts=False,
            scripts=None,
            writes=None,
            held=False,
        )
        self._left.gone()

    def _not_taken_away(self, exc: EngineError) -> None:
        """It stays in the checkpoint: it is tried again by the next engine."""
        mark = self._checkpoint.mark
        name = f"the source's primary {mark.fenced_at}" if mark.fenced_at else "the source"
        if self._ends.settings.fence == "hook":
            self._left.failed(f"writes to {name} may still be blocked", exc.message, exc.remedy)
            return
        by_hand = f"By hand: {write_block.remedy(mark.sealed)}" if mark.sealed else exc.remedy
        self._left.failed(f"{name} may still refuse writes", exc.message, by_hand)

    async def in_the_way(self, address: str) -> str:
        """Take away a fence that still stands; why not, if that cannot be done."""
        mark = self._checkpoint.mark
        if not mark.fenced:
            return ""
        await self.take_away(at_once=True)
        if not self._checkpoint.mark.fenced or (self._left.given_up and mark.fenced_at == address):
            return ""
        return f"the fence at {mark.fenced_at or 'the source'} is still to be removed"

    async def note_lost(self, found: bytes | None) -> None:
        """The target is not as it was left, and has the position `found` now: whether it may be
        another migration's."""
        self.lost = await self._lost_to_another(found)

    async def _lost_to_another(self, found: bytes | None) -> bool:
        """Whether the target, of which `found` is the position now, may be another migration's, or
        was: then the source is not ours to open. One that came back older, or empty, is ours."""
        try:
            async with asyncio.timeout(_ASK_SECONDS), self._ends.admin("target") as end:
                return await self._is_anothers(end, found)
        except (EngineError, TimeoutError):
            return True

    def claimed(self) -> None:
        """The target is ours: it was asked, and has our name on it. What stands at the source is
        ours to take away again."""
        self.lost = False
        self._show_closed("")

    def _report_left_closed(self) -> None:
        sealed = self._checkpoint.mark.sealed
        why = "because another migration may have cut over from it since"
        if self._ends.settings.fence == "hook":
            words = (
                f"the fence's hook was not run with `unfence`, {why}. If none has: run it with "
                "`unfence` by hand"
            )
        elif sealed:
            words = (
                f"the source may still refuse writes, {why}. If none has: "
                f"{write_block.remedy(sealed)}"
            )
        else:
            words = f"writes to the source stay paused until the fence's time is over, {why}"
        self._context.on_event(words)
        self._show_closed(words)

    async def _look_for_another(self, limit: float) -> None:
        """Whether the target of any lane of this source is `lost` by the position that is there
        now. One that does not answer within `limit` seconds says nothing. Never raises
        `EngineError`."""
        lanes = [each.look_for_another(limit) for each in self._shared.upkeeps if not each.lost]
        await asyncio.gather(*lanes)

    async def look_for_another(self, limit: float) -> None:
        """The same of this lane's target."""
        key = self._ends.own_keys(self._checkpoint.mark.token).position
        try:
            async with asyncio.timeout(limit), self._ends.admin("target") as end:
                found = await end.call("GET", key)
                if await self._is_anothers(end, found if isinstance(found, bytes) else None):
                    self.lost = True
        except (EngineError, TimeoutError):
            return

    # --- The target is open ---

    async def finish(self, *, patient: bool = True) -> None:
        """The target is open: clients may wait at the source, behind this fence or that of an
        engine before us, are told so.

        Tried again for a minute, unless not `patient`. Raises `TransferStopped` then: the
        checkpoint still have it, and the next engine goes on.
        """
        if not self._checkpoint.mark.fenced:
            return
        await self._promotion.hand_over()
        await self.switch_once()
        patience = self._context.patience(
            "the source's clients",
            ended="the target is promoted, but the source could not be set to refuse writes",
            next_step="the engine tries again",
            fault="source",
            limit=_FINISH_SECONDS if patient else 0.0,
        )
        async for attempt in Attempts(patience):
            try:
                await self._finish_once()
                patience.progress()
                return
            except EngineError as exc:
                attempt.failed(
                    exc.message,
                    remedy="Its writers may wait, or write what is not migrated: resume the "
                    "migration once the source answers, or stop its writers and end the migration "
                    "(complete-migration --force); the target stays promoted either way.",
                    event=f"the source could not be set to refuse writes: {exc.message}; "
                    "trying again",
                )

    async def _finish_once(self) -> None:
        fence = await self._fence_left()
        try:
            await fence.approach()
            fence.on_promotion()
            try:
                await fence.block_writes()
            except TransferFailed as exc:
                # Its role has changed since, or its clients cannot be paused: there is no way back.
                self._context.on_event(exc.message)
            await self.let_clients_go(fence)
            if self._not_let_go is not None:
                raise self._not_let_go
        finally:
            await fence.remove()

    async def switch_once(self) -> None:
        """Have the applications' name moved, unless that was done, by whichever lane."""
        peers = self._context.peers
        if not self._switch.wanted or self._checkpoint.mark.switched:
            return
        async with peers.switching:
            if not peers.switched:
                with logs.timed(_log, "Cut-over: run the switch"):
                    await self._switch.run()
            self._checkpoint.note(switched=True)

    async def let_clients_go(self, fence: Fence) -> None:
        """Clients that wait; where that fails the checkpoint keeps it for `finish`."""
        self._not_let_go = None
        try:
            with self.step("release the clients, and disconnect them"):
                events = await fence.finish()
        except EngineError as exc:
            self._not_let_go = exc
            return
        lost = [fence.lost_writes] if fence.lost_writes else []
        if self._ends.settings.source_after == "refuse" and (moved := await self._moved(fence)):
            events.append(moved)
            lost.append(moved)
        for each in events:
            self._context.on_event(each)
        run, mark = fence.calls_since, self._checkpoint.mark
        if mark.lost_writes and not any(mark.lost_writes in each for each in lost):
            # Told by a try before this one, or by an engine that has ended in the middle.
            lost.insert(0, mark.lost_writes)
        self._checkpoint.note(
            fenced=False,
            # It may have been set anew, where another's was taken away since.
            sealed=fence.before or mark.sealed,
            closed_before="" if fence.before else mark.closed_before,
            scripts_run=None if run is None else run.scripts,
            writes_run=None if run is None else run.writes,
            lost_writes="; ".join(lost),
        )

    async def _moved(self, fence: Fence) -> str:
        """What was lost where the source has failed over by the time at which the target is open:
        nothing can hold off the writers of a server that was promoted meanwhile."""
        try:
            await self.not_moved(fence, fence.role_since)
        except TransferFailed as exc:
            return (
                f"the source failed over while the target was promoted ({exc.message}): what its "
                "new primary accepts is only on that server"
            )
        except EngineError as exc:
            return (
                "whether the source failed over while the target was promoted is not known "
                f"({exc.message}): what another primary accepts is only on that server"
            )
        finally:
            await self._roles.siblings.close()
        return ""

    async def _fence_left(self) -> Fence:
        """The fence that stands by the checkpoint. Raises `EngineError`."""
        address, limit = self._checkpoint.mark.fenced_at, self._ends.settings.io_timeout
        at = self._ends.beside_source(address)
        async with admin(at, timeout=limit, fault="source", straight=bool(address)) as end:
            return self.fence_at(at, await end.info(), address)
