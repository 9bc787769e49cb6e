"""The state: what is allowed, the registry, claims, and two processes on one group."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from benches.support.waiting import wait_for
from engine.errors import (
    EngineError,
    InvalidReplicationGroupStateFault,
    ReplicationGroupAlreadyExistsFault,
    ReplicationGroupAlreadyUnderMigrationFault,
    ReplicationGroupNotFoundFault,
    ReplicationGroupNotUnderMigrationFault,
    UsageError,
)
from engine.fleet import process_identity as fleet_process
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.front.http.metrics import Metrics
from engine.groups import disconnections, lease, records, schema, verifications
from engine.groups.claimed_transfer import ClaimedTransfer, ClaimLost
from engine.groups.lease import Lease, Worker
from engine.groups.records import TransferRecord
from engine.groups.registry import Registry
from engine.groups.states import (
    MOVES,
    RULES,
    GroupStatus,
    Operation,
    Request,
    TransferStatus,
    check,
    move,
)
from engine.groups.store import STATE_VARIABLE, Store
from engine.model.checkpoint import Checkpoint
from engine.model.clients_after_cut_over import SourceClients, alone
from engine.model.endpoint import Endpoint
from engine.model.lane_plan import PlannedEnd, PlannedLane
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.position import ScanPosition
from engine.model.progress import Phase, Progress
from engine.model.report import NotCarried, Report, Step
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet

SOURCE = Endpoint("source.example.com", 6380, username="u", password="never stored")
TARGET = Endpoint("target.example.com", password="never stored")
SETTINGS = TransferSettings(match="a*", databases=(0, 3))
OWN = ProcessId.here()
HERE = OWN.worker
DEAD = dataclasses.replace(OWN, pid=2**22 + 1, started=1).worker
ELSEWHERE = dataclasses.replace(OWN, pid=7, where="another boot", host="elsewhere").worker
INIT = ProcessId.of(1).worker


@pytest.fixture(params=["sqlite", "postgresql"])
def state_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a state database that doesn't exist yet, or is empty, of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.sqlite'}"
    database: str = request.getfixturevalue("postgres").new_database()
    return database


@pytest.fixture
def registry(state_url: str) -> Iterator[Registry]:
    registry = open_registry(state_url)
    yield registry
    registry.store.close()


@pytest.fixture
def migrating(registry: Registry) -> TransferRecord:
    registry.register("g", TARGET)
    return registry.begin_migration("g", [SOURCE], SETTINGS)


def at(run_id: str, db: int, cursor: int, done: tuple[int, ...] = ()) -> Checkpoint:
    lost = (NotCarried(0, "k", "why"),)
    position = ScanPosition(run_id, db, cursor, done)
    return Checkpoint(position, "target", keys=7, not_carried=lost, beyond=(("full", 3),))


def status_of(registry: Registry) -> str:
    return registry.get("g")[0].status


def transfer_of(registry: Registry) -> TransferRecord:
    transfer = registry.get("g")[1]
    assert transfer is not None
    return transfer


def age(registry: Registry, seconds: float) -> None:
    """Make the transfer's times older."""
    table = schema.leases
    older = {each: table.c[each] - seconds for each in ("renewed_at", "ends_at")}
    with registry.store.write() as connection:
        connection.execute(update(table).values(older))


# --- The tables ---


ALREADY = ReplicationGroupAlreadyUnderMigrationFault
NOT_UNDER = ReplicationGroupNotUnderMigrationFault
INVALID = InvalidReplicationGroupStateFault


@pytest.mark.parametrize(
    ("operation", "status", "expected"),
    [
        (Operation.TEST, "available", "available"),
        (Operation.TEST, "migrating", ALREADY),
        (Operation.START, "available", "migrating"),
        (Operation.START, "migrating", ALREADY),
        (Operation.RESUME, "available", NOT_UNDER),
        (Operation.RESUME, "migrating", "migrating"),
        (Operation.COMPLETE, "available", NOT_UNDER),
        (Operation.COMPLETE, "migrating", "migrating"),
        (Operation.STOP, "available", NOT_UNDER),
        (Operation.STOP, "migrating", "migrating"),
        (Operation.FINISH, "available", NOT_UNDER),
        (Operation.FINISH, "migrating", "available"),
        (Operation.DELETE, "available", "available"),
        (Operation.DELETE, "migrating", INVALID),
        *((operation, "modifying", INVALID) for operation in Operation),
    ],
)
def test_what_is_allowed(
    operation: Operation, status: str, expected: str | type[EngineError]
) -> None:
    if isinstance(expected, str):
        assert check(operation, "g", status) == expected
        return
    with pytest.raises(expected, match=f"cannot {operation} replication group g: it is {status}"):
        check(operation, "g", status)


def test_the_table_of_groups_is_complete() -> None:
    assert set(RULES) == set(Operation)
    for rule in RULES.values():
        assert set(rule.faults) | {rule.needs} == set(GroupStatus)


ALLOWED_MOVES = {
    ("pending", "pending"),
    ("pending", "running"),
    ("pending", "stopped"),
    ("pending", "failed"),
    ("pending", "forced"),
    ("running", "pending"),
    ("running", "running"),
    ("running", "stopped"),
    ("running", "done"),
    ("running", "failed"),
    ("running", "forced"),
    ("stopped", "pending"),
    ("stopped", "running"),
    ("stopped", "failed"),
    ("stopped", "forced"),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(TransferStatus, repeat=2)))
def test_moves_of_a_transfer(old: TransferStatus, new: TransferStatus) -> None:
    assert set(MOVES) == set(TransferStatus)
    if (old, new) in ALLOWED_MOVES:
        assert move(old, new) is new
    else:
        with pytest.raises(EngineError, match=f"from {old} to {new}"):
            move(old, new)


# --- Groups ---


def test_register_and_get(registry: Registry) -> None:
    made = registry.register("g", TARGET, description="d", cluster_enabled=True)
    group, transfer = registry.get("g")
    assert group == made
    assert (group.status, group.description, group.cluster_enabled) == ("available", "d", True)
    assert group.primary == dataclasses.replace(TARGET, password=None)
    assert abs(group.created_at - time.time()) < 5
    assert transfer is None


def test_a_group_is_registered_once(registry: Registry) -> None:
    registry.register("g", TARGET)
    with pytest.raises(ReplicationGroupAlreadyExistsFault, match="g already exists"):
        registry.register("g", SOURCE)


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.get("no"),
        lambda r: r.check(Operation.START, "no"),
        lambda r: r.delete("no"),
        lambda r: r.begin_migration("no", [SOURCE], SETTINGS),
        lambda r: r.resume_migration("no"),
        lambda r: r.claim_transfer("no", HERE),
        lambda r: r.request("no", Request.COMPLETE),
        lambda r: r.end_without_worker("no", Report("stopped"), ""),
    ],
)
def test_an_unknown_group(registry: Registry, call: Callable[[Registry], object]) -> None:
    with pytest.raises(ReplicationGroupNotFoundFault, match="ReplicationGroup no not found"):
        call(registry)


@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.resume_migration("g"),
        lambda r: r.claim_transfer("g", HERE),
        lambda r: r.request("g", Request.COMPLETE),
        lambda r: r.request("g", Request.STOP),
        lambda r: r.end_without_worker("g", Report("stopped"), ""),
    ],
)
def test_a_group_that_is_not_under_migration(
    registry: Registry, call: Callable[[Registry], object]
) -> None:
    registry.register("g", TARGET)
    with pytest.raises(ReplicationGroupNotUnderMigrationFault):
        call(registry)


def test_pages(registry: Registry) -> None:
    names = [f"g{n:02}" for n in range(7)]
    for name in reversed(names):
        registry.register(name, TARGET)
    seen, after = [], ""
    for size in (3, 3, 1):
        page, more = registry.list(after=after, limit=3)
        assert len(page) == size
        seen += [group.id for group, _ in page]
        after = more or ""
    assert seen == names
    assert not after
    assert registry.list(limit=7)[1] is None


def test_delete(registry: Registry, migrating: TransferRecord) -> None:
    with pytest.raises(InvalidReplicationGroupStateFault):
        registry.delete("g")
    claimed = registry.claim_transfer("g", HERE)
    claimed.save_checkpoint(at("run", 0, 5))
    claimed.finish(TransferStatus.FAILED, Report("failed"), Progress(), "failed")
    registry.delete("g")
    with pytest.raises(ReplicationGroupNotFoundFault):
        registry.get("g")
    assert registry.list_events("g")[-1].message == "deleted"
    with registry.store.read() as connection:
        for table in ("migrations", "lanes", "leases", "checkpoints"):
            assert not connection.exec_driver_sql(f"SELECT * FROM {table}").all()
    # The name is free again, and nothing of the old one comes back.
    registry.register("g", TARGET)
    assert registry.get("g")[1] is None
    # The next one is another one, though the events of the old one are there still.
    begun = registry.begin_migration("g", [SOURCE], SETTINGS)
    assert begun.id > migrating.id
    told = [each.message for each in registry.list_events("g")]
    assert told.count(f"migration from {SOURCE.address} started") == 2


def test_events(registry: Registry) -> None:
    registry.register("g", TARGET)
    registry.register("h", TARGET)
    registry.add_event("g", "one")
    registry.add_event("h", "two")
    assert [e.message for e in registry.list_events("g")][1:] == ["one"]
    assert [e.message for e in registry.list_events()][2:] == ["one", "two"]
    with registry.store.write() as connection:
        connection.exec_driver_sql("UPDATE events SET at = at - 15 * 86400")
    registry.add_event("g", "new")
    assert [e.message for e in registry.list_events()] == ["new"]


# --- A migration's way through the state ---


def test_begin(registry: Registry, migrating: TransferRecord) -> None:
    group, transfer = registry.get("g")
    assert group.status == "migrating"
    assert transfer == migrating
    assert transfer.status is TransferStatus.PENDING
    assert transfer.source == dataclasses.replace(SOURCE, password=None)
    assert transfer.target == dataclasses.replace(TARGET, password=None)
    assert transfer.settings == SETTINGS
    assert transfer.progress == Progress()
    with pytest.raises(ReplicationGroupAlreadyUnderMigrationFault):
        registry.begin_migration("g", [SOURCE], SETTINGS)


def test_settings_of_another_version(registry: Registry, migrating: TransferRecord) -> None:
    with registry.store.write() as connection:
        connection.exec_driver_sql("""UPDATE migrations SET settings = '{"unheard_of": 1}'""")
    with pytest.raises(UsageError, match="another version"):
        _ = transfer_of(registry).settings


@pytest.mark.parametrize("wanted", [Request.STOP, Request.FORCE])
def test_a_refused_cut_over_takes_no_other_request_off(
    registry: Registry, migrating: TransferRecord, wanted: Request
) -> None:
    """It was asked for before the worker wrote the refusal down."""
    claimed = registry.claim_transfer("g", HERE)
    registry.request("g", Request.COMPLETE)
    assert claimed.read_request() is Request.COMPLETE
    registry.request("g", wanted)
    claimed.refuse("two keys differ")
    assert claimed.read_request() is wanted
    assert transfer_of(registry).refusal == "two keys differ"


def test_a_lane_that_is_over_when_its_progress_is_written(
    registry: Registry, migrating: TransferRecord
) -> None:
    """What was told of it before the lanes were planned anew is left out, and nothing else."""
    claimed = registry.claim_transfer("g", HERE)
    ends = PlannedEnd(), PlannedEnd("10.1.0.1", 6379, ("a",), SlotSet.parse("0-16383"))
    one, other = (
        PlannedLane(name, SlotSet.parse(slots), *ends, 1)
        for name, slots in (("one", "0-99"), ("other", "100-16383"))
    )
    claimed.plan([one, other])
    told = {"one": Progress(keys=1), "other": Progress(keys=2)}
    claimed.beat(Progress(keys=3), told)
    claimed.plan([other])
    claimed.beat(Progress(keys=3), {**told, "other": Progress(keys=5)})
    assert {each.name: each.progress.keys for each in transfer_of(registry).parts} == {"other": 5}


def test_a_whole_run(registry: Registry, migrating: TransferRecord) -> None:
    claimed = registry.claim_transfer("g", HERE)
    assert claimed.record.status is TransferStatus.RUNNING
    assert transfer_of(registry).leased()
    progress = Progress(phase=Phase.SNAPSHOT, keys=3, total_keys=9, eta_seconds=1.5)
    assert claimed.beat(progress) is Request.NONE
    assert claimed.beat(None) is Request.NONE
    assert transfer_of(registry).progress == progress
    assert claimed.load_checkpoint() is None
    for cursor in (5, 6):
        claimed.save_checkpoint(at("run", 3, cursor, (0, 1)))
        assert claimed.load_checkpoint() == at("run", 3, cursor, (0, 1))
    claimed.note_held_before(True)
    registry.request("g", Request.COMPLETE)
    assert claimed.read_request() is Request.COMPLETE
    claimed.refuse("two keys differ")
    assert transfer_of(registry).refusal == "two keys differ"
    assert claimed.read_request() is Request.NONE
    registry.request("g", Request.FORCE)
    assert claimed.beat(None) is Request.FORCE
    assert transfer_of(registry).refusal == ""
    report = Report(
        "done",
        keys=9,
        not_carried=(NotCarried(0, "k\\x00", "why"),),
        not_carried_total=1,
        steps=(Step("snapshot", 1.5, 9, 90),),
    )
    claimed.finish(TransferStatus.DONE, report, progress, "completed")
    assert status_of(registry) == "available"
    ended = transfer_of(registry)
    assert (ended.status, ended.report, ended.held_before) == (TransferStatus.DONE, report, True)
    assert not ended.leased()
    assert claimed.load_checkpoint() is None
    messages = [event.message for event in registry.list_events("g")]
    assert messages[0] == "registered, with primary target.example.com:6379"
    assert messages[1] == "migration from source.example.com:6380 started"
    assert messages[-1] == "completed"
    assert registry.begin_migration("g", [SOURCE], SETTINGS).id != ended.id


def test_a_stopped_run_is_resumed(registry: Registry, migrating: TransferRecord) -> None:
    claimed = registry.claim_transfer("g", HERE)
    claimed.save_checkpoint(at("run", 0, 5))
    copied = Progress(phase=Phase.COPIED, can_complete=True)
    claimed.finish(TransferStatus.STOPPED, Report("stopped"), copied, "stopped")
    assert status_of(registry) == "migrating"
    assert not transfer_of(registry).leased()
    resumed = registry.resume_migration("g")
    assert (resumed.id, resumed.status) == (migrating.id, TransferStatus.PENDING)
    # What the old worker said of itself is not said of the new one.
    assert not resumed.progress.can_complete
    assert registry.claim_transfer("g", HERE).load_checkpoint() == at("run", 0, 5)


def test_a_resume_with_other_settings(registry: Registry, migrating: TransferRecord) -> None:
    """And with a loss that is accepted: the checkpoint says so to the next worker."""
    claimed = registry.claim_transfer("g", HERE)
    mark = OnlineCheckpoint("token", begun=True, full_syncs=1)
    claimed.save_checkpoint(Checkpoint(mark, "target"))
    claimed.finish(TransferStatus.STOPPED, Report("stopped"), Progress(), "stopped")
    before = migrating.settings
    resumed = registry.resume_migration(
        "g", changes={"spool_bytes": 123, "retry_for": 5.0}, accept_source_loss=True
    )
    assert resumed.settings == dataclasses.replace(before, spool_bytes=123, retry_for=5.0)
    again = registry.claim_transfer("g", HERE)
    found = again.load_checkpoint()
    assert found is not None
    assert found.position == dataclasses.replace(mark, loss_accepted=True)
    again.finish(TransferStatus.STOPPED, Report("stopped"), Progress(), "stopped")
    with pytest.raises(UsageError, match="--retry-for"):
        registry.resume_migration("g", changes={"retry_for": -1.0})


def test_a_loss_that_is_accepted_voids_a_cursor(
    registry: Registry, migrating: TransferRecord
) -> None:
    claimed = registry.claim_transfer("g", HERE)
    claimed.save_checkpoint(at("run", 0, 5))
    claimed.finish(TransferStatus.STOPPED, Report("stopped"), Progress(), "stopped")
    registry.resume_migration("g", accept_source_loss=True)
    assert registry.claim_transfer("g", HERE).load_checkpoint() is None


@pytest.mark.parametrize("held_before", [False, True])
def test_what_a_failed_run_has_left_is_told_at_the_next_start(
    registry: Registry, migrating: TransferRecord, held_before: bool
) -> None:
    claimed = registry.claim_transfer("g", HERE)
    claimed.note_held_before(held_before)
    claimed.finish(TransferStatus.FAILED, Report("failed", keys=5), Progress(), "failed")
    registry.begin_migration("g", [SOURCE], SETTINGS)
    told = [
        event.message for event in registry.list_events("g") if "has left keys" in event.message
    ]
    assert len(told) == (0 if held_before else 1)


def test_a_claim_that_is_lost(registry: Registry, migrating: TransferRecord) -> None:
    lost = registry.claim_transfer("g", DEAD)
    registry.resume_migration("g")
    registry.claim_transfer("g", HERE).save_checkpoint(at("mine", 0, 1))
    calls: list[Callable[[ClaimedTransfer], object]] = [
        lambda c: c.beat(Progress(keys=7)),
        lambda c: c.beat(None),
        lambda c: c.read_request(),
        lambda c: c.refuse("no"),
        lambda c: c.save_checkpoint(at("theirs", 0, 1)),
        lambda c: c.note_held_before(True),
        lambda c: c.finish(TransferStatus.DONE, Report("done"), Progress(), "done"),
    ]
    for call in calls:
        with pytest.raises(ClaimLost, match="taken it over, or it was ended"):
            call(lost)
    assert status_of(registry) == "migrating"
    assert lost.load_checkpoint() == at("mine", 0, 1)
    assert transfer_of(registry).progress == Progress()


def test_an_end_without_a_worker(registry: Registry, migrating: TransferRecord) -> None:
    claimed = registry.claim_transfer("g", HERE)
    assert not registry.end_without_worker("g", Report("stopped"), "forced")
    assert status_of(registry) == "migrating"
    with registry.store.write() as connection:
        connection.execute(update(schema.leases).values(worker=DEAD.to_dict()))
    assert registry.end_without_worker("g", Report("stopped"), "forced")
    assert status_of(registry) == "available"
    assert transfer_of(registry).status is TransferStatus.FORCED
    with pytest.raises(ClaimLost):
        claimed.beat(None)


def test_a_worker_that_could_not_start(registry: Registry, migrating: TransferRecord) -> None:
    registry.fail_start(migrating, Report("failed", errors=("why",)), "migration failed: why")
    assert status_of(registry) == "available"
    assert transfer_of(registry).status is TransferStatus.FAILED
    assert registry.list_events("g")[-1].message == "migration failed: why"


# --- Claims, dead and alive ---


def test_a_process_knows_itself() -> None:
    assert ProcessId.of(os.getpid()) == OWN
    assert OWN.pid == os.getpid()
    assert OWN.started > 0
    assert not OWN.ended()
    assert ProcessId.of_worker(Worker.from_dict(HERE.to_dict())) == OWN
    assert HERE.words == f"pid {os.getpid()}"


def test_a_worker_of_another_launcher() -> None:
    """What its detail means is not known here, and so not whether it has ended."""
    actor = Worker("actor 7f", "node-3", {"Actor": "7f"}, {"actor": "7f", "job": 1})
    assert ProcessId.of_worker(actor) is None
    assert not fleet_process.ended(actor)
    assert actor.words == "actor 7f"


def test_a_process_that_ends() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    who = ProcessId.of(child.pid)
    assert not who.ended()
    # Of the same pid, but an earlier process.
    assert dataclasses.replace(who, started=who.started - 1).ended()
    child.kill()
    # A zombie is dead, though its pid is still taken.
    wait_for(who.ended, "its end")
    child.communicate()
    assert who.ended()
    assert ProcessId.of(child.pid).ended()


@pytest.mark.parametrize("worker", [ELSEWHERE, HERE], ids=["elsewhere", "here"])
def test_a_lease_ends(worker: Worker) -> None:
    """That of a worker elsewhere, and of one that lives but has given up."""

    def leased(left: float, ended: bool = False, passed: float = 0.0) -> Lease:
        read_at = time.monotonic() - passed
        return Lease(1, 1, worker, 0.0, lease.LEASE_SECONDS - left, left, ended, read_at)

    assert leased(left=1).live
    assert not leased(left=-1).live
    # What passes behind the reading counts.
    assert not leased(left=1, passed=2).live
    assert not leased(left=1, ended=True).live
    assert lease.LEASE_SECONDS + 1 <= leased(left=1, passed=2).seconds < lease.LEASE_SECONDS + 30


def test_a_name_with_parentheses(tmp_path: Path) -> None:
    # The command's name stands in the same line, unescaped.
    program = tmp_path / "a) Z (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "30"])
    try:
        time.sleep(0.05)
        assert not ProcessId.of(child.pid).ended()
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("other", [INIT, ELSEWHERE])
def test_a_live_claim_is_respected(
    registry: Registry, migrating: TransferRecord, other: Worker
) -> None:
    registry.claim_transfer("g", other)
    with pytest.raises(ReplicationGroupAlreadyUnderMigrationFault, match=f"{other.name} on"):
        registry.claim_transfer("g", HERE)
    with pytest.raises(ReplicationGroupAlreadyUnderMigrationFault):
        registry.resume_migration("g")


def test_a_dead_claim_is_taken_over(registry: Registry, migrating: TransferRecord) -> None:
    first = registry.claim_transfer("g", DEAD)
    assert not transfer_of(registry).leased()
    second = registry.claim_transfer("g", HERE)
    assert second.record.lease.term == first.record.lease.term + 1
    assert transfer_of(registry).worker == HERE


@pytest.mark.parametrize("other", [INIT, ELSEWHERE])
def test_a_silent_claim_is_taken_over(
    registry: Registry, migrating: TransferRecord, other: Worker
) -> None:
    registry.claim_transfer("g", other)
    age(registry, lease.LEASE_SECONDS + 1)
    assert registry.claim_transfer("g", HERE).beat(None) is Request.NONE


def test_a_worker_that_is_just_starting(registry: Registry, migrating: TransferRecord) -> None:
    assert transfer_of(registry).leased()
    with pytest.raises(ReplicationGroupAlreadyUnderMigrationFault, match="just starting"):
        registry.resume_migration("g")
    age(registry, lease.LAUNCH_SECONDS + 1)
    assert not transfer_of(registry).leased()
    registry.resume_migration("g")


def test_a_process_that_ends_before_it_claims(registry: Registry) -> None:
    registry.register("g", TARGET)
    registry.begin_migration("g", [SOURCE], SETTINGS, worker=DEAD)
    assert not transfer_of(registry).leased()
    registry.resume_migration("g", worker=DEAD)
    assert not transfer_of(registry).leased()
    registry.resume_migration("g", worker=HERE)
    assert transfer_of(registry).leased()
    registry.claim_transfer("g", HERE)


def test_a_launched_worker_that_never_claims(registry: Registry, migrating: TransferRecord) -> None:
    registry.note_launch(migrating, HERE)
    age(registry, lease.LAUNCH_SECONDS + 1)
    assert transfer_of(registry).leased()
    registry.note_launch(migrating, DEAD)
    assert not transfer_of(registry).leased()


def test_a_late_note_of_a_launch(registry: Registry, migrating: TransferRecord) -> None:
    claimed = registry.claim_transfer("g", HERE)
    registry.note_launch(migrating, DEAD)
    assert transfer_of(registry).worker == HERE
    assert claimed.beat(None) is Request.NONE


def test_who_has_ended() -> None:
    assert not fleet_process.ended(HERE)
    assert fleet_process.ended(DEAD)
    assert fleet_process.ended(ProcessId.of(DEAD.shown["Pid"]).worker)
    # It cannot be looked up.
    assert not fleet_process.ended(ELSEWHERE)


def test_a_killed_worker_is_replaced(registry: Registry, migrating: TransferRecord) -> None:
    dead = registry.claim_transfer("g", DEAD)
    dead.save_checkpoint(at("r", 0, 5))
    dead.beat(Progress(phase=Phase.SNAPSHOT, keys=3))
    assert transfer_of(registry).orphaned()
    replaced = registry.replace_worker("g", "it was killed")
    assert replaced is not None
    assert (replaced.status, replaced.progress) == (TransferStatus.PENDING, Progress())
    assert registry.list_events("g")[-1].message == "it was killed"
    # Somebody else watches as well, and is late.
    assert registry.replace_worker("g", "again") is None
    assert registry.list_events("g")[-1].message == "it was killed"
    assert registry.claim_transfer("g", HERE).load_checkpoint() == at("r", 0, 5)


def test_who_is_not_replaced(registry: Registry, migrating: TransferRecord) -> None:
    assert registry.replace_worker("g", "starting") is None
    claimed = registry.claim_transfer("g", HERE)
    assert registry.replace_worker("g", "lives") is None
    age(registry, lease.LEASE_SECONDS + 1)
    assert not transfer_of(registry).leased()
    assert registry.replace_worker("g", "silent") is None
    registry.claim_transfer("g", ELSEWHERE)
    age(registry, lease.LEASE_SECONDS + 1)
    assert registry.replace_worker("g", "elsewhere") is None
    claimed = registry.claim_transfer("g", DEAD)
    claimed.finish(TransferStatus.STOPPED, Report("stopped"), Progress(), "stopped")
    assert registry.replace_worker("g", "stopped") is None
    registry.resume_migration("g", worker=DEAD)
    claimed = registry.claim_transfer("g", DEAD)
    claimed.finish(TransferStatus.FAILED, Report("failed"), Progress(), "failed")
    assert registry.replace_worker("g", "failed") is None
    assert registry.list_events("g")[-1].message == "failed"


def test_a_worker_that_never_came_is_replaced(
    registry: Registry, migrating: TransferRecord
) -> None:
    age(registry, lease.LAUNCH_SECONDS + 1)
    assert registry.replace_worker("g", "never came") is not None


@pytest.mark.parametrize(
    ("request_", "phase", "kept"),
    [
        (Request.COMPLETE, Phase.SNAPSHOT, True),
        (Request.COMPLETE, Phase.FOLLOW, True),
        # It leads back to where it began, and is not begun again unasked.
        (Request.COMPLETE, Phase.CUT_OVER, False),
        (Request.COMPLETE_UNVERIFIED, Phase.FOLLOW, True),
        (Request.COMPLETE_UNVERIFIED, Phase.CUT_OVER, False),
        (Request.FORCE, Phase.CUT_OVER, True),
    ],
)
def test_the_word_that_a_killed_worker_had(
    registry: Registry, migrating: TransferRecord, request_: Request, phase: Phase, kept: bool
) -> None:
    dead = registry.claim_transfer("g", DEAD)
    registry.request("g", request_)
    dead.beat(Progress(phase=phase))
    assert registry.replace_worker("g", "killed") is not None
    claimed = registry.claim_transfer("g", HERE)
    assert claimed.read_request() is (request_ if kept else Request.NONE)
    # What became of the cut-over is not told before the new worker has found out.
    found = transfer_of(registry)
    assert (found.refused, found.undecided) == ("", not kept)
    claimed.beat(Progress(phase=Phase.CATCH_UP))
    found = transfer_of(registry)
    assert (found.refused, found.undecided) == ("" if kept else records.KILLED, False)
    assert status_of(registry) == "migrating"


@pytest.mark.parametrize("by", ["replaced", "resumed"])
def test_a_cut_over_stays_undecided_through_every_worker_that_is_killed(
    registry: Registry, migrating: TransferRecord, by: str
) -> None:
    def next_one() -> None:
        if by == "replaced":
            assert registry.replace_worker("g", "killed") is not None
        else:
            registry.resume_migration("g")

    dead = registry.claim_transfer("g", DEAD)
    registry.request("g", Request.COMPLETE)
    dead.beat(Progress(phase=Phase.CUT_OVER))
    assert transfer_of(registry).undecided
    for _ in range(2):
        next_one()
        assert transfer_of(registry).undecided
        dead = registry.claim_transfer("g", DEAD)
        assert transfer_of(registry).undecided
    # The one that has found out told it; one that is killed later leaves nothing in doubt.
    dead.beat(Progress(phase=Phase.FOLLOW))
    assert transfer_of(registry).refused == records.KILLED
    next_one()
    found = transfer_of(registry)
    assert (found.undecided, found.refused) == (False, "")


RACER = """
import sys, time
from engine.errors import ReplicationGroupAlreadyUnderMigrationFault
from engine.groups.registry import Registry
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings

registry = Registry(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    group, start = line.split()
    while time.time() < float(start):
        pass
    try:
        registry.begin_migration(group, [Endpoint("h")], TransferSettings())
        print("won", flush=True)
    except ReplicationGroupAlreadyUnderMigrationFault:
        print("lost", flush=True)
"""


def test_of_two_processes_one_starts(state_url: str, tmp_path: Path) -> None:
    """Both open a state that does not exist yet, and then start the same group, 20 times."""
    script = tmp_path / "racer.py"
    script.write_text(RACER)
    root = Path(__file__).resolve().parents[2]
    racers = [
        subprocess.Popen(
            [sys.executable, str(script), state_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for _ in range(2)
    ]
    registry = None
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        registry = open_registry(state_url)
        wins = [0, 0]
        for number in range(20):
            group = f"g{number}"
            registry.register(group, TARGET)
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write(f"{group} {time.time() + 0.03}\n")
                racer.stdin.flush()
            results = [racer.stdout.readline().strip() for racer in racers if racer.stdout]
            assert sorted(results) == ["lost", "won"]
            wins[results.index("won")] += 1
            with registry.store.read() as connection:
                rows = connection.execute(
                    select(schema.migrations.c.id).where(schema.migrations.c.group_id == group)
                ).all()
            assert len(rows) == 1
        assert sum(wins) == 20
    finally:
        for racer in racers:
            racer.communicate(timeout=20)
        if registry is not None:
            registry.store.close()
    assert [racer.returncode for racer in racers] == [0, 0]


# --- The store ---


def test_the_files_are_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "state.db"
    registry = Registry(str(path))
    registry.register("g", TARGET)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    registry.store.close()


def test_the_default_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STATE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    store = Store()
    assert store.file == tmp_path / "xdg" / "startmigration" / "state.db"
    assert store.folder == store.file.parent
    store.close()
    monkeypatch.setenv(STATE_VARIABLE, f"sqlite:///{tmp_path / 'other.db'}")
    store = Store()
    assert store.file == tmp_path / "other.db"
    store.close()
    relative = Path(os.path.relpath(tmp_path / "other.db"))
    store = Store(str(relative))
    assert store.file == relative.absolute()
    store.close()


def test_no_password_is_stored(registry: Registry, migrating: TransferRecord) -> None:
    registry.claim_transfer("g", HERE).finish(
        TransferStatus.DONE, Report("done"), Progress(), "done"
    )
    with registry.store.read() as connection:
        for table in schema.metadata.sorted_tables:
            assert "never stored" not in repr(connection.execute(select(table)).all())
    if registry.store.file is not None:
        for file in registry.store.file.parent.iterdir():
            assert b"never stored" not in file.read_bytes()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("nonsense://", "no driver"),
        ("postgresql+nosuch://me:secret@db/x", "no driver"),
        ("://", "cannot be understood"),
    ],
)
def test_states_that_cannot_be(state: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Store(state)
    assert "secret" not in str(caught.value)


def test_readers_do_not_wait_for_a_writer(registry: Registry, state_url: str) -> None:
    registry.register("g", TARGET)
    other = Registry(state_url)
    with registry.store.write() as connection:
        connection.exec_driver_sql("UPDATE replication_groups SET description = 'new'")
        # (One that waited would be given up: the writer waits for it.)
        assert other.get("g")[0].description == ""
    assert other.get("g")[0].description == "new"
    other.store.close()


def test_disconnecting_that_no_process_does(registry: Registry, migrating: TransferRecord) -> None:
    """Shown since when, and told once; the next process, its end and a longer time."""
    claimed = registry.claim_transfer("g", HERE)
    report = Report(status="done", sealed="0 10", lets_scripts=True, scripts_before=1)
    claimed.finish(TransferStatus.DONE, report, Progress(), "completed", disconnect_for=60.0)

    def seen() -> SourceClients:
        found = registry.get("g")[1]
        assert found is not None
        assert found.source_clients is not None
        return found.source_clients

    # One that is just starting is no reason to worry.
    assert seen().unattended_since is None
    first = disconnections.claim(registry.store, "g", ProcessId.of(1 << 30).worker)
    assert first is not None
    assert first.first
    since = seen().unattended_since
    assert since is not None
    for _ in range(2):
        disconnections.report_unattended(registry.store)
    (told,) = (each for each in texts(registry) if "no process" in each)
    assert told == alone(seen(), "g")
    assert "how much that is is not known" in told
    page = Metrics().page([], {}, registry.source_clients(), {}).decode()
    assert 'startmigration_source_clients_attended{group="g"} 0.0' in page
    # Its guard is waited for.
    assert disconnections.unattended(registry.store, patience=60.0) == []
    assert disconnections.unattended(registry.store) == ["g"]
    second = disconnections.claim(registry.store, "g", HERE)
    assert second is not None
    assert not second.first
    assert seen().unattended_since is None
    assert first.write(first.found) is None
    # Whoever does it goes on for longer.
    disconnections.extend(registry.store, migrating.id, 1000.0)
    assert (second.write(second.found) or 0.0) > time.time() + 900
    ended = second.found.end("the time set for it is over")
    assert second.end(ended)
    assert not second.end(ended)
    assert not disconnections.end(registry.store, migrating, "an operator has stopped it")
    (last,) = (each for each in texts(registry) if "no longer disconnected" in each)
    assert (
        "the time set for it is over; the source refuses writes (NOREPLICAS), but runs scripts"
        in last
    )
    assert "how many scripts the source has run since then is not known" in last
    page = Metrics().page([], {}, registry.source_clients(), {}).decode()
    assert "source_clients_attended{" not in page


def test_disconnecting_that_is_stopped_where_no_process_does_it(
    registry: Registry, migrating: TransferRecord
) -> None:
    """What was counted before is no longer all that was run."""
    claimed = registry.claim_transfer("g", HERE)
    report = Report(status="done", lets_scripts=True, scripts_before=1)
    claimed.finish(TransferStatus.DONE, report, Progress(), "completed", disconnect_for=60.0)
    mine = disconnections.claim(registry.store, "g", ProcessId.of(1 << 30).worker)
    assert mine is not None
    mine.write(dataclasses.replace(mine.found, scripts=5, writes=5))
    assert disconnections.end(registry.store, migrating, "an operator has stopped it")
    (last,) = (each for each in texts(registry) if "no longer disconnected" in each)
    assert "how many scripts the source has run since then is not known" in last
    assert "5 scripts" not in last
    found = registry.source_clients()["g"]
    assert found.scripts is found.unattended_since is None


def texts(registry: Registry) -> list[str]:
    return [each.message for each in registry.list_events("g")]


def test_a_verification_in_the_state(registry: Registry) -> None:
    """One at a time, by one process; another one replaces what a process has left."""
    registry.register("g", TARGET)
    store, asked = registry.store, {"mode": "full", "match": None, "rate": 0, "resume": False}

    def seen() -> records.VerificationRecord:
        found = registry.get("g")[0].verification
        assert found is not None
        assert registry.list()[0][0][0].verification == found
        return found

    assert registry.get("g")[0].verification is None
    assert not verifications.stop(store, "g")
    with pytest.raises(ReplicationGroupNotFoundFault):
        verifications.begin(store, "no", SOURCE.url, asked)
    verifications.begin(store, "g", SOURCE.url, asked)
    assert (seen().goes_on, seen().asked, seen().source_url) == (True, asked, SOURCE.url)
    with pytest.raises(InvalidReplicationGroupStateFault, match="is under way"):
        verifications.begin(store, "g", SOURCE.url, asked)
    gone = verifications.claim(store, "g", ProcessId.of(1 << 30).worker)
    assert gone is not None
    assert not seen().goes_on
    verifications.begin(store, "g", SOURCE.url, asked)
    assert not gone.write({"keys": 1})
    mine = verifications.claim(store, "g", HERE)
    assert mine is not None
    assert verifications.claim(store, "g", HERE) is None
    assert mine.write({"keys": 7})
    assert seen().progress == {"keys": 7}
    assert verifications.stop(store, "g")
    assert not mine.write({"keys": 8})
    gone.end({"status": "done"}, "of the one before")
    mine.end({"status": "stopped"}, "verification stopped")
    assert (seen().goes_on, seen().result) == (False, {"status": "stopped"})
    assert texts(registry)[-3:] == ["verification started"] * 2 + ["verification stopped"]
    registry.delete("g")
    assert not mine.write({"keys": 9})


def test_a_verification_of_a_group_that_was_deleted(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another group of its name has nothing of it: neither its process nor its files."""
    # (There the files are of a state in PostgreSQL.)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    registry.store.folder.mkdir(exist_ok=True)
    registry.register("g", TARGET)
    store, asked = registry.store, {"mode": "full", "match": None, "rate": 0, "resume": True}
    verifications.begin(store, "g", SOURCE.url, asked)
    before = verifications.claim(store, "g", HERE)
    assert before is not None
    assert before.write({"keys": 1})
    report = verifications.report_paths(store, "g").report
    files = [
        report,
        *(report.with_name(report.name + each) for each in (".html", ".part", ".state")),
        # Of one that was killed while it made its file.
        *(report.with_name(report.name + ".state.new" + each) for each in ("", "-journal")),
    ]
    for each in files:
        each.write_text("of the one before")
    with files[2].open() as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        verifications.forget_files(store, "g")
    assert all(each.exists() for each in files)
    registry.delete("g")
    assert not [each for each in files if each.exists()]
    registry.register("g", TARGET)
    verifications.begin(store, "g", SOURCE.url, asked)
    assert not before.write({"keys": 2})
    now = verifications.claim(store, "g", HERE)
    assert now is not None
    assert (now.number, now.asked["resume"]) == (before.number, False)
    assert not before.write({"keys": 3})
    before.end({"status": "done"}, "of the one before")
    assert now.write({"keys": 4})
    # One whose row another process has taken over.
    stranger = dataclasses.replace(now, process=ProcessId.of(1 << 30).worker.to_dict())
    assert not stranger.write({"keys": 5})
