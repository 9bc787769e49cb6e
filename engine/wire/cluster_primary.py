"""Where the primary of a cluster's shard is: some of its nodes are asked before each dial.

Some nodes are asked at once (CLUSTER SLOTS, CLUSTER NODES): the shard's own ones, and others. What
they say is put together by the epochs of their configurations (`model.cluster_topology.merge`): a
former primary that was cut off during a failover goes on naming itself, with an earlier epoch.
Behind a later one that was heard before, such an answer is believed where most of those that were
asked give it. What is heard holds for a second, so that the connections of all lanes cost one
question.

An address may lead to another server than it did: a container that was started anew, a node of
another cluster. What such a node tells of its cluster is not believed, for it knows none of ours;
and what dials asks for the id of the node that it has reached (`Identity`) before it sends anything
else that counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine import logs
from engine.errors import AuthError, EngineError, FaultOf, LinkError, ServerError, UsageError
from engine.model import cluster_topology
from engine.model.cluster_shard import ClusterShard, Place
from engine.model.cluster_topology import Node, Topology
from engine.model.endpoint import Endpoint
from engine.wire.ask_majority import Heard, ask_most

QUESTIONS = (("CLUSTER", "SLOTS"), ("CLUSTER", "NODES"))
"""What a node is asked; `read` takes the replies."""
# How long an answer holds.
_HOLDS_SECONDS = 1.0
# Of the time for a dial.
_SHARE = 0.6
# So many nodes are asked at the most.
_ASKED_MOST = 6
_REMEDY = (
    "Check that the cluster's nodes run, the network, and their credentials. Where the cluster "
    "announces addresses that cannot be reached from here: --address-map FROM=TO."
)
# What `Identity` asks.
_WHO: tuple[str, ...] = ("CLUSTER", "MYID")
_log = logs.logger(__name__)
Ask = Callable[[Endpoint, Sequence[tuple[str, ...]]], Awaitable[list[Any]]]
"""Dials a node, asks, and gives the replies; raises `EngineError`."""


@dataclass(slots=True)
class _Memory:
    """What was heard last of a cluster, and when; and by shard the node that was its primary, and
    the one that is, as far as that was looked for."""

    told: Topology | None = None
    at: float = float("-inf")
    primaries: dict[ClusterShard, Node] = field(default_factory=dict)
    found: dict[ClusterShard, Node | None] = field(default_factory=dict)

    def primary_of(self, shard: ClusterShard) -> Node | None:
        """By what was heard last; None: nothing was, or it tells of none."""
        if self.told is None:
            return None
        if shard not in self.found:
            self.found[shard] = shard.found(self.told)
        return self.found[shard]


# By seeds. Two at most for each migration of the process.
_heard: dict[tuple[Place, ...], _Memory] = {}


async def primary(endpoint: Endpoint, ask: Ask, *, fault: FaultOf, timeout: float) -> Endpoint:
    """The primary of the shard that `endpoint` means, by now; of a cluster that is named as a whole
    any node that answers.

    `timeout`: seconds for all of it. Raises `LinkError` where no node answers or knows the shard,
    and `AuthError` where none takes the credentials.
    """
    shard = endpoint.cluster
    assert shard is not None
    heard = _heard.setdefault(shard.seeds, _Memory())
    if not shard.ids:
        return await _any(endpoint, shard, ask, fault, timeout * _SHARE)
    if time.monotonic() - heard.at < _HOLDS_SECONDS:
        there = _there(endpoint, heard)
        if there is not None:
            return there
    # The rest of the time is the primary's.
    told, asked = await _ask_some(endpoint, shard, heard, ask, fault, timeout * _SHARE)
    merged = cluster_topology.merge(told)
    found, before = shard.found(merged), heard.primaries.get(shard)
    if found is None:
        raise LinkError(
            f"{fault} {endpoint.address}: its cluster has no primary of the shard that had the "
            f"slots {shard.slots.words}: its nodes are replicas, or have left the cluster.",
            remedy="CLUSTER NODES shows what has become of them.",
            fault=fault,
        )
    if before is not None and found.epoch < before.epoch and 2 * len(told) <= asked:
        raise LinkError(
            f"{fault} {endpoint.address}: {len(told)} of {asked} nodes of its cluster answered, "
            "and their configuration is older than the last one seen: they may be cut off from the "
            "others.",
            remedy=_REMEDY,
            fault=fault,
        )
    note(endpoint, merged)
    there = _there(endpoint, heard)
    if there is None:
        raise LinkError(
            f"{fault} {endpoint.address}: the cluster announces no address of the primary "
            f"{found.address} that can be reached.",
            remedy=_REMEDY,
            fault=fault,
        )
    if before is None or before.id != found.id:
        extra = {"end": fault, "endpoint": endpoint.address}
        _log.info("The shard's primary is %s", there.address, extra=extra)
    return there


@dataclass(frozen=True, slots=True)
class Identity:
    """Whether the server that was reached is the node that was meant."""

    endpoint: Endpoint
    id: str
    question: tuple[str, ...] = _WHO

    def check(self, reply: object, at: str, fault: FaultOf) -> None:
        """`reply`: to `question`, of the server `at`. Raises `LinkError` for another node, and what
        keeps the server from telling. A user who may not ask takes it for the one."""
        if isinstance(reply, AuthError):
            return
        found = reply.decode("ascii", "replace") if isinstance(reply, bytes) else ""
        if found == self.id:
            return
        forget(self.endpoint)
        if isinstance(reply, ServerError) and reply.code != "ERR":
            raise reply
        is_now = f"the node {found[:8]}" if found else "no node of a cluster"
        raise LinkError(
            f"{at} is {is_now} by now, and not the node {self.id[:8]} which the cluster names "
            "there: nothing is read from it or written to it.",
            remedy="Make the address reach that node again, or correct --address-map.",
            fault=fault,
        )


def identity(endpoint: Endpoint, there: Endpoint | None = None) -> Identity | None:
    """Which node is reached where `primary` has said just now, or, of a replica that is read, at
    `there`; None: any will do."""
    shard = endpoint.cluster
    if shard is None or not shard.ids or (heard := _heard.get(shard.seeds)) is None:
        return None
    if (told := heard.told) is None:
        return None
    if endpoint.from_replica:
        place = None if there is None else (there.host, there.port)
        found = next((node for node in told.nodes if shard.place_of(node) == place), None)
    else:
        found = heard.primary_of(shard)
    return None if found is None else Identity(endpoint, found.id)


def of_another(endpoint: Endpoint, told: Topology, before: Topology | None) -> LinkError | None:
    """What speaks against believing what a node tells: it is of another cluster."""
    shard = endpoint.cluster
    assert shard is not None
    if shard.is_told_by(told, before):
        return None
    return LinkError("a node of its cluster was replaced by one of another cluster")


def note(endpoint: Endpoint, told: Topology) -> None:
    """Its cluster was asked, and tells this now."""
    shard = endpoint.cluster
    assert shard is not None
    heard = _heard.setdefault(shard.seeds, _Memory())
    if told is not heard.told:
        heard.told, heard.found = told, {}
    heard.at = time.monotonic()
    for each in (*heard.primaries, shard):
        if each.ids and (found := heard.primary_of(each)) is not None:
            heard.primaries[each] = found


def named_last(endpoint: Endpoint) -> Endpoint | None:
    """The primary that was named last; None: the cluster was not asked yet."""
    assert endpoint.cluster is not None
    heard = _heard.get(endpoint.cluster.seeds)
    if heard is None or not endpoint.cluster.ids:
        return None
    return _there(endpoint, heard)


def heard_last(endpoint: Endpoint) -> Topology | None:
    """What the cluster told last; None: it was not asked yet."""
    assert endpoint.cluster is not None
    heard = _heard.get(endpoint.cluster.seeds)
    return None if heard is None else heard.told


def forget(endpoint: Endpoint) -> None:
    """Ask the cluster the next time, however fresh the last answer is."""
    assert endpoint.cluster is not None
    if (heard := _heard.get(endpoint.cluster.seeds)) is not None:
        heard.at = float("-inf")


def read(endpoint: Endpoint, replies: Sequence[Any]) -> Topology:
    """The topology as the node at `endpoint` has told it. Raises `ServerError`."""
    try:
        slots, nodes = replies
        return cluster_topology.read(slots, nodes, endpoint.host)
    except ValueError as exc:
        raise ServerError(
            f"{endpoint.address} does not describe its cluster: {exc}", code="ERR"
        ) from None


def places_of(endpoint: Endpoint, told: Topology | None, most: int) -> list[Endpoint]:
    """Up to `most` nodes that can be asked about the cluster: the shard's own first."""
    shard = endpoint.cluster
    assert shard is not None
    found: dict[Place, None] = {}

    def add(nodes: Sequence[Node]) -> None:
        for node in nodes:
            if (place := shard.place_of(node)) is not None:
                found[place] = None

    if told is None:
        if shard.ids:
            found[endpoint.host, endpoint.port] = None
    else:
        mine = shard.members(told) if shard.ids else set()
        # Room for others: what its own nodes say may be out of date.
        add([node for node in told.nodes if node.id in mine][: most // 2])
        add([each.primary for each in told.shards if not each.primary.failing])
    places = [*list(found)[: max(most - 2, 1)], *shard.seeds]
    nodes = []
    for host, port in dict.fromkeys(places):
        try:
            nodes.append(endpoint.at(host, port))
        except UsageError:
            continue
    return nodes[:most]


def _there(endpoint: Endpoint, heard: _Memory) -> Endpoint | None:
    shard = endpoint.cluster
    assert shard is not None
    found = heard.primary_of(shard)
    place = None if found is None else shard.place_of(found)
    if place is None:
        return None
    try:
        return endpoint.at(*place)
    except UsageError:
        return None


async def _any(
    endpoint: Endpoint, shard: ClusterShard, ask: Ask, fault: FaultOf, timeout: float
) -> Endpoint:
    """The first node that answers, whatever it says."""

    async def answers(node: Endpoint) -> Endpoint | EngineError:
        try:
            await ask(node, (("PING",),))
        except ServerError:
            return node
        except EngineError as exc:
            return exc
        return node

    asked = [asyncio.create_task(answers(endpoint.at(*each))) for each in shard.seeds]
    failed: list[EngineError] = []
    left = set(asked)
    try:
        while left:
            done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                found = task.result()
                if isinstance(found, Endpoint):
                    return found
                failed.append(found)
    finally:
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    raise _none_answers(endpoint, Heard([], failed, 0), fault, timeout)


async def _ask_some(
    endpoint: Endpoint,
    shard: ClusterShard,
    heard: _Memory,
    ask: Ask,
    fault: FaultOf,
    timeout: float,
) -> tuple[list[Topology], int]:
    """What those that answer say, one at least, and how many were asked."""
    nodes = places_of(endpoint, heard.told, _ASKED_MOST)

    async def asked_of(node: Endpoint) -> Topology | EngineError:
        try:
            found = read(node, await ask(node, QUESTIONS))
            return of_another(endpoint, found, heard.told) or found
        except EngineError as exc:
            # What several of them say is said once.
            exc.message = exc.message.replace(node.address, "a node").rstrip(".")
            return exc

    answers = await ask_most([asked_of(node) for node in nodes], timeout)
    if answers.found:
        return answers.found, len(nodes)
    raise _none_answers(endpoint, answers, fault, timeout)


def _none_answers(
    endpoint: Endpoint, answers: Heard[Topology], fault: FaultOf, timeout: float
) -> EngineError:
    failed, silent = answers.failed, answers.silent
    refused = [each for each in failed if isinstance(each, AuthError)]
    why = "; ".join(dict.fromkeys(each.message.removesuffix(".") for each in failed))
    if silent:
        why += f"{'; ' if why else ''}{silent} gave no answer within {timeout:g} s"
    message = f"{fault} {endpoint.address}: no node of its cluster answers: {why}."
    kind = AuthError if refused and len(refused) == len(failed) and not silent else LinkError
    return kind(message, remedy=_REMEDY, fault=fault)
