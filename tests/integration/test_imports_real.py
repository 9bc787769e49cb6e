"""What a migration imports: each module is paid for at every start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import ServerFactory, known

_RUN = """
import sys
from engine.__main__ import main
code = main()
print(*sys.modules)
sys.exit(code)
"""


@pytest.mark.parametrize("way", ["replica", "scan"])
def test_a_migration_between_servers_imports_what_it_needs(
    way: str, server_factory: ServerFactory, tmp_path: Path
) -> None:
    """Neither other verbs, nor what reads files, nor the other way, nor another database."""
    source, target = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    source.client().set("key", "value")
    command = [sys.executable, "-c", _RUN, "migrate", "--state", str(tmp_path / "state.db")]
    command += ["--source", source.url, "--target", target.url, "--source-type", way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert target.client().get("key") == b"value"
    found = set(done.stdout.splitlines()[-1].split())
    assert {"engine.cli.migrate", "engine.transfer.transfer"} <= found
    other = {"replica": "engine.transfer.offline", "scan": "engine.transfer.lane"}[way]
    unneeded = {
        other,
        "botocore",
        "engine.cli.serve",
        "engine.front.http.server",
        "engine.sources.aof_files",
        "engine.sources.rdb_file",
        "engine.transfer.aof_migration",
        "engine.verify.aof_comparison",
        "psycopg",
        "sqlalchemy.dialects.postgresql",
        "starlette",
        "tomllib",
    }
    assert found.isdisjoint(unneeded), found & unneeded
