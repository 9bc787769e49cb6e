"""The abort of a migration that no engine has any more.

What its last engine left is taken away, as its own abort would have done: the fence and the
write block at the source; extended expire times, import mode and our own keys at the target.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import EngineError
from engine.model.checkpoint import Checkpoint
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.settings import TransferSettings
from engine.transfer.aof_migration import leave
from engine.transfer.checkpoint_store import MemoryCheckpoint
from engine.transfer.cut_over_check import CutOverCheckResult
from engine.transfer.lane import Lane
from engine.transfer.leftovers import leave as leave_unplaced
from engine.transfer.leftovers import token_of
from engine.transfer.migration import Migration
from engine.transfer.overview import Overview
from engine.wire import address_detours


@dataclass(frozen=True, slots=True)
class Abandoned:
    """What an operator has to know, and the mark as it is now; None where the source was not
    followed.

    A write block that could not be taken away is in the mark (`sealed`, at `fenced_at`), and so is
    one that belongs there, because the target is open.
    """

    events: list[str]
    mark: OnlineCheckpoint | None = None

    @property
    def cut_over(self) -> bool:
        """Whether the target is open, and the source's clients were told so."""
        return self.mark is not None and bool(self.mark.sealed) and not self.mark.fenced


async def abandon(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    checkpoint: Checkpoint | None,
    credentials: Credentials,
) -> Abandoned:
    """Tidy both ends up, behind the migration whose last checkpoint this is.

    `credentials`: for a server other than `source` that was fenced.

    Never raises `EngineError`: what cannot be done is said.
    """
    if checkpoint is not None and checkpoint.file is not None:
        token, had_keys = token_of(source, target), checkpoint.file.held_before
        return Abandoned(await leave_unplaced(target, token, had_keys, settings.connect_timeout))
    if checkpoint is None or not isinstance(checkpoint.position, OnlineCheckpoint):
        return Abandoned([])
    mark = checkpoint.position
    if source.aof_path is not None:
        if not mark.begun or mark.opened:
            return Abandoned([])
        return Abandoned(await leave(target, mark.token, settings.connect_timeout))

    async def gate(_: bytes) -> CutOverCheckResult:
        return CutOverCheckResult(False, "nothing is opened here")

    address_detours.begin()
    events: list[str] = []
    store = MemoryCheckpoint()
    store.save(checkpoint)
    overview = Overview(settings, on_progress=lambda _: None, on_event=events.append, one_go=False)
    way = None
    try:
        lane = overview.lane()
        way = Migration(
            overview,
            [Lane(source, target, lane, checkpoints=store, gate=gate, credentials=credentials)],
        )
        await way.abandon()
    except EngineError as error:
        events.append(f"what the migration left at both ends may still be there: {error}")
    return Abandoned(events, mark if way is None else way.mark)
