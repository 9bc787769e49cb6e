"""A worker that is killed between the fence and the open target: no acknowledged write is lost."""

from __future__ import annotations

import time

import pytest
import redis

from benches.support.engines import Cli, Migration
from benches.support.proxy import Proxy
from tests.support.servers import ServerFactory, known
from tests.support.writers import Clicks

ROUND_TRIP = 0.1
# In round trips behind the fence, of some six: while the stream is drained; about when the source
# has been told to refuse writes, and the target to open.
MOMENTS = (1.0, 5.0)
# A writer that has waited for so long waits behind the fence, or the machine is busy: either is a
# moment to kill at.
WAITS = 0.08


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_worker_that_is_killed_behind_the_fence(
    server_factory: ServerFactory, cli: Cli, moment: float
) -> None:
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().mset({f"key:{n}": n for n in range(500)})
    migration = Migration(cli, f"opening {moment}")
    with Proxy(source.host, source.port) as one, Proxy(target.host, target.port) as other:
        try:
            migration.register(other)
            migration.start(one, "--source-type", "replica")
            migration.wait_for(lambda found: found["CanComplete"])
            with Clicks(source) as clicks:
                for proxy in (one, other):
                    proxy.delay(ROUND_TRIP / 2)
                done = cli("complete-migration", "--replication-group-id", "g")
                assert done.code == 0, done.err
                migration.until(
                    lambda: not (time.monotonic() - clicks.at < WAITS and not clicks.refusal),
                    "a writer that waits, or is refused",
                    every=0.002,
                )
                time.sleep(moment * ROUND_TRIP)
                if migration.describe()["Status"] == "migrating":
                    migration.kill()
                for proxy in (one, other):
                    proxy.delay(0)
                if migration.describe()["Status"] == "migrating":
                    migration.resume(verb=False)
                    _complete(migration)
            # Whatever the dead one had got to: all that was acknowledged is there, and the source
            # acknowledges nothing more.
            assert int(target.client().get("clicks")) == clicks.acknowledged > 0
            with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
                source.client().set("later", "1")
            assert target.client().dbsize() == 501, target.client().keys("startmigration:*")
        finally:
            migration.close()


def _complete(migration: Migration) -> None:
    """Give the word again, unless the migration is complete as it is taken up."""
    deadline = time.monotonic() + 60
    while (found := migration.describe())["Status"] == "migrating":
        assert time.monotonic() < deadline, migration.story()
        if found["Migration"].get("CanComplete"):
            migration.cli("complete-migration", "--replication-group-id", "g", "--wait")
        time.sleep(0.05)
