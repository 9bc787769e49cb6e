"""Where transfers run: in worker processes of this machine, or in the calling process. Rank 5.

Nothing heavy is imported before it is needed: each process is measured by its CPU seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from engine.model.checkpoint import Checkpoint
    from engine.model.credentials import Credentials
    from engine.model.endpoint import Endpoint
    from engine.model.lane_plan import PlannedLane
    from engine.model.settings import TransferSettings
    from engine.transfer.abort_without_engine import Abandoned
    from engine.transfer.preflight import Preflight

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a fresh event loop and return its result; like `asyncio.run`."""
    from engine.wire import event_loop

    return event_loop.run(main)


async def preflight(source: Endpoint, target: Endpoint, settings: TransferSettings) -> Preflight:
    """Check whether a transfer could start; nothing is moved. See `transfer.preflight`."""
    from engine.transfer.preflight import preflight as check

    return await check(source, target, settings)


def holding(
    path: str | None, settings: TransferSettings, on_event: Callable[[str], None] | None
) -> AbstractContextManager[None]:
    """Every reading of a file within is of one and the same. See `sources.file_input`."""
    if path is None:
        return nullcontext()
    from engine.sources.file_input import holding as hold

    return hold(path, settings, on_event)


async def unblock_source(
    source: Endpoint,
    sealed_at: str,
    before: str,
    settings: TransferSettings,
    credentials: Credentials,
    *,
    script_pause: bool = False,
) -> str:
    """Have the source of a completed migration accept writes again: `transfer.unblock_source`."""
    from engine.transfer.unblock_source import unblock

    return await unblock(
        settings.named("source", source).of_primary,
        sealed_at,
        before,
        settings,
        credentials,
        script_pause=script_pause,
    )


async def source_writes(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    credentials: Credentials,
    lanes: Sequence[PlannedLane] = (),
) -> str:
    """Whether the source accepts writes, in words. See `transfer.source_accepts_writes`."""
    from engine.transfer.source_accepts_writes import said

    ends = settings.named("source", source), settings.named("target", target)
    return await said(*ends, settings, credentials, lanes)


async def abandon(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    checkpoints: Mapping[str, Checkpoint],
    credentials: Credentials,
    lanes: Sequence[PlannedLane] = (),
) -> Abandoned:
    """Take away what a transfer without a worker has left. See `transfer.abort_without_engine`."""
    from engine.transfer.abort_without_engine import abandon as tidy_up

    return await tidy_up(
        settings.named("source", source),
        settings.named("target", target),
        settings,
        checkpoints,
        credentials,
        lanes,
    )
