"""The gate of a cut-over: a decision that carries its reason, and what it is made from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from engine.model import silent_commands
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.lane_route import Route
from engine.model.server import ServerInfo
from engine.model.verification import AtFence, Besides, Compared, Counts, Verification
from engine.transfer.migration_context import MigrationContext

if TYPE_CHECKING:
    from engine.sources.aof_files import AofFiles
    from engine.sources.aof_findings import AofSurvey


@dataclass(frozen=True, slots=True)
class CutOverCheckResult:
    """Whether the target may be opened, and the one line that says why or why not."""

    ok: bool
    reason: str
    verification: Verification | None = None


CutOverCheck = Callable[[], Awaitable[CutOverCheckResult]]
# The same while the source's writers are paused; it is told the engine's own key on the target.
CutOverCheckInSync = Callable[[bytes], Awaitable[CutOverCheckResult]]
Reach = Callable[[int], Awaitable[None]]
Settle = Callable[[], Awaitable[int]]
"""Waits until the target's expire times are set back; returns `TtlGuard.ended`."""

NOT_COMPARED = "cut over without the comparison, as asked"
WITHOUT_COMPARISON = (
    "complete-migration --skip-verification cuts over without the comparison, but with fence, "
    "drain and write block"
)
"""What a refusal by the comparison offers."""


async def compared(context: MigrationContext, compare: CutOverCheck) -> CutOverCheckResult:
    """What `compare` finds, unless the operator's word leaves the comparison out. A refusal says
    how it can be left out, where there is an operator to ask for it.
    """
    if context.skip_verification:
        return CutOverCheckResult(True, NOT_COMPARED)
    found = await compare()
    return found if found.ok else replace(found, reason=offering(context, found.reason))


def offering(context: MigrationContext, reason: str) -> str:
    """The reason of a refusal by the comparison, with the word that leaves the comparison out."""
    if context.one_go or context.skip_verification:
        return reason
    return f"{reason.rstrip('.')}; {WITHOUT_COMPARISON}"


class FilesCutOverCheck(Protocol):
    """A gate for the files of an append-only file, which are open. It is
    `fleet.cut_over_comparisons.FilesVerificationGate`."""

    async def read(self, files: AofFiles, survey: AofSurvey) -> None:
        """Read what is to be compared, as far as `survey` says that they are applied; they may be
        applied meanwhile. Never raises `EngineError`."""
        ...

    async def __call__(self, files: AofFiles, survey: AofSurvey) -> CutOverCheckResult:
        """Whether the target has what the files say."""
        ...


class WithoutFiles:
    """`FilesCutOverCheck` by a gate that does not look at them."""

    def __init__(self, gate: CutOverCheck) -> None:
        self._gate = gate

    async def read(self, files: AofFiles, survey: AofSurvey) -> None:
        """Nothing."""

    async def __call__(self, files: AofFiles, survey: AofSurvey) -> CutOverCheckResult:
        """What the gate says."""
        del files, survey
        return await self._gate()


class Comparison(Protocol):
    """Compares both ends of a source that is followed: before its writers are paused, and then.

    It is `engine.verify.LiveComparison`, which says what each of them does. All of them raise
    `LinkError`, `AuthError`, `ServerError`.
    """

    over_budget: dict[DbKey, str]
    search_names: Sequence[bytes]
    """Names of the source's search aliases and dictionaries, which are compared by name."""

    @property
    def counts_are_known(self) -> bool:
        """Whether counts, and names that the target alone has, mean anything."""
        ...

    async def open(
        self, own_keys: Sequence[bytes] = (), *, extend_ms: int = 0, primary: Endpoint | None = None
    ) -> None:
        """Dial both ends: of the source the `primary` that takes its writes, where that is another
        server."""
        ...

    async def read_replica(self) -> None:
        """From here on the source itself is read, and not the primary that `open` was told of."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...

    def doubtful(self, kinds: Iterable[str]) -> AsyncIterator[tuple[int, list[bytes]]]:
        """All the source's keys of these kinds: "groups", "fields", "all"."""
        ...

    def sample(self, seed: int = 0) -> AsyncIterator[tuple[int, list[bytes]]]:
        """Some of the source's keys, of each database."""
        ...

    async def stray_keys(self) -> list[str]:
        """Look for keys that an end, a cluster's node, holds of slots that it does not own: they
        are left out of its counts. What is new of that is returned, a sentence a node."""
        ...

    def one_sided_names(self) -> AsyncGenerator[tuple[int, list[bytes], int], None]:
        """Names that are at one end alone, mostly none, and how many were looked up for that."""
        ...

    def names_looked_up(self) -> None:
        """All that the last `one_sided_names` gave were compared."""
        ...

    async def compare(self, db: int, keys: Sequence[bytes], reach: Reach) -> Compared:
        """Compare some keys of a source that is written to."""
        ...

    def every_key(self) -> AsyncGenerator[tuple[int, list[bytes]], None]:
        """All the source's keys, in portions."""
        ...

    async def at_rest(self, db: int, keys: Sequence[bytes]) -> Compared:
        """Compare some keys while nothing changes; expire times may still be extended."""
        ...

    @property
    def processes(self) -> tuple[str, str]:
        """What both ends tell of their processes (`ServerInfo.process`), as it was when it was
        opened; empty: nothing."""
        ...

    def apart(self) -> Comparison:
        """Another one of the same ends, for another task. It counts nothing."""
        ...

    @property
    def read(self) -> int:
        """Bytes that one which is `apart` has read so far of both ends, to compare keys."""
        ...

    async def counts(self, reach: Reach) -> Counts | None:
        """Both ends' counts; None if the source is written to meanwhile."""
        ...

    @property
    def lengthens(self) -> bool:
        """Whether the source may lengthen a string without a word (`model.silent_commands`)."""
        ...

    async def silent_calls(self) -> silent_commands.Calls | None:
        """How often the source was called by what leaves no word in the stream."""
        ...

    async def counts_together(self) -> Counts | None:
        """Behind `at_fence`: the counts of all lanes that share an end with this one, once each of
        them asks for it. None where there are no others, or counts say nothing."""
        ...

    @property
    def doubted(self) -> bool:
        """Whether these have differed since every name of this lane was looked up."""
        ...

    async def counts_of(self, source: ServerInfo, settle: Settle) -> Counts | None:
        """The target's counts against those that `source` has, behind a fence that lets no client
        read it; everything is applied. None where counts say nothing. `settle` as of `at_fence`."""
        ...

    async def besides(self) -> Besides:
        """What the source holds beside keys, and what of that the target lacks."""
        ...

    async def choose(self, first: Iterable[DbKey], then: Iterable[DbKey]) -> None:
        """What `at_fence` reads."""
        ...

    async def at_fence(self, settle: Settle) -> AtFence:
        """The comparison while the source's writers are paused."""
        ...


Comparisons = Callable[[Sequence[tuple[Endpoint, Endpoint, Route]]], Sequence[Comparison]]
"""Makes one for each lane of a migration: (source, target, route)."""
