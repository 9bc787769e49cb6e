"""States of an earlier version: taken over whole, or refused with words."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect

from engine.errors import StateError
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.groups import disconnections, schema, upgrade
from engine.groups.registry import Registry
from engine.groups.states import Request, TransferStatus
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.progress import Phase
from engine.model.settings import TransferSettings
from tests.support import state_of_version_1

OWN = ProcessId.here()
DEAD = dataclasses.asdict(dataclasses.replace(OWN, pid=2**22 + 1, started=1))
ELSEWHERE = dataclasses.asdict(dataclasses.replace(OWN, where="another boot", host="elsewhere"))
# As an engine of that version had them in the middle of a migration, and behind one.
SETTINGS = (
    '{"source_type": "auto", "match": null, "key_type": null, "databases": [0, 3], '
    '"if_exists": "replace", "batch_bytes": 1048576, "window_bytes": 8388608, '
    '"stream_above": 4194304, "connect_timeout": 10.0, "io_timeout": 60.0, "retry_for": 21600.0, '
    '"until": "cut-over", "fence": "pause", "fence_hook": null, "cut_over_timeout": 10.0, '
    '"source_after": "refuse", "publish": "pass", "switch_hook": null, "switch_timeout": 30.0, '
    '"disconnect_for": 600.0, "keep_users": ["app"], "source_nodes": [], "search_names": [], '
    '"max_lag_bytes": 1048576, "check_bytes": 1048576, "check_seconds": 5.0, '
    '"sweep_seconds": 600.0, "spool_directory": null, "spool_bytes": 10737418240, '
    '"tune_source": false, "hold_horizon": 7200.0, "skip_checks": ["memory"], '
    '"command_names": ["CONFIG=CONFIG_a1"], "take_over": false, "auto_cut_over": false, '
    '"until_time": null, "aof_load_truncated": true}'
)
PROGRESS = (
    '{"phase": "FOLLOW", "source_type": "replica", "keys": 500, "bytes": 6872, "total_keys": 500, '
    '"skipped": 0, "vanished": 0, "not_carried": 0, "evicted_keys": 0, "retries": 0, '
    '"reconnects": 0, "keys_per_second": 0.0, "seconds": 0.213, "eta_seconds": 0.0, '
    '"lag_bytes": 0, "lag_seconds": 0.0, "applied_offset": 4711, "source_offset": 4711, '
    '"link": "up", "source_heard_seconds": 0.0, "target_heard_seconds": 0.0, "commands": 7, '
    '"spool_bytes": 0, "partial_syncs": 0, "full_syncs": 1, "repaired_keys": 0, "held_keys": 0, '
    '"can_complete": true, "uncomparable": false, "trying_again": false, "lets_scripts": false, '
    '"reason": "in sync: lag 0 bytes"}'
)
CHECKPOINT = (
    '{"position": {"token": "fa940d0426a6e5f1", "begun": true, "held_before": false, '
    '"promoting": "", "process": "", "timed": false, "opened": false, "handed_over": false, '
    '"came_back": "", "tidied": false, "released": false, "lifted": true, '
    '"begun_at": 1795938096.743629, "loss_accepted": false, "taken_over": "", "tuned": "", '
    '"fenced": false, "sealed": "", "switched": false, "compare_all": "", "fenced_at": "", '
    '"closed_before": "", "lets_scripts": false, "scripts": null, "writes": null, '
    '"scripts_run": null, "writes_run": null, "lost_writes": "", "held": false, "head": "", '
    '"followed": "", "siblings": [], "claimed_at": "f95c36", "partial_syncs": 0, '
    '"full_syncs": 1, "repaired_keys": 0, "answered": 0, "search_names": [], "lost": []}, '
    '"target_identity": "f95c36:410827", "keys": 500, "bytes": 6872, "skipped": 0, '
    '"vanished": 0, "not_carried": [], "not_carried_total": 0, "beyond": [], '
    '"evictions": {"base": 0, "run_id": "f95c36", "before": 0, "count": 0, '
    '"policy": "noeviction"}, "telemetry": [], "file": null}'
)
REPORT = '{"status": "done", "keys": 9, "sealed": "10 0", "sealed_at": "10.0.0.1:6379"}'
NOW = time.time()
# Of what is alive: however long the machine pauses, it was heard less than half a minute ago.
AHEAD = NOW + 3600


def transfer(number: int, group: str, status: str, **others: Any) -> dict[str, Any]:
    """A row of `transfers`."""
    row: dict[str, Any] = {
        "id": number,
        "group_id": group,
        "status": status,
        "attempt": 3,
        "source_urls": '["redis://10.0.0.1:6379"]',
        "target_url": "redis://10.0.0.2:6379",
        "settings": SETTINGS,
        "held_before": False,
        "progress": PROGRESS,
        "report": None,
        "process": json.dumps(DEAD),
        "heartbeat_at": NOW - 1,
        "changed_at": NOW - 60,
        "created_at": NOW - 70,
        "request": "",
        "refusal": "",
    }
    return {**row, **others}


def fill(run: Callable[[str, dict[str, Any]], object], *rows: dict[str, Any]) -> None:
    """Groups "g" and "h", a migration of "g" that is over, and these; events of all."""
    group = "INSERT INTO replication_groups VALUES (:id, '', :status, :cluster, :url, :at)"
    for name in ("g", "h"):
        url = "redis://10.0.0.2:6379"
        values = {"id": name, "status": "migrating", "url": url, "at": NOW - 99, "cluster": False}
        run(group, values)
    over = transfer(4, "g", "done", report=REPORT, created_at=NOW - 90, refusal="once refused")
    for row in (over, *rows):
        columns = ", ".join(f":{name}" for name in row)
        run(f"INSERT INTO transfers VALUES ({columns})", row)
    run(
        "INSERT INTO checkpoints VALUES (:id, :checkpoint, :at)",
        {"id": 7, "checkpoint": CHECKPOINT, "at": NOW - 5},
    )
    for number, (name, at, message) in enumerate(
        (
            ("g", NOW - 99, "registered, with primary 10.0.0.2:6379"),
            ("g", NOW - 90, "migration from 10.0.0.1:6379 started"),
            ("h", NOW - 80, "registered, with primary 10.0.0.2:6379"),
            ("g", NOW - 75, "migration completed: the target is open"),
            ("g", NOW - 69, "migration from 10.0.0.1:6379 started"),
        ),
        1,
    ):
        values = {"id": number, "name": name, "at": at, "message": message}
        run("INSERT INTO events VALUES (:id, :name, :at, :message)", values)


GOING_ON = transfer(7, "g", "running", request="complete", refusal="1 key differs")
STOPPED = transfer(8, "h", "stopped", process=None, progress=None, attempt=1)


@pytest.fixture(params=["sqlite", "postgresql"])
def older(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a state of version 1: "g" is in the middle of a migration, "h" is stopped."""
    if request.param == "sqlite":
        made = state_of_version_1.make(tmp_path / "state.db")
        fill(made.execute, GOING_ON, STOPPED)
        _disconnection(made.execute)
        made.close()
        return f"sqlite:///{tmp_path / 'state.db'}"
    url: str = request.getfixturevalue("postgres").new_database()
    engine = create_engine(url)
    with engine.begin() as connection:

        def run(statement: str, values: dict[str, Any] | None = None) -> None:
            from sqlalchemy import text

            connection.execute(text(statement), values or {})

        for each in state_of_version_1.statements(serial="SERIAL"):
            run(each)
        run("INSERT INTO schema_version VALUES (1)")
        fill(run, GOING_ON, STOPPED)
        _disconnection(run)
        run("SELECT setval('events_id_seq', 5)")
        run("SELECT setval('transfers_id_seq', 8)")
    engine.dispose()
    return url


def _disconnection(run: Callable[[str, dict[str, Any]], object]) -> None:
    clients = json.dumps({"until": NOW + 500, "disconnected": 3, "lets_scripts": False})
    run(
        "INSERT INTO disconnections VALUES (4, 2, :until, '', :process, :at, :clients)",
        {"until": NOW + 500, "process": json.dumps(ELSEWHERE), "at": AHEAD, "clients": clients},
    )


@pytest.fixture
def registry(older: str) -> Iterator[Registry]:
    registry = open_registry(older)
    yield registry
    registry.store.close()


def test_what_was_there(registry: Registry) -> None:
    group, found = registry.get("g")
    assert (group.status, group.created_at, group.engine) == ("migrating", NOW - 99, None)
    assert found is not None
    assert (found.id, found.status, found.request) == (7, TransferStatus.RUNNING, Request.COMPLETE)
    assert (found.refusal, found.held_before) == ("1 key differs", False)
    # A setting that has another name by now is among them.
    settings = found.settings
    assert (settings.keep_users, settings.databases) == (("app",), (0, 3))
    assert (settings.extend_horizon, settings.skip_checks) == (7200.0, ("memory",))
    assert found.source_urls == ("redis://10.0.0.1:6379",)
    assert (found.created_at, found.changed_at) == (NOW - 70, NOW - 60)
    (lane,) = found.lanes
    assert (lane.name, lane.source_url) == ("0", "redis://10.0.0.1:6379")
    assert (lane.shard, lane.slots) == ("", "0-16383")
    assert (lane.progress.phase, lane.progress.applied_offset) == (Phase.FOLLOW, 4711)
    assert lane.lease.term == 3
    assert lane.lease.renewed_at == NOW - 1
    assert found.worker is not None
    assert (found.worker.name, found.worker.words) == (
        f"process {DEAD['pid']}",
        f"pid {DEAD['pid']}",
    )
    # Its worker is dead: whoever watches puts another one in its place.
    assert not found.leased()
    assert found.orphaned()
    position = registry.checkpoints(found).get(schema.LANE)
    assert position is not None
    assert isinstance(position.position, OnlineCheckpoint)
    assert (position.keys, position.position.token) == (500, "fa940d0426a6e5f1")
    assert registry.checkpoint_times() == {7: NOW - 5}
    assert registry.ended() == {"done": 1, "failed": 0, "forced": 0}
    stopped = registry.get("h")[1]
    assert stopped is not None
    assert (stopped.status, stopped.worker) == (TransferStatus.STOPPED, None)


def test_what_is_disconnected_behind_a_migration(registry: Registry) -> None:
    """By a process of the earlier version, elsewhere, which goes on."""
    told = registry.source_clients()["g"]
    assert (told.disconnected, told.unattended_since) == (3, None)
    assert disconnections.unattended(registry.store) == []
    with registry.store.write() as connection:
        # The statements of that version.
        connection.exec_driver_sql(
            "UPDATE disconnections SET heartbeat_at = heartbeat_at + 1, ended = 'its time is over' "
            "WHERE transfer_id = 4 AND attempt = 2 AND ended = ''"
        )
        connection.exec_driver_sql(
            "INSERT INTO events (group_id, at, message) VALUES ('g', 1e10, 'as it was')"
        )
    assert registry.source_clients()["g"].ended == ""
    assert registry.list_events("g")[-1].message == "as it was"


def test_events_are_numbered(registry: Registry) -> None:
    told = [(each.id, each.migration_id, each.number) for each in registry.list_events()]
    assert told == [(1, None, None), (2, 4, 1), (3, None, None), (4, 4, 2), (5, 7, 1)]
    registry.add_event("g", "more")
    registry.add_event("h", "the first that it has seen")
    told = [(each.id, each.migration_id, each.number) for each in registry.list_events()[-2:]]
    assert told == [(6, 7, 2), (7, 8, 1)]


def test_it_goes_on(registry: Registry) -> None:
    worker = OWN.worker
    assert registry.replace_worker("g", "it was killed") is not None
    claimed = registry.claim_transfer("g", worker)
    assert claimed.record.lease.term == 4
    # What the operator asked of the one before.
    assert claimed.read_request() is Request.COMPLETE
    assert claimed.load_checkpoint() == registry.checkpoints(claimed.record)[schema.LANE]
    registry.resume_migration("h")
    registry.claim_transfer("h", worker)
    # Numbers that were given do not come again.
    registry.register("i", Endpoint("target.example.com"))
    begun = registry.begin_migration("i", [Endpoint("source.example.com")], TransferSettings())
    assert begun.id == 9
    assert registry.list_events("i")[-1].number == 1


def test_the_tables_are_those_of_a_new_state(
    older: str, tmp_path: Path, registry: Registry
) -> None:
    def tables(registry: Registry) -> dict[str, Any]:
        with registry.store.read() as connection:
            found = inspect(connection)
            return {
                table: (
                    {each["name"]: str(each["type"]) for each in found.get_columns(table)},
                    {each["name"] for each in found.get_indexes(table)},
                    sorted(each["referred_table"] for each in found.get_foreign_keys(table)),
                )
                for table in found.get_table_names()
            }

    if older.startswith("sqlite"):
        new = Registry(str(tmp_path / "new.db"))
        assert tables(registry) == tables(new)
        new.store.close()
    else:
        assert set(tables(registry)) == set(schema.metadata.tables)


def test_it_is_upgraded_once(older: str) -> None:
    """Of several that open it at the same moment one does it, and the others find it done."""
    failed: list[BaseException] = []

    def opened() -> None:
        try:
            open_registry(older).store.close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=opened) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert failed == []
    registry = open_registry(older)
    assert registry.list(limit=None)[0][0][1] is not None
    assert len(registry.list_events()) == 5
    registry.store.close()


def test_all_or_nothing(older: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What breaks off at the end (a full disk, a kill) leaves the earlier state."""

    def broken(_connection: object) -> None:
        raise StateError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(upgrade, "_number_events", broken)
        with pytest.raises(StateError, match="full"):
            open_registry(older)
    registry = open_registry(older)
    found = registry.get("g")[1]
    assert found is not None
    assert found.lease.term == 3
    registry.store.close()


# --- Workers of the earlier version ---


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def one(file: Path, *rows: dict[str, Any], later: bool = True) -> None:
    made = state_of_version_1.make(file, later=later)
    fill(made.execute, *rows)
    made.close()


@pytest.mark.parametrize(
    ("row", "who"),
    [
        (
            {"process": json.dumps(dataclasses.asdict(OWN))},
            rf"g \(process {os.getpid()} on {OWN.host}\)",
        ),
        ({"process": json.dumps(ELSEWHERE)}, rf"g \(process {OWN.pid} on elsewhere\)"),
        ({"status": "pending", "process": None, "changed_at": AHEAD}, r"g \(just starting\)"),
    ],
    ids=["here", "elsewhere", "just starting"],
)
def test_one_that_still_runs(file: Path, row: dict[str, Any], who: str) -> None:
    """It would find its tables gone; the state stays as it is, for that worker too."""
    one(file, {**GOING_ON, "heartbeat_at": AHEAD, **row})
    with pytest.raises(StateError, match=f"earlier version, whose workers still run.* {who}") as it:
        open_registry(str(file))
    assert "kill PID" in it.value.remedy
    found = sqlite3.connect(file)
    assert found.execute("SELECT version FROM schema_version").fetchall() == [(1,)]
    assert found.execute("SELECT count(*) FROM transfers").fetchone() == (2,)
    # It has stopped.
    found.execute("UPDATE transfers SET status = 'stopped' WHERE id = 7")
    found.commit()
    found.close()
    registry = open_registry(str(file))
    registry.resume_migration("g")
    registry.store.close()


@pytest.mark.parametrize(
    "row",
    [
        {"process": json.dumps(ELSEWHERE), "heartbeat_at": NOW - 31},
        {"process": json.dumps(dataclasses.asdict(OWN)), "heartbeat_at": NOW - 31},
        {"status": "pending", "process": None},
    ],
    ids=["silent elsewhere", "silent here", "never came"],
)
def test_one_that_is_gone(file: Path, row: dict[str, Any]) -> None:
    one(file, {**GOING_ON, **row})
    registry = open_registry(str(file))
    found = registry.get("g")[1]
    assert found is not None
    assert not found.leased()
    registry.resume_migration("g")
    registry.store.close()


def test_the_first_engine_of_that_version(file: Path) -> None:
    """It had fewer tables."""
    one(file, GOING_ON, later=False)
    registry = open_registry(str(file))
    assert registry.source_clients() == {}
    registry.note_engine("g", "valkey")
    assert registry.get("g")[0].engine == "valkey"
    registry.store.close()


def test_an_empty_one(file: Path) -> None:
    state_of_version_1.make(file).close()
    registry = open_registry(str(file))
    assert registry.list() == ([], None)
    registry.store.close()
