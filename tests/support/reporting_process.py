"""A process beside a test, which is asked at the end of a block for what it found.

    with ReportingProcess("-m", "tests.support.timed_clients", "read", port) as process:
        ...
    print(process.said)

It writes `going` once it has begun, goes on until its standard input ends, and writes then what it
found, in JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Self


class ReportingProcess:
    """Python with these arguments; `said` is what it found, once the block has ended well."""

    def __init__(self, *arguments: str) -> None:
        self.said: Any = None
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "going\n"
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            out, _ = self._process.communicate(timeout=60)
        finally:
            self._process.kill()
        if exc[0] is None:
            assert self._process.returncode == 0
            self.said = json.loads(out)
