"""The engine as its users run it: `python -m engine …`, and its workers killed at seeded moments.

migration = Migration(Cli(state_url, tmp_path), seed=1)
migration.register(target)
migration.start(source, "--source-type", "replica")
migration.kill()
migration.resume()
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine import logs
from engine.cli import app
from engine.fleet.process_identity import ProcessId
from engine.front.engine import Engine
from engine.logs import output

T = TypeVar("T")

SECONDS = 90.0
POLL_SECONDS = 0.05
COUNTERS = ("PartialSyncs", "FullSyncs", "RepairedKeys")
STARTED_BY = "ENGINE_STARTED_BY"
"""The variable of the environment by which what tests start is known: the pid of their process."""


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of stdout as JSON."""
        return json.loads(self.out)

    @property
    def last(self) -> Any:
        """The last line of stdout as JSON."""
        return json.loads(self.out.splitlines()[-1])


class Cli:
    """`python -m engine` on a state of the test's own."""

    def __init__(self, state: str, folder: Path) -> None:
        self.state = state
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("STARTMIGRATION_")},
            "XDG_STATE_HOME": str(folder / "xdg-state"),
            "XDG_CONFIG_HOME": str(folder / "xdg-config"),
            "TERM": "dumb",
        }
        self.running: list[subprocess.Popen[str]] = []

    def start(self, verb: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a verb and return its process."""
        process = subprocess.Popen(
            [sys.executable, "-m", "engine", verb, *arguments, "--state", self.state],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )
        self.running.append(process)
        return process

    def __call__(self, verb: str, *arguments: str) -> Done:
        """Run a verb to its end. No output of any verb may hold a traceback."""
        return self.end(self.start(verb, *arguments))

    def here(self, verb: str, *arguments: str) -> Done:
        """The same within this process, where that can be: a Python that starts costs a third of a
        second of CPU. For what is not about the process of a verb, its signals or its terminal."""
        # A log that was set up stays for as long as its process.
        if not _may_run_a_loop() or any(each.startswith(("--log", "-v")) for each in arguments):
            return self(verb, *arguments)
        out, err = io.StringIO(), io.StringIO()
        before = dict(os.environ)
        try:
            os.environ.clear()
            os.environ.update(self.environment)
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                _log_of_its_own(),
            ):
                code = app.run([verb, *arguments, "--state", self.state])
        finally:
            os.environ.clear()
            os.environ.update(before)
        done = Done(code, out.getvalue(), err.getvalue())
        assert "Traceback" not in done.out + done.err, done.err
        return done

    def end(self, process: subprocess.Popen[str]) -> Done:
        """Wait for a process that `start` started."""
        out, err = process.communicate(timeout=SECONDS)
        assert "Traceback" not in out + err, err
        return Done(process.returncode, out, err)

    def close(self) -> None:
        """End what still runs."""
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@contextlib.contextmanager
def _log_of_its_own() -> Iterator[None]:
    """Meanwhile the log goes where a new process's would. What was set up in this process before
    may write to a stream that is closed by now."""
    root, ours = logging.getLogger(), logging.getLogger(logs.ROOT)
    level, before = ours.level, _installed(root)
    for handler in before:
        root.removeHandler(handler)
    try:
        yield
    finally:
        for handler in _installed(root):
            root.removeHandler(handler)
        for handler in before:
            root.addHandler(handler)
        ours.setLevel(level)


def _installed(root: logging.Logger) -> list[logging.Handler]:
    """What `logs.output.install` has put there, and not the test runner."""
    return [each for each in root.handlers if isinstance(each.formatter, output.Line)]


class Migration:
    """One group under the command line; the verbs run in this process, as describing does.

    `kills` are counted, also by the phase that they struck (`phases`), and `counters` (describe's
    `Migration.Counters`) over all workers: each worker counts its own, or goes on with what the one
    before had saved; both come out right.
    `log` has what happened, a line each, for a failure's message.
    """

    def __init__(self, cli: Cli, seed: int | str, group: str = "g") -> None:
        self.cli = cli
        self.group = group
        self.rng = random.Random(f"engines {seed}")
        self.kills = 0
        self.phases: Counter[str] = Counter()
        self.counters: Counter[str] = Counter()
        self.log: list[str] = []
        self._engine = Engine(cli.state)
        self._last: dict[str, int] = {}
        self._workers: list[ProcessId] = []
        self._began = time.monotonic()

    # The verbs.

    def register(self, target: Server | Proxy) -> None:
        """Register the target. Its address may be a proxy's."""
        self._verb("register-replication-group", "--primary-endpoint", _url(target))

    def start(self, source: Server | Proxy, *options: str) -> None:
        """Start the migration; `options` are start-migration's."""
        address = f"Address={source.host},Port={source.port}"
        self._verb("start-migration", "--customer-node-endpoint-list", address, *options)

    def resume(self, *, verb: bool = True) -> None:
        """Go on after `kill`, by the verb, or by the same operation of the library."""
        if verb:
            self._verb("resume-migration")
            return
        self._engine.sync.resume_migration(self.group)
        self._note("resumed")
        self._workers = []

    def complete(self, *options: str) -> None:
        """Cut over and wait for the end; again where it could be completed, and cannot when the
        word comes: the machine stood still meanwhile, and neither end had been heard."""
        for left in range(4, -1, -1):
            try:
                self._verb("complete-migration", "--wait", *options)
                break
            except AssertionError as refused:
                if not left or "cannot complete" not in str(refused):
                    raise
            self.wait_for(lambda found: found["CanComplete"])
        assert self.describe()["Status"] == "available"

    def _verb(self, verb: str, *arguments: str) -> None:
        done = self.cli.here(verb, "--replication-group-id", self.group, *arguments)
        self._note(f"{verb}: {done.code}")
        self._workers = []
        assert done.code == 0, f"{verb}: {done.err}\n{self.story()}"

    # What it says.

    def describe(self) -> dict[str, Any]:
        """The group, as describe-replication-groups gives it; also takes its counters up."""
        answer = self._engine.sync.describe_replication_groups(self.group)
        group: dict[str, Any] = answer["ReplicationGroups"][0]
        told = group.get("Migration", {}).get("Counters", {})
        for name in COUNTERS:
            now, before = int(told.get(name, 0)), self._last.get(name, 0)
            self.counters[name] += now - before if now >= before else now
            self._last[name] = now
        return group

    def migration(self) -> dict[str, Any]:
        """The group's `Migration`. Raises `AssertionError` if it is under none."""
        group = self.describe()
        assert "Migration" in group, f"{group}\n{self.story()}"
        found: dict[str, Any] = group["Migration"]
        return found

    def wait_for(
        self, what: Callable[[dict[str, Any]], Any], seconds: float = SECONDS
    ) -> dict[str, Any]:
        """Wait until the group's `Migration` is so. A worker that ended by itself fails at once."""
        found: dict[str, Any] = {}

        def so() -> Any:
            nonlocal found
            found = self.migration()
            if reached := what(found):
                return reached
            dead = self._workers and all(each.ended() for each in self._workers)
            assert not dead, f"the worker ended: {found}\n{self.story()}"
            return reached

        self.until(so, "a state of the migration", seconds)
        return found

    def until(
        self,
        condition: Callable[[], T],
        what: str,
        seconds: float = SECONDS,
        *,
        every: float = POLL_SECONDS,
    ) -> T:
        """`wait_for`; what happened to the migration is in the failure."""
        return wait_for(condition, what, seconds, every=every, told=self.story)

    def workers(self, seconds: float = 60.0) -> list[int]:
        """The pids of the workers, which may have several lanes each; waits until there are
        some."""
        pids = self.until(
            lambda: list({each["Pid"]: None for each in self.migration()["Workers"]}),
            "a worker",
            seconds,
        )
        self._workers = [ProcessId.of(pid) for pid in pids]
        return pids

    def story(self) -> str:
        """What happened, and the end of the workers' log."""
        lines = [f"{self.group}: {len(self.log)} steps", *self.log[-40:]]
        log = Path(self.cli.state.removeprefix("sqlite:///")).parent / f"worker-{self.group}.log"
        if log.exists():
            lines += ["worker's log:", *log.read_text(errors="replace").splitlines()[-30:]]
        return "\n".join(lines)

    def _note(self, what: str) -> None:
        self.log.append(f"{time.monotonic() - self._began:8.3f} s  {what}")

    # Its deaths.

    def kill(self, within: float = 0.0) -> None:
        """SIGKILL every worker, at a seeded moment of the next `within` seconds."""
        pids = self.workers()
        time.sleep(self.rng.random() * within)
        found = self.migration()
        for pid in pids:
            who = ProcessId.of(pid)
            assert not who.ended(), f"the worker (pid {pid}) had ended: {found}\n{self.story()}"
            os.kill(pid, signal.SIGKILL)
            self._gone(who)
        self._workers = []
        self.kills += 1
        self.phases[found["Phase"]] += 1
        self._note(f"killed {pids} in {found['Phase']}, lag {found.get('LagBytes')}")

    def _gone(self, who: ProcessId) -> None:
        wait_for(who.ended, f"the end of the worker (pid {who.pid}) by SIGKILL", every=0.005)

    def close(self) -> None:
        """End the workers and whatever verb still runs."""
        for process in self._workers:
            # Not the pid alone: it may belong to somebody else by now.
            if not process.ended():
                os.kill(process.pid, signal.SIGKILL)
        try:
            group = self._engine.sync.describe_replication_groups(self.group)
        except Exception:  # nothing was registered
            group = {"ReplicationGroups": []}
        for each in group["ReplicationGroups"]:
            for worker in each.get("Migration", {}).get("Workers", ()):
                who = ProcessId.of(worker["Pid"])
                if not who.ended():
                    os.kill(who.pid, signal.SIGKILL)
                    self._gone(who)
        self._engine.close()
        self.cli.close()


def _may_run_a_loop() -> bool:
    """Whether this thread can run an event loop that handles signals: the main one, outside any."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return threading.current_thread() is threading.main_thread()
    return False


def end_workers(test: str) -> None:
    """SIGKILL the engine's processes that this test (its node id) has started in this process, and
    that are still there: by what they have inherited. Those of the same test in another run beside
    this one are left alone."""
    marks = f"PYTEST_CURRENT_TEST={test} (", f"{STARTED_BY}={os.environ[STARTED_BY]}\0"
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"engine.fleet." not in (folder / "cmdline").read_bytes():
                continue
            inherited = (folder / "environ").read_bytes()
            if all(mark.encode() in inherited for mark in marks):
                os.kill(int(folder.name), signal.SIGKILL)


def _url(server: Server | Proxy) -> str:
    return server.url if isinstance(server, Server) else f"redis://{server.host}:{server.port}"
