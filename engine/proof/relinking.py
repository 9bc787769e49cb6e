"""What is begun anew where a link was lost, some times, over growing pauses."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from engine.errors import LinkError
from engine.model.retry import Attempts

T = TypeVar("T")
# Long enough, together, for a failover.
_PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)


class _Pauses:
    """The policy: each of the pauses once, however long what was tried went well before."""

    def __init__(self) -> None:
        self._left = list(_PAUSES)

    @property
    def left(self) -> bool:
        """Whether it may be tried again."""
        return bool(self._left)

    def failed(self, reason: str, *, remedy: str = "", event: str = "") -> float:
        """See `model.retry.Policy`."""
        return self._left.pop(0)


async def until_linked(once: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `once` gives. Raises what it raises, and `LinkError` once it was enough."""
    pauses = _Pauses()
    async for attempt in Attempts(pauses):
        try:
            return await once()
        except LinkError as error:
            if not pauses.left:
                raise
            attempt.failed(error.message)
    raise AssertionError("attempts ended with neither a result nor an error")
