"""`python -m tests.support.lanes_process WAYS`: lanes laid out by hand, in a process that kills
itself at a moment of its cut-over.

WAYS is what `killed_at` writes. Nothing of it is tidied up: the next engine finds it so.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.model.lane_route import Route
from engine.model.slots import SlotSet
from tests.support.checkpoints import FileCheckpoint
from tests.support.lanes import Lanes, Way
from tests.support.servers import url_of
from tests.support.steps import Moment, Steps

_SECONDS = 120.0


def killed_at(moment: Moment, ways: Sequence[Way], folder: Path) -> list[FileCheckpoint]:
    """Follow and cut over in a process of its own, until it is killed at that moment; what it has
    written down."""
    paths = [folder / f"lane{n}.json" for n, _ in enumerate(ways)]
    told = {
        "moment": asdict(moment),
        "ways": [
            {
                "source": url_of(way.source),  # type: ignore[arg-type]
                "target": url_of(way.target),  # type: ignore[arg-type]
                "route": {**_members(way.route), "slots": str(way.route.slots)},
                "path": str(path),
            }
            for way, path in zip(ways, paths, strict=True)
        ],
    }
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(told)],
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, (str(moment), done.returncode, done.stderr[-3000:])
    return [FileCheckpoint(path) for path in paths]


def _members(route: Route) -> dict[str, Any]:
    return {name: getattr(route, name) for name in Route.__slots__}


def main(text: str) -> None:
    """Run it to its own end."""
    told = json.loads(text)
    steps = Steps()
    steps.at = Moment(**told["moment"])
    steps.act = lambda: os.kill(os.getpid(), signal.SIGKILL)
    steps.install()
    ways = [
        Way(
            each["source"],
            each["target"],
            Route(**{**each["route"], "slots": SlotSet.parse(each["route"]["slots"])}),
            None,
        )
        for each in told["ways"]
    ]
    stores = [FileCheckpoint(Path(each["path"])) for each in told["ways"]]
    with Lanes(ways, stores, compared=True) as run:
        run.following()
        run.cut_over_soon()


if __name__ == "__main__":
    main(sys.argv[1])
