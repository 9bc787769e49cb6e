"""Leases, and what the tables hold to whatever a program does."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from engine.errors import ReplicationGroupAlreadyUnderMigrationFault, StateError
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.groups import disconnections, schema
from engine.groups import registry as registry_module
from engine.groups.claimed_transfer import ClaimedTransfer, ClaimLost
from engine.groups.lease import LAUNCH_SECONDS, LEASE_SECONDS
from engine.groups.records import TransferRecord
from engine.groups.registry import Registry
from engine.groups.states import TransferStatus
from engine.model.checkpoint import Checkpoint
from engine.model.endpoint import Endpoint
from engine.model.position import ScanPosition
from engine.model.progress import Phase, Progress
from engine.model.report import Report
from engine.model.settings import TransferSettings

SOURCE, TARGET = Endpoint("source.example.com"), Endpoint("target.example.com")
OWN = ProcessId.here()
HERE = OWN.worker
ELSEWHERE = dataclasses.replace(OWN, pid=7, where="another boot", host="elsewhere").worker


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    """A state of each kind, with the group "g" under migration."""
    url = f"sqlite:///{tmp_path / 'state.sqlite'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_database()
    registry = open_registry(url)
    registry.register("g", TARGET)
    registry.begin_migration("g", [SOURCE], TransferSettings())
    yield registry
    registry.store.close()


def found(registry: Registry) -> TransferRecord:
    transfer = registry.get("g")[1]
    assert transfer is not None
    return transfer


def silence(registry: Registry, seconds: float) -> None:
    """Nothing was heard of the worker for so long."""
    table = schema.leases
    times = {each: table.c[each] - seconds for each in ("renewed_at", "ends_at")}
    with registry.store.write() as connection:
        connection.execute(update(table).values(times))


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_host_whose_clock_is_another(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Neither is a worker that lives taken for dead there, nor a dead one for alive."""
    real, wrong = time.time, hours * 3600
    claimed = registry.claim_transfer("g", ELSEWHERE)
    monkeypatch.setattr(time, "time", lambda: real() + wrong)
    assert found(registry).leased()
    assert 0 <= found(registry).lease.seconds < LEASE_SECONDS
    with pytest.raises(ReplicationGroupAlreadyUnderMigrationFault):
        registry.claim_transfer("g", HERE)
    # What that host's own worker writes means the same to the others.
    claimed.beat(Progress(keys=1))
    monkeypatch.setattr(time, "time", real)
    assert found(registry).leased()
    assert found(registry).lease.seconds < LEASE_SECONDS
    silence(registry, LEASE_SECONDS + 1)
    monkeypatch.setattr(time, "time", lambda: real() + wrong)
    assert not found(registry).leased()
    registry.claim_transfer("g", HERE)


def test_clients_are_disconnected_by_a_host_whose_clock_is_another(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = registry.claim_transfer("g", HERE)
    claimed.finish(TransferStatus.DONE, Report("done"), Progress(), "completed", disconnect_for=1e6)
    assert disconnections.claim(registry.store, "g", ELSEWHERE) is not None
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600)
    assert disconnections.unattended(registry.store) == []
    assert registry.source_clients()["g"].unattended_since is None
    assert disconnections.claim(registry.store, "g", HERE) is None


WRITES: list[Callable[[ClaimedTransfer], object]] = [
    lambda c: c.beat(Progress(keys=7)),
    lambda c: c.beat(None),
    lambda c: c.read_request(),
    lambda c: c.refuse("no"),
    lambda c: c.save_checkpoint(Checkpoint(ScanPosition("r", 0, 1, ()), "target")),
    lambda c: c.note_held_before(True),
    lambda c: c.finish(TransferStatus.DONE, Report("done"), Progress(), "done"),
]


def test_a_worker_that_wakes_behind_a_resume(registry: Registry) -> None:
    """Its term is over from then on, also before the next worker has come."""
    claimed = registry.claim_transfer("g", HERE)
    claimed.beat(Progress(phase=Phase.FOLLOW, can_complete=True))
    silence(registry, LEASE_SECONDS + 1)
    registry.resume_migration("g")
    for write in WRITES:
        with pytest.raises(ClaimLost):
            write(claimed)
    now = found(registry)
    assert (now.status, now.worker, now.progress) == (TransferStatus.PENDING, None, Progress())
    assert registry.checkpoints(now) == {}
    assert now.lease.term == claimed.record.lease.term + 1
    # The next one's claim is within that term: one term is one worker.
    assert registry.claim_transfer("g", ELSEWHERE).record.lease.term == now.lease.term


def test_a_silent_worker_goes_on_as_long_as_the_lease_is_its_own(registry: Registry) -> None:
    claimed = registry.claim_transfer("g", HERE)
    silence(registry, LEASE_SECONDS + 1)
    assert not found(registry).leased()
    claimed.beat(None)
    assert found(registry).leased()


def test_each_write_renews(registry: Registry) -> None:
    claimed = registry.claim_transfer("g", HERE)
    for write in WRITES:
        silence(registry, LEASE_SECONDS - 1)
        before = found(registry).lease.renewed_at
        write(claimed)
        renewed = found(registry).lease.renewed_at
        reads = write is WRITES[2]
        assert (renewed == before) is reads


def test_a_worker_that_is_to_come(registry: Registry) -> None:
    """It has a shorter time than one that came."""

    def whole() -> float:
        lease = found(registry).lease
        return lease.age + lease.left

    assert whole() == pytest.approx(LAUNCH_SECONDS, abs=0.01)
    registry.note_launch(found(registry), HERE)
    assert whole() == pytest.approx(LEASE_SECONDS, abs=0.01)
    assert found(registry).worker == HERE


def test_no_two_migrations_of_a_group_go_on(registry: Registry) -> None:
    """Whatever a program does: the table refuses it."""
    table = schema.migrations
    with registry.store.read() as connection:
        row = dict(connection.execute(table.select()).one()._mapping)
    del row["id"]

    def another(status: str) -> None:
        with registry.store.write() as connection:
            connection.execute(table.insert(), {**row, "status": status})

    for status in ("pending", "running", "stopped"):
        with pytest.raises(StateError):
            another(status)
    another("failed")


def test_events_are_numbered_one_by_one(registry: Registry) -> None:
    """Also where the worker and others write at the same moment."""
    claimed = registry.claim_transfer("g", HERE)

    def write(tell: Callable[[str], object]) -> None:
        for number in range(20):
            tell(f"event {number}")

    told: list[Callable[[str], object]] = [
        claimed.add_event,
        lambda text: registry.add_event("g", text),
    ]
    threads = [threading.Thread(target=write, args=(each,)) for each in told]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    registry.add_event("none", "of a group that is not there")
    events = registry.list_events()
    mine = [each for each in events if each.migration_id == found(registry).id]
    assert sorted(each.number or 0 for each in mine) == list(range(1, 42))
    others = [each.message for each in events if each.migration_id is None]
    assert others == ["registered, with primary target.example.com:6379", events[-1].message]


def test_a_worker_that_wakes_in_the_middle_of_a_resume(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It renews before the resume looks, which is refused, or behind it, and has lost the lease;
    never in between."""
    claimed = registry.claim_transfer("g", HERE)
    silence(registry, LEASE_SECONDS + 1)
    lost: list[bool] = []

    def wake() -> None:
        try:
            claimed.beat(None)
        except ClaimLost:
            lost.append(True)

    worker = threading.Thread(target=wake)
    look = registry_module.newest_transfer

    def looked(connection: Any, group_id: str) -> TransferRecord | None:
        seen = look(connection, group_id)
        if not worker.ident:
            worker.start()
            # It waits for the lease from here on, or else it has renewed it by then.
            worker.join(0.2)
        return seen

    monkeypatch.setattr(registry_module, "newest_transfer", looked)
    registry.resume_migration("g")
    worker.join()
    assert lost == [True]
    assert found(registry).status is TransferStatus.PENDING


def test_a_launch_that_is_noted_late(registry: Registry) -> None:
    """The worker has ended the migration by then, and the group is gone or has another one."""
    launched = found(registry)
    registry.claim_transfer("g", HERE).finish(
        TransferStatus.FAILED, Report("failed"), Progress(), "failed"
    )
    registry.begin_migration("g", [SOURCE], TransferSettings())
    registry.note_launch(launched, HERE)
    assert found(registry).worker is None
    registry.fail_start(found(registry), Report("failed"), "no")
    registry.delete("g")
    registry.note_launch(launched, HERE)
