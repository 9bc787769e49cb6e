"""A migration that an earlier version's engine began is gone on with by this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from benches.support.compare import assert_equal
from engine.errors import StateError
from engine.fleet.process_identity import ProcessId
from engine.front.engine import Engine
from tests.support import state_of_version_1
from tests.support.servers import ServerFactory

KEYS = 2000


@contextlib.contextmanager
def open_state(path: Path) -> Iterator[Engine]:
    face = Engine(f"sqlite:///{path}")
    try:
        yield face
    finally:
        face.close()


async def test_a_migration_of_the_version_before(
    tmp_path: Path, server_factory: ServerFactory
) -> None:
    """Its worker is killed while the source is followed; this version's takes its position over."""
    source, target = server_factory(), server_factory()
    client = source.client()
    with client.pipeline(transaction=False) as pipe:
        for number in range(KEYS):
            pipe.set(f"key:{number}", number, ex=3600 if number % 3 else None)
        pipe.execute()
    ours, theirs = tmp_path / "ours.db", tmp_path / "theirs.db"
    # 1. In the middle of it, with what the target has of it.
    with open_state(ours) as face:
        await face.register_replication_group("g", f"127.0.0.1:{target.port}")
        await face.start_migration("g", [{"Address": "127.0.0.1", "Port": source.port}])
        await face.wait("g", until="in-sync", timeout=120)
        (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
        worker = ProcessId.of(group["Migration"]["Workers"][0]["Pid"])
        try:
            # 2. As long as its worker runs the state stays as it is.
            state_of_version_1.taken_from(ours, theirs, asdict(worker))
            with open_state(theirs) as refused:
                with pytest.raises(StateError, match=f"process {worker.pid} on ") as caught:
                    await refused.describe_replication_groups("g")
                assert "kill PID" in caught.value.remedy
            theirs.unlink()
        finally:
            os.kill(worker.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while not worker.ended():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        events = (await face.describe_events("g"))["Events"]
    # 3. Gone on with, from that position: what is written meanwhile arrives without a full sync.
    state_of_version_1.taken_from(ours, theirs, asdict(worker))
    client.set("meanwhile", "1")
    with open_state(theirs) as face:
        (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
        assert group["Status"] == "migrating"
        reason = f"the worker process (pid {worker.pid}) is gone: resume with resume-migration"
        assert group["Migration"]["Reason"].startswith(reason)
        assert (await face.describe_events("g"))["Events"] == events
        await face.resume_migration("g")
        await face.wait("g", until="in-sync", timeout=120)
        (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
        counters = group["Migration"]["Counters"]
        assert (counters["FullSyncs"], counters["PartialSyncs"]) == (1, 1)
        await face.complete_migration("g")
        report = await face.wait("g", until="available", timeout=120)
        assert report.status == "done"
        await asyncio.to_thread(assert_equal, client, target.client())
