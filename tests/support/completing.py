"""The word for a cut-over, given once more where the gate has closed since it was looked at.

A machine that stands still for two seconds in between, with all that runs there, has heard neither
end: the word is refused, as it has to be, and an operator gives it again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from benches.support.waiting import wait_for
from engine.front.engine import Engine
from engine.front.faults_with_details import CompletionRefused

T = TypeVar("T")

_TIMES = 5


def word_given(give: Callable[[], T], in_sync: Callable[[], object]) -> T:
    """`give` the word, again once it is `in_sync` again; what it returned. Raises what it raises
    for another reason, or again and again."""
    for left in range(_TIMES - 1, -1, -1):
        try:
            return give()
        except Exception as refused:
            if not left or "cannot complete" not in str(refused):
                raise
        wait_for(in_sync, "in sync again")
    raise AssertionError("it was raised")


async def complete(face: Engine, group: str) -> dict[str, Any]:
    """The same by the library."""
    for left in range(_TIMES - 1, -1, -1):
        try:
            return await face.complete_migration(group)
        except CompletionRefused:
            if not left:
                raise
        await face.wait(group, until="in-sync", timeout=60)
    raise AssertionError("it was raised")
