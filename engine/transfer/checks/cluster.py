"""What nodes tell of their cluster: shards, slots that no node has, slots that are being moved, and
what only a cluster asks of a source or a target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine._native import key_slot
from engine.errors import AuthError, EngineError, ProtocolFault, ServerError
from engine.model import cluster_topology
from engine.model.cluster_shard import Place
from engine.model.cluster_topology import Node, Topology
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import LEFT_KEY, OWN_PREFIX, POSITION_KEY, kind_of
from engine.model.position import TargetPosition
from engine.model.report import printable_key
from engine.model.sentinel_group import node_address
from engine.model.settings import TransferSettings
from engine.transfer.checks.check_result import Check, Side, failed, passed, warned
from engine.transfer.leftovers import taken_over_words
from engine.transfer.target_claim import foreign
from engine.wire.control_connection import Admin, Arg

_PROBLEMS_MOST = 5
# Keys that are looked at for a slot that has nearly all of them; the share from which it is told,
# and of how many at the least.
_LOOKED_AT = 1000
_HOT_SHARE = 0.9
_HOT_LEAST = 100
_SHOWN_KEY = 60
# Own keys in a slot: two of each lane.
_OWN_MOST = 4096
# A node with no more keys is scanned for them: in a second.
_SCANNED_MOST = 500_000
_SCANNED_AT_ONCE = 5000


@dataclass(slots=True)
class Surveyed:
    """A cluster, by all of its primaries that answer. `named`: what the nodes that were named have
    said; `unreachable`: primaries that do not answer, and why; `refusing`: those whose
    cluster_state is not ok; `moving`: slots that Valkey moves; `strangers`: addresses of primaries
    at which another node answers."""

    told: Topology
    named: dict[Place, Topology | EngineError] = field(default_factory=dict)
    unreachable: dict[Place, EngineError] = field(default_factory=dict)
    refusing: list[Place] = field(default_factory=list)
    moving: str = ""
    strangers: list[tuple[Node, Place]] = field(default_factory=list)


async def ask_topology(end: Admin) -> Topology:
    """The cluster as this node sees it. Raises as `Admin.call`, and `ProtocolFault`."""
    slots, nodes = await end.ask(("CLUSTER", "SLOTS"), ("CLUSTER", "NODES"))
    try:
        return cluster_topology.read(slots, nodes, end.endpoint.host)
    except ValueError as exc:
        raise ProtocolFault(f"{end.name} does not describe its cluster: {exc}") from None


def check_cluster(side: Side, found: Surveyed) -> Check:
    """How the cluster is made, and what keeps it from being moved."""
    told = found.told
    problems = list(told.problems)
    if found.moving:
        problems.append(f"the slots {found.moving} are being moved")
    problems += (f"{node_address(*each)} says cluster_state:fail" for each in found.refusing)
    primaries = ", ".join(shard.primary.address for shard in told.shards)
    replicas = sum(len(shard.replicas) for shard in told.shards)
    figure = f"cluster mode is enabled: {len(told.shards)} primaries"
    if told.shards:
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
    return passed(f"{side}-mode", f"{figure}; they have all slots")


def check_named(side: Side, found: Surveyed) -> Check:
    """What the nodes are that were named, and which shards are found without it."""
    name = f"{side}-endpoints"
    told = found.told
    known = {node.id: node for node in told.nodes}
    wrong, silent, replicas = [], [], []
    shards = set()
    for place, said in found.named.items():
        address = node_address(*place)
        if isinstance(said, Topology):
            node = known.get(said.me)
            if node is None:
                wrong.append(f"{address} is a node of another cluster")
                continue
            shards.add(node.replica_of or node.id)
            if node.replica_of:
                above = known.get(node.replica_of)
                replicas.append(f"{address} is a replica of {above.address if above else '?'}")
        elif isinstance(said, ServerError):
            wrong.append(f"{address} is not a node of a cluster")
        else:
            silent.append(f"{address} does not answer ({said.message.removesuffix('.')})")
    if wrong:
        return failed(
            name,
            "; ".join(wrong),
            "Name nodes of one cluster: any of them will do, the others are found through it.",
        )
    named = ", ".join(node_address(*each) for each in found.named)
    parts = [f"the cluster is found through {named}"]
    if replicas:
        parts.append(f"{', '.join(replicas)}: primaries are used")
    missing = [each for each in told.shards if each.primary.id not in shards]
    if len(found.named) > 1 and missing:
        shown = ", ".join(each.primary.address for each in missing[:_PROBLEMS_MOST])
        more = len(missing) - _PROBLEMS_MOST
        shown += f" and {more} more" if more > 0 else ""
        shards_are = (
            "1 shard that was not named is"
            if len(missing) == 1
            else (f"{len(missing)} shards that were not named are")
        )
        parts.append(f"{shards_are} found and added: {shown}")
    figure = "; ".join([*parts, *silent])
    if silent:
        return warned(name, figure, "Start it, or do not name it: one node that answers is enough.")
    return passed(name, figure)


def check_one_server(side: Side, endpoint: Endpoint) -> Check:
    """Several nodes were named, and the one that answers is a server by itself: it is not taken for
    the others."""
    return failed(
        f"{side}-endpoints",
        f"at least one server of {endpoint.address} is not a node of a cluster",
        "Name nodes of one cluster: any of them will do, the others are found through it. A server "
        "with cluster mode disabled is named alone.",
    )


def check_reachable(side: Side, found: Surveyed) -> Check | None:
    """The primaries that do not answer at the address that is announced, or another node in their
    place; None: each of them does."""
    if found.strangers:
        return _check_strangers(side, found.strangers)
    if not found.unreachable:
        return None
    shown = [
        f"{node_address(*place)}: {error.message.removesuffix('.')}"
        for place, error in list(found.unreachable.items())[:_PROBLEMS_MOST]
    ]
    if more := len(found.unreachable) - len(shown):
        shown.append(f"and {more} more")
    if all(isinstance(each, AuthError) for each in found.unreachable.values()):
        return failed(
            f"{side}-auth",
            f"primaries of the cluster refuse the credentials: {'; '.join(shown)}",
            "All nodes of a cluster are reached with the same user and password.",
        )
    return failed(
        f"{side}-reachable",
        f"primaries that the cluster announces cannot be reached from here: {'; '.join(shown)}",
        "Where they have other addresses from here (NAT, a forwarded port): --address-map "
        "ANNOUNCED=REACHED; else check the network between this machine and each node.",
    )


def _check_strangers(side: Side, strangers: Sequence[tuple[Node, Place]]) -> Check:
    shown = [
        f"at {node_address(*place)} another node answers than the primary that the cluster "
        f"announces as {node.address}"
        for node, place in strangers[:_PROBLEMS_MOST]
    ]
    if more := len(strangers) - len(shown):
        shown.append(f"and {more} more")
    return failed(
        f"{side}-reachable",
        "; ".join(shown),
        "Say where each of them is reached from here: --address-map ANNOUNCED=REACHED.",
    )


def check_apart(both: Mapping[Side, Topology]) -> Check | None:
    """Whether source and target are one cluster; None: they are not."""
    one, other = ({node.id for node in told.nodes} for told in both.values())
    if not one & other:
        return None
    return failed(
        "different-servers",
        "the source and the target are one cluster: they have nodes in common",
        "Name another cluster as the target.",
    )


async def check_hot_slot(source: Admin) -> Check | None:
    """A hash tag that puts nearly all keys into one slot, and so on one node; None: there is none.
    Raises `LinkError`."""
    keys: list[bytes] = []
    cursor: Arg = 0
    while len(keys) < _LOOKED_AT:
        (page,) = await source.pipeline([("SCAN", cursor, "COUNT", _LOOKED_AT)])
        if not isinstance(page, list):
            return None  # another check says so
        cursor = page[0]
        keys += page[1]
        if cursor == b"0":
            break
    keys = keys[:_LOOKED_AT]
    if len(keys) < _HOT_LEAST:
        return None
    ((slot, count),) = Counter(map(key_slot, keys)).most_common(1)
    if count < _HOT_SHARE * len(keys):
        return None
    example = next(key for key in keys if key_slot(key) == slot)
    shown = printable_key(example)[:_SHOWN_KEY]
    return warned(
        "hot-slot",
        f"of {len(keys):,} keys looked at {count:,} are in the slot {slot} (as {shown!r})",
        "One node of a cluster has all keys of a slot, however many nodes there are: hash tags "
        "({…} in names) put them there.",
    )


@dataclass(frozen=True, slots=True)
class OwnFound:
    """The engine's own keys that were found on a cluster's node. `unsearched`: why only those of
    the lane's own slot were looked for, in words; empty: all were."""

    keys: list[bytes]
    unsearched: str = ""


async def own_keys_in(target: Admin, slot: int) -> OwnFound:
    """The engine's own keys on a cluster's node, which are in this slot; or in another one, where
    another migration planned its lanes before slots moved: of a node with few keys they are found
    as well. Raises as `Admin.call`."""
    found: dict[bytes, None] = dict.fromkeys(
        await target.call("CLUSTER", "GETKEYSINSLOT", slot, _OWN_MOST)
    )
    unsearched = ""
    try:
        cursor: Arg = 0
        if await target.call("DBSIZE") > _SCANNED_MOST:
            cursor = b"0"
            unsearched = f"it has more than {_SCANNED_MOST:,} keys"
        while cursor != b"0":
            cursor, page = await target.call(
                "SCAN", cursor, "MATCH", OWN_PREFIX + b"*", "COUNT", _SCANNED_AT_ONCE
            )
            found.update(dict.fromkeys(page))
    except AuthError:
        unsearched = "the user may not run DBSIZE and SCAN there"
    return OwnFound([key for key in found if key.startswith(OWN_PREFIX)], unsearched)


async def check_free(target: Admin, slot: int, settings: TransferSettings) -> Check:
    """Whether another migration, of whichever state, has the node. Raises as `Admin.call`."""
    name = "other-migration"
    own = await own_keys_in(target, slot)
    kind = kind_of(POSITION_KEY)
    positions = [key for key in own.keys if kind_of(key) == kind]
    replies = await target.pipeline([("GET", key) for key in positions])
    found = [TargetPosition.decode(each) for each in replies if isinstance(each, bytes)]
    busy = next((each for each in found if not each.opened), None)
    if busy is None and own.unsearched:
        return warned(
            name,
            _only_in(target, slot, own, "of another migration"),
            "Make sure yourself that no other migration has the target.",
        )
    if busy is None:
        return passed(name, "no other migration has the target")
    error = foreign(busy, target.name)
    if settings.take_over:
        return warned(name, error.message, "It is ended (--take-over).")
    return failed(name, error.message, error.remedy)


async def check_left(target: Admin, slot: int, settings: TransferSettings) -> Check:
    """Whether a migration that was not completed has left keys on the node. Raises as
    `Admin.call`."""
    name = "leftovers"
    own = await own_keys_in(target, slot)
    kind = kind_of(LEFT_KEY)
    marks = [key for key in own.keys if kind_of(key) == kind]
    replies = await target.pipeline([("GET", key) for key in marks])
    found = [TargetPosition.decode(each) for each in replies if isinstance(each, bytes)]
    keys = (await target.info()).keys - len(own.keys)
    if not found and own.unsearched:
        of = "of a migration that was not completed"
        return passed(name, _only_in(target, slot, own, of))
    if not found or keys <= 0:
        return passed(name, "the target has no keys of a migration that was not completed")
    left = found[0]
    words = f"the migration {left.transfer}, which was not completed, has left keys on the target"
    if left.held_before:
        return warned(
            name,
            f"{words}, among those that it had before",
            "Those that the source has deleted since stay there: remove them by hand.",
        )
    figure = f"{words}, which has {keys:,} and was empty before"
    if settings.take_over:
        return warned(name, figure, taken_over_words(settings))
    return failed(
        name,
        figure,
        "Start with --take-over: every key on the target is removed then, also those that others "
        "have written since. Or empty the target by hand. If its keys are wanted there, "
        f"--skip-checks {name} takes them for the target's own.",
    )


def _only_in(target: Admin, slot: int, own: OwnFound, whose: str) -> str:
    """What was found where not every slot was searched."""
    return (
        f"{target.endpoint.address}: no key {whose} in the slot {slot}, where this one's are; "
        f"other slots were not searched: {own.unsearched}"
    )


def named_places(endpoint: Endpoint) -> list[Place]:
    """The nodes that an endpoint names."""
    if endpoint.cluster is not None:
        return list(endpoint.cluster.seeds)
    return [] if endpoint.unix_path is not None else [(endpoint.host, endpoint.port)]
