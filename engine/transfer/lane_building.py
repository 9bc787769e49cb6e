"""Makes the lanes of one process, with what watches the clusters at their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.model.credentials import Credentials
from engine.model.settings import TransferSettings
from engine.transfer.checkpoint_store import CheckpointStore
from engine.transfer.cluster_monitor import ClusterMonitor
from engine.transfer.control_connections import Side
from engine.transfer.cut_over_check import Comparison, CutOverCheckInSync
from engine.transfer.lane import Lane
from engine.transfer.lane_plan import LaneEnds
from engine.transfer.migration_context import MigrationContext


def clusters_of(ends: LaneEnds) -> list[Side]:
    """Which ends of a migration are clusters, by any of its lanes."""
    sides: list[Side] = []
    if ends.route.from_cluster:
        sides.append("source")
    if ends.route.to_cluster:
        sides.append("target")
    return sides


def build(
    ends: Sequence[LaneEnds],
    contexts: Sequence[MigrationContext],
    stores: Sequence[CheckpointStore],
    compared: Sequence[Comparison | None],
    gate: CutOverCheckInSync,
    settings: TransferSettings,
    credentials: Credentials,
    on_event: Callable[[str], None],
) -> tuple[list[Lane], dict[Side, ClusterMonitor]]:
    """A lane for each of `ends`, whose context, checkpoints and comparison have the same place.
    `on_event` is told what is of no lane in particular."""
    clusters = {side: ClusterMonitor(side, settings, on_event) for side in clusters_of(ends[0])}
    lanes = [
        Lane(
            each.source,
            each.target,
            context,
            checkpoints=store,
            gate=gate,
            comparison=comparison,
            credentials=credentials,
            route=each.route,
            clusters=clusters,
        )
        for each, context, store, comparison in zip(ends, contexts, stores, compared, strict=True)
    ]
    return lanes, clusters
