"""Runs one of the applications beside this file, and reads what it prints."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

import pytest

from benches.support.fetch_servers import cache_folder

FOLDER = Path(__file__).parent
NODE_PACKAGES = ("ioredis@6.0.0", "redis@6.3.1")
INSTALL_SECONDS = 240
NAMES = ("redis_py_asyncio.py", "valkey_glide.py", "ioredis.mjs", "node_redis.mjs")


class Program:
    """The process; `acknowledged`, `popped` and `heard` are what it has printed so far."""

    def __init__(self, name: str, port: int) -> None:
        self.acknowledged = 0
        self.popped: list[bytes] = []
        self.heard: list[bytes] = []
        environment = dict(os.environ)
        command = [sys.executable, str(FOLDER / name), str(port)]
        if name.endswith(".mjs"):
            command[0] = _node()
            environment["NODE_PATH"] = str(_node_modules())
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.kill()
        # All that it has printed; nobody else may read it (`communicate` would).
        self._reader.join(10)
        said = self._process.stderr.read()
        self._process.wait()
        self._process.stdout.close()
        self._process.stderr.close()
        if exc[0] is not None:
            print(said.decode("utf-8", "replace")[-4000:], file=sys.stderr)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break  # it was killed in the middle of it
            what, _, value = line.rstrip(b"\n").partition(b" ")
            if what == b"ack":
                self.acknowledged = int(value)
            elif what == b"popped":
                self.popped.append(value)
            elif what == b"heard":
                self.heard.append(value)


def _node() -> str:
    found = shutil.which("node")
    if found is None or shutil.which("npm") is None:
        pytest.skip("no Node.js on this machine")
    return found


def _node_modules() -> Path:
    """The folder of the two libraries, installed once a machine."""
    folder = cache_folder().parent / "node"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "installed"
        if not done.exists() or done.read_text() != " ".join(NODE_PACKAGES):
            command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix"]
            try:
                subprocess.run(
                    [*command, str(folder), *NODE_PACKAGES],
                    check=True,
                    capture_output=True,
                    timeout=INSTALL_SECONDS,
                )
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"npm cannot install {' and '.join(NODE_PACKAGES)}: {error}")
            done.write_text(" ".join(NODE_PACKAGES))
    return folder / "node_modules"
