"""All rivals, in the order in which they run and are printed.

Not in the package's own file: a rival's script would then import all of them, and be charged for.
"""

from __future__ import annotations

from benches.adapters.base import Adapter
from benches.adapters.engine import Engine
from benches.adapters.engine_replica import EngineReplica, EngineReplicaTuned
from benches.adapters.migrate_keys import MigrateKeys
from benches.adapters.raw_bounds import RawBounds
from benches.adapters.redis_py_loop import RedisPyLoop
from benches.adapters.redis_shake import RedisShakeScan, RedisShakeSync
from benches.adapters.replicaof import ReplicaOf


def adapters() -> dict[str, Adapter]:
    """A fresh one of each, by name."""
    every: tuple[Adapter, ...] = (
        RawBounds(),
        Engine(),
        EngineReplica(),
        EngineReplicaTuned(),
        RedisPyLoop(),
        MigrateKeys(),
        ReplicaOf(),
        RedisShakeScan(),
        RedisShakeSync(),
    )
    return {each.name: each for each in every}
