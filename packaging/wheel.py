"""Build this machine's wheel, and try it where there is no compiler.

`python packaging/wheel.py [--keys N]` (`make wheel`): an sdist and the wheel that is built from it
in dist/, repaired for manylinux; then an environment of its own gets the wheel alone, and the demo
is run with it, with nothing of the source tree in the way and no compiler to be found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"


def run(*command: str | Path, **options: object) -> None:
    """Run a command to its end. Raises `CalledProcessError`."""
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True, **options)  # type: ignore[call-overload]


def only(pattern: str) -> Path:
    """The one file of dist/ that is called so."""
    (found,) = DIST.glob(pattern)
    return found


def build() -> tuple[Path, Path]:
    """The sdist, and the wheel that was built from it, as manylinux where that is possible."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    sdist, wheel = only("*.tar.gz"), only("*.whl")
    if sys.platform == "linux":
        run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", DIST, wheel)
        wheel.unlink()
        wheel = only("*.whl")
    return sdist, wheel


def try_out(sdist: Path, wheel: Path, keys: int) -> None:
    """Install the wheel in an environment of its own, and run the demo with it."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        run(sys.executable, "-m", "venv", here / "env")
        python = here / "env" / "bin" / "python"
        # No compiler: what is not in a wheel cannot be built.
        bare = os.environ | {"PATH": str(python.parent), "CC": "/nonexistent", "PYTHONPATH": ""}
        run(python, "-m", "pip", "install", "-q", f"{wheel}[bench]", env=bare)
        with tarfile.open(sdist) as archive:
            archive.extractall(here, filter="data")
        (source,) = (path for path in here.iterdir() if path.name.startswith("startmigration-"))
        # The demo and its reference alone: `engine` is the wheel's.
        for part in ("benches", "tests"):
            shutil.move(source / part, here / part)
        run(python, "-m", "engine", "--version", cwd=here, env=bare)
        run(python, "-m", "benches.demo", "--keys", str(keys), cwd=here, env=bare)
        manual = here / "env" / "share" / "man" / "man1" / "startmigration.1"
        assert manual.exists(), "the wheel brings no manual page"


def main() -> None:
    """Build and try."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=20_000)
    options = parser.parse_args()
    sdist, wheel = build()
    try_out(sdist, wheel, options.keys)
    print(f"{wheel.relative_to(ROOT)} works where no compiler is")


if __name__ == "__main__":
    main()
