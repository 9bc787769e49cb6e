"""Workers that are killed, and who replaces them (on real workers: test_cli_real)."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from engine.errors import EngineError, Interrupted, TransferFailed
from engine.fleet import local
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.front import worker_supervisor
from engine.front.engine import Engine
from engine.front.faults_with_details import MigrationFailed
from engine.front.worker_supervisor import Supervisor
from engine.groups.lease import LAUNCH_SECONDS, LEASE_SECONDS
from engine.groups.registry import Registry
from engine.groups.states import TransferStatus
from engine.model.credentials import Credentials
from engine.model.progress import Phase, Progress
from engine.model.report import Report
from tests.support.preflight import without_checks

TARGET = "redis://target.invalid:6379"
NODES = [{"Address": "192.0.2.1", "Port": 6379}]
IN_SYNC = Progress(phase=Phase.FOLLOW, source_type="replica", can_complete=True)


def killed() -> int:
    """The pid of a process that has ended without a word."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.kill()
    child.communicate()
    return child.pid


@dataclass
class ServiceContext:
    """A group "g" under migration; what `launch` does decides which process its worker is."""

    face: Engine
    registry: Registry
    launch: Callable[[], int] = killed
    launches: int = 0
    heard: list[str] = field(default_factory=list)

    def events(self) -> list[str]:
        return [each.message for each in self.registry.list_events("g")]

    def age(self, seconds: float) -> None:
        with self.registry.store.write() as connection:
            connection.exec_driver_sql(
                "UPDATE leases SET renewed_at = renewed_at - ?, ends_at = ends_at - ?",
                (seconds, seconds),
            )

    def wait(self, until: str = "in-sync") -> asyncio.Task[Progress | Report]:
        return asyncio.create_task(
            self.face.wait(
                "g",
                until=until,  # type: ignore[arg-type]
                poll=0.01,
                timeout=20,
                supervise=True,
                on_event=self.heard.append,
            )
        )


@pytest.fixture
async def services(
    state_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ServiceContext]:
    """Its first worker is one that was killed before it could claim anything."""
    services = ServiceContext(
        Engine(state_url, credentials=Credentials()), open_registry(state_url)
    )

    def launch(*_: object, **__: object) -> int:
        services.launches += 1
        return services.launch()

    monkeypatch.setattr(local, "launch", launch)
    without_checks(monkeypatch)
    await services.face.register_replication_group("g", TARGET)
    await services.face.start_migration("g", NODES)
    yield services
    services.face.close()
    services.registry.store.close()


async def test_a_killed_worker_is_replaced(services: ServiceContext) -> None:
    dead = services.registry.get("g")[1]
    assert dead is not None
    assert dead.worker is not None
    services.launch = os.getpid
    waiting = services.wait()
    while services.launches < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert services.launches == 2
    services.registry.claim_transfer("g", ProcessId.here().worker).beat(IN_SYNC)
    assert await waiting == IN_SYNC
    told = f"the worker process ({dead.worker.words}) was killed: replaced, 1 of 20"
    assert services.events()[-1] == told
    assert services.heard == [told]


async def test_workers_that_are_killed_again_and_again(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_supervisor, "LIMIT", 3)
    with pytest.raises(TransferFailed, match=r"3 workers in a row were killed .* is gone: resume"):
        await services.wait()
    assert services.launches == 4
    # They came and went at a growing pace; the group is as it was, and can be resumed.
    assert [event.rpartition(", ")[2] for event in services.events()[-3:]] == [
        "1 of 3",
        "2 of 3",
        "3 of 3",
    ]
    assert services.registry.get("g")[0].status == "migrating"
    services.launch = os.getpid
    await services.face.resume_migration("g")


async def test_without_supervision(services: ServiceContext) -> None:
    with pytest.raises(TransferFailed, match="is gone"):
        await services.face.wait("g", until="in-sync")
    assert services.launches == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [(TransferStatus.STOPPED, Interrupted), (TransferStatus.FAILED, MigrationFailed)],
)
async def test_who_has_the_last_word_is_left_alone(
    services: ServiceContext, status: TransferStatus, error: type[EngineError]
) -> None:
    dead = services.registry.get("g")[1]
    assert dead is not None
    assert dead.worker is not None
    claimed = services.registry.claim_transfer("g", dead.worker)
    report = Report("stopped" if status is TransferStatus.STOPPED else "failed", errors=("why",))
    claimed.finish(status, report, Progress(), "the last word")
    with pytest.raises(error):
        await services.wait()
    assert services.launches == 1
    assert services.events()[-1] == "the last word"


async def test_a_silent_worker_is_left_alone(services: ServiceContext) -> None:
    """It may wake up, and then there would be two."""
    services.registry.claim_transfer("g", ProcessId.here().worker)
    services.age(LEASE_SECONDS + 1)
    with pytest.raises(TransferFailed, match="is gone"):
        await services.wait()
    assert services.launches == 1


async def test_a_worker_that_cannot_be_started_just_now(services: ServiceContext) -> None:
    def no_memory() -> int:
        raise EngineError("no worker process could be started: Cannot allocate memory")

    services.launch = no_memory
    waiting = services.wait()
    while not services.heard:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert services.events()[-1] == "no worker process could be started: Cannot allocate memory"
    assert services.registry.get("g")[0].status == "migrating"
    services.launch = os.getpid
    await asyncio.sleep(0.1)
    assert services.launches == 2  # the transfer's time to be claimed is not over
    services.age(LAUNCH_SECONDS)
    while services.launches < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    services.registry.claim_transfer("g", ProcessId.here().worker).beat(IN_SYNC)
    assert await waiting == IN_SYNC


async def test_a_cut_over_that_was_killed(services: ServiceContext) -> None:
    """Whoever waits for the end is told that it did not come when that is known, and may ask
    again."""
    dead = services.registry.get("g")[1]
    assert dead is not None
    assert dead.worker is not None
    claimed = services.registry.claim_transfer("g", dead.worker)
    claimed.beat(Progress(phase=Phase.CUT_OVER))
    with services.registry.store.write() as connection:
        connection.exec_driver_sql("UPDATE migrations SET request = 'complete'")
    services.launch = os.getpid
    waiting = asyncio.ensure_future(services.wait("available"))
    while services.launches < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    claimed = services.registry.claim_transfer("g", ProcessId.here().worker)
    claimed.beat(Progress())
    await asyncio.sleep(0.1)
    assert not waiting.done(), waiting
    claimed.beat(Progress(phase=Phase.FOLLOW))
    with pytest.raises(TransferFailed, match="killed during the cut-over, which was undone"):
        await waiting
    assert services.launches == 2
    assert services.registry.get("g")[0].status == "migrating"


class Clock:
    """The time as the supervisor sees it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def die(
    services: ServiceContext, supervisor: Supervisor, clock: Clock, lived: float, reached: Progress
) -> None:
    """A worker comes, lives for some seconds, reaches something, and is killed."""
    transfer = services.registry.get("g")[1]
    assert transfer is not None
    assert transfer.orphaned()
    await supervisor.replace(transfer)
    supervisor.watch(Progress())  # a new worker begins with nothing
    clock.now += lived
    supervisor.watch(reached)


LIVES: dict[str, tuple[Callable[[int], Progress], float, bool]] = {
    "keys grow": (lambda n: Progress(keys=n), 7.0, True),
    "the offset grows": (lambda n: Progress(keys=5, applied_offset=n), 7.0, True),
    "the same again": (lambda _: Progress(keys=5, applied_offset=5), 7.0, False),
    "less and less": (lambda n: Progress(keys=99 - n), 7.0, False),
    "idle for long": (lambda _: Progress(keys=5), 61.0, True),
}


@pytest.mark.parametrize("life", LIVES)
async def test_what_begins_a_new_row(
    services: ServiceContext, monkeypatch: pytest.MonkeyPatch, life: str
) -> None:
    reach, lived, endless = LIVES[life]
    clock = Clock()
    monkeypatch.setattr(worker_supervisor, "time", clock)
    monkeypatch.setattr(worker_supervisor, "LIMIT", 3)
    supervisor = Supervisor(services.face._services, "g", None)
    deaths = 0
    try:
        for number in range(10):
            await die(services, supervisor, clock, lived, reach(number + 1))
            deaths += 1
    except TransferFailed:
        assert not endless
        # The first one may have been the one that got so far.
        assert deaths == 4
    else:
        assert endless


async def test_the_pauses_grow(services: ServiceContext, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(worker_supervisor, "time", clock)
    supervisor = Supervisor(services.face._services, "g", None)
    began: list[float] = []
    for _ in range(1000):
        transfer = services.registry.get("g")[1]
        assert transfer is not None
        before = services.launches
        await supervisor.replace(transfer)
        if services.launches > before:
            began.append(clock.now)
        if len(began) == 12:
            break
        clock.now += 0.04
    pauses = [after - before for before, after in itertools.pairwise(began)]
    assert len(pauses) == 11
    assert pauses[0] < 0.1
    assert 3.0 < pauses[-1] < 7.0
