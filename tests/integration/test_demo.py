"""The demo, small: it proves what it claims, and it would notice if it were not so."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benches import datasets, demo
from benches.support.compare import Comparison, compare
from tests.support.servers import ServerFactory

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 90.0


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benches.demo", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def run(*arguments: str, seconds: float = SECONDS) -> tuple[int, str, str]:
    process = start(*arguments)
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    assert "Traceback" not in err, err
    return process.returncode, out, err


def test_the_demo(tmp_path: Path) -> None:
    code, out, err = run("--keys", "3000", "--state", str(tmp_path / "state.db"))
    assert code == 0, out + err
    steps = re.findall(r"^== (\w+)", out, re.MULTILINE)
    assert steps == [
        "Source",
        "Target",
        "Fill",
        "RegisterReplicationGroup",
        "TestMigration",
        "StartMigration",
        "CompleteMigration",
        "Compare",
        "Steps",
    ]
    assert re.search(r"3,\d{3} keys compared: 0 different, 0 missing, 0 extra", out)
    assert re.search(r"^Done: 3,\d{3} keys, .* keys/s\.$", out, re.MULTILINE)
    ports = re.findall(r"on port (\d+)", out)
    assert len(ports) == 2


def test_servers_of_ones_own_are_left_alone(server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"k{n}": n for n in range(50)})
    target.client().set("was-here", "before")
    code, out, err = run("--source", source.url, "--target", target.url)
    assert code == 0, out + err
    assert "Fill" not in out
    assert target.client().get("was-here") == b"before"
    assert target.client().dbsize() == 51
    assert source.client().dbsize() == 50


def test_a_difference_is_a_failure(
    server_factory: ServerFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = server_factory(), server_factory()
    datasets.strings(source.url, n=100)

    def compare_later(one: str, other: str) -> Comparison:
        # After the migration, and before the proof.
        source.client().set("late", "v")
        target.client().append("key:0000000007", "!")
        return compare(one, other)

    monkeypatch.setattr(demo, "compare", compare_later)
    assert demo.main(["--source", source.url, "--target", target.url]) == 1
    shown = capsys.readouterr().out
    assert "NOT the same" in shown
    assert "missing: db0 b'late'" in shown
    assert "different: db0 b'key:0000000007': value" in shown


def test_an_unreachable_source_is_an_error_without_a_trace(
    server_factory: ServerFactory,
) -> None:
    gone, target = server_factory(), server_factory()
    gone.close()
    code, out, err = run("--source", gone.url, "--target", target.url)
    assert code == 1, out
    assert re.search(r"^\w+: ", err, re.MULTILINE)


@pytest.mark.parametrize(
    "arguments", [("--keys", "0"), ("--source", "http://x"), ("--what",)], ids=" ".join
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert "usage:" in err


def test_ctrl_c_ends_the_servers() -> None:
    process = start("--keys", "20000")
    assert process.stdout is not None
    seen = ""
    while seen.count("on port") != 2:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    for port in re.findall(r"on port (\d+)", seen):
        assert not listening(int(port))


def listening(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_demo_with_clusters(tmp_path: Path) -> None:
    """Three shards into three, and one server into three, while clients count up."""
    code, out, err = run(
        "--cluster", "--keys", "1500", "--state", str(tmp_path / "state.db"), seconds=240
    )
    assert code == 0, out + err
    assert (
        re.findall(r"^== (\w+): (?:a cluster of (3)|\w+)", out, re.MULTILINE).count(("Source", "3"))
        == 1
    )
    assert len(re.findall(r"1,5\d\d keys compared: 0 different, 0 missing, 0 extra", out)) == 2
    assert out.count("The same, and each count is what was acknowledged") == 2
    # Of one server that three lanes read from each key is counted once.
    assert "of 4,5" not in out
