"""What becomes of the values of one release in another: the table of docs/limits.md.

python -m tests.support.value_table
"""

from __future__ import annotations

from engine.model.server import parse_version
from engine.model.server_capabilities import Flavour, ServerCapabilities

RELEASES = ("redis-2.8", "redis-3.2", "redis-5.0", "redis-6.0", "redis-6.2", "redis-7.0",
            "redis-stack-7.4", "redis-8.0", "redis-8.6", "valkey-8.1", "valkey-9.1")  # fmt: skip
TARGETS = RELEASES[2:]
"""RESTORE before 5.0 takes no expire time as a point in time."""
LETTERS = {1: "a", 2: "c", 4: "p"}
"""By the core's bit of a loss; `f`: hashes with TTLs of fields are not carried."""


def able(release: str) -> ServerCapabilities:
    """What "redis-7.0" can do."""
    name, _, number = release.rpartition("-")
    flavour: Flavour = "valkey" if name == "valkey" else "redis"
    return ServerCapabilities(flavour, parse_version(number))


def becomes(source: str, target: str) -> str:
    """The letters of what is lost, or not carried; empty: nothing."""
    there, here = able(source), able(target)
    lost = {
        # The form that has it, by its type. (Of 26 Valkey's are other values.)
        "a": 21 in there.known_types and 21 not in here.known_types,
        "c": 19 in there.known_types and 19 not in here.known_types,
        "f": there.field_ttls and not here.field_ttls,
        "p": 26 in there.known_types and 26 not in here.known_types,
    }
    return "".join(letter for letter, is_lost in lost.items() if is_lost)


def shown(release: str) -> str:
    """As people write it."""
    name, _, number = release.rpartition("-")
    return f"{'Valkey' if name == 'valkey' else 'Redis'} {number}"


def table() -> str:
    """All pairs, as the document has them."""
    lines = [["from \\ into", *map(shown, TARGETS)], ["---"] * (len(TARGETS) + 1)]
    lines += [
        [shown(source), *(becomes(source, target) or "whole" for target in TARGETS)]
        for source in RELEASES
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
