"""The event loop: uvloop's one home."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a fresh uvloop event loop and return its result; like `asyncio.run`."""
    return uvloop.run(main)
