"""Lint, types and the core's stub, as tests: what they say is in the failure."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINTED = [
    name
    for name in ("engine", "tests", "benches", "packaging", "setup.py")
    if (ROOT / name).exists()
]


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


def test_stub(tmp_path: Path) -> None:
    """The stub alone is read: with the whole package, which `test_types` reads, it takes ten times
    the CPU."""
    settings = tmp_path / "mypy.ini"
    settings.write_text("[mypy]\npython_version = 3.11\nfollow_imports = skip\n")
    check("mypy.stubtest", "--mypy-config-file", str(settings), "engine._native")


def always_true(test: ast.expr) -> bool:
    """Whether what is asserted holds by its form: a constant, a literal with members, or either
    behind `or`."""
    match test:
        case ast.Constant():
            return bool(test.value)
        case ast.Tuple() | ast.List() | ast.Set():
            return bool(test.elts)
        case ast.GeneratorExp() | ast.Lambda():
            return True
        case ast.BoolOp(ast.Or(), values):
            return any(map(always_true, values))
        case ast.BoolOp(ast.And(), values):
            return all(map(always_true, values))
    return False


def test_assertions_can_fail() -> None:
    for form in ("x == y or True", "(x, 'why')", "(each for each in x)", "1", "x or (y or 'why')"):
        assert always_true(ast.parse(form, mode="eval").body), form
    for form in ("x or y", "x and True", "()", "x == (1, 2)", "not x"):
        assert not always_true(ast.parse(form, mode="eval").body), form
    found = [
        f"{path.relative_to(ROOT)}:{each.lineno}"
        for path in (ROOT / "tests").rglob("*.py")
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.Assert) and always_true(each.test)
    ]
    assert not found


def test_no_property_test_has_a_deadline_of_its_own() -> None:
    """The profile of conftest.py has none, and is the one place that says so."""
    found = [
        f"{path.relative_to(ROOT)}:{each.lineno}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.Call)
        and ast.unparse(each.func).endswith("settings")
        and any(given.arg == "deadline" for given in each.keywords)
    ]
    assert not found
