"""What a value may lose that is rewritten for a target which does not know its type, or made there
by commands.

The core does that (`ext/value_encode.pxi`, `ext/stream_commands.pxi`) and says of each value what
it has lost, a bit each.
What a client could notice is no such loss: a value that would lose that is not carried.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

WORDS = {
    1: "streams without the time at which each consumer was last active",
    2: "streams without their counts of entries added and read, and the highest id deleted: a"
    " group's lag is not known",
    4: "streams without what their producers have sent before (XADD with IDMP): an entry that is"
    " sent again is added again",
    8: "streams that were made by commands, without the times at which their consumers were seen:"
    " each seems to have been active just now",
}
"""By the core's bit."""
# The form of a stream (RDB_TYPE_*) that has it first.
_BROUGHT_BY = {1: 21, 2: 19, 4: 26}
NAMED_LIMIT = 200
"""Of each loss so many keys are named."""


@dataclass(frozen=True, slots=True)
class CarriedWithLoss:
    """Values that were carried with one kind of loss: how many, and some of their keys (as
    `report.printable_key` writes them), each with its database. A key that was read again from the
    source counts again."""

    kind: str
    count: int
    keys: tuple[tuple[int, str], ...]

    @property
    def words(self) -> str:
        """In one line."""
        named = ", ".join(f"'{key[:80]}' (database {db})" for db, key in self.keys[:5])
        more = ", …" if self.count > min(len(self.keys), 5) else ""
        return f"{self.count:,} {self.kind}: {named}{more}"


def foreseen(types: Container[int], known: Container[int]) -> list[str]:
    """What values of `types` may lose at a target that knows these."""
    return [
        WORDS[bit] for bit, number in _BROUGHT_BY.items() if number in types and number not in known
    ]


def total_losses(found: Sequence[CarriedWithLoss]) -> tuple[CarriedWithLoss, ...]:
    """Those of several lanes."""
    kinds = dict.fromkeys(each.kind for each in found)
    return tuple(
        CarriedWithLoss(
            kind,
            sum(each.count for each in found if each.kind == kind),
            tuple(key for each in found if each.kind == kind for key in each.keys)[:NAMED_LIMIT],
        )
        for kind in kinds
    )


def carried_with_loss(found: Iterable[dict[str, Any]]) -> tuple[CarriedWithLoss, ...]:
    """Read back from plain JSON types."""
    return tuple(
        CarriedWithLoss(each["kind"], each["count"], tuple((db, key) for db, key in each["keys"]))
        for each in found
    )
