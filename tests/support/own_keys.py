"""What the engine keeps on a target, and that nothing of it is left behind a migration."""

from __future__ import annotations

from benches.support.clusters import Cluster
from benches.support.servers import Server
from tests.support.servers import servers_of

OWN_PREFIX = b"startmigration:"
"""Keys on the target whose names begin so are the engine's."""

LEFT = b"startmigration:left"
"""The mark of a migration that ended without a cut-over, and left keys."""

YEAR_MS = 365 * 86_400_000


def assert_tidy(target: Server | Cluster, *, left: bool = False) -> None:
    """Nothing of the engine is left: no key of its own, no extended TTL, no import mode.

    `left`: but for the mark of a migration that ended without a cut-over.
    """
    marks = {LEFT} if left else set()
    servers = servers_of(target)
    for server in servers:
        for name in server.client().info("keyspace"):
            _assert_tidy(server, int(name.removeprefix("db")), marks)
        assert importing(server) in (None, "no")
    if not isinstance(target, Cluster):
        assert target.client().exists(LEFT) == left


def _assert_tidy(server: Server, db: int, marks: set[bytes]) -> None:
    client = server.client(db)
    keys = list(client.scan_iter(count=1000))
    for at in range(0, len(keys), 1000):
        names = keys[at : at + 1000]
        pipe = client.pipeline(transaction=False)
        for key in names:
            pipe.pttl(key)
        for key, ttl in zip(names, pipe.execute(), strict=True):
            assert key in marks or not key.startswith(OWN_PREFIX), key
            assert ttl < 50 * YEAR_MS, (db, key)


def importing(server: Server) -> str | None:
    """Whether the server is in import mode ("yes", "no"); None where it knows none."""
    found = server.client().config_get("import-mode")
    return found.get("import-mode")
