"""Starts without servers: for tests of what the state and its faces say of a migration."""

from __future__ import annotations

import pytest

from engine import fleet
from engine.transfer.checks.check_result import Preflight


async def _nothing_in_the_way(*_: object) -> Preflight:
    return Preflight(())


def without_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start migrations between servers that are names alone; what the checks find of real ones is
    tested with those."""
    monkeypatch.setattr(fleet, "preflight", _nothing_in_the_way)
