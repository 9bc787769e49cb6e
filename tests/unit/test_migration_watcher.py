"""What a server does with the migrations of its state (on real workers: test_api_restart)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from engine.fleet import local
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.front import migration_keeper, worker_supervisor
from engine.front.engine import Engine
from engine.front.migration_keeper import MigrationWatcher
from engine.groups.records import TransferRecord
from engine.groups.registry import Registry
from engine.groups.states import Request, TransferStatus
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase, Progress
from engine.model.report import Report
from engine.model.settings import TransferSettings
from tests.support.preflight import without_checks
from tests.unit.test_worker_supervisor import NODES, TARGET, killed

IN_SYNC = Progress(phase=Phase.FOLLOW, source_type="replica", can_complete=True)
SOURCE = Endpoint("192.0.2.1", 6379)
STOPPED = (TransferStatus.STOPPED, Report("stopped"), Progress(), "stopped")
OWN = ProcessId.here()
HERE = OWN.worker


@dataclass
class Watched:
    """A group "g", whose workers are processes that were killed, unless `launch` says other."""

    face: Engine
    registry: Registry
    worker: int = 0
    launches: int = 0
    replaced: int = 0

    def watcher(self) -> MigrationWatcher:
        return MigrationWatcher(
            self.face.services, on_replaced=self._on_replaced, on_look=lambda _: None
        )

    def _on_replaced(self) -> None:
        self.replaced += 1

    def transfer(self) -> TransferRecord:
        found = self.registry.get("g")[1]
        assert found is not None
        return found

    def events(self) -> list[str]:
        return [each.message for each in self.registry.list_events("g")]


@pytest.fixture
async def watched(state_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    found = Watched(Engine(state_url, credentials=Credentials()), open_registry(state_url))

    def launch(*_: object, **__: object) -> int:
        found.launches += 1
        return found.worker or killed()

    monkeypatch.setattr(local, "launch", launch)
    without_checks(monkeypatch)
    await found.face.register_replication_group("g", TARGET)
    yield found
    found.face.close()
    found.registry.store.close()


async def start(watched: Watched, **settings: bool) -> None:
    watched.worker = os.getpid()
    await watched.face.start_migration("g", NODES, settings=TransferSettings(**settings))
    watched.launches = 0


async def test_one_that_was_stopped_before_goes_on(watched: Watched) -> None:
    await start(watched)
    watched.registry.claim_transfer("g", HERE).finish(*STOPPED)
    await watched.watcher().look()
    assert watched.launches == 1
    assert watched.transfer().status is TransferStatus.PENDING
    assert watched.events()[-1] == "migration resumed"


async def test_one_that_is_stopped_later_stays_so(watched: Watched) -> None:
    await start(watched)
    claimed = watched.registry.claim_transfer("g", HERE)
    eye = watched.watcher()
    await eye.look()
    claimed.beat(None)
    await eye.look()
    claimed.finish(*STOPPED)
    for _ in range(3):
        await eye.look()
    assert watched.launches == 0
    assert watched.transfer().status is TransferStatus.STOPPED


async def test_one_that_begins_later_and_is_stopped_stays_so(watched: Watched) -> None:
    eye = watched.watcher()
    await eye.look()
    await start(watched)
    watched.registry.claim_transfer("g", HERE).finish(*STOPPED)
    await eye.look()
    assert watched.launches == 0


@pytest.mark.parametrize(("host", "launches"), [(HERE.host, 1), ("another machine", 0)])
async def test_whose_a_silent_worker_was(watched: Watched, host: str, launches: int) -> None:
    """After a restart of the machine nothing is known of its processes; another one's may live."""
    watched.worker = os.getpid()
    who = replace(OWN, where="before the restart", host=host).worker
    watched.registry.begin_migration("g", [SOURCE], TransferSettings(), worker=who)
    watched.registry.claim_transfer("g", who)
    eye = watched.watcher()
    await eye.look()
    assert watched.launches == 0  # its heartbeat is not old yet
    with watched.registry.store.write() as connection:
        connection.exec_driver_sql(
            "UPDATE leases SET renewed_at = renewed_at - 60, ends_at = ends_at - 60"
        )
    await eye.look()
    await eye.look()
    assert watched.launches == launches


async def test_one_whose_workers_are_killed_again_and_again_is_given_up(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_supervisor, "LIMIT", 2)
    monkeypatch.setattr(worker_supervisor.Backoff, "delay", lambda _: 0.0)
    await watched.face.start_migration("g", NODES)
    watched.launches = 0
    eye = watched.watcher()
    for _ in range(6):
        await eye.look()
    assert (watched.launches, watched.replaced) == (2, 2)
    told = [event for event in watched.events() if "in a row were killed" in event]
    assert len(told) == 1


async def test_a_cut_over_is_asked_for_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(watched, auto_cut_over=True)
    claimed = watched.registry.claim_transfer("g", HERE)
    eye = watched.watcher()
    await eye.look()
    assert watched.transfer().request is Request.NONE
    claimed.beat(IN_SYNC)
    await eye.look()
    assert watched.transfer().request is Request.COMPLETE
    claimed.refuse("lag 18 MB > 1 MB")
    await eye.look()
    assert watched.transfer().request is Request.NONE
    monkeypatch.setattr(migration_keeper, "AGAIN_SECONDS", 0.0)
    await eye.look()
    assert watched.transfer().request is Request.COMPLETE


async def test_nobody_s_cut_over_is_asked_for_unasked(watched: Watched) -> None:
    await start(watched)
    watched.registry.claim_transfer("g", HERE).beat(IN_SYNC)
    await watched.watcher().look()
    assert watched.transfer().request is Request.NONE


async def test_it_outlives_a_state_that_cannot_be_read(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration_keeper, "LOOK_SECONDS", 0.01)
    await start(watched)
    watched.registry.claim_transfer("g", HERE).finish(*STOPPED)
    file = watched.registry.store.file
    assert file is not None
    away = file.with_suffix(".away")
    watched.face.close()
    file.rename(away)
    file.write_bytes(b"no database" * 100)
    running = asyncio.create_task(watched.watcher().run())
    await asyncio.sleep(0.1)
    assert not running.done()
    # At once: a look between would make a new state there, and keep it open.
    away.replace(file)
    async with asyncio.timeout(60):
        while not watched.launches:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    running.cancel()
