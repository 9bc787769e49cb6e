"""The snapshot of a source that is followed, and what has to be on the target before its position.

A full sync may be the second one. Then what the first has left is taken away before, unless the
source has lost its data: its last copy must not be emptied for its sake.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from engine._native import RecordBatch
from engine.errors import SourceLost, TransferFailed
from engine.model.modules import GRAPH_MODULE, GRAPH_PART
from engine.model.report import NAMED_KEYS_LIMIT, printable_key
from engine.model.server import ServerInfo
from engine.sources.base import unpacked_names
from engine.sources.replica import ReplicaSource
from engine.targets.base import Acknowledged
from engine.targets.restore_writer import RestoreWriter
from engine.targets.slot_keys import remove_keys
from engine.transfer.control_connections import Endpoints
from engine.transfer.copy import LOSS_REMEDY, note_item
from engine.transfer.functions_and_scripts import carry_code, is_library
from engine.transfer.graphs_in_parts import REMEDY, refuse_parts
from engine.transfer.key_resync import KeyResync
from engine.transfer.migration_context import MigrationContext
from engine.transfer.migration_ownership import MigrationOwnership
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.target_monitor import TargetMonitor
from engine.wire.functions_and_indexes import carry_absent
from engine.wire.psync import FullSync
from engine.wire.search_indexes import UNTOLD, Named, ask_named, carry_named, in_snapshot


class Snapshot:
    """Carries a full sync's values and code. `left_out(what)` is told of what is no key's."""

    def __init__(
        self,
        ends: Endpoints,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        source: ReplicaSource,
        writer: RestoreWriter,
        ownership: MigrationOwnership,
        left_out: Callable[[str], None],
        target_watch: TargetMonitor,
    ) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._source = source
        self._writer = writer
        self._ownership = ownership
        self._left_out = left_out
        self._target_watch = target_watch
        self.on_records: Callable[[RecordBatch], None] = lambda _: None
        """Told of each batch before it is sent."""
        # Hashes of the snapshot whose fields have TTLs, which cannot be extended.
        self._timed: set[tuple[int, bytes]] = set()
        # Keys of the snapshot that the target has refused, or the source.
        self._refused: dict[tuple[int, bytes], None] = {}
        # Of a large graph.
        self._parts: list[bytes] = []
        writer.on_acknowledged = self._acknowledged
        writer.again = source.value_again

    async def prepare(self, sync: FullSync, history: str) -> None:
        """Before its first byte is taken in: room, and the checkpoint says that it has begun.

        `history` is the stream that the source was asked for, or that was followed a moment ago;
        empty: none was. Raises `SourceLost`, and as `refuse_parts`.
        """
        checkpoint, context = self._checkpoint, self._context
        if GRAPH_MODULE in self._source.info.modules:
            async with self._ends.admin("source") as end:
                await refuse_parts(end, await end.info())
        # A source of the same history has all that we have; what it deleted since it meant to.
        if history != sync.replid:
            await self._check_source()
        info: ServerInfo | None = None
        if checkpoint.mark.begun:
            await self._make_room()
        else:
            await checkpoint.save(begun=True)
            # Ends the connections of the one that it is taken over from, if it is.
            await self._ownership.take()
            info = self._ownership.info
            if checkpoint.mark.taken_over:
                await self._make_room()
        self._refused.clear()
        self._parts.clear()
        context.stats.start_anew()
        await self._target_watch.begin(info)
        await checkpoint.save(
            released=False,
            loss_accepted=False,
            compare_all="",
            audited="",
            full_syncs=checkpoint.mark.full_syncs + 1,
            begun_at=time.time(),
            extended_at=-1,
        )

    async def copy(self, *, importing: bool) -> None:
        """Every value, acknowledged by the target, which is to be looked at behind it (`confirm`).
        Raises as the source and the writer do."""
        writer, throttle = self._writer, self._context.throttle.copying
        if self._checkpoint.mark.full_syncs > 1:
            # Whatever the last attempt left half-way.
            writer.reset()
        if writer.closed:
            await writer.open()
        writer.import_source = importing
        writer.on_dialled = self._ownership.confirm
        async with contextlib.aclosing(self._source.snapshot()) as items:
            async for item in items:
                if isinstance(item, RecordBatch) and item.timed:
                    self._timed.update((item.db, key) for key in unpacked_names(item.timed))
                if isinstance(item, RecordBatch):
                    self.on_records(item)
                if not throttle.free:
                    await throttle.wait()
                await writer.send(item)
                note_item(throttle, item)
                self._check_parts()
        await writer.drain()
        self._check_parts()

    async def confirm(self) -> None:
        """The target that acknowledged every value is still there. Raises as the writer does."""
        await self._writer.confirm()

    async def carry_code(self) -> None:
        """Functions and scripts that the snapshot brought; they are no keys."""
        source = self._source
        found = in_snapshot(source.module_data)
        for what in (*source.left_out, *found.unread, *([UNTOLD] if found.indexes else ())):
            self._left_out(what)
        self._context.lost = {}
        if self._ends.settings.rules:
            if source.functions or source.scripts or source.module_data:
                self._left_out("functions, scripts and search indexes, as keys are chosen")
            return
        if not (source.info.modules or source.functions or source.scripts):
            return
        async with self._ends.admin("target") as end:
            if source.info.modules:
                async with self._ends.admin("source") as there:
                    named = await ask_named(there, found.names)
                    # Its user may not ask for them, or they are gone, as the stream will say.
                    asked = named.dictionaries.keys()
                    others = {n: t for n, t in found.dictionaries.items() if n not in asked}
                    self._context.lost |= await carry_named(end, Named({}, others))
                    self._checkpoint.note_search_names(named.names)
                    names = self._checkpoint.search_names
                    self._context.lost |= await carry_absent(there, end, names)
            if not source.functions and not source.scripts:
                return
            refused = await carry_code(end, source.functions, source.scripts)
        for what, why in refused.items():
            self._left_out(f"{what}: {why}")
        self._context.lost |= {what: why for what, why in refused.items() if is_library(what)}

    async def note_names(self) -> None:
        """The names of what has to be read again. Before the position: with it they must be there,
        an engine that goes on from it."""
        names = KeyResync.names_of(self._timed) + KeyResync.names_of(self._refused, refused=True)
        self._timed.clear()
        self._refused.clear()
        if not names:
            return
        async with self._ends.admin("target") as end:
            for at in range(0, len(names), 1000):
                name = self._ends.own_keys(self._checkpoint.mark.token).dirty
                await end.call("SADD", name, *names[at : at + 1000])

    def _acknowledged(self, acknowledged: Acknowledged) -> None:
        self._context.stats.count(acknowledged, self._writer.info)
        self._checkpoint.dirty = True
        batch = acknowledged.batch
        if len(batch):
            # The pieces of one that was left out are still passing by.
            self._source.value_arrived(batch)
        self._parts += [key for key, reason in batch.withheld if reason == GRAPH_PART][:1]
        refused = [key for key, _ in (*batch.errors, *batch.withheld)]
        refused += [batch.key(index) for index, _ in acknowledged.errors]
        # To read them again at once would bring the same.
        self._timed.difference_update((batch.db, key) for key in refused)
        for key in refused[: NAMED_KEYS_LIMIT - len(self._refused)]:
            self._refused[batch.db, key] = None

    def _check_parts(self) -> None:
        """A graph that has become large since it was looked for, or could not be."""
        if self._parts:
            raise TransferFailed(
                f"the snapshot has large graphs in parts: {printable_key(self._parts[0])} is "
                f"{GRAPH_PART}",
                remedy=REMEDY,
                fault="source",
            )

    async def _check_source(self) -> None:
        """A source that lost its data must not have its last copy emptied for its sake."""
        mark = self._checkpoint.mark
        if not mark.full_syncs:
            return
        copied = self._context.stats.keys
        # (Other lanes' keys are none of this source's.)
        if not (mark.held_before or self._ends.route.shared_target or self._ends.settings.rules):
            async with self._ends.admin("target") as end:
                copied = max(copied, (await end.info()).keys)
        left = self._source.info.keys
        if left < copied // 2:
            # Asked at the dial it may have been loading its data still, and had a part of it.
            async with self._ends.admin("source") as end:
                left = max(left, (await end.info()).keys)
        if left >= copied // 2:
            return
        words = f"the source has {left:,} keys left, and the target has {copied:,} of those before"
        if not mark.loss_accepted:
            raise SourceLost(words, remedy=LOSS_REMEDY)
        self._context.on_event(
            f"{words}: the loss was accepted, and the source's keys of now replace the target's"
        )

    async def _make_room(self) -> None:
        """Before another full sync: what an earlier one left, and the source has deleted since,
        must not stay. If another engine has taken over, this raises, and the target is as it was:
        it may be in use by now."""
        mark, route, keys = self._checkpoint.mark, self._ends.route, self._ends.keys
        own, whole = self._ends.own_keys(mark.token), self._ends.whole
        why = "full sync again"
        if not mark.full_syncs:
            why = f"the slots {route.slots.words} were moved to this lane"
        if mark.taken_over and not mark.full_syncs:
            why = f"the target is taken over from the migration {mark.taken_over}"
        if mark.held_before:
            self._context.on_event(
                f"{why}: keys that the source deleted meanwhile may stay on the target, "
                "which had keys of its own before"
            )
            # An old position beside a new snapshot would be taken for the snapshot's.
            command: tuple[str | bytes, ...] = ("DEL", own.dirty)
        elif not whole:
            what = (
                "the keys that the rules take are removed from the target, which had none before"
                if keys.rules is not None
                else "the target, empty before that, is emptied"
            )
            self._context.on_event(f"{why}: {what}")
            command = ("DEL", own.dirty)
        else:
            self._context.on_event(f"{why}: the target, empty before that, is emptied")
            command = ("FLUSHALL",)
        async with self._ends.admin("target") as end:
            if not whole:
                # It is to end with the claim, whatever it is about to remove then.
                await end.call("CLIENT", "SETNAME", self._ownership.claim.client_name)
            await self._ownership.claim.clear(end, command)
            if not whole and not mark.held_before:
                for entry in (await end.info()).keyspace:
                    await end.select(entry.db)
                    await remove_keys(end.pipeline, keys, entry.db, node=route.to_cluster)
