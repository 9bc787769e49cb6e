"""What a transfer is handed to look at both ends with: the verifier."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from engine.errors import EngineError
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.sources.aof import AofSurvey
from engine.sources.aof_files import AofFiles
from engine.transfer.gate import Comparison, GateResult

# redis-py, which the verifier asks with, costs CPU to import: only where there is something to ask.


async def holds_keys(target: Endpoint, settings: TransferSettings) -> bool:
    """Whether the target has any key but the engine's own. Raises `LinkError`, `AuthError`,
    `ServerError`."""
    from engine.wire.admin import admin
    from engine.wire.own_keys import count_own

    async with admin(target, timeout=settings.connect_timeout, fault="target") as server:
        keys = (await server.info()).keys
        return keys > 0 and keys > await count_own(server)


def gate_of(
    source: Endpoint, target: Endpoint, settings: TransferSettings, held_before: Callable[[], bool]
) -> Callable[[], Awaitable[GateResult]]:
    """The gate of a cut-over: open if the verifier finds both ends equal.

    `held_before` tells, when it is asked, whether the target had keys of its own.
    """

    async def gate() -> GateResult:
        from engine.verify import verify, verify_file

        try:
            held, path = held_before(), source.rdb_path
            if path is None:
                found = await verify(source, target, settings, held_before=held)
            else:
                found = await verify_file(path, target, settings, held_before=held)
        except EngineError as error:
            return GateResult(False, f"both ends could not be compared: {error}")
        return GateResult(found.ok, found.reason, found)

    return gate


def gate_of_files(
    target: Endpoint, settings: TransferSettings
) -> Callable[[AofFiles, AofSurvey], Awaitable[GateResult]]:
    """The same of an append-only file, whose files are open."""

    async def gate(files: AofFiles, survey: AofSurvey) -> GateResult:
        from engine.verify import verify_aof

        try:
            found = await verify_aof(files, survey, target, settings)
        except EngineError as error:
            return GateResult(False, f"both ends could not be compared: {error}")
        return GateResult(found.ok, found.reason, found)

    return gate


def comparison_of(
    source: Endpoint, target: Endpoint, settings: TransferSettings, held_before: Callable[[], bool]
) -> Comparison | None:
    """What compares both ends of a source that is followed; None for a file."""
    if source.file_path is not None:
        return None
    from engine.verify import LiveComparison

    return LiveComparison(source, target, settings, held_before)


def compare_of(
    source: Endpoint, target: Endpoint
) -> Callable[[int, list[bytes]], Awaitable[list[bytes]]]:
    """Which of these keys of a database differ between the ends."""

    async def compare(db: int, keys: list[bytes]) -> list[bytes]:
        assert source.file_path is None, "settings that compare are refused for a file"
        from engine.verify import differing

        return await differing(source, target, db, keys)

    return compare
