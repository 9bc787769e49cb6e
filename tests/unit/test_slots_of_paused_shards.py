"""What a shard's primary tells of its slots in the moment in which its clients are paused."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from engine.model.cluster_shard import ClusterShard
from engine.model.cluster_topology import read
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet
from engine.transfer.cluster_monitor import ClusterMonitor

SHARD = ClusterShard(
    seeds=(("127.0.0.1", 7000),), ids=("a" * 40, "c" * 40), slots=SlotSet(((0, 8191),))
)


def lines(own: str, other: str, flags: Sequence[str] = ("myself,master", "slave")) -> bytes:
    """CLUSTER NODES of a primary, another one, and the first one's replica."""
    a, b, c = ("abc"[n] * 40 for n in range(3))
    above = ("-", a) if "master" in flags[0] else (c, "-")
    return (
        f"{a} 127.0.0.1:7000@17000 {flags[0]} {above[0]} 0 0 1 connected {own}\n"
        f"{b} 127.0.0.1:7001@17001 master - 0 0 2 connected {other}\n"
        f"{c} 127.0.0.1:7002@17002 {flags[1]} {above[1]} 0 0 3 connected"
        f"{' 0-8191' if flags[1] == 'master' else ''}\n"
    ).encode()


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (lines("0-8191", "8192-16383"), ""),
        (lines("0-8191 [77->-" + "b" * 40 + "]", "8192-16383"), "77 of .* are being moved"),
        (lines("0-8191 [9000-<-" + "b" * 40 + "]", "8192-16383"), "9000 of .* are being moved"),
        (lines("0-76 78-8191", "77 8192-16383"), "the slots 77 .* belong to another shard"),
        (lines("0-8192", "8193-16383"), "the slots 8192 belong to the source's shard"),
        (lines("", "8192-16383", ("myself,slave", "master")), "names another primary"),
    ],
)
def test_a_shard_that_is_not_as_it_was_planned(told: bytes, why: str) -> None:
    """It can be told no later: nobody can ask a shard of a release before 6.2 behind its fence."""
    monitor = ClusterMonitor("source", TransferSettings(), print)
    found = monitor.objection_to(SHARD, read([], told, "127.0.0.1"))
    assert re.search(why, found) if why else not found
