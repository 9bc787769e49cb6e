"""Which lanes of a migration are driven by which process.

Lanes that share a server stay together, and so do those that others between them join: they share
its fence, its settings, and its counts of keys (`transfer.shared_source`, `transfer.shared_target`,
`verify.lane_counts`).
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.model.lane_plan import PlannedLane


def grouped(lanes: Sequence[PlannedLane], most: int) -> list[list[int]]:
    """The places of the lanes, by process: as few as have no more than `most` lanes each, or that
    many that cannot be parted; 0: all in one."""
    if not most:
        return [list(range(len(lanes)))]
    groups: list[list[int]] = []
    for members in inseparable(lanes):
        # The fullest one that has room for them.
        fits = [group for group in groups if len(group) + len(members) <= most]
        if fits:
            max(fits, key=len).extend(members)
        else:
            groups.append(members)
    return [sorted(group) for group in groups]


def inseparable(lanes: Sequence[PlannedLane]) -> list[list[int]]:
    """Lanes that share a server, directly or by others between them; the largest first."""
    found: list[tuple[set[object], list[int]]] = []
    for at, lane in enumerate(lanes):
        ends: set[object] = {("source", lane.source), ("target", lane.target)}
        members = [at]
        apart = []
        for others in found:
            if others[0] & ends:
                ends |= others[0]
                members = others[1] + members
            else:
                apart.append(others)
        found = [*apart, (ends, members)]
    return sorted((members for _, members in found), key=len, reverse=True)
