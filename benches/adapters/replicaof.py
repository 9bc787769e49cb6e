"""Native replication: REPLICAOF, until the link is up and the snapshot is in."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from benches.adapters.base import AdapterError, Measurement, ScriptAdapter, keys_by_db, plain

if TYPE_CHECKING:
    from benches.datasets import Summary
    from benches.support.servers import Server

POLL_SECONDS = 0.01
QUIET_SECONDS = 30.0
"""A link that is down for so long while nothing is being transferred will not come up."""


class ReplicaOf(ScriptAdapter):
    """The target as a replica of the source, both with their defaults (diskless sync, no delay)."""

    name = "replicaof"
    module = "benches.adapters.replicaof"

    def run(self, source: Server, target: Server, dataset: Summary) -> Measurement:
        try:
            return super().run(source, target, dataset)
        finally:
            target.client(socket_timeout=600).replicaof("NO", "ONE")


def migrate(source_url: str, target_url: str) -> None:
    """Make the target a replica and wait. Raises `AdapterError` if the link does not come up."""
    address = urlsplit(source_url)
    source, target = plain(source_url), plain(target_url)
    target.replicaof(address.hostname, address.port)
    busy = time.monotonic()
    while True:
        time.sleep(POLL_SECONDS)
        # A target that loads the snapshot answers with LOADING, or not at all.
        facts = target.info("replication")
        if facts["master_link_status"] == "up" and not facts["master_sync_in_progress"]:
            break
        if facts["master_sync_in_progress"]:
            busy = time.monotonic()
        if time.monotonic() - busy > QUIET_SECONDS:
            raise AdapterError("the replica's link did not come up: is its RDB version older?")
    if keys_by_db(source) != keys_by_db(target):
        raise AdapterError("the link is up, but the keys are not there")


if __name__ == "__main__":
    started = time.monotonic()
    migrate(*sys.argv[1:])
    print(json.dumps({"seconds": time.monotonic() - started}))
