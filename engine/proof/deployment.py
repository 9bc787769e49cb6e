"""An end as it is compared: one server, or the shards of a cluster with their slots."""

from __future__ import annotations

import array
import contextlib
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine._native import key_slot
from engine.errors import EngineError, FaultOf, LinkError, ProtocolFault, ServerError
from engine.model import cluster_topology
from engine.model.cluster_shard import AddressMap
from engine.model.cluster_topology import Topology
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedEnd, endpoint_of
from engine.model.online_checkpoint import OWN_PREFIX, POSITION_DB, POSITION_KEY, kind_of
from engine.model.position import TargetPosition
from engine.model.proof import ComparedServer
from engine.model.server import ServerInfo
from engine.model.slots import SLOTS, SlotSet
from engine.wire import cluster_primary
from engine.wire.control_connection import Admin, admin

# A save sets the number of changes back.
_CHANGES = b"rdb_changes_since_last_save"
_WRITTEN = re.compile(
    rb"^(" + _CHANGES + rb"|rdb_last_save_time|rdb_bgsave_in_progress|rdb_saves):(-?\d+)",
    re.MULTILINE,
)
# Of a server that does not tell its databases so many are tried.
_DATABASES_MOST = 1 << 16
_REPLID = re.compile(rb"^master_replid:(\w+)", re.MULTILINE)
_OFFSET = re.compile(rb"^(?:slave_repl_offset|master_repl_offset):(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Shard:
    """One server that is asked; `slots` are those of its keys, None where the end is no cluster,
    `epoch` is that of its configuration there."""

    endpoint: Endpoint
    slots: SlotSet | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Deployment:
    """One end. `told`: the cluster that it is, None: it is none."""

    fault: FaultOf
    shards: tuple[Shard, ...]
    told: Topology | None

    def part_of(self, key: bytes) -> int:
        """The index of the shard that has the key."""
        if self.told is None:
            return 0
        slot = key_slot(key)
        return next((n for n, each in enumerate(self.shards) if slot in (each.slots or ())), 0)

    @property
    def parts(self) -> bytes:
        """The same by slot, for `LookReader`; empty where there is one."""
        if len(self.shards) == 1:
            return b""
        table = array.array("H", bytes(2 * SLOTS))
        for number, shard in enumerate(self.shards):
            for slot in shard.slots or ():
                table[slot] = number
        return table.tobytes()


async def look(
    fault: FaultOf, endpoint: Endpoint, addresses: AddressMap, timeout: float
) -> Deployment:
    """Ask an end what it is. Raises `EngineError`."""
    async with admin(endpoint, timeout=timeout, fault=fault) as end:
        info = await end.info()
        if info.mode != "cluster":
            return Deployment(fault, (Shard(endpoint),), None)
        replies = await end.ask(*cluster_primary.QUESTIONS)
        told = cluster_primary.read(end.endpoint, replies)
    if missing := told.missing:
        raise EngineError(
            f"no node of the {fault}'s cluster has the slots {missing.words}", fault=fault
        )
    ends = [
        PlannedEnd(
            shard.primary.host,
            shard.primary.port,
            (shard.primary.id, *(each.id for each in shard.replicas)),
            shard.slots,
        )
        for shard in told.shards
    ]
    shards = tuple(
        Shard(endpoint_of(each, endpoint, ends, addresses), each.slots, shard.primary.epoch)
        for each, shard in zip(ends, told.shards, strict=True)
    )
    return Deployment(fault, shards, told)


@dataclass(frozen=True, slots=True)
class Asked:
    """What the servers of an end say of themselves: INFO of each, and as it stands in a report."""

    infos: tuple[ServerInfo, ...]
    servers: tuple[ComparedServer, ...]

    @property
    def keys(self) -> int:
        """Of all servers."""
        return sum(info.keys for info in self.infos)

    @property
    def processes(self) -> set[str]:
        """Those of the servers that tell theirs."""
        return {info.process for info in self.infos} - {""}

    def shares_with(self, other: Asked) -> bool:
        """Whether a server is among those of the other end too. (Two primaries have no replication
        history in common.)"""
        ours, theirs = (
            {info.run_id or (info.replid if info.role == "master" else "") for info in each.infos}
            for each in (self, other)
        )
        return not (ours & theirs) <= {""}


async def describe(ends: Sequence[Admin], shards: Sequence[Shard]) -> Asked:
    """Ask the servers behind `ends`. Raises `EngineError`."""
    infos, servers = [], []
    for end, shard in zip(ends, shards, strict=True):
        reply = await end.call("INFO")
        info = end.info_in(reply)
        infos.append(info)
        servers.append(
            ComparedServer(
                end.endpoint.address,
                info.name,
                info.replid,
                offset_in(reply),
                info.keys,
                "" if shard.slots is None else shard.slots.words,
            )
        )
    return Asked(tuple(infos), tuple(servers))


def offset_in(reply: object) -> int | None:
    """The end of a server's replication stream, by its INFO; None: it does not tell."""
    found = _OFFSET.findall(reply) if isinstance(reply, bytes) else []
    return max(map(int, found)) if found else None


def replid_in(reply: object) -> str | None:
    """The id of a server's replication history, by its INFO; None: it does not tell."""
    found = _REPLID.search(reply) if isinstance(reply, bytes) else None
    return None if found is None else found[1].decode()


def written_in(persistence: object) -> object | None:
    """What changes with every write at a server, by its INFO; None: it does not tell."""
    told = dict(_WRITTEN.findall(persistence)) if isinstance(persistence, bytes) else {}
    return told if _CHANGES in told else None


async def written(ends: Iterable[Admin]) -> object | None:
    """What changes with every write at any of the servers; None: one does not tell."""
    found = [written_in(await end.call("INFO", "persistence")) for end in ends]
    return None if None in found else found


async def is_owned(ends: Sequence[Admin]) -> bool:
    """Whether a migration that is under way has the target behind `ends`, with whichever of its
    lanes. A position that cannot be read is one of a migration that is under way."""
    for end in ends:
        for name in await position_names(end):
            value = await end.call("GET", name)
            if value is None:
                continue
            found = position_in(value)
            if found is None or not found.opened:
                return True
    return False


async def position_names(end: Admin) -> list[bytes]:
    """The keys of a server that hold a position of the engine's; their database is chosen then."""
    end.choose(POSITION_DB)
    kind = kind_of(POSITION_KEY)
    return [each async for each in _own_names(end) if kind_of(each) == kind]


async def told_by_all(ends: Iterable[Admin]) -> Topology:
    """A cluster as all of its primaries tell it together. Raises `EngineError`."""
    told = [
        cluster_primary.read(end.endpoint, await end.ask(*cluster_primary.QUESTIONS))
        for end in ends
    ]
    return cluster_topology.merge(told)


def slots_moved(before: Topology | None, now: Topology, first: Topology) -> bool:
    """Whether slots have moved since `before`, be it there and back: the node that takes them has a
    later epoch then. So has a replica that took its shard over, with all of its slots: it is
    another server, whose keys are compared anew. None: since `first`, as one node told it, which
    may not have heard of all epochs."""
    told = before or first
    if [each.slots for each in told.shards] != [each.slots for each in now.shards]:
        return True
    if before is None:
        ids = [[each.primary.id for each in one.shards] for one in (first, now)]
        return ids[0] != ids[1]
    for was, shard in zip(before.shards, now.shards, strict=True):
        if was.primary.id == shard.primary.id:
            if was.primary.epoch != shard.primary.epoch:
                return True
        elif shard.primary.id not in {each.id for each in was.replicas}:
            return True
    return False


async def refuses(ends: Iterable[Admin], db: int) -> bool:
    """Whether a server has no such database, or a cluster has one database alone."""
    for end in ends:
        try:
            await end.select(db)
        except ServerError:
            return True
    return False


def position_in(value: object) -> TargetPosition | None:
    """What the value of a position key says; None: nothing that is known."""
    if isinstance(value, bytes):
        with contextlib.suppress(ProtocolFault):
            return TargetPosition.decode(value)
    return None


async def _own_names(end: Admin) -> AsyncIterator[bytes]:
    cursor: Any = 0
    while cursor != b"0":
        cursor, names = await end.call("SCAN", cursor, "MATCH", OWN_PREFIX + b"*", "COUNT", 10_000)
        for name in names:
            yield name


async def databases(end: Admin) -> set[int]:
    """Those of a server that have keys, 0 in any case. Raises `EngineError`, so while it loads its
    data: those that it has not come to yet it does not tell."""
    text = await end.call("INFO")
    if isinstance(text, bytes) and b"# Keyspace" in text:
        info = end.info_in(text)
        if info.loading:
            raise LinkError(f"{end.name} is loading its data", fault=end.fault)
        return {0, *(each.db for each in info.keyspace)}
    # It does not tell: all that there may be are looked at.
    found = {0}
    for db in range(1, _DATABASES_MOST):
        try:
            await end.select(db)
        except ServerError:
            break
        found.add(db)
    return found
