"""Connections that this process hands to one that outlives it, by the server's address.

What is done with a connection leaves a descriptor of it here, and what starts the process
takes it. One that is not taken in time is closed: a replica's connection that is not read fills
the server's buffers.
"""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class _Left:
    """One descriptor. Its number alone may be another one's by the time it expires."""

    number: int


_lock = threading.Lock()
_left: dict[str, _Left] = {}


def leave(address: str, number: int, seconds: float) -> None:
    """Leave the descriptor `number` of a connection to `address`; it is closed by `take`'s caller,
    or after `seconds`."""
    left = _Left(number)
    with _lock:
        before = _left.pop(address, None)
        _left[address] = left
    if before is not None:
        _close(before)
    timer = threading.Timer(seconds, _expire, (address, left))
    timer.daemon = True
    timer.start()


def take(address: str) -> int | None:
    """What was left for `address`, which the caller closes; None: nothing, or no more."""
    with _lock:
        left = _left.pop(address, None)
    return None if left is None else left.number


def _expire(address: str, left: _Left) -> None:
    with _lock:
        if _left.get(address) is not left:
            return
        del _left[address]
    _close(left)


def _close(left: _Left) -> None:
    with contextlib.suppress(OSError):
        os.close(left.number)
