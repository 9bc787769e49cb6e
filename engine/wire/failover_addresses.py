"""Where a server that was named is found by now, after a failover: as if a name had been moved.

A detour holds for what one transfer does, in whichever of its tasks: it lies in their context. Two
transfers of one process do not affect each other. A caller that means the server at an address
itself, because another server told that address, says so when it dials (`admin`'s `straight`):
after a second failover it may be the address that was named.
"""

from __future__ import annotations

from contextvars import ContextVar

from engine.model.endpoint import Endpoint

_DETOURS: ContextVar[dict[Endpoint, Endpoint] | None] = ContextVar("detours", default=None)


def begin() -> None:
    """From here on this context, and the tasks that it starts, have detours of their own: none."""
    _DETOURS.set({})


def lead(named: Endpoint, there: Endpoint) -> None:
    """Connections to `named` go `there` from now on. Without `begin` it has no effect."""
    detours = _DETOURS.get()
    if detours is not None:
        detours[named] = there


def leading(named: Endpoint) -> Endpoint:
    """Where `named` leads."""
    detours = _DETOURS.get()
    return named if not detours else detours.get(named, named)
