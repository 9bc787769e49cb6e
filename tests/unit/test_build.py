"""What setup.py's switches do to the core: shown on a module of its head and two functions."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = (ROOT / "ext" / "native.pyx").read_text().partition("\ninclude ")[0]

OVERRUN = """

def item(list values, Py_ssize_t index):
    return values[index]


def letter(bytes text, Py_ssize_t index):
    return text[index]
"""


def load(path: Path, name: str) -> ModuleType:
    """The module of a file, under a name that is not in sys.modules."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    """setup.py, which builds nothing when it is imported."""
    return load(ROOT / "setup.py", "engine_setup")


def test_a_debug_build_checks_bounds(tmp_path: Path, setup: ModuleType) -> None:
    """The core's own head is compiled: a directive there would win over that of setup.py."""
    (tmp_path / "overrun.pyx").write_text(HEAD + OVERRUN)
    (tmp_path / "setup.py").write_text(
        "from Cython.Build import cythonize\n"
        "from setuptools import Extension, setup\n"
        "one = Extension('overrun', ['overrun.pyx'], extra_compile_args=['-O0'])\n"
        f"directives = {setup.directives(['debug'])!r}\n"
        "setup(ext_modules=cythonize([one], compiler_directives=directives))\n"
    )
    run(tmp_path, "setup.py", "-q", "build_ext", "--inplace")
    # In a process of its own: without the check it may well end there.
    assert run(tmp_path, "-c", "import overrun; print(overrun.item([1, 2], 1))") == "2\n"
    for wrong in ("overrun.item([1, 2], 2)", "overrun.letter(b'ab', 3)"):
        called = f"import overrun\ntry: {wrong}\nexcept IndexError: print('seen')"
        assert run(tmp_path, "-c", called) == "seen\n", wrong


def run(folder: Path, *arguments: str) -> str:
    """What this Python prints for `arguments` in `folder`."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_build_for_use_checks_none(setup: ModuleType) -> None:
    for switches, checks in (([], False), (["coverage"], False), (["debug", "sanitize"], True)):
        chosen = setup.directives(switches)
        assert chosen["boundscheck"] is chosen["initializedcheck"] is checks
        assert chosen["wraparound"] is False


@pytest.mark.parametrize("path", sorted((ROOT / "ext").glob("*.p*")), ids=lambda path: path.name)
def test_no_part_sets_a_directive_of_its_own(path: Path, setup: ModuleType) -> None:
    text = path.read_text()
    lines = [line for line in text.splitlines() if line.startswith("# cython:")]
    lines += [
        line
        for line in text.splitlines()
        for each in setup.directives([])
        if f"cython.{each}" in line
    ]
    assert lines == []
