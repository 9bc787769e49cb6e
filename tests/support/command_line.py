"""The command line with one group, "prod": what its own tests say to it, and wait for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

from benches.support import engines
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.front.engine import Engine

GROUP = ("--replication-group-id", "prod")


class Cli(engines.Cli):
    """`benches.support.engines.Cli`, with the group of these tests."""

    def group(self) -> dict[str, Any]:
        """The group as describe-replication-groups tells it."""
        told = self("describe-replication-groups", *GROUP, "--output", "json")
        assert told.code == 0, told.err
        group: dict[str, Any] = told.json["ReplicationGroups"][0]
        return group

    def wait_for(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Describe the group until it is so: by the library, since a Python that starts for a verb
        costs a third of a second of CPU."""
        found: dict[str, Any] = {}

        def so() -> bool:
            told = engine.sync.describe_replication_groups(GROUP[1])
            found.clear()
            found.update(told["ReplicationGroups"][0])
            return what(found)

        with closing(Engine(self.state)) as engine:
            wait_for(so, "a state of the group", engines.SECONDS, every=0.05, told=lambda: found)
        return found

    def completed(self, *options: str, process: bool = False) -> engines.Done:
        """complete-migration --wait, as a `process` or within this one; again where the gate has
        closed since it was looked at, as a machine that stood still leaves it."""
        say = self if process else self.here
        for _ in range(4):
            told = say("complete-migration", *GROUP, "--wait", *options)
            if not told.code or "cannot complete" not in told.err:
                return told
            self.wait_for(lambda group: group["Migration"]["CanComplete"])
        return say("complete-migration", *GROUP, "--wait", *options)


def address(server: Server) -> str:
    """A node of --customer-node-endpoint-list."""
    return f"Address={server.host},Port={server.port}"


def nodes(server: Server) -> tuple[str, str]:
    """The source, for start-migration."""
    return "--customer-node-endpoint-list", address(server)


def between(source: Server, target: Server) -> tuple[str, ...]:
    """Both ends, for migrate."""
    return "--source", source.url, "--target", target.url


def register(cli: Cli, target: Server) -> None:
    """Register the group. Raises `AssertionError` if that fails."""
    assert cli("register-replication-group", *GROUP, "--primary-endpoint", target.url).code == 0
