"""The server's own way to send keys: MIGRATE … COPY REPLACE KEYS, 1,000 keys a call."""

from __future__ import annotations

import json
import sys
import time
from urllib.parse import unquote, urlsplit

from benches.adapters.base import ScriptAdapter, keys_by_db, plain

BATCH = 1_000
CALL_MS = 600_000


class MigrateKeys(ScriptAdapter):
    """MIGRATE blocks the source while it runs: its clients wait, whatever the rate says."""

    name = "migrate_keys"
    module = "benches.adapters.migrate_keys"


def migrate(source_url: str, target_url: str) -> None:
    """Copy every database. COPY, because the source must hold its keys for the next rival."""
    address = urlsplit(target_url)
    auth = ["AUTH", unquote(address.password)] if address.password else []
    for db in keys_by_db(plain(source_url)):
        source = plain(source_url, db)
        cursor = 0
        while True:
            cursor, keys = source.scan(cursor, count=BATCH)
            if keys:
                source.execute_command(  # type: ignore[no-untyped-call]
                    "MIGRATE",
                    *(address.hostname, address.port, "", db, CALL_MS, "COPY", "REPLACE"),
                    *(*auth, "KEYS", *keys),
                )
            if cursor == 0:
                break


if __name__ == "__main__":
    started = time.monotonic()
    migrate(*sys.argv[1:])
    print(json.dumps({"seconds": time.monotonic() - started}))
