"""An engine that is killed while commands of many keys are written: what differs becomes less.

What the last transaction may lack is read again. Meanwhile commands derive keys from those that
differ; if those were more than a round trip can read, the target would never be in sync.
"""

from __future__ import annotations

from benches.support.engines import Migration
from benches.support.movers import NAMES, Mover, fill, killed
from benches.support.proxy import Proxy
from tests.support.comparison import assert_settled
from tests.support.servers import ServerFactory, known

DELAY = 0.02  # one way, to either end


def test_dirty_keys_become_fewer(migration: Migration, server_factory: ServerFactory) -> None:
    source = server_factory(known("redis-7.0"), "--repl-backlog-size", "64mb")
    target = server_factory(known("redis-7.0"))
    fill(source)
    with Proxy(source.host, source.port) as near, Proxy(target.host, target.port) as far:
        near.delay(DELAY)
        far.delay(DELAY)
        migration.register(far)
        migration.start(near, "--source-type", "replica")
        migration.wait_for(lambda found: found["CanComplete"])
        with Mover(source, seed=1) as mover:
            took, counts = killed(mover, migration, target.client())
            mover.stop()
        print(f"in sync {took:.1f} s after the resumption, {max(counts):,} keys dirty at the most")
        migration.wait_for(lambda found: found["CanComplete"])
        assert 0 < max(counts) < 3 * NAMES / 2, counts
        migration.complete()
    assert_settled(source, target, 5)
