"""The seam between the operations and what starts workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineError, TransferFailed
from engine.fleet import launcher
from engine.front.engine import Engine
from engine.groups.lease import Worker
from engine.groups.records import TransferRecord
from engine.groups.registry import Registry
from engine.model.credentials import Credentials
from tests.support.preflight import without_checks

NODES = [{"Address": "192.0.2.1", "Port": 6379}]
ACTOR = Worker("actor 7f", "node-3", {"Actor": "7f"}, {"actor": "7f", "job": 1})


class Actors:
    """Starts workers that are no processes of this machine."""

    def __init__(self) -> None:
        self.launched: list[str] = []
        self.broken = False

    def launch(
        self, registry: Registry, transfer: TransferRecord, *, credentials: Any = None
    ) -> None:
        if self.broken:
            raise EngineError("no actor could be started: no node is free")
        self.launched.append(transfer.group_id)
        registry.note_launch(transfer, ACTOR)

    def disconnect_clients(self, *_: object, **__: object) -> bool:
        return False

    def verify(self, *_: object, **__: object) -> None:
        pass

    def ours(self, worker: Worker) -> bool:
        return "actor" in worker.detail

    def tidy(self) -> None:
        pass


@pytest.fixture
async def services(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Engine, Actors]]:
    """A group "g", and a launcher of another kind."""
    actors = Actors()
    monkeypatch.setattr(launcher, "LAUNCHERS", {launcher.DEFAULT: lambda: actors})
    without_checks(monkeypatch)
    face = Engine(f"sqlite:///{tmp_path / 'state.db'}", credentials=Credentials())
    await face.register_replication_group("g", "redis://target.invalid:6379")
    yield face, actors
    face.close()


async def described(face: Engine) -> dict[str, Any]:
    (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
    return dict(group["Migration"])


async def test_workers_of_another_kind(services: tuple[Engine, Actors]) -> None:
    """They are shown, told, and judged by their leases: nothing here asks for a process."""
    face, actors = services
    await face.start_migration("g", NODES)
    assert actors.launched == ["g"]
    migration = await described(face)
    (worker,) = migration["Workers"]
    assert (worker["Actor"], "Pid" in worker) == ("7f", False)
    with pytest.raises(EngineError, match="under migration, by actor 7f on node-3"):
        await face.resume_migration("g")
    store = face.services.registry.store
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE leases SET ends_at = ends_at - 60")
    told = "the worker process (actor 7f) is gone: resume with resume-migration"
    assert (await described(face))["Reason"].startswith(told)
    with pytest.raises(TransferFailed, match="is gone"):
        await face.wait("g", until="in-sync", supervise=True)  # it is silent, and may wake up
    assert actors.launched == ["g"]
    await face.resume_migration("g")
    assert actors.launched == ["g", "g"]


async def test_a_launcher_that_cannot(services: tuple[Engine, Actors]) -> None:
    face, actors = services
    actors.broken = True
    with pytest.raises(EngineError, match="no node is free"):
        await face.start_migration("g", NODES)
    (group,) = (await face.describe_replication_groups("g"))["ReplicationGroups"]
    assert group["Status"] == "available"


def test_the_launcher_that_there_is() -> None:
    assert launcher.launcher() is not None
    assert set(launcher.LAUNCHERS) == {launcher.DEFAULT}
