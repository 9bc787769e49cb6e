"""Where a server that was named is found by now, after a failover: as if a name had been moved.

A detour holds for what one transfer does, in whichever of its tasks: it lies in their context. Two
transfers of one process lead nobody astray.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from engine.model.endpoint import Endpoint

_DETOURS: ContextVar[dict[Endpoint, Endpoint] | None] = ContextVar("detours", default=None)
_STRAIGHT: ContextVar[bool] = ContextVar("straight", default=False)


def begin() -> None:
    """From here on this context, and the tasks that it starts, have detours of their own: none."""
    _DETOURS.set({})


def lead(named: Endpoint, there: Endpoint) -> None:
    """Whoever dials `named` from now on is led `there`. Without `begin` it has no effect."""
    detours = _DETOURS.get()
    if detours is not None:
        detours[named] = there


def leading(named: Endpoint) -> Endpoint:
    """Where `named` leads."""
    detours = _DETOURS.get()
    return named if not detours or _STRAIGHT.get() else detours.get(named, named)


@contextlib.contextmanager
def straight() -> Iterator[None]:
    """Meanwhile this task dials the servers that it names."""
    token = _STRAIGHT.set(True)
    try:
        yield
    finally:
        _STRAIGHT.reset(token)
