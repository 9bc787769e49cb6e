"""The checkpoint of an online migration: what the next process that takes it up has to know.

It holds what was done to both servers (`OnlineCheckpoint`, called the mark here) and the counters.
The exact position is not in it: that is a key on the target.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from engine import logs
from engine.errors import StateError
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.report import key_of, printable_key
from engine.transfer.checkpoint_store import CheckpointStore
from engine.transfer.migration_context import MigrationContext
from engine.transfer.stats import TransferStats
from engine.wire.search_indexes import raw_name

_log = logs.logger(__name__)
# How often counters are written while the stream is followed, in seconds.
_SAVE_SECONDS = 2.0


class CheckpointWriter:
    """The mark, kept in memory and written through `checkpoints`.

    `identity` tells which target the counters belong to.
    """

    def __init__(
        self,
        mark: OnlineCheckpoint,
        checkpoints: CheckpointStore,
        context: MigrationContext,
        identity: Callable[[], str],
    ) -> None:
        self.mark = mark
        self.take_repaired: Callable[[], int] = lambda: 0
        """Keys that were repaired since it was called last."""
        self.dirty = False
        """Something is to be written that can wait for `save_now_and_then`."""
        self.taken_up = False
        """Whether `take_up` was called."""
        self._checkpoints = checkpoints
        self._context = context
        self._identity = identity
        self._saved_at = 0.0

    def take_up(self) -> bool:
        """Go on from the checkpoint of an engine before this one; whether there was one that
        began."""
        before = self._checkpoints.load()
        self.taken_up = True
        if before is None:
            return False
        if isinstance(before.position, OnlineCheckpoint):
            self.mark = before.position
            self._context.count_with(TransferStats(before))
        return True

    async def latest(self) -> OnlineCheckpoint | None:
        """The mark as it is written: by us, or by an engine that has taken over."""
        found = await asyncio.to_thread(self._checkpoints.load)
        return found.position if found and isinstance(found.position, OnlineCheckpoint) else None

    @property
    def search_names(self) -> list[bytes]:
        """What is known of the names of the source's search aliases and dictionaries."""
        names = [raw_name(name) for name in self._context.settings.search_names]
        return names + [key_of(name) for name in self.mark.search_names]

    def note_search_names(self, names: Iterable[bytes]) -> None:
        """These are such names as well."""
        found = (*self.mark.search_names, *map(printable_key, names))
        self.note(search_names=tuple(dict.fromkeys(found)))

    def note(self, **members: Any) -> None:
        """Change the mark; it is written soon."""
        self.mark = replace(self.mark, **members)
        self.dirty = True

    async def save(self, **members: Any) -> None:
        """Change the mark, and write it. Raises `StateError`; the mark is then as it was before."""
        before = self.mark
        self.count_repairs()
        self._saved_at, self.dirty = asyncio.get_running_loop().time(), False
        self.mark = replace(self.mark, **members)
        checkpoint = self._context.stats.checkpoint_at(self.mark, self._identity())
        level = logging.INFO if members else logging.DEBUG
        shown = {name: value for name, value in members.items() if value not in ("", None)}
        try:
            with logs.timed(_log, "Write the checkpoint", level=level, extra=shown):
                await asyncio.to_thread(self._checkpoints.save, checkpoint)
        except StateError:
            self.mark = replace(before, repaired_keys=self.mark.repaired_keys)
            self.dirty = True
            raise

    async def save_now_and_then(self) -> None:
        """Write what is to be written, if it is some time since the last one."""
        self.count_repairs()
        now = asyncio.get_running_loop().time()
        if self.dirty and now - self._saved_at >= _SAVE_SECONDS:
            await self.save()

    def count_repairs(self) -> None:
        """Bring the mark's count of repaired keys up to date."""
        if repaired := self.take_repaired():
            self.note(repaired_keys=self.mark.repaired_keys + repaired)
