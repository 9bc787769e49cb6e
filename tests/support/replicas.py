"""Native replicas: made, waited for, and how far they are."""

from __future__ import annotations

from functools import partial

from benches.support.servers import Server
from benches.support.waiting import wait_for


def make_replica(replica: Server, primary: Server) -> None:
    """Tell a server to replicate another; the link comes later (`until_in_step`)."""
    replica.client().execute_command("REPLICAOF", primary.host, primary.port)


def in_step(replica: Server) -> bool:
    """Whether the replica's link is up, and its first sync over."""
    return replica.client().info("replication").get("master_link_status") == "up"


def until_in_step(*replicas: Server) -> None:
    """Wait until the links of all of these are up."""
    for each in replicas:
        wait_for(partial(in_step, each), "a replica in step", told=each.log_tail)


def replicated(primary: Server, replica: Server, seconds: float = 20.0) -> int:
    """Wait until a replica has all of its primary's stream; returns the offset, in bytes.

    Raises `AssertionError` if it takes longer.
    """

    def offset() -> int:
        there, here = (each.client().info("replication") for each in (primary, replica))
        same = here.get("slave_repl_offset") == there["master_repl_offset"]
        return int(here["slave_repl_offset"]) if same and in_step(replica) else 0

    return wait_for(offset, "all of the stream at the replica", seconds)
