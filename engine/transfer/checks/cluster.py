"""What a node tells of its cluster: shards, slots that no node has, slots that are being moved."""

from __future__ import annotations

from engine.errors import ProtocolFault
from engine.model import topology
from engine.model.topology import Topology
from engine.transfer.checks.check_result import Check, Side, failed
from engine.wire.control_connection import Admin

_PROBLEMS_MOST = 5


async def ask_topology(end: Admin) -> Topology:
    """The cluster as this node sees it. Raises as `Admin.call`, and `ProtocolFault`."""
    slots, nodes = await end.ask(("CLUSTER", "SLOTS"), ("CLUSTER", "NODES"))
    try:
        return topology.read(slots, nodes, end.endpoint.host)
    except ValueError as exc:
        raise ProtocolFault(f"{end.name} does not tell of its cluster: {exc}") from None


async def check_cluster(side: Side, end: Admin) -> Check:
    """How the cluster is made, and what keeps it from being moved. Raises as
    `ask_topology`."""
    found = await ask_topology(end)
    problems = list(found.problems)
    primaries = ", ".join(shard.primary.address for shard in found.shards)
    replicas = sum(len(shard.replicas) for shard in found.shards)
    figure = f"cluster mode is enabled: {len(found.shards)} primaries"
    if found.shards:
        figure += f" ({primaries}), {replicas} replicas"
    shown = problems[:_PROBLEMS_MOST]
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    if shown:
        return failed(
            f"{side}-mode",
            f"{figure}; {'; '.join(shown)}",
            "Have each slot served by a node that the others reach, and let moves of slots end.",
        )
    return failed(
        f"{side}-mode",
        f"{figure}; they have all slots",
        "Only servers with cluster mode disabled can be moved for now.",
    )
