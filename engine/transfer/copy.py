"""The snapshot: everything the source gives, into the target, whatever breaks on the way.

    source ──items──▶ target ──acknowledged──▶ tally, position

Both ends mend what they can by themselves. What they cannot (the source's link, a value in pieces
whose link went) ends here in one way: everything that was acknowledged stays, the source is opened
again at the acknowledged position, and what came after it is read and sent anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from engine.errors import LinkError, ServerError, SourceLost, TransferFailed
from engine.model.backoff import Patience
from engine.model.evictions import Evictions
from engine.model.position import ScanPosition
from engine.model.retry import Attempts
from engine.model.settings import TransferSettings
from engine.model.throttle import Flow
from engine.model.transient_errors import transient
from engine.sources.base import Item, Source
from engine.targets.base import Acknowledged, ReadAgain, Target
from engine.transfer.stats import TransferStats

# Error replies of a source that pass by themselves.
_SOURCE_TRY_AGAIN = transient("read")
# Keys that exist on the target are compared in such portions (`if_exists` = fail).
_CONFLICTS_AT_ONCE = 1000

LOSS_REMEDY = (
    "Restore the source's data and resume; or accept the loss (resume-migration, or the same "
    "migrate, with --accept-source-loss), and the target becomes what the source is now; or end it "
    "(complete-migration --force), and keep what the target has."
)
"""What to do where the source has lost its data."""

Compare = Callable[[int, list[bytes]], Awaitable[list[bytes]]]


def note_item(throttle: Flow, item: Item) -> None:
    """Tell the throttle that an item of a source was moved."""
    if isinstance(item, bytes):
        throttle.passed(0, len(item))
    else:
        throttle.passed(len(item), item.value_bytes)


class Copy:
    """Runs one source into one target. `position` is what the target has acknowledged.

    `compare(db, keys)` tells which keys differ between the ends: with `if_exists` "fail" a key that
    the target has with the same value is no conflict (SCAN may name a key twice, and a lost link
    makes us send a batch again). `patience` is for what passes by itself.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        settings: TransferSettings,
        stats: TransferStats,
        *,
        position: ScanPosition | None,
        on_event: Callable[[str], None],
        compare: Compare,
        patience: Patience,
        throttle: Flow,
    ) -> None:
        self._patience = patience
        self._throttle = throttle
        self._source = source
        self._target = target
        self._settings = settings
        self._stats = stats
        self._on_event = on_event
        self._compare = compare
        # Keys that the target had, until they are compared; and the position behind them.
        self._conflicts: dict[int, list[bytes]] = {}
        self._delayed_position: ScanPosition | None = None
        self.position = position
        self.restarts = 0
        target.on_acknowledged = self._acknowledged

    async def run(self) -> None:
        """Copy everything. Source and target are open already; the source is closed at the end.

        Raises `TransferFailed` with the reason, `AuthError`, `ProtocolFault`, `ServerError`.
        """
        patience = self._patience
        position, learned = self.position, self._target.learned
        opened = True
        async for attempt in Attempts(patience):
            try:
                if not opened:
                    await self._reopen()
                    opened = True
                    patience.well()
                async with contextlib.aclosing(self._source.items()) as items:
                    async for item in items:
                        if not isinstance(item, bytes):
                            self._target.leave_telemetry(self._source.telemetry)
                        if not self._throttle.free:
                            await self._throttle.wait()
                        await self._target.send(item)
                        if not self._source.paces:
                            note_item(self._throttle, item)
                        if self._conflicts:
                            await self._settle_conflicts()
                await self._target.drain()
                await self._settle_conflicts()
                await self._target.confirm()
                return
            except ReadAgain as exc:
                # The source is in the middle of something that is not taken any more.
                reason, remedy = exc.reason, exc.remedy
                if exc.from_start:
                    self._start_anew()
            except (LinkError, ServerError) as exc:
                if exc.fault != "source" or (
                    isinstance(exc, ServerError) and exc.code not in _SOURCE_TRY_AGAIN
                ):
                    raise
                reason, remedy = exc.message, exc.remedy
            finally:
                await self._source.close()
            opened = False
            await self._settle()
            paused = bool(self._throttle.paused)
            if paused:
                # A source may end links over which it is asked for nothing, as often as it likes.
                await self._throttle.wait()
            # What is counted beyond the position is counted again.
            self._conflicts.clear()
            self._delayed_position = None
            self._stats.rewind()
            if paused or self.position != position or self._target.learned > learned:
                position, learned = self.position, self._target.learned
                patience.progress()
            attempt.failed(
                reason,
                remedy=remedy,
                event=f"{reason}: starting again from what is acknowledged",
            )
            self.restarts += 1

    async def _reopen(self) -> None:
        position = self.position
        await self._source.open(position)
        if position is None or self._source.continues(position):
            return
        restarted = position.run_id != self._source.info.run_id
        if restarted and self._source.total_keys < self._stats.keys // 2:
            raise SourceLost(
                f"the source was restarted and has {self._source.total_keys:,} keys left; "
                f"{self._stats.keys:,} of those before are on the target",
                remedy=LOSS_REMEDY,
            )
        if restarted:
            self._on_event("the source was restarted: its keys are read again from the first")
        self.position = None
        evictions = self._stats.evictions
        self._stats.start_anew()
        # Counted on: the target was not asked since.
        self._stats.evictions = evictions

    async def _settle(self) -> None:
        """Have the target acknowledge what is whole, and forget the rest."""
        try:
            if self._target.mid_value:
                self._target.reset()
            else:
                await self._target.drain()
        except ReadAgain as exc:
            if exc.from_start:
                self._start_anew()

    def _start_anew(self) -> None:
        """What was acknowledged may be gone. The target has just been dialled anew."""
        self._on_event("the target was restarted or replaced: everything is copied anew")
        self.position = None
        self._stats.start_anew()
        self._stats.evictions = Evictions().after(self._target.info)

    def _acknowledged(self, acknowledged: Acknowledged) -> None:
        if self._settings.if_exists == "fail" and acknowledged.errors:
            acknowledged = self._keep_conflicts(acknowledged)
        self._stats.count(acknowledged, self._target.info)
        position = self._source.position_after(acknowledged.batch)
        if position is None:
            return
        if self._conflicts:
            # A key that may be refused yet must not be passed.
            self._delayed_position = position
        else:
            self._pass(position)

    def _pass(self, position: ScanPosition) -> None:
        self.position = position
        self._stats.mark(position)

    def _keep_conflicts(self, acknowledged: Acknowledged) -> Acknowledged:
        batch = acknowledged.batch
        busy = [index for index, text in acknowledged.errors if text.startswith("BUSYKEY")]
        if busy:
            self._conflicts.setdefault(batch.db, []).extend(batch.key(index) for index in busy)
        others = tuple(
            (index, text) for index, text in acknowledged.errors if not text.startswith("BUSYKEY")
        )
        return Acknowledged(batch, acknowledged.carried, acknowledged.existing, others)

    async def _settle_conflicts(self) -> None:
        found = 0
        # Those that come in meanwhile wait for the next time.
        while self._conflicts:
            db, keys = next(iter(self._conflicts.items()))
            keys = keys.copy()
            for begin in range(0, len(keys), _CONFLICTS_AT_ONCE):
                portion = keys[begin : begin + _CONFLICTS_AT_ONCE]
                differing = await self._compare(db, portion)
                found += len(differing)
                self._stats.keys += len(portion) - len(differing)
                for key in differing:
                    self._stats.refuse(db, key, "BUSYKEY: the target has it with another value")
            del self._conflicts[db][: len(keys)]
            if not self._conflicts[db]:
                del self._conflicts[db]
        if found:
            raise TransferFailed(
                f"{found:,} keys exist on the target with another value.",
                remedy="Remove them there, or choose --if-exists replace or skip.",
                fault="user",
            )
        if self._delayed_position is not None:
            self._pass(self._delayed_position)
            self._delayed_position = None
