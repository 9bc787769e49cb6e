"""The loop that a Python user would write: redis-py with hiredis, 1,000 keys a batch."""

from __future__ import annotations

import json
import sys
import time

from benches.adapters.base import ScriptAdapter, keys_by_db, plain

BATCH = 1_000


class RedisPyLoop(ScriptAdapter):
    """SCAN, pipelined DUMP and PTTL, pipelined RESTORE REPLACE."""

    name = "redis_py_loop"
    module = "benches.adapters.redis_py_loop"

    def available(self) -> str | None:
        from redis.utils import HIREDIS_AVAILABLE

        return None if HIREDIS_AVAILABLE else "redis-py found no hiredis"


def migrate(source_url: str, target_url: str) -> None:
    """Copy every database."""
    for db in keys_by_db(plain(source_url)):
        source, target = plain(source_url, db), plain(target_url, db)
        cursor = 0
        while True:
            cursor, keys = source.scan(cursor, count=BATCH)
            pipe = source.pipeline(transaction=False)
            for key in keys:
                pipe.dump(key)
                pipe.pttl(key)
            replies = pipe.execute()
            pipe = target.pipeline(transaction=False)
            for key, value, ttl in zip(keys, replies[::2], replies[1::2], strict=True):
                if value is not None:
                    pipe.restore(key, max(ttl, 0), value, replace=True)
            pipe.execute()
            if cursor == 0:
                break


if __name__ == "__main__":
    started = time.monotonic()
    migrate(*sys.argv[1:])
    print(json.dumps({"seconds": time.monotonic() - started}))
