"""The AWS CLI drives a migration: what a runbook has, and --endpoint-url."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benches.support.api import REGION, Serving
from benches.support.clusters import Cluster
from benches.support.waiting import wait_for
from tests.support.servers import ServerFactory, known

PROGRESS = "ReplicationGroups[0].PendingModifiedValues.Resharding.SlotMigration.ProgressPercentage"


class Aws:
    """`aws elasticache …` with a key of the server's."""

    def __init__(self, api: Serving, folder: Path, role: str) -> None:
        key = api.keys[role]
        self._endpoint = api.url
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": str(folder / "none"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "none"),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }

    def __call__(self, *arguments: str, fails: str = "") -> Any:
        """The parsed output, None without one; `fails` is what stderr then has."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "awscli", "elasticache", *arguments,
             "--endpoint-url", self._endpoint, "--output", "json"],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=30,
        )  # fmt: skip
        if fails:
            assert done.returncode in (254, 255)  # the second version's, and the first's
            assert fails in done.stderr
            return None
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if done.stdout else None


def test_a_whole_migration(tmp_path: Path, state_url: str, server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"key:{n}": n for n in range(100)})
    group = ("--replication-group-id", "cache")
    nodes = ("--customer-node-endpoint-list", f"Address=127.0.0.1,Port={source.port}")
    with Serving(tmp_path, state_url) as api:
        aws = Aws(api, tmp_path, "admin")
        created = aws(
            "create-replication-group", *group, "--replication-group-description", "our cache",
            "--primary-cluster-id", "127.0.0.1", "--port", str(target.port),
        )  # fmt: skip
        assert created["ReplicationGroup"]["Status"] == "available"
        aws("test-migration", *group, *nodes)
        assert aws("start-migration", *group, *nodes)["ReplicationGroup"]["Status"] == "migrating"
        describe = ("describe-replication-groups", *group, "--query", PROGRESS)
        wait_for(lambda: aws(*describe) == 100.0, "in sync")
        aws("complete-migration", *group)
        status = ("describe-replication-groups", *group, "--query", "ReplicationGroups[0].Status")
        wait_for(lambda: aws(*status) == "available", "available")
        aws("wait", "replication-group-available", *group)
        assert target.client().dbsize() == 100
        told = [each["Message"] for each in aws("describe-events")["Events"]]
        assert any(message.startswith("migration completed") for message in told), told
        aws("complete-migration", *group, fails="(ReplicationGroupNotUnderMigrationFault)")
        aws("delete-replication-group", *group, "--retain-primary-cluster")
        aws("wait", "replication-group-deleted", *group)


def test_a_cluster_into_a_cluster(tmp_path: Path, state_url: str) -> None:
    """Create with cluster mode, test, start with three endpoints, describe, complete."""
    binary = known("redis-7.0")
    with (
        Cluster.start(binary, primaries=3) as source,
        Cluster.start(binary, primaries=3) as target,
        Serving(tmp_path, state_url) as api,
    ):
        client = source.client()
        for n in range(300):
            client.set(f"key:{n}", n)
        aws = Aws(api, tmp_path, "admin")
        group = ("--replication-group-id", "cache")
        ends = (f"Address={each.host},Port={each.port}" for each in source.nodes)
        nodes = ("--customer-node-endpoint-list", *ends)
        first = target.nodes[0]
        aws(
            "create-replication-group", *group, "--replication-group-description", "our cache",
            "--primary-cluster-id", f"{first.host}:{first.port}", "--cluster-mode", "enabled",
            "--num-node-groups", "3",
        )  # fmt: skip
        aws("test-migration", *group, *nodes)
        started = aws("start-migration", *group, *nodes)["ReplicationGroup"]
        assert started["Status"] == "migrating"
        slots = [each["Slots"] for each in started["NodeGroups"]]
        assert slots == ["0-5460", "5461-10921", "10922-16383"]
        describe = ("describe-replication-groups", *group, "--query", PROGRESS)
        wait_for(lambda: aws(*describe) == 100.0, "in sync", 60)
        aws("complete-migration", *group)
        aws("wait", "replication-group-available", *group)
        assert sum(each.client().dbsize() for each in target.nodes) == 300
        assert target.client().get("key:299") == b"299"
