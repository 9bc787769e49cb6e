"""What setup.py's switches do to the core: shown on a module of its head and two functions."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAD = (ROOT / "ext" / "native.pyx").read_text().partition("\ninclude ")[0]

FUNCTIONS = """

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


@pytest.fixture(scope="module")
def built(setup: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a debug build of the core's head, which any directive there would win in."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "overrun.pyx").write_text(HEAD + FUNCTIONS)
    of_core = setup.extension(["debug"])
    (folder / "setup.py").write_text(
        "from Cython.Build import cythonize\n"
        "from setuptools import Extension, setup\n"
        "one = Extension('overrun', ['overrun.pyx'])\n"
        f"one.extra_compile_args = {of_core.extra_compile_args!r}\n"
        f"one.extra_link_args = {of_core.extra_link_args!r}\n"
        f"directives = {setup.directives(['debug'])!r}\n"
        "setup(ext_modules=cythonize([one], compiler_directives=directives))\n"
    )
    run(folder, "setup.py", "-q", "build_ext", "--inplace")
    return folder


def run(folder: Path, *arguments: str) -> str:
    """What this Python prints for `arguments` in `folder`."""
    return said(folder, sys.executable, *arguments)


def said(folder: Path, *command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_debug_build_checks_bounds(built: Path) -> None:
    """In processes of their own: without the check they may well end there."""
    assert run(built, "-c", "import overrun; print(overrun.item([1, 2], 1))") == "2\n"
    for wrong in ("overrun.item([1, 2], 2)", "overrun.letter(b'ab', 3)"):
        called = f"import overrun\ntry: {wrong}\nexcept IndexError: print('seen')"
        assert run(built, "-c", called) == "seen\n", wrong


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no readelf here (binutils)")
def test_what_the_loader_fills_in_is_read_only(built: Path) -> None:
    (library,) = built.glob("overrun.*.so")
    assert "BIND_NOW" in said(built, "readelf", "-d", str(library))
    assert "GNU_RELRO" in said(built, "readelf", "-lW", str(library))


def test_a_build_for_use_is_hardened(setup: ModuleType) -> None:
    wanted = {"-fstack-protector", "-fstack-clash-protection", "-D_FORTIFY_SOURCE=2"}
    assert wanted <= set(setup.extension([]).extra_compile_args)
    # The sanitizer watches the copies itself.
    assert "-D_FORTIFY_SOURCE=2" not in setup.extension(["sanitize"]).extra_compile_args


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
