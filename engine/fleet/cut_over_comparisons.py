"""What a transfer is handed to look at both ends with: the verifier."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.model.endpoint import Endpoint
from engine.model.lane_route import ONLY, Route
from engine.model.settings import TransferSettings
from engine.transfer.cut_over_check import Comparison, CutOverCheckResult

if TYPE_CHECKING:
    from engine.sources.aof_files import AofFiles
    from engine.sources.aof_findings import AofSurvey
    from engine.verify.aof_comparison import FileValue

# redis-py, which the verifier asks with, costs CPU to import: only where there is something to ask.


async def holds_keys(target: Endpoint, settings: TransferSettings) -> bool:
    """Whether the target has any key but the engine's own. Raises `LinkError`, `AuthError`,
    `ServerError`."""
    from engine.wire.control_connection import admin
    from engine.wire.engine_key_count import count_own

    async with admin(target, timeout=settings.connect_timeout, fault="target") as server:
        keys = (await server.info()).keys
        return keys > 0 and keys > await count_own(server)


def verification_gate_of(
    source: Endpoint, target: Endpoint, settings: TransferSettings, held_before: Callable[[], bool]
) -> Callable[[], Awaitable[CutOverCheckResult]]:
    """The gate of a cut-over: open if the verifier finds both ends equal.

    `held_before` tells, when it is asked, whether the target had keys of its own.
    """

    async def gate() -> CutOverCheckResult:
        try:
            had_keys, path = held_before(), source.rdb_path
            if path is None:
                from engine.verify import verify

                found = await verify(source, target, settings, held_before=had_keys)
            else:
                from engine.verify import verify_file

                found = await verify_file(path, target, settings, held_before=had_keys)
        except EngineError as error:
            return CutOverCheckResult(False, f"both ends could not be compared: {error}")
        return CutOverCheckResult(found.ok, found.reason, found)

    return gate


class FilesVerificationGate:
    """`FilesCutOverCheck`: open if the target has what the files of an append-only file say."""

    def __init__(self, target: Endpoint, settings: TransferSettings) -> None:
        self._target = target
        self._settings = settings
        self._values: dict[tuple[int, bytes], FileValue] | None = None
        self._error = ""

    async def read(self, files: AofFiles, survey: AofSurvey) -> None:
        """Read them once more, while they are applied; a failure is told by the gate."""
        from engine.verify import values_of_files

        self._error = ""
        try:
            self._values = await values_of_files(files, survey, self._settings)
        except EngineError as error:
            self._error = str(error)

    async def __call__(self, files: AofFiles, survey: AofSurvey) -> CutOverCheckResult:
        """Ask the target."""
        from engine.verify import verify_aof

        if self._values is None:
            await self.read(files, survey)
        if self._values is None:
            return CutOverCheckResult(False, f"both ends could not be compared: {self._error}")
        try:
            found = await verify_aof(self._values, self._target, self._settings)
        except EngineError as error:
            return CutOverCheckResult(False, f"both ends could not be compared: {error}")
        return CutOverCheckResult(found.ok, found.reason, found)


def comparison_of(
    source: Endpoint, target: Endpoint, settings: TransferSettings, held_before: Callable[[], bool]
) -> Comparison | None:
    """What compares both ends of a source that is followed; None for a file."""
    if source.file_path is not None:
        return None
    (found,) = comparisons_of([(source, target, ONLY)], settings, held_before)
    return found


def comparisons_of(
    lanes: Sequence[tuple[Endpoint, Endpoint, Route]],
    settings: TransferSettings,
    held_before: Callable[[], bool],
) -> list[Comparison]:
    """What compares both ends of each lane of a migration, in their order: (source, target, route).
    Lanes that share an end are counted together."""
    from engine.proof.key_screen import KeyScreen
    from engine.verify import LiveComparison, joined

    counts = joined([(source, target) for source, target, _ in lanes])
    return [
        LiveComparison(
            source, target, settings, held_before, route, together, len(lanes), KeyScreen
        )
        for (source, target, route), together in zip(lanes, counts, strict=True)
    ]


def compare_of(
    source: Endpoint, target: Endpoint
) -> Callable[[int, list[bytes]], Awaitable[list[bytes]]]:
    """Which of these keys of a database differ between the ends."""

    async def compare(db: int, keys: list[bytes]) -> list[bytes]:
        assert source.file_path is None, "settings that compare are refused for a file"
        from engine.verify import differing

        return await differing(source, target, db, keys)

    return compare
