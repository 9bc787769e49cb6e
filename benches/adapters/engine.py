"""This engine, as an operator runs it: `python -m engine migrate`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benches import procstat
from benches.adapters.base import AdapterError, ProcessAdapter, last_json

if TYPE_CHECKING:
    from benches.support.servers import Server


class Engine(ProcessAdapter):
    """The whole command, with its start-up, preflight and state file."""

    name = "engine"

    def available(self) -> str | None:
        for module in ("engine.__main__", "engine._native"):
            if importlib.util.find_spec(module) is None:
                return f"{module} is not built"
        return None

    def command(self, source: Server, target: Server, folder: Path) -> list[str]:
        command = [sys.executable, "-m", "engine", "migrate"]
        command += ["--source", source.url, "--target", target.url, "--source-type", "scan"]
        command += ["--state", f"sqlite:///{folder / 'state.sqlite'}"]
        return [*command, "--if-exists", "replace", "--output", "json"]

    def read(self, done: procstat.Finished) -> tuple[float | None, str, dict[str, float]]:
        found = last_json(done.stdout)
        if found.get("errors") or found.get("not_carried"):
            raise AdapterError(
                f"engine: errors {found.get('errors')}, not carried {found.get('not_carried')}"
            )
        own = found.get("engine", {})
        extra = {
            "own_cpu_seconds": float(own.get("cpu_seconds", 0.0)),
            "own_peak_rss_bytes": float(own.get("peak_rss_bytes", 0)),
            "own_keys": float(found.get("keys", 0)),
        }
        for step in found.get("steps", ()):
            if step["name"] == "snapshot":
                extra["snapshot_seconds"] = float(step["seconds"])
        return float(found["seconds"]), "", extra
