"""Loggers, their context, what is masked, both forms, and the file that is put aside."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from engine import logs
from engine.cli import log_options
from engine.errors import LinkError, TransferStopped
from engine.fleet import progress_log
from engine.fleet.progress_log import ProgressLog
from engine.logs import output
from engine.model.backoff import Patience
from engine.model.progress import Phase, Progress

LOG = logs.logger("engine.test")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What is logged in text, of all levels."""
    yield from _installed("text")


@pytest.fixture
def objects() -> Iterator[io.StringIO]:
    """What is logged as JSON, of all levels."""
    yield from _installed("json")


def _installed(form: output.Form) -> Iterator[io.StringIO]:
    root, stream = logging.getLogger(), io.StringIO()
    before = root.handlers[:], logging.getLogger("engine").level
    handler = logging.StreamHandler(stream)
    output.install(handler, "debug", form)
    yield stream
    root.removeHandler(handler)
    logging.captureWarnings(False)
    root.handlers[:], level = before
    logging.getLogger("engine").setLevel(level)


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# --- The context ---


def test_a_line_names_migration_shard_and_endpoint(written: io.StringIO) -> None:
    with logs.migration("g", source="10.0.0.1:6379", target="10.0.0.2:6379"):
        LOG.info("Connected", extra={"end": "source", "tries": 3, "seconds": 0.25})
        LOG.warning("Both")
        with logs.about("target"):
            LOG.info("Inside")
            LOG.info("Elsewhere", extra={"endpoint": "10.0.0.9:1"})
    LOG.info("Outside")
    lines = [line.split(" ", 1)[1] for line in written.getvalue().splitlines()]
    of = "engine.test [migration=g shard=0001"
    assert lines == [
        f"INFO {of} endpoint=10.0.0.1:6379] Connected; tries=3 seconds=0.25",
        f"WARNING {of} endpoint=10.0.0.1:6379 -> 10.0.0.2:6379] Both",
        f"INFO {of} endpoint=10.0.0.2:6379] Inside",
        f"INFO {of} endpoint=10.0.0.9:1] Elsewhere",
        "INFO engine.test Outside",
    ]


def test_tasks_threads_and_callbacks_have_the_migration_that_they_began_in(
    objects: io.StringIO,
) -> None:
    async def one(group: str) -> None:
        with logs.migration(group):
            asyncio.get_running_loop().call_soon(LOG.info, f"callback of {group}")
            await asyncio.to_thread(LOG.info, f"thread of {group}")
            await asyncio.create_task(asyncio.sleep(0))
            LOG.info("task of %s", group)

    async def both() -> None:
        await asyncio.gather(one("a"), one("b"))

    asyncio.run(both())
    told = lines_of(objects)
    assert len(told) == 6
    assert all(line["message"].endswith(f" of {line['migration']}") for line in told)


def test_a_level_that_is_off_formats_nothing(written: io.StringIO) -> None:
    class Loud:
        def __str__(self) -> str:
            raise AssertionError("it was formatted")

    logging.getLogger("engine").setLevel("INFO")
    LOG.debug("%s", Loud())
    assert not written.getvalue()


def test_a_caller_of_the_library_is_shown_nothing() -> None:
    """Without a handler of its own, not even a warning."""
    program = "from engine import logs; logs.logger('engine.x').error('unseen')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_the_callers_own_handlers_get_the_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "engine.test"), logs.migration("g", target="h:1"):
        LOG.info("redis://u:%s@h", "hunter2", extra={"end": "target", "keys": 2})
    (record,) = caplog.records
    assert record.getMessage() == "redis://u:***@h"
    told: Any = record
    assert (told.migration, told.shard, told.end, told.endpoint) == ("g", "0001", "target", "h:1")
    assert told.figures == {"keys": 2}
    assert record.filename == "test_logs.py"


# --- Secrets ---


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:hunter2@10.0.0.1:6379/0", "redis://:***@10.0.0.1:6379/0"),
        ("rediss://admin:hun:ter2@h and more", "rediss://admin:***@h and more"),
        ("postgresql://me:p@ss@db/state", "postgresql://me:***@db/state"),
        ("postgresql://db/state?user=me&password=hunter2&x=1", None),
        ("from redis://a:hunter2@h:1, to 'redis://b:hunter2@i:2'", None),
        ("ERR unknown command `AUTH`, with args beginning with: `hunter2`, ", None),
        ("unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'u' 'hunter2'", None),
        ("redis://reader@h:1", "redis://reader@h:1"),
        ("lag 3 MB > 1 MB at 10.0.0.1:6379", "lag 3 MB > 1 MB at 10.0.0.1:6379"),
    ],
)
def test_secrets_are_masked(text: str, shown: str | None) -> None:
    masked = logs.masked(text)
    assert "hunter2" not in masked
    assert "p@ss" not in masked
    assert shown is None or masked == shown
    assert logs.masked(masked) == masked


@given(
    st.text(st.characters(categories=("L", "N", "P", "S"), exclude_characters="'\""), min_size=4)
)
def test_no_password_of_a_url_is_left(password: str) -> None:
    assert f":{password}@" not in logs.masked(f"source redis://user:{password}@h:1 is gone")


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_in_any_part_of_a_line(form: output.Form) -> None:
    for stream in _installed(form):
        url = "redis://u:hunter2@h:1"
        try:
            raise LinkError(f"{url} is gone")
        except LinkError:
            LOG.exception("at %s", url, extra={"url": url, "endpoint": url})
        logging.getLogger("another").warning("at %s", url)
        told = stream.getvalue()
        assert told.count("u:***@h:1") == 5
        assert "hunter2" not in told


# --- The forms ---


@given(st.text(), st.dictionaries(st.text(), st.text() | st.integers() | st.none() | st.floats()))
def test_a_record_is_one_line_whatever_it_holds(text: str, figures: dict[str, Any]) -> None:
    figures = {name: value for name, value in figures.items() if value == value}
    for form in ("text", "json"):
        for stream in _installed(form):  # type: ignore[arg-type]
            LOG.info("%s", text, extra=figures)
            told = stream.getvalue()
            assert told.endswith("\n")
            assert told.count("\n") == 1
            assert len(told.splitlines()) == 1
            if form == "json":
                assert json.loads(told)["logger"] == "engine.test"


def test_json(objects: io.StringIO) -> None:
    with logs.migration("g", source="a:1", target="b:2"):
        LOG.info("Done", extra={"end": "source", "keys": 2, "lag_bytes": None, "message": "other"})
        try:
            raise ValueError("x")
        except ValueError:
            LOG.exception("Broken")
    first, second = lines_of(objects)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO",
        "logger": "engine.test",
        "migration": "g",
        "shard": "0001",
        "end": "source",
        "endpoint": "a:1",
        "message": "Done",
        "keys": 2,
        "lag_bytes": None,
    }
    assert "ValueError: x" in second["exception"]


def test_what_is_not_known_is_shown_as_unknown(written: io.StringIO) -> None:
    LOG.info("Goes on", extra={"lag_bytes": None, "keys": 0, "reason": "two words"})
    assert written.getvalue().endswith('Goes on; lag_bytes=unknown keys=0 reason="two words"\n')


# --- The options ---


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (output.LEVEL_VARIABLE, output.FORM_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("level", "form", "verbose", "named"),
    [
        (None, None, 0, ("info", "text")),
        (None, "json", 0, ("info", "json")),
        (None, None, 1, ("info", "text")),
        (None, None, 2, ("debug", "text")),
        (None, None, 5, ("debug", "text")),
        ("error", None, 2, ("error", "text")),
    ],
)
def test_options_are_handed_on_to_workers(
    environment: pytest.MonkeyPatch,
    level: output.Level | None,
    form: output.Form | None,
    verbose: int,
    named: tuple[str, str],
) -> None:
    log_options.hand_on(level, form, verbose)
    assert output.from_environment() == named


def test_a_level_that_does_not_exist_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(output.LEVEL_VARIABLE, "loud")
    with pytest.raises(typer.BadParameter, match="expected one of debug, info, warning, error"):
        log_options.hand_on(None, None, 0)
    # A worker that finds it has a migration to carry.
    assert output.from_environment() == ("info", "text")


# --- Lines that come again and again ---


def test_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    seldom = logs.Seldom(10.0)
    assert [seldom.due(), seldom.due(), seldom.due("news"), seldom.due("news")] == [
        True,
        False,
        True,
        False,
    ]
    now += 10.0
    assert seldom.due("news")


def test_a_wait_is_told_at_its_start_now_and_then_and_at_its_end(
    objects: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    patience = Patience(
        100.0,
        ended="the target did not take anything",
        next_step="it is connected to again",
        fault="target",
        report=lambda text: None,
        event=lambda text: LOG.info(text),
    )
    with logs.migration("g", source="a:1", target="b:2"):
        for _ in range(30):
            patience.failed("OOM command not allowed")
            now += 1.0
        patience.progress()
        patience.failed("LOADING")
        now += 100.0
        with pytest.raises(TransferStopped):
            patience.failed("LOADING")
    told = [line for line in lines_of(objects) if line["level"] == "INFO"]
    assert {(line["migration"], line["endpoint"]) for line in told} == {("g", "b:2")}
    first, *tries, last = told[:4]
    assert first["message"].startswith("OOM command not allowed: trying again")
    assert [each["tries"] for each in tries] == [11, 21]
    assert all("OOM command not allowed" in each["message"] for each in tries)
    assert last["message"] == "it goes on, after 30 tries in 30 s"


# --- Progress ---


class Clock:
    """A clock that the test moves, in the place of `time.monotonic`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress_log.time, "monotonic", lambda: self.now)


def test_phases_are_told_with_what_they_came_to(
    objects: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    log = ProgressLog()
    log.note(Progress(Phase.SNAPSHOT, total_keys=10))
    clock.now += 4.0
    log.note(Progress(Phase.SNAPSHOT, total_keys=10, keys=5))
    log.note(Progress(Phase.CATCH_UP, keys=10, bytes=70, link="up", lag_bytes=None))
    first, second = lines_of(objects)
    assert first["message"] == "Phase SNAPSHOT begins"
    assert second["message"] == "Phase CATCH_UP begins, SNAPSHOT is over"
    assert (second["phase_seconds"], second["phase_keys"], second["phase_bytes"]) == (4.0, 10, 70)
    assert second["lag_bytes"] is None


def test_a_catch_up_is_told_every_ten_seconds_with_its_speeds(
    objects: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    log = ProgressLog()
    for second in range(41):
        log.note(
            Progress(
                Phase.CATCH_UP,
                link="up",
                source_offset=1000 * second,
                applied_offset=400 * second,
                lag_bytes=600 * second,
                held_keys=7 * second,
                reason=f"lag {600 * second} bytes > 1 MB",
            )
        )
        clock.now += 1.0
    _, *told = lines_of(objects)
    assert len(told) == 4
    assert {line["source_bytes_per_second"] for line in told} == {1000}
    assert {line["applied_bytes_per_second"] for line in told} == {400}
    assert [line["dirty_keys_change"] for line in told] == [70] * 4
    assert told[-1]["reason"] == "lag 24000 bytes > 1 MB"


def test_a_quiet_migration_is_told_seldom(
    objects: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hour in sync, with figures that move and a gate that is closed for a moment once."""
    clock = Clock(monkeypatch)
    log = ProgressLog()
    for second in range(3600):
        closed = 1800 <= second < 1815
        reason = "the source is silent for 3 s" if closed else f"in sync: lag {second % 9} bytes"
        log.note(Progress(Phase.FOLLOW, can_complete=not closed, commands=second, reason=reason))
        clock.now += 1.0
    told = lines_of(objects)
    assert len(told) < 18
    shut = [n for n, line in enumerate(told) if not line["can_complete"]]
    assert len(shut) == 2
    assert told[shut[-1] + 1]["can_complete"]


def test_phases_that_come_and_go_do_not_fill_the_log(
    objects: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    log = ProgressLog()
    for turn in range(1000):
        log.note(Progress((Phase.CATCH_UP, Phase.FOLLOW)[turn % 2]))
        clock.now += 0.1
    log.note(Progress(Phase.DONE))
    told = lines_of(objects)
    assert 50 < len(told) < 130
    assert told[-1]["message"].startswith("Phase DONE begins")


@pytest.mark.parametrize(
    ("error", "told"),
    [(ValueError("no"), "failed: no"), (asyncio.CancelledError(), "cancelled")],
    ids=["failed", "cancelled"],
)
def test_a_step_that_does_not_end_well_says_how(
    objects: io.StringIO, error: BaseException, told: str
) -> None:
    with pytest.raises(type(error)), logs.timed(logs.logger("engine.test"), "Pause writers"):
        raise error
    (line,) = lines_of(objects)
    assert line["message"] == f"Pause writers: {told}"


def test_a_lag_is_unknown_in_the_log_while_the_source_is_not_followed(
    objects: io.StringIO,
) -> None:
    ProgressLog().note(Progress(Phase.FOLLOW, link="", lag_bytes=None))
    (line,) = lines_of(objects)
    assert line["lag_bytes"] is None


# --- The worker's file ---

_WRITER = """
import os, sys
from pathlib import Path
from engine import logs
from engine.fleet import worker_log_file
worker_log_file.FILE_BYTES = 2000
worker_log_file.begin(Path(sys.argv[1]))
log = logs.logger("engine.x")
for n in range(int(sys.argv[2])):
    log.info("line %d", n)
print("to stdout", flush=True)
os.write(2, b"to stderr\\n")
"""


def test_a_workers_log_is_put_aside_when_it_gets_long(tmp_path: Path) -> None:
    """The newest lines are in the file, what is written past the log too, and it is bounded."""
    path = tmp_path / "worker-g.log"
    with path.open("a") as stderr:
        command = [sys.executable, "-c", _WRITER, str(path), "500"]
        subprocess.run(command, stdout=stderr, stderr=stderr, check=True)
    files = sorted(tmp_path.iterdir())
    assert [each.name for each in files] == [
        "worker-g.log",
        *(f"worker-g.log.{n}" for n in range(1, 5)),
    ]
    assert all(each.stat().st_size <= 2100 for each in files)
    assert all(stat.S_IMODE(each.stat().st_mode) & 0o077 == 0 for each in files[:1])
    newest = path.read_text().splitlines()
    assert newest[-2:] == ["to stdout", "to stderr"]
    told = [line for each in reversed(files) for line in each.read_text().splitlines()][:-2]
    numbers = [int(line.rpartition(" ")[2]) for line in told]
    assert numbers == list(range(numbers[0], 500))


def test_a_log_that_another_process_has_put_aside_is_followed(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from engine import logs
from engine.fleet import worker_log_file
path = Path(sys.argv[1])
worker_log_file.begin(path)
log = logs.logger("engine.x")
log.info("before")
path.rename(path.with_suffix(".1"))
log.info("behind")
"""
    path = tmp_path / "worker-g.log"
    with path.open("a") as stderr:
        subprocess.run([sys.executable, "-c", program, str(path)], stderr=stderr, check=True)
    assert "behind" in path.read_text()
    assert "before" in path.with_suffix(".1").read_text()


def test_a_log_that_cannot_be_opened_again_raises_nothing(tmp_path: Path) -> None:
    """What writes to it goes on; the file has the lines again once it can be opened."""
    program = """
import sys
from pathlib import Path
from engine import logs
from engine.fleet import worker_log_file
path = Path(sys.argv[1])
worker_log_file.begin(path)
log = logs.logger("engine.x")
path.rename(path.with_suffix(".1"))
path.mkdir()
log.info("one")
log.info("two")
path.rmdir()
log.info("three")
"""
    path = tmp_path / "worker-g.log"
    with path.open("a") as stderr:
        subprocess.run([sys.executable, "-c", program, str(path)], stderr=stderr, check=True)
    assert "three" in path.read_text()


def test_a_log_that_goes_elsewhere_stays_there(tmp_path: Path) -> None:
    """A worker that is started by hand, or by a service manager, logs to its own stderr."""
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "worker-g.log"), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "INFO engine.x line 0" in done.stderr
    assert not list(tmp_path.iterdir())


def test_many_threads(written: io.StringIO) -> None:
    threads = [threading.Thread(target=LOG.info, args=(f"of {n}",)) for n in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(line.split()[-1] for line in written.getvalue().splitlines()) == list("01234567")
