"""Slots of which every key is read again: they have moved, or were about to.

While a slot moves between two nodes of a source, what both of them send of its keys tells nothing
certain: a key is restored at one and deleted at the other, and the two streams race. The same holds
at the target, where commands for a slot that goes elsewhere are refused. So nothing is made of it
while it lasts. Once one node has the slot, the lane that brings it reads each of its keys again:
those that the source has, and those that the target has, for a key that is on the target alone has
to go.

Invariants:

- The slots are in the checkpoint (`OnlineCheckpoint.audit`) before anything is applied that may be
  wrong about them, and until every key of theirs was read and stored: an engine that comes back
  begins their audit anew.
- A target that comes back older than the audit's end has it done once more: what was stored may be
  gone again (`OnlineCheckpoint.audited`).
- Until all of them are named, what a command makes of a key of theirs is read again as well
  (`Follower.audited`): the key may be one that is wrong still, and what is made of it read before.
- A key that appears while they are read is in the stream of the lane that has the slot by now. So
  names that one look at both ends finds are enough.
- While there are any the gate is closed.

Of a target that had keys of its own before, only what the source names is read: what is on the
target alone may be its users', or was deleted at the source while the slots moved. An event says
how many these are, and names some.
"""

from __future__ import annotations

import asyncio
import contextlib

from engine import logs
from engine.errors import LinkError, ServerError
from engine.model.report import printable_key
from engine.model.slots import SlotSet
from engine.targets.slot_keys import keys_in, see_expired, without_own
from engine.transfer.control_connections import Endpoints, Side
from engine.transfer.follow import Follower
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter

# Keys that wait to be read again at once: the names are kept in memory, and on the target.
_WAITING_MOST = 10_000
# Names of keys in one event.
_NAMED = 3
# Between two tries, in seconds.
_PAUSE_SECONDS = 0.5
_log = logs.logger(__name__)


class SlotReread:
    """Reads the keys of some slots again, on one lane."""

    def __init__(
        self, ends: Endpoints, checkpoint: CheckpointWriter, context: MigrationContext
    ) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._report = context.trouble_of("slots that moved")
        self._added = asyncio.Event()

    @property
    def slots(self) -> SlotSet:
        """Those that are still to be read; what has gone to another lane is read there."""
        return SlotSet.parse(self._checkpoint.mark.audit) & self._ends.route.slots

    async def take_up(self, offset: int) -> None:
        """A follower is about to go on from `offset`, which the target has. One that came back
        older may lack what was read again since: that is due once more. Raises `StateError`."""
        mark = self._checkpoint.mark
        if mark.audited and offset <= mark.audited_at:
            await self.add(SlotSet.parse(mark.audited))

    async def add(self, slots: SlotSet) -> None:
        """These are to be read as well, as soon as a follower runs. Raises `StateError`."""
        wanted = (self.slots | slots) & self._ends.route.slots
        if wanted != self.slots:
            await self._checkpoint.save(audit=str(wanted))
        self._show()
        self._added.set()

    def _show(self) -> None:
        slots = self.slots
        self._report(f"every key of the slots {slots.words} is read again" if slots else "")

    async def run(self, follower: Follower) -> None:
        """Read those that are due, until cancelled.

        Raises `StateError`; an end that cannot be asked is asked again.
        """
        while True:
            self._added.clear()
            self._show()
            if slots := self.slots:
                # Before the first name is looked for.
                follower.audited = slots
                try:
                    keys = await self._read(slots, follower)
                except (LinkError, ServerError) as exc:
                    _log.info("The slots %s are read again later: %s", slots.words, exc.message)
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                self._context.on_event(
                    f"every key of the slots {slots.words} was read again: {keys:,} keys"
                )
                if not self._added.is_set():
                    await self._checkpoint.save(
                        audit=str(self.slots - slots),
                        audited=str(SlotSet.parse(self._checkpoint.mark.audited) | slots),
                        audited_at=follower.position.offset,
                    )
                continue
            await self._added.wait()

    async def _read(self, slots: SlotSet, follower: Follower) -> int:
        """How many names were found."""
        found = 0
        route = self._ends.route
        sides: list[tuple[Side, bool]] = [("source", route.from_cluster)]
        had_keys = self._checkpoint.mark.had_keys
        if not had_keys:
            sides.append(("target", route.to_cluster))
        for side, clustered in sides:
            async with self._ends.admin(side) as end:
                if side == "target":
                    await see_expired(end.pipeline)
                for db in [each.db for each in (await end.info()).keyspace]:
                    await end.select(db)
                    pages = keys_in(end.pipeline, slots, node=clustered)
                    async with contextlib.aclosing(pages):
                        async for page in pages:
                            names = without_own(page)
                            found += len(names)
                            follower.read_again([(db, name) for name in names], audited=True)
                            await follower.has_room(_WAITING_MOST)
        await follower.end_audit()
        await follower.settle()
        if had_keys:
            await self._tell_of_others(slots)
        return found

    async def _tell_of_others(self, slots: SlotSet) -> None:
        """Say which keys the target has there, and the source has not: they stay."""
        route, count = self._ends.route, 0
        some: list[bytes] = []
        async with self._ends.admin("source") as source, self._ends.admin("target") as target:
            filled = {each.db for each in (await source.info()).keyspace}
            for db in [each.db for each in (await target.info()).keyspace]:
                await target.select(db)
                if db in filled:
                    await source.select(db)
                pages = keys_in(target.pipeline, slots, node=route.to_cluster)
                async with contextlib.aclosing(pages):
                    async for page in pages:
                        others = without_own(page)
                        # (One without keys the source may not even have.)
                        if db in filled:
                            asked = [("EXISTS", name) for name in others]
                            has = await source.pipeline(asked, raise_on_error=True)
                            others = [name for name, it in zip(others, has, strict=True) if not it]
                        count += len(others)
                        some += others[: _NAMED - len(some)]
        if count:
            shown = ", ".join(f"'{printable_key(name)}'" for name in some)
            self._context.on_event(
                f"{count:,} keys of the slots {slots.words} are on the target and not at the "
                f"source ({shown}{', …' if count > len(some) else ''}): the target had them before "
                "the migration, or they were deleted at the source while the slots moved. They "
                "stay: remove by hand those that are not wanted"
            )
