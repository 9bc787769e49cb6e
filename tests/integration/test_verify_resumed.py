"""`verify` that is killed goes on where it was: nothing counts twice, nothing is passed over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from benches.support.proxy import Proxy
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine import Engine
from engine.errors import UsageError
from engine.model.endpoint import Endpoint
from engine.model.proof import ProofReport, ProofSettings
from engine.proof import run, saved_proof, second_looks, track
from engine.proof.report_file import ReportFile
from tests.integration.test_verify_verb import KINDS, fill, verify
from tests.support.servers import End, ServerFactory, url_of

KEYS = 6_000


def resumed(source: End, target: End, report: Path, **settings: object) -> ProofReport:
    """By the library."""
    return Engine().sync.verify(
        Endpoint.parse(url_of(source)),
        Endpoint.parse(url_of(target)),
        settings=ProofSettings(**settings),  # type: ignore[arg-type]
        report=str(report),
        resume=True,
    )


def compared(state: Path) -> int:
    """How many keys the walk over database 0 has saved as equal, before its end."""
    if not state.exists():
        return 0
    with contextlib.closing(sqlite3.connect(state)) as saved:
        rows = saved.execute("SELECT sums FROM mark WHERE label = '0 compared 0'").fetchall()
    return sum(sum(json.loads(sums)["equal"].values()) for (sums,) in rows)


def killed(source: End, target: End, report: Path, *options: str, keys: int) -> None:
    """Run the command, and kill it once it has saved that so many keys are equal."""
    state = report.with_name("report.state")
    code = "import sys; from engine.proof import track; track.MARK_SECONDS = 0.05; "
    code += "from engine.cli.app import run; sys.exit(run(sys.argv[1:]))"
    verb = [sys.executable, "-c", code, "verify", "--source", url_of(source)]
    verb += ["--target", url_of(target), *options]
    process = subprocess.Popen(verb, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(
            lambda: process.poll() is not None or compared(state) >= keys,
            f"{keys} keys compared",
            told=lambda: compared(state),
        )
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def pair(server_factory: ServerFactory) -> tuple[Server, Server]:
    here, there = server_factory(), server_factory()
    for seed, server in enumerate((here, there)):
        fill(server.client(), KEYS, seed)
        fill(server.client(1), 500, seed)
    return here, there


def spoil(client: object, dice: random.Random, many: int) -> set[str]:
    """Change strings on the target."""
    numbers = dice.sample(range(0, KEYS, len(KINDS)), many)
    for n in numbers:
        client.set(f"string:{n}", "~")  # type: ignore[attr-defined]
    return {f"string:{n}" for n in numbers}


def test_kills_at_any_moment(pair: tuple[Server, Server], tmp_path: Path) -> None:
    here, there = pair
    dice = random.Random(41130)
    # Before the cuts and behind them.
    wrong = spoil(there.client(), dice, 40)
    there.client().set("extra", "x")
    wrong.add("extra")
    once = verify(here, there, seed=7)
    report = tmp_path / "report"
    report.write_text("an older one")
    slow = ("--rate", "200kb", "--seed", "7")
    killed(here, there, report, "--report", str(report), *slow, keys=dice.randint(1, 2_000))
    more = compared(tmp_path / "report.state") + dice.randint(1, 1_500)
    killed(here, there, report, "--resume", str(report), *slow, keys=more)
    assert report.read_text() == "an older one"
    with pytest.raises(UsageError, match="a comparison that was cut off"):
        verify(here, there, report)
    found = resumed(here, there, report)
    assert found.compared == once.compared == KEYS + 501
    assert (found.outcome, found.different, found.unknown) == ("different", len(wrong), 0)
    assert found.digests == once.digests
    assert sum(each.compared for each in found.runs) == found.compared
    assert len(found.runs) == 3
    assert all(each.compared > 0 for each in found.runs)
    assert "and not again since then" in found.sentence
    told = [json.loads(line) for line in report.read_text().splitlines()]
    lines = [each["difference"]["key"] for each in told if "difference" in each]
    assert sorted(lines) == sorted(wrong)
    assert len(told[-1]["result"]["runs"]) == 3
    assert sorted(each.name for each in tmp_path.iterdir()) == ["report", "report.html"]


def test_what_is_wrong_behind_the_cut(pair: tuple[Server, Server], tmp_path: Path) -> None:
    """What was compared is not compared again; the rest is."""
    here, there = pair
    report = tmp_path / "report"
    killed(here, there, report, "--report", str(report), "--rate", "200kb", keys=1_000)
    wrong = spoil(there.client(), random.Random(5), 300)
    found = resumed(here, there, report)
    assert found.compared == KEYS + 500
    assert {each.key for each in found.differences} < wrong
    assert 0 < found.different < 300
    assert f"{found.runs[0].compared:,} of these keys were compared between" in found.sentence


def test_servers_that_are_others_by_now(
    pair: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their cursors say nothing, nor does what was compared."""
    here, there = pair
    report = tmp_path / "report"
    killed(here, there, report, "--report", str(report), "--rate", "200kb", keys=1_000)
    # What it has not saved is gone, and it is another process.
    there.restart()
    monkeypatch.setattr(second_looks, "PAUSES", (0.02,) * 6)
    found = resumed(here, there, report)
    assert (found.compared, found.different) == (KEYS + 500, KEYS + 500)
    assert [each.compared for each in found.runs if each.compared] == [KEYS + 500]


def test_what_cannot_be_resumed(pair: tuple[Server, Server], tmp_path: Path) -> None:
    here, there = pair
    report = tmp_path / "report"
    with pytest.raises(UsageError, match="no comparison to go on with"):
        resumed(here, there, report)
    killed(here, there, report, "--report", str(report), "--rate", "200kb", keys=1)
    for source, target, settings, what in (
        (there, here, {}, "source"),
        (here, there, {"mode": "ttl"}, "mode"),
        (here, there, {"match": "x*"}, "match"),
        (here, there, {"seed": 1}, "seed"),
    ):
        with pytest.raises(UsageError, match=f"has another {what}"):
            resumed(source, target, report, **settings)
    state = report.with_name("report.state")
    state.write_bytes(b"x" * state.stat().st_size)
    with pytest.raises(UsageError, match="cannot be read"):
        resumed(here, there, report)
    assert not report.exists()


def test_a_repair_that_is_killed(
    pair: tuple[Server, Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has repaired is told of by the one that goes on."""
    here, there = pair
    wrong = spoil(there.client(), random.Random(5), 20)
    report = tmp_path / "report"
    inner = run.repair.repair

    async def dies(*args: object) -> None:
        await inner(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run.repair, "repair", dies)
        with pytest.raises(KeyboardInterrupt):
            verify(here, there, report, repair=True)
    assert here.client().get("string:0") == there.client().get("string:0")
    found = resumed(here, there, report, repair=True)
    assert (found.outcome, found.repaired, found.different) == ("equal", 20, 20)
    assert {each.key for each in found.differences} == wrong
    assert found.compared == KEYS + 500


def test_a_link_that_is_lost_late(
    pair: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk goes on at its last mark."""
    here, there = pair
    monkeypatch.setattr(track, "MARK_SECONDS", 0.0)
    spoil(there.client(), random.Random(5), 20)
    once = verify(here, there, seed=7)
    with Proxy(there.host, there.port) as line:
        line.cut_after(300_000)
        found = verify(here, f"redis://{line.host}:{line.port}", seed=7)
        assert not line.armed
    assert (found.compared, found.different) == (KEYS + 500, 20)
    assert found.digests == once.digests


def test_two_that_write_one_report(server_factory: ServerFactory, tmp_path: Path) -> None:
    here, there = server_factory(), server_factory()
    report = tmp_path / "report"
    first = ReportFile(str(report))
    with pytest.raises(UsageError, match="another process writes the report"):
        verify(here, there, report)
    first.close()
    assert verify(here, there, report).outcome == "equal"
    assert saved_proof.SavedProof(first.state, {}, resume=False).runs == []


def test_a_journal_that_was_left(pair: tuple[Server, Server], tmp_path: Path) -> None:
    """Killed in a save, and its file removed by hand: what it had marked is not in the next one."""
    here, there = pair
    report = tmp_path / "report"
    state, journal = report.with_name("report.state"), report.with_name("report.state-journal")
    killed(here, there, report, "--report", str(report), "--rate", "200kb", keys=1_000)
    with contextlib.closing(sqlite3.connect(state, isolation_level=None)) as saved:
        # In the journal is what was there before.
        saved.execute("PRAGMA cache_size = 1")
        saved.execute("BEGIN")
        saved.execute("UPDATE mark SET servers = 'other'")
        saved.execute("UPDATE head SET version = 7")
        for n in range(20_000):
            saved.execute("INSERT INTO doubt VALUES ('0 compared 0', ?, 1)", (f"key:{n}" * 9,))
        left = journal.read_bytes()
        saved.execute("ROLLBACK")
    state.unlink()
    journal.write_bytes(left)
    assert left.strip(b"\0")
    new = saved_proof.SavedProof(state, {"seed": 1}, resume=False)
    new.save({})
    assert not new.marks()
    new.close()
    assert not journal.exists()


def test_one_that_begins_anew(pair: tuple[Server, Server], tmp_path: Path) -> None:
    """It forgets the one before, which is not its to forget while another process has it."""
    here, there = pair
    report = tmp_path / "report"
    killed(here, there, report, "--report", str(report), "--rate", "200kb", keys=1)
    state = report.with_name("report.state")

    def anew() -> ProofReport:
        ends = (Endpoint.parse(url_of(each)) for each in pair)
        return asyncio.run(run.prove(*ends, ProofSettings(), report=str(report), fresh=True))

    other = ReportFile(str(report))
    with pytest.raises(UsageError, match="another process writes the report"):
        anew()
    assert state.exists()
    other.close()
    assert [each.compared for each in anew().runs] == [KEYS + 500]
    assert not state.exists()
