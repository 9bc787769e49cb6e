"""The abort of a migration that no engine has any more.

What its last engine left is taken away, as its own abort would have done: the fence and the
seal at the source; lifted deadlines, import mode and our own keys at the target.
"""

from __future__ import annotations

from engine.errors import EngineError
from engine.model.checkpoint import Checkpoint
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.online import OnlineMark
from engine.model.settings import TransferSettings
from engine.transfer.append_only import leave
from engine.transfer.checkpoint import MemoryCheckpoint
from engine.transfer.gate import GateResult
from engine.transfer.online import Online
from engine.transfer.stage import Stage
from engine.wire import detours


async def abandon(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    checkpoint: Checkpoint | None,
    credentials: Credentials,
) -> list[str]:
    """Tidy both ends up, behind the migration whose last checkpoint this is.

    `credentials`: for a server other than `source` that was fenced.

    Returns what an operator has to know. Never raises `EngineError`: what cannot be done is said.
    """
    if checkpoint is None or not isinstance(checkpoint.position, OnlineMark):
        return []

    if source.aof_path is not None:
        mark = checkpoint.position
        if not mark.begun or mark.opened:
            return []
        return await leave(target, mark.token, settings.connect_timeout)

    async def gate(_: bytes) -> GateResult:
        return GateResult(False, "nothing is opened here")

    detours.begin()
    events: list[str] = []
    store = MemoryCheckpoint()
    store.save(checkpoint)
    stage = Stage(settings, on_progress=lambda _: None, on_event=events.append, one_go=False)
    try:
        way = Online(source, target, stage, checkpoints=store, gate=gate, credentials=credentials)
        await way.abandon()
    except EngineError as error:
        events.append(f"what the migration left at both ends may still be there: {error}")
    return events
