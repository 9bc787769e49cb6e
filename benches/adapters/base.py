"""What every rival is measured by: one interface, one measurement, a fresh process each."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import redis

from benches import procstat

if TYPE_CHECKING:
    # The rivals' scripts import this file: what only the benchmark needs is not charged to them.
    from benches.datasets import Summary
    from benches.support.servers import Server

ROOT = Path(__file__).resolve().parents[2]

BASE_SECONDS = 120.0
SLOWEST_BYTES_PER_SECOND = 500_000
SLOWEST_KEYS_PER_SECOND = 1_000
"""A rival that is slower than all of these together is stopped."""


SETTLE_SECONDS = 10.0
"""How long a source's fork may take to be reaped after the last byte."""


class AdapterError(Exception):
    """A rival did not do its work; the message says what it said."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One migration by one rival.

    `seconds` is the wall time of the whole process; `own_seconds` what the tool itself says that
    the migration took, without its start-up (None if it says nothing). CPU times are in seconds,
    user and system, the servers' with their forks. `peak_rss_tool` is in bytes, of the largest
    process; `peak_tree_tool` of all its processes together. `extra` holds figures that only this
    rival has.
    """

    keys: int
    bytes: int
    seconds: float
    cpu_source: float
    cpu_target: float
    cpu_tool: float
    peak_rss_tool: int
    peak_tree_tool: int = 0
    own_seconds: float | None = None
    note: str = ""
    extra: dict[str, float] = field(default_factory=dict)


class Adapter(Protocol):
    """A way to move a keyspace from one server to another."""

    name: str

    def available(self) -> str | None:
        """None, or the reason why it can't be run here."""
        ...

    def prepare(self, source: Server, dataset: Summary) -> None:
        """Whatever is done once per data set, and not measured."""
        ...

    def run(self, source: Server, target: Server, dataset: Summary) -> Measurement:
        """Migrate into the empty target. Raises `AdapterError`, or `procstat.ToolTimeout`."""
        ...

    def close(self) -> None:
        """Remove what `prepare` made."""
        ...


class ProcessAdapter:
    """The common part of those rivals that are one process from start to end."""

    name = ""

    def available(self) -> str | None:
        return None

    def prepare(self, source: Server, dataset: Summary) -> None:
        pass

    def close(self) -> None:
        pass

    def command(self, source: Server, target: Server, folder: Path) -> list[str]:
        """The program and its arguments; `folder` is the run's own, and removed after it."""
        raise NotImplementedError

    def until(self, source: Server, target: Server) -> Callable[[], bool] | None:
        """For a program that never ends: what tells that it is done."""
        return None

    def read(self, done: procstat.Finished) -> tuple[float | None, str, dict[str, float]]:
        """(own seconds, note, extra figures) out of what the program said."""
        return None, "", {}

    def run(self, source: Server, target: Server, dataset: Summary) -> Measurement:
        with tempfile.TemporaryDirectory(prefix=f"bench-{self.name}-") as folder:
            command = self.command(source, target, Path(folder))
            until = self.until(source, target)
            before = procstat.cpu_seconds(source.pid), procstat.cpu_seconds(target.pid)
            busy, started = procstat.machine_seconds(), time.monotonic()
            done = procstat.run(command, timeout=time_limit(dataset), cwd=ROOT, until=until)
            busy = procstat.machine_seconds() - busy
            elapsed = time.monotonic() - started
            _settle(source)
            after = procstat.cpu_seconds(source.pid), procstat.cpu_seconds(target.pid)
        if done.returncode != 0 and until is None:
            raise AdapterError(
                f"{self.name} ended with exit code {done.returncode}: "
                f"{(done.stderr.strip() or done.stdout.strip())[-2000:]}"
            )
        own_seconds, note, extra = self.read(done)
        ours = after[0] - before[0] + after[1] - before[1] + done.cpu_seconds
        extra["others_cores"] = max(0.0, busy - ours) / elapsed
        return Measurement(
            keys=dataset.keys,
            bytes=dataset.bytes,
            seconds=done.seconds,
            cpu_source=after[0] - before[0],
            cpu_target=after[1] - before[1],
            cpu_tool=done.cpu_seconds,
            peak_rss_tool=done.peak_rss_bytes,
            peak_tree_tool=done.peak_tree_bytes,
            own_seconds=own_seconds,
            note=note,
            extra=extra,
        )


def _settle(source: Server) -> None:
    """Wait until the source has no fork left: its CPU time is added when the server reaps it."""
    client = source.client()
    deadline = time.monotonic() + SETTLE_SECONDS
    while client.info("persistence")["rdb_bgsave_in_progress"] and time.monotonic() < deadline:
        time.sleep(0.01)


class ScriptAdapter(ProcessAdapter):
    """A rival that is a module of ours: `python -m MODULE SOURCE TARGET`, JSON last on stdout."""

    module = ""

    def command(self, source: Server, target: Server, folder: Path) -> list[str]:
        return [sys.executable, "-m", self.module, source.url, target.url]

    def read(self, done: procstat.Finished) -> tuple[float | None, str, dict[str, float]]:
        found = last_json(done.stdout)
        return found["seconds"], found.get("note", ""), {}


def time_limit(dataset: Summary) -> float:
    """The longest that any rival may take for this data set, in seconds."""
    return (
        BASE_SECONDS
        + dataset.bytes / SLOWEST_BYTES_PER_SECOND
        + dataset.keys / SLOWEST_KEYS_PER_SECOND
    )


def last_json(text: str) -> dict[str, Any]:
    """The last JSON object that begins a line of `text`, on one line or several.

    Raises `AdapterError` if there is none.
    """
    at = len(text)
    while at > 0:
        at = text.rfind("{", 0, at)
        if at < 0:
            break
        if at == 0 or text[at - 1] == "\n":
            try:
                found = json.loads(text[at:])
            except ValueError:
                continue
            if isinstance(found, dict):
                return found
    raise AdapterError(f"no JSON object at the end of the output: {text[-500:]!r}")


def plain(url: str, db: int = 0, **settings: Any) -> redis.Redis:
    """A redis-py client with its defaults but for the time limit: large values take their time."""
    return redis.Redis.from_url(url, db=db, socket_timeout=600, **settings)


def keys_by_db(client: redis.Redis) -> dict[int, int]:
    """How many keys each database holds, empty ones left out."""
    space: Mapping[str, Any] = client.info("keyspace")
    return {int(name[2:]): facts["keys"] for name, facts in space.items()}
