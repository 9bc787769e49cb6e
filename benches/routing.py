"""`python -m benches.routing`: what it costs to find out which keys go to a node of a cluster.

A stream, and a snapshot, are read as they come, and with the slots of a lane; what the second takes
longer is the routing. `all` slots, so that nothing is left out and what follows is the same work.
Rounds take turns, `--runs` times; the least CPU time of each counts, for all else is other
processes'. The goal is 0.1 µs a key.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping

from engine._native import SlotFilter, SnapshotReader, StreamReader, encode_command, key_slot

GOAL_NS = 100.0
COMMANDS = 20_000
KEYS_OF_ONE = 10
ALL = SlotFilter([(0, 16383)], keyless=True)
THIRD = SlotFilter([(0, 5460)], keyless=True)
_NS = 1e9


def key(n: int) -> bytes:
    """As clients name them; every fourth has a hash tag."""
    return b"user:{%d}:name" % n if n % 4 == 0 else b"key:%012d" % n


def streams() -> Mapping[str, tuple[bytes, int]]:
    """Streams by what they are made of, and how many keys each has."""
    ones = [(b"SET", key(n), b"v" * 20) for n in range(COMMANDS)]
    unions = [
        (b"SUNIONSTORE", b"{%d}a" % n, b"{%d}b" % n, b"{%d}c" % n) for n in range(COMMANDS // 3)
    ]
    lone = [(b"DEL", key(n)) for n in range(COMMANDS)]
    parted = [
        (b"DEL", *(key(n) for n in range(first, first + KEYS_OF_ONE)))
        for first in range(0, COMMANDS, KEYS_OF_ONE)
    ]
    stored = [
        (
            b"MSET",
            *(word for n in range(first, first + KEYS_OF_ONE) for word in (key(n), b"v" * 20)),
        )
        for first in range(0, COMMANDS, KEYS_OF_ONE)
    ]
    return {
        "SET key value": (_encoded(ones), len(ones)),
        "SUNIONSTORE, 3 keys of a slot": (_encoded(unions), 3 * len(unions)),
        "DEL key": (_encoded(lone), len(lone)),
        f"DEL, {KEYS_OF_ONE} keys, in parts": (_encoded(parted), COMMANDS),
        f"MSET, {KEYS_OF_ONE} keys, in parts": (_encoded(stored), COMMANDS),
    }


def _encoded(commands: list[tuple[bytes, ...]]) -> bytes:
    return b"".join(encode_command(*command) for command in commands)


def read_stream(data: bytes, slots: SlotFilter | None) -> None:
    """Read it to its end."""
    reader = StreamReader(0, slots=slots)
    reader.feed(data)
    reader.flush()
    reader.take()


def snapshot() -> tuple[bytes, int]:
    """Strings of 100 bytes without a checksum, and how many."""
    body = b"".join(
        b"\0\x10" + b"key:%012d" % n + b"\x40\x64" + b"v" * 100 for n in range(COMMANDS)
    )
    return b"REDIS0011" + body + b"\xff" + bytes(8), COMMANDS


def read_snapshot(data: bytes, slots: SlotFilter | None) -> None:
    """Read it to its end."""
    reader = SnapshotReader(slots=slots)
    reader.feed(data)
    reader.take()


def cpu_ns(work: Callable[[], None]) -> float:
    """What it takes, in ns of CPU."""
    before = time.thread_time()
    work()
    return (time.thread_time() - before) * _NS


def measure(runs: int) -> list[tuple[str, float, float, float]]:
    """(what, ns a key without slots, with all of them, with a third) of each."""
    found = []
    cases: list[tuple[str, bytes, int, Callable[[bytes, SlotFilter | None], None]]] = [
        (name, data, keys, read_stream) for name, (data, keys) in streams().items()
    ]
    data, keys = snapshot()
    cases.append(("snapshot, a string of 100 bytes", data, keys, read_snapshot))
    for name, data, keys, read in cases:
        least = [float("inf")] * 3
        for _ in range(runs):
            for at, slots in enumerate((None, ALL, THIRD)):
                took = cpu_ns(lambda data=data, slots=slots, read=read: read(data, slots))  # type: ignore[misc]
                least[at] = min(least[at], took / keys)
        found.append((name, *least))
    return found  # type: ignore[return-value]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=50)
    args = parser.parse_args()
    hashed = [key(n) for n in range(COMMANDS)]
    call = cpu_ns(lambda: [key_slot(each) for each in hashed] and None) / COMMANDS
    print(f"{'ns of CPU a key':34}{'plain':>8}{'all':>8}{'third':>8}{'routing':>9}")
    for name, plain, every, third in measure(args.runs):
        routing = every - plain
        verdict = "" if routing <= GOAL_NS else f"  above {GOAL_NS:.0f}"
        print(f"{name:34}{plain:8.0f}{every:8.0f}{third:8.0f}{routing:9.0f}{verdict}")
    print(f"(key_slot, called from Python: {call:.0f})")


if __name__ == "__main__":
    main()
