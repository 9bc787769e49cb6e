"""The shards of a group that is a cluster, as they are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from engine.model.cluster_shard import AddressMap
from engine.model.cluster_topology import Topology


@dataclass(frozen=True, slots=True)
class GroupShard:
    """`host` and `port` are its primary's, as it is reached from here; `replicas` are (host, port)
    of each."""

    slots: str
    host: str
    port: int
    replicas: tuple[tuple[str, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GroupShard:
        """Inverse of `to_dict`."""
        replicas = tuple((host, port) for host, port in data["replicas"])
        return cls(data["slots"], data["host"], data["port"], replicas)


def shards_of(told: Topology, addresses: AddressMap) -> tuple[GroupShard, ...]:
    """Those that the cluster tells of."""
    return tuple(
        GroupShard(
            str(shard.slots),
            *addresses.there(shard.primary.host, shard.primary.port),
            tuple(addresses.there(each.host, each.port) for each in shard.replicas),
        )
        for shard in told.shards
    )
