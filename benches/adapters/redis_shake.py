"""RedisShake, if `redis-shake` is on PATH: its scan reader and its sync reader."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from benches.adapters.base import ProcessAdapter, keys_by_db

if TYPE_CHECKING:
    from benches.support.servers import Server

PROGRAM = "redis-shake"

# Only what differs from the tool's defaults in a way that matters here: keys are replaced, as all
# others do it; the scan reader asks for 1,000 keys at a time, where its default of 1 would make it
# slow for no reason.
_CONFIG = """\
{reader}
[redis_writer]
cluster = {cluster}
address = "{target}"
username = ""
password = "{target_password}"
tls = false

[advanced]
dir = "{folder}"
ncpu = 0
log_file = "shake.log"
log_level = "warn"
rdb_restore_command_behavior = "rewrite"
"""

SCAN = """\
[scan_reader]
cluster = {cluster}
address = "{source}"
username = ""
password = "{source_password}"
tls = false
ksn = false
count = 1000
"""

SYNC = """\
[sync_reader]
cluster = {cluster}
address = "{source}"
username = ""
password = "{source_password}"
tls = false
sync_rdb = true
sync_aof = true
"""


def write_config(
    reader: str, source: Server, target: Server, folder: Path, *, clusters: bool = False
) -> Path:
    """Write the tool's TOML file into `folder`, and return its path. `clusters`: both servers are
    nodes of a cluster, of which the tool finds the others."""
    cluster = "true" if clusters else "false"
    filled = reader.format(
        source=f"{source.host}:{source.port}",
        source_password=source.password or "",
        cluster=cluster,
    )
    path = folder / "shake.toml"
    path.write_text(
        _CONFIG.format(
            reader=filled,
            cluster=cluster,
            target=f"{target.host}:{target.port}",
            target_password=target.password or "",
            folder=folder,
        )
    )
    return path


class _RedisShake(ProcessAdapter):
    reader = ""

    def available(self) -> str | None:
        return None if shutil.which(PROGRAM) else f"no {PROGRAM} on PATH"

    def command(self, source: Server, target: Server, folder: Path) -> list[str]:
        return [PROGRAM, str(write_config(self.reader, source, target, folder))]


class RedisShakeScan(_RedisShake):
    """SCAN and DUMP; ends by itself."""

    name = "redis_shake_scan"
    reader = SCAN


class RedisShakeSync(_RedisShake):
    """PSYNC; goes on following, so it is stopped once all keys have arrived."""

    name = "redis_shake_sync"
    reader = SYNC

    def until(self, source: Server, target: Server) -> Callable[[], bool] | None:
        here, there = source.client(), target.client()
        wanted = keys_by_db(here)
        return lambda: keys_by_db(there) == wanted
