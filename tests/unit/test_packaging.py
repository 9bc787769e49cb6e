"""What is handed out beside the code: the sdist, the manual page, a dashboard, completion."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from engine.cli import app, manual_page
from engine.front.http.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]


def tracked() -> set[str]:
    """The files of the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split("\0")) - {""}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no repository: this is an sdist")
def test_the_sdist_has_every_file(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)]
    command += ["sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {name for name in tracked() if (ROOT / name).exists()} - names == set()
    assert not {name for name in names if name.endswith((".so", ".pyc"))}


def test_the_manual_page_is_that_of_the_verbs() -> None:
    """Else: python -m engine.cli.manual_page > docs/startmigration.1"""
    assert (ROOT / "docs" / "startmigration.1").read_text() == manual_page.page()
    for verb in app.VERBS:
        assert f".SS {verb}".replace("-", "\\-") in manual_page.page()


def test_the_dashboard_asks_for_metrics_that_are_there() -> None:
    served = Metrics().page([], {}, {}, {}).decode()
    names = set(re.findall(r"^# HELP (\S+)", served, re.MULTILINE))
    names |= {f"{name}_bucket" for name in names}
    board = json.loads((ROOT / "packaging" / "grafana-dashboard.json").read_text())
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"startmigration_\w+", target["expr"])
    }
    assert len(asked) > 15
    assert asked - names == set()


@pytest.mark.parametrize("asked", [["-h"], ["migrate", "-h"], ["serve", "-h"]])
def test_help_has_a_short_name(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(asked) == 0
    assert "--help" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [("startmigration unblo", "unblock-source"), ("startmigration migrate --sourc", "--source")],
)
def test_a_shell_can_complete(typed: str, wanted: str) -> None:
    words = typed.split()

    def ask(instruction: str) -> str:
        asking = {
            app.COMPLETE: instruction,
            "COMP_WORDS": typed,
            "COMP_CWORD": str(len(words) - 1),
            "PYTHONPATH": str(ROOT),
        }
        code = "import sys; sys.argv = ['startmigration']; from engine.__main__ import main; main()"
        told = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | asking, capture_output=True, text=True
        )
        return told.stdout

    assert "complete -o" in ask("source_bash")
    assert wanted in ask("complete_bash").split()
