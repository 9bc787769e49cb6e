"""Sentinels on loopback that watch one primary; ended by pid like any server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import redis

from benches.support.servers import Binary, Server

# What a primary may be silent for, in ms, before it is taken for dead.
_DOWN_MS = 1000


class Sentinel(Server):
    """One Sentinel. `start` it by `sentinels`."""

    watched: tuple[str, Server, int]

    @cached_property
    def _asked(self) -> redis.Redis:
        # Whoever waits for a failover asks a hundred times a second, and what `client` gives stays
        # open until the end.
        return self.client()

    def _arguments(self) -> list[str]:
        name, primary, quorum = self.watched
        lines = [
            f"port {self.port}",
            f"bind {self.host}",
            f"dir {self.folder}",
            "protected-mode no",
            f"sentinel monitor {name} {primary.host} {primary.port} {quorum}",
            f"sentinel down-after-milliseconds {name} {_DOWN_MS}",
            f"sentinel failover-timeout {name} 3000",
        ]
        if primary.password is not None:
            lines.append(f"sentinel auth-pass {name} {primary.password}")
        if self.password is not None:
            lines.append(f"requirepass {self.password}")
        file = self.folder / "sentinel.conf"
        if not file.exists():  # it writes what it learns there
            file.write_text("\n".join(lines) + "\n")
        return [str(file), "--sentinel"]

    def primary(self) -> tuple[str, int]:
        """Where it says that the primary is."""
        host, port = self._asked.sentinel_get_master_addr_by_name(self.watched[0])
        return (host.decode() if isinstance(host, bytes) else host), int(port)

    def told(self) -> dict[str, Any]:
        """What it knows of the primary: "num-slaves", "num-other-sentinels", "flags" …"""
        found: dict[str, Any] = self._asked.sentinel_master(self.watched[0])
        return found


@contextmanager
def sentinels(
    binary: Binary,
    primary: Server,
    *,
    name: str = "main",
    count: int = 3,
    password: str | None = None,
) -> Iterator[list[Sentinel]]:
    """`count` Sentinels that watch `primary` as `name`; a majority decides."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            each = Sentinel(
                binary, (), password=password, tls=None, unix=False, cluster=False, databases=16
            )
            stack.callback(each.close)
            each.watched = name, primary, count // 2 + 1
            each.listen()
            found.append(each)
        yield found


def url(group: list[Sentinel], user: str = "") -> str:
    """As the engine's command line takes it; `user`: `name:password@` of the data's servers."""
    name = group[0].watched[0]
    nodes = ",".join(f"{each.host}:{each.port}" for each in group)
    own = f"?sentinel_password={group[0].password}" if group[0].password else ""
    return f"redis+sentinel://{user}{nodes}/{name}{own}"
