"""A state that fails: a full disk, a lock, a file that is none, read-only, damaged.

Each ends in a clear error, never in a hang or a traceback, and a migration goes on afterwards. The
failures are real: size limits of the kernel, SQLite's own page limit, foreign locks, other users.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benches.support.compare import assert_equal
from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import soon
from engine.errors import EngineError, StateError, UsageError
from engine.fleet import run, state_thread
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.fleet.state_thread import StateCheckpointStore, StateThread
from engine.front.engine import Engine
from engine.groups import store as store_module
from engine.groups.claimed_transfer import ClaimedTransfer, ClaimLost
from engine.groups.registry import Registry
from engine.groups.states import Request, TransferStatus
from engine.groups.store import Store, TransientStateError
from engine.model.checkpoint import Checkpoint
from engine.model.endpoint import Endpoint
from engine.model.position import ScanPosition
from engine.model.progress import Phase, Progress
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.model.throttle import Steering

ROOT = Path(__file__).resolve().parents[2]
SOURCE, TARGET = Endpoint("source.invalid"), Endpoint("target.invalid")
POSITION = Checkpoint(ScanPosition("run", 0, 5), "target")


@pytest.fixture
def path(state_url: str) -> Path:
    return Path(state_url.removeprefix("sqlite:///"))


@pytest.fixture
def registry(state_url: str) -> Iterator[Registry]:
    registry = open_registry(state_url)
    yield registry
    registry.store.close()


@pytest.fixture
def claimed(registry: Registry) -> ClaimedTransfer:
    registry.register("g", TARGET)
    registry.begin_migration("g", [SOURCE], TransferSettings())
    return registry.claim_transfer("g", ProcessId.here().worker)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of patience are for operators."""
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT", 0.2)
    monkeypatch.setattr(state_thread, "GIVE_UP", 0.6)


class Lock:
    """Another process's write transaction, held until it is told to let go."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def in_child(code: str, *arguments: str, **kw: Any) -> subprocess.CompletedProcess[str]:
    """Run a program of our own in a process of its own, for what can't be undone in this one."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **kw,
    )


# --- Files that are no state ---


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough", b"\x00" * 4096, os.urandom(8192)]
)
def test_garbage(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StateError, match="is not a database") as caught:
        Store(str(path))
    assert "--state" in caught.value.remedy
    assert path.read_bytes() == content


def test_an_empty_file_becomes_a_state(path: Path) -> None:
    path.touch()
    Store(str(path)).close()
    assert path.stat().st_size > 0


def test_a_database_of_somebody_else(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match="not a state of this program"):
        Store(str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", ["0", "4", "999"])
def test_a_schema_of_another_version(registry: Registry, path: Path, version: str) -> None:
    with registry.store.write() as connection:
        connection.exec_driver_sql(f"UPDATE schema_version SET version = {version}")
    with pytest.raises(StateError, match=f"schema version {version}, this engine knows 3"):
        Store(str(path))


def test_a_state_without_its_version(registry: Registry, path: Path) -> None:
    with registry.store.write() as connection:
        connection.exec_driver_sql("DELETE FROM schema_version")
    with pytest.raises(StateError, match="schema version None"):
        Store(str(path))


def test_a_damaged_file(registry: Registry, path: Path) -> None:
    for number in range(200):
        registry.register(f"g{number}", TARGET, description="x" * 200)
    registry.store.close()
    with path.open("r+b") as file:
        for page in range(2, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    with pytest.raises(StateError, match="damaged") as caught:
        open_registry(str(path)).list()
    assert "Move it away" in caught.value.remedy


def test_a_folder(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StateError, match=r"cannot be (opened|created|used)"):
        Store(str(path))


def test_a_folder_that_cannot_be_made() -> None:
    with pytest.raises(StateError, match="cannot be created"):
        Store("/proc/no/such/state.db")
    with pytest.raises(StateError, match="cannot be created: File exists"):
        Store("/dev/null/state.db")


@pytest.mark.parametrize("name", ["with space.db", "ünï.db", "a?b#c%20.db", "-state"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    store = Store(str(tmp_path / name))
    assert (tmp_path / name).exists()
    store.close()


def test_names_that_no_file_has(tmp_path: Path) -> None:
    for name in ("a\x00b", "x" * 5000):
        with pytest.raises((StateError, UsageError)):
            Store(str(tmp_path / name))


# --- Read-only ---


AS_NOBODY = """
import os, sys
from engine.errors import StateError
from engine.groups.registry import Registry
from engine.model.endpoint import Endpoint
# Everything is imported while we may still read it.
Registry(sys.argv[1]).list()
os.setgid(65534)
os.setuid(65534)
try:
    registry = Registry(sys.argv[1])
    registry.register("h", Endpoint("h"))
except StateError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize(("mode", "folder"), [(0o644, 0o755), (0o444, 0o777), (0o600, 0o755)])
def test_a_file_of_another_user(
    tmp_path_factory: pytest.TempPathFactory, mode: int, folder: int
) -> None:
    # pytest's own folders let nobody in.
    home = Path("/tmp") / f"sm-state-{os.getpid()}-{mode}"
    home.mkdir()
    try:
        path = home / "state.db"
        Store(str(path)).close()
        path.chmod(mode)
        home.chmod(folder)
        done = in_child(AS_NOBODY, str(path))
        assert done.stderr == ""
        assert any(
            text in done.stdout for text in ("read-only", "cannot be opened", "access is denied")
        ), done.stdout
        assert "Traceback" not in done.stdout
    finally:
        for file in home.iterdir():
            file.unlink()
        home.rmdir()


# --- A full disk ---


LIMITED = """
import resource, sys
from engine.errors import StateError
from engine.groups.registry import Registry
from engine.model.endpoint import Endpoint
limit = int(sys.argv[2])
if len(sys.argv) > 3:
    registry = Registry(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    registry = Registry(sys.argv[1])
    for number in range(1000):
        registry.register(f"g{number}", Endpoint("h"), description="x" * 1000)
    print("no error")
except StateError as error:
    print(type(error).__name__, error)
    # Nor does it hang or break when the connections are closed.
    registry = None
"""


@pytest.mark.parametrize("limit", [0, 1, 4096, 30_000, 300_000])
def test_a_disk_that_is_full(path: Path, limit: int) -> None:
    """RLIMIT_FSIZE: writes fail with EFBIG, as they do with ENOSPC, at any byte."""
    done = in_child(LIMITED, str(path), str(limit))
    assert done.stderr == ""
    assert done.stdout.startswith("TransientStateError the state ")
    assert "Free some space" in done.stdout
    # With room again everything works, and nothing half-written is seen.
    registry = open_registry(str(path))
    groups, _ = registry.list(limit=2000)
    assert all(len(group.description) == 1000 for group, _ in groups)
    registry.register("after", TARGET)
    registry.store.close()


def test_a_database_that_is_full(registry: Registry, claimed: ClaimedTransfer) -> None:
    """SQLite's own limit: SQLITE_FULL, as from ENOSPC."""
    with registry.store.write() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(TransientStateError, match="the disk is full") as caught:
        registry.add_event("g", "x" * 1_000_000)
    assert "Free some space" in caught.value.remedy
    with registry.store.write() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    registry.add_event("g", "x" * 1000)


# --- Locks ---


def test_a_short_lock_is_waited_out(registry: Registry, path: Path) -> None:
    lock = Lock(path)
    timer = threading.Timer(0.5, lock.release)
    timer.start()
    began = time.monotonic()
    registry.register("g", TARGET)
    assert time.monotonic() - began > 0.4
    timer.join()


def test_a_long_lock(path: Path, impatient: None) -> None:
    registry = open_registry(str(path))
    with Lock(path):
        registry.list()  # readers don't care
        with pytest.raises(TransientStateError, match="another process has kept it locked"):
            registry.register("g", TARGET)
    registry.register("g", TARGET)
    registry.store.close()


def test_a_checkpoint_outlasts_a_lock(path: Path, impatient: None) -> None:
    claimed = begin(path)
    checkpoints = StateCheckpointStore(claimed)
    lock = Lock(path)
    timer = threading.Timer(0.5, lock.release)
    timer.start()
    checkpoints.save(POSITION)
    timer.join()
    assert checkpoints.load() == POSITION
    assert checkpoints.failure is None
    with Lock(path), pytest.raises(StateError):
        checkpoints.save(POSITION)
    assert checkpoints.failure is not None


def begin(path: Path) -> ClaimedTransfer:
    registry = open_registry(str(path))
    registry.register("g", TARGET)
    registry.begin_migration("g", [SOURCE], TransferSettings())
    return registry.claim_transfer("g", ProcessId.here().worker)


# --- The bookkeeper ---


class Ears:
    """Hears what a bookkeeper says."""

    def __init__(self, claimed: ClaimedTransfer) -> None:
        self.requests: list[Request] = []
        self.steered: list[Steering] = []
        self.failures: list[StateError] = []
        self.thread = StateThread(
            claimed,
            on_request=self.requests.append,
            on_steering=self.steered.append,
            on_failure=self.failures.append,
        )


async def test_the_books(registry: Registry, claimed: ClaimedTransfer) -> None:
    ears = Ears(claimed)
    ears.thread.start()
    ears.thread.progress(Progress(phase=Phase.SNAPSHOT, keys=1))
    ears.thread.event("one")
    await soon(lambda: registry.list_events("g")[-1].message == "one", "the event")
    registry.request("g", Request.COMPLETE)
    await soon(lambda: ears.requests == [Request.COMPLETE], "the order")
    ears.thread.progress(Progress(phase=Phase.CUT_OVER))
    ears.thread.progress(Progress(phase=Phase.COPIED, reason="two keys differ"))
    await soon(lambda: transfer_of(registry).refusal == "two keys differ", "the refusal")
    # The same request once more is a new one; a source that is followed goes back to that.
    registry.request("g", Request.COMPLETE)
    await soon(lambda: ears.requests.count(Request.COMPLETE) == 2, "a second order")
    ears.thread.progress(Progress(phase=Phase.CUT_OVER))
    ears.thread.progress(Progress(phase=Phase.FOLLOW, reason="lag 18 MB > 1 MB"))
    await soon(lambda: transfer_of(registry).refusal == "lag 18 MB > 1 MB", "another refusal")
    assert transfer_of(registry).request is Request.NONE
    registry.request("g", Request.COMPLETE)
    await soon(lambda: ears.requests.count(Request.COMPLETE) == 3, "a third order")
    # One that is tried again by itself, and goes through, is none.
    ears.thread.progress(Progress(phase=Phase.CUT_OVER))
    ears.thread.progress(Progress(phase=Phase.FOLLOW, reason="one key more", trying_again=True))
    await soon(lambda: transfer_of(registry).progress.reason == "one key more", "the reason")
    found = transfer_of(registry)
    assert (found.refusal, found.request) == ("", Request.COMPLETE)
    ears.thread.progress(Progress(phase=Phase.CUT_OVER))
    await soon(lambda: transfer_of(registry).progress.phase is Phase.CUT_OVER, "the cut-over")
    # An end is written together with the status, by whoever writes that.
    ears.thread.progress(Progress(phase=Phase.DONE, reason="equal"))
    beat = transfer_of(registry).lease.renewed_at
    await soon(lambda: transfer_of(registry).lease.renewed_at > beat, "a renewed lease")
    assert transfer_of(registry).progress.phase is Phase.CUT_OVER
    assert transfer_of(registry).refusal == ""
    last = Progress(phase=Phase.COPIED, keys=9)
    ears.thread.progress(last)
    ears.thread.event("two")
    await ears.thread.close()
    assert transfer_of(registry).progress == last
    assert registry.list_events("g")[-1].message == "two"
    assert ears.failures == []
    assert ears.thread.failure is None


def transfer_of(registry: Registry) -> Any:
    return registry.get("g")[1]


async def test_the_books_outlast_a_lock(path: Path, impatient: None) -> None:
    claimed = begin(path)
    ears = Ears(claimed)
    ears.thread.start()
    with Lock(path):
        ears.thread.event("late")
        await asyncio.sleep(0.4)
    registry = open_registry(str(path))
    await soon(lambda: registry.list_events("g")[-1].message == "late", "the late event")
    await ears.thread.close()
    assert ears.failures == []
    registry.store.close()


async def test_the_books_give_up(path: Path, impatient: None) -> None:
    ears = Ears(begin(path))
    ears.thread.start()
    with Lock(path):
        ears.thread.event("never")
        await soon(lambda: ears.failures, "a failure")
        await ears.thread.close()
    assert "locked" in str(ears.failures[0])
    assert ears.thread.failure is ears.failures[0]


async def test_the_books_notice_a_lost_claim(registry: Registry, claimed: ClaimedTransfer) -> None:
    ears = Ears(claimed)
    ears.thread.start()
    with registry.store.write() as connection:
        connection.exec_driver_sql("UPDATE leases SET term = term + 1")
    await soon(lambda: ears.failures, "a failure")
    await ears.thread.close()
    assert isinstance(ears.failures[0], ClaimLost)


# --- A whole migration over a state that fails ---


def fill(server: Server, count: int) -> None:
    pipe = server.client().pipeline(transaction=False)
    for number in range(count):
        pipe.set(f"key:{number}", os.urandom(200).hex())
    pipe.execute()


@pytest.fixture
def ends(server_factory: Callable[..., Server]) -> Iterator[tuple[Server, Server, Proxy]]:
    """A filled source, a target, and a slow link to the source."""
    source, target = server_factory(), server_factory()
    fill(source, 20_000)
    with Proxy(source.host, source.port) as link:
        link.throttle(1_000_000)
        yield source, target, link


SETTINGS = TransferSettings(batch_bytes=4096, window_bytes=8192)


def test_a_lock_stops_a_migration(
    path: Path, impatient: None, ends: tuple[Server, Server, Proxy]
) -> None:
    """Nobody could see it or stop it: it stops by itself, says why, and can be resumed."""
    source, target, link = ends
    face = Engine(str(path))
    here, there = Endpoint(link.host, link.port), Endpoint.parse(target.url)
    locks: list[Lock] = []

    def lock(progress: Progress) -> None:
        if progress.keys > 1000 and not locks:
            locks.append(Lock(path))

    began = time.monotonic()
    with pytest.raises(StateError, match="locked"):
        run(face.migrate(here, there, settings=SETTINGS, on_progress=lock))
    assert time.monotonic() - began < 30
    assert 0 < target.client().dbsize() < 20_000
    locks[0].release()
    link.throttle(None)
    # The process that gave up lives: it is ours. Only its silence tells, after half a minute.
    with pytest.raises(EngineError, match="already under migration"):
        run(face.migrate(here, there, settings=SETTINGS))
    with open_registry(str(path)).store.write() as connection:
        connection.exec_driver_sql(
            "UPDATE leases SET renewed_at = renewed_at - 31, ends_at = ends_at - 31"
        )
    report = run(face.migrate(here, there, settings=SETTINGS))
    assert report.status == "done"
    assert_equal(source.client(), target.client())
    face.close()


WORKER = """
import resource, runpy, sys
limit = int(sys.argv.pop(2))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
runpy.run_module("engine.fleet.worker", run_name="__main__")
"""


def test_a_worker_on_a_full_disk(
    path: Path, state_url: str, ends: tuple[Server, Server, Proxy]
) -> None:
    """It ends with 1 and a reason in its log; afterwards the migration is resumed."""
    source, target, link = ends
    registry = open_registry(state_url)
    registry.register("g", Endpoint.parse(target.url))
    registry.begin_migration("g", [Endpoint(link.host, link.port)], SETTINGS)
    size = max(file.stat().st_size for file in path.parent.iterdir())
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WORKER, "g", str(size + 20_000)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "STARTMIGRATION_STATE": state_url},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert time.monotonic() - began < 60
    assert "StateError" in done.stderr
    assert "Free some space" in done.stderr
    assert "Traceback" not in done.stderr
    group, transfer = registry.get("g")
    assert group.status == "migrating"
    assert transfer is not None
    assert not transfer.leased()
    link.throttle(None)

    async def go_on() -> None:
        face = Engine(state_url)
        await face.resume_migration("g")
        await face.wait("g", until="copied", timeout=60)
        await face.complete_migration("g")
        await face.wait("g", until="available", timeout=60)
        face.close()

    run(go_on())
    assert_equal(source.client(), target.client())
    registry.store.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_two_engines_on_one_group(
    path: Path, number: signal.Signals, ends: tuple[Server, Server, Proxy]
) -> None:
    """While one lives (though it hardly moves) the other is refused; once it is dead, not."""
    source, target, link = ends
    code = """
import sys
from engine import Endpoint, Engine, TransferSettings
settings = TransferSettings(batch_bytes=4096, window_bytes=8192)
face = Engine(sys.argv[1])
def told(progress):
    if progress.keys > 1000:
        print("moving", flush=True)
face.sync.migrate(*map(Endpoint.parse, sys.argv[2:]), settings=settings, on_progress=told)
"""
    here, there = f"redis://{link.host}:{link.port}", target.url
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(path), here, there],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    face = Engine(str(path))
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "moving\n"
        if number == signal.SIGSTOP:
            other.send_signal(number)
        with pytest.raises(EngineError, match=f"already under migration by process {other.pid}"):
            face.sync.migrate(Endpoint.parse(here), Endpoint.parse(there), settings=SETTINGS)
        other.kill()
        other.wait()
        link.throttle(None)
        report = face.sync.migrate(Endpoint.parse(here), Endpoint.parse(there), settings=SETTINGS)
        assert report.status == "done"
        assert_equal(source.client(), target.client())
    finally:
        other.kill()
        other.communicate()
        face.close()


def test_a_finish_that_cannot_be_written(path: Path, impatient: None) -> None:
    claimed = begin(path)
    with Lock(path), pytest.raises(StateError):
        claimed.finish(TransferStatus.DONE, Report("done"), Progress(), "done")
    registry = open_registry(str(path))
    assert registry.get("g")[0].status == "migrating"
    claimed.finish(TransferStatus.DONE, Report("done"), Progress(), "done")
    assert registry.get("g")[0].status == "available"
    registry.store.close()
