"""Lint, types and the core's stub, as tests: what they say is in the failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTED = [name for name in ("engine", "tests", "benches", "setup.py") if (ROOT / name).exists()]


def check(*command: str) -> None:
    """Run a module of this Python in the project's root; fail with its words."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=170,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )
    if done.returncode:
        pytest.fail(f"python -m {' '.join(command)}\n{done.stdout}", pytrace=False)


def test_ruff() -> None:
    check("ruff", "check", *LINTED)


def test_format() -> None:
    check("ruff", "format", "--check", *LINTED)


def test_types() -> None:
    check("mypy", "--strict", "engine")


def test_stub() -> None:
    check("mypy.stubtest", "--mypy-config-file", "pyproject.toml", "engine._native")
