"""The figures that both a running migration (`Progress`) and a finished one (`Report`) have."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from engine.model.figure import added, figure, first, most, only


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Counters from acknowledged batches alone. Times are seconds, `bytes` value bytes.

    `source_type` is how the source is read, "replica", "scan" or "file"; "auto" until that is
    known. `retries` counts tries that failed and were repeated: batches sent, ends dialled.
    `rebuilt_keys` are values that were made on the target by commands, for they are longer than one
    argument may be there.

    Where the source is followed: `applied_offset` is the replication offset up to which the target
    has everything, `source_offset` the source's own, as last heard. `commands` counts the stream's
    commands that were applied, `spool_bytes` is what waits on disk now (in a report: the most that
    ever waited), `repaired_keys` were fetched anew because their commands could not be carried,
    `held_keys` are dirty: they wait to be read again from the source.
    """

    source_type: str = figure("auto", first)
    keys: int = figure(0, added, metric="keys", meaning="Keys that the target has acknowledged.")
    bytes: int = figure(
        0,
        added,
        metric="bytes",
        meaning="Value bytes that the target has acknowledged.",
        label="Data",
        form="bytes",
    )
    seconds: float = figure(0.0, most)
    keys_per_second: float = figure(
        0.0, added, metric="keys_per_second", meaning="Keys a second during the snapshot."
    )
    skipped: int = figure(0, added, words="skipped", report="skipped (the target had them)")
    vanished: int = figure(0, added, words="vanished", report="vanished at the source meanwhile")
    retries: int = figure(
        0,
        added,
        metric="retries",
        meaning="Tries that failed and were repeated: batches sent, connections made.",
        member="Retries",
        label="Retries",
        worry=0,
        words="retries",
        report="retries",
    )
    reconnects: int = figure(
        0,
        added,
        metric="reconnects",
        meaning="Links that were made anew.",
        member="Reconnects",
        label="Reconnects",
        worry=0,
        words="reconnects",
        report="reconnects",
    )
    rebuilt_keys: int = figure(
        0,
        added,
        metric="rebuilt_keys",
        meaning="Values that were made on the target by commands, longer than it takes.",
        member="RebuiltKeys",
        label="Made by commands",
        words="values made by commands",
        report="values made by commands",
    )
    applied_offset: int | None = figure(None, only, label="Applied offset")
    source_offset: int | None = figure(None, only, label="Source's offset")
    commands: int = figure(
        0,
        added,
        metric="applied_commands",
        meaning="Commands of the stream that were applied.",
        member="Commands",
        label="Commands applied",
    )
    spool_bytes: int = figure(
        0,
        added,
        metric="spool_bytes",
        meaning="Bytes of the stream that wait on disk.",
        member="SpoolBytes",
        label="Spool",
        form="bytes",
        worry=0,
    )
    partial_syncs: int = figure(
        0,
        added,
        metric="partial_syncs",
        meaning="Partial syncs with the source.",
        member="PartialSyncs",
        label="Partial syncs",
        words="partial syncs",
        report="partial syncs",
        followed=True,
    )
    full_syncs: int = figure(
        0,
        added,
        metric="full_syncs",
        meaning="Full syncs with the source.",
        member="FullSyncs",
        label="Full syncs",
        # The first one is how every transfer begins.
        worry=1,
        words="full syncs",
        usual=1,
        report="full syncs",
        followed=True,
    )
    repaired_keys: int = figure(
        0,
        added,
        metric="repaired_keys",
        meaning="Keys that were read again from the source.",
        member="RepairedKeys",
        label="Repaired keys",
        words="keys repaired",
        report="keys repaired",
        followed=True,
    )
    held_keys: int = figure(
        0,
        added,
        member="HeldKeys",
        label="Waiting to be copied again",
        words="keys waiting to be copied again",
        report="keys waiting to be copied again",
        followed=True,
    )

    @property
    def shared(self) -> dict[str, Any]:
        """All of these, by their names."""
        return {each.name: getattr(self, each.name) for each in fields(Figures)}
