"""Runs what a fuzzer has found once more, where the core is built with the sanitizers:
`python -m tests.fuzz.replay aof build/fuzz/aof --seconds 15`.

The sanitizer's runtime hides the coverage by which a fuzzer chooses its inputs, so a fuzzer that
runs there tries next to nothing. Each input that a run without it has kept reached something new.
"""

from __future__ import annotations

import argparse
import importlib
import random
import time
from pathlib import Path

FEWEST = 20
"""A folder with fewer inputs is none that a fuzzer has filled."""


def main() -> None:
    """Run the inputs of a folder in a random order, until they are done or the time is up.

    The path of the input that runs is in the file beside the folder (`aof.running`): a sanitizer
    ends the process. Exits with a message if there are too few inputs.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", help="the fuzzer, as tests.fuzz.fuzz_READER")
    parser.add_argument("folder", type=Path, help="the inputs that it has kept")
    parser.add_argument("--seconds", type=float, default=15, help="the time after which it ends")
    wanted = parser.parse_args()
    inputs = sorted(wanted.folder.iterdir()) if wanted.folder.is_dir() else []
    if len(inputs) < FEWEST:
        parser.exit(
            1,
            f"{wanted.folder} holds {len(inputs)} inputs, and a run that shows something needs "
            f"{FEWEST}. Run make fuzz without ENGINE_SANITIZE first.\n",
        )
    once = importlib.import_module(f"tests.fuzz.fuzz_{wanted.reader}").once
    # Where the time does not suffice for all, each run takes others.
    random.shuffle(inputs)
    running = wanted.folder.with_suffix(".running")
    end = time.monotonic() + wanted.seconds
    done = 0
    for path in inputs:
        if done >= FEWEST and time.monotonic() >= end:
            break
        running.write_text(f"{path}\n")
        once(path.read_bytes())
        done += 1
    running.unlink()
    print(f"{wanted.reader}: {done} of {len(inputs)} inputs ran, without a finding")


if __name__ == "__main__":
    main()
