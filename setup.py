"""Declares the native core; everything else about the project is in pyproject.toml.

The build is switched by the environment (set, and neither empty nor "0"):

- ENGINE_DEBUG: no optimisation, symbols, Cython's bounds checks (its None checks need the GIL).
- ENGINE_SANITIZE: AddressSanitizer and UBSan. To run it, put `gcc -print-file-name=libasan.so` in
  LD_PRELOAD and detect_leaks=0 in ASAN_OPTIONS (the interpreter itself never frees everything).
- ENGINE_COVERAGE: line tracing in the core, for coverage with the Cython.Coverage plugin.

Never -march=native: a wheel must run on machines other than the one that built it, and the core
picks its CPU-specific paths at run time.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
MODE = "build/mode"
SWITCHES = ("debug", "sanitize", "coverage")


def chosen_switches() -> list[str]:
    """The build switches that the environment turns on, in the order of `SWITCHES`."""
    return [s for s in SWITCHES if os.environ.get(f"ENGINE_{s.upper()}", "0") not in ("", "0")]


def note_mode(switches: list[str]) -> None:
    """Write the build's mode to `MODE` when it changed.

    The file is one of the extension's dependencies: without it a release build would pass for
    up to date after a debug build, because neither changes a source file.
    """
    path = ROOT / MODE
    mode = "-".join(switches) or "release"
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text().strip() != mode:
        path.write_text(mode + "\n")


def extension(switches: list[str]) -> Extension:
    """`engine._native`: one compilation unit, ext/native.pyx with the parts that it includes."""
    debug = "debug" in switches
    compile_args = ["-std=c11", "-Wall", "-Wno-unused-function"]
    compile_args += ["-O0", "-g"] if debug else ["-O3", "-g0"]
    link_args: list[str] = []
    # The core reads what others send: an overrun frame, a jump over the stack's guard page or a
    # copy beyond a known size ends the process, and what the loader has filled in is read-only.
    # In all a quarter of a percent of the core's instructions; -fstack-protector-strong, which
    # guards every frame with a variable's address in it, would be nearly two.
    compile_args += ["-fstack-protector", "-fstack-clash-protection"]
    link_args += ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]
    if not debug and "sanitize" not in switches:
        # It needs the optimiser, and hides copies from the sanitizer. A compiler may have set it.
        compile_args += ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]
    macros: list[tuple[str, str | None]] = []
    if "sanitize" in switches:
        sanitize = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-g"]
        compile_args += sanitize
        link_args += sanitize
    if "coverage" in switches:
        # Before 3.13 the tracing goes through the profile hooks that coverage.py understands.
        macros += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1")]
        macros += [("CYTHON_USE_SYS_MONITORING", "0")]
    parts = sorted(
        str(path.relative_to(ROOT))
        for pattern in ("*.pxi", "*.pxd", "*.h")
        for path in (ROOT / "ext").glob(pattern)
    )
    return Extension(
        "engine._native",
        sources=["ext/native.pyx"],
        depends=[*parts, "setup.py", MODE],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=macros,
    )


def directives(switches: list[str]) -> dict[str, Any]:
    """Cython's directives, all of them: one in a source's header would win over the one here."""
    checks = "debug" in switches
    return {
        "language_level": "3",
        "boundscheck": checks,
        "wraparound": False,
        "initializedcheck": checks,
        "cdivision": True,
        "embedsignature": True,
        "linetrace": "coverage" in switches,
        "profile": "coverage" in switches,
        # Names that Cython would add to the module's face, and that no stub should have to list.
        "auto_pickle": False,
        "autotestdict": False,
    }


def main() -> None:
    """Build, or be asked about, the extension."""
    os.chdir(ROOT)
    switches = chosen_switches()
    note_mode(switches)
    # A folder a mode: the C of one mode is never taken for that of another.
    build_dir = Path("build") / ("cython-" + ("-".join(switches) or "release"))
    generated = build_dir / "ext" / "native.c"
    # Cython looks at the sources alone; a changed directive above must be compiled in as well.
    stale = generated.exists() and generated.stat().st_mtime < Path("setup.py").stat().st_mtime
    setup(
        ext_modules=cythonize(
            [extension(switches)],
            build_dir=str(build_dir),
            compiler_directives=directives(switches),
            force=stale,
        )
    )


if __name__ == "__main__":
    main()
