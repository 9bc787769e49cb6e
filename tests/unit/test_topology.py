"""Replies of cluster nodes that no test server gives: hostnames, unknown addresses, old servers."""

from __future__ import annotations

from typing import Any

import pytest

from engine.model import cluster_topology
from engine.model.slots import SlotSet

A, B, C = ("a" * 40, "b" * 40, "c" * 40)


def nodes(*lines: str) -> bytes:
    return "\n".join([*lines, ""]).encode()


def slots(*entries: tuple[int, int, list[Any]]) -> list[Any]:
    return [[first, last, *of] for first, last, of in entries]


def place(host: str | None, port: int, name: str) -> list[Any]:
    return [None if host is None else host.encode(), port, name.encode(), []]


WHOLE = nodes(
    f"{A} :7000@17000 myself,master - 0 0 1 connected 0-100 102",
    f"{B} 10.0.0.2:7000@17000,two.example master - 0 0 2 connected 103-16383",
    f"{C} 10.0.0.3:7000@17000 slave,fail? {B} 0 0 2 connected",
    f"{'d' * 40} :0@0 master,noaddr - 0 0 0 disconnected",
)


def test_addresses() -> None:
    """A node that does not know its own, one of which clients are to use the name, and one whose
    port is another for TLS."""
    told = slots((0, 100, [place("", 7001, A)]), (103, 16383, [place("two.example", 7001, B)]))
    found = cluster_topology.read(told, WHOLE, "10.0.0.1")
    assert [(shard.primary.address, str(shard.slots)) for shard in found.shards] == [
        ("10.0.0.1:7001", "0-100,102"),
        ("two.example:7001", "103-16383"),
    ]
    assert found.me == A
    assert [(each.address, each.failing) for each in found.shards[1].replicas] == [
        ("10.0.0.3:7000", True)
    ]
    assert found.missing == SlotSet(((101, 101),))
    assert list(found.problems) == ["no node has the slots 101"]


@pytest.mark.parametrize(("host", "address"), [("?", f"node {B[:8]}"), (None, "10.0.0.1:7001")])
def test_addresses_that_are_not_told(host: str | None, address: str) -> None:
    told = slots((0, 100, [place("", 7001, A)]), (103, 16383, [place(host, 7001, B)]))
    found = cluster_topology.read(told, WHOLE, "10.0.0.1")
    assert found.shards[1].primary.address == address
    assert any("announces no address" in each for each in found.problems) == (host == "?")


def test_before_there_were_ids_in_slots() -> None:
    """Redis 3.2 tells addresses alone: those of CLUSTER NODES count."""
    told = slots((0, 16383, [[b"10.0.0.2", 7000]]))
    text = nodes(f"{A} 10.0.0.2:7000 myself,master - 0 0 1 connected 0-16383 [93->-{B}] [77-<-{C}]")
    found = cluster_topology.read(told, text, "10.0.0.9")
    assert found.shards[0].primary.address == "10.0.0.2:7000"
    assert [(move.slot, move.there, move.importing) for move in found.moves] == [
        (93, B, False),
        (77, C, True),
    ]
    assert not found.missing


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (None, WHOLE),
        ([], None),
        ([], nodes("x y")),
        ([[0]], WHOLE),
        ([], nodes(f"{A} 10.0.0.2:x@1 myself,master - 0 0 1 connected 0")),
        ([], nodes(f"{A} 10.0.0.2:1@1 myself,master - 0 0 1 connected 0-99999")),
    ],
)
def test_what_is_no_cluster(told: Any, text: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        cluster_topology.read(told, text, "h")
