"""Faults and failures that carry more than a message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.errors import (
    InvalidParameterValueException,
    InvalidReplicationGroupStateFault,
    TransferFailed,
)
from engine.model.report import Report


class PreflightFault(InvalidParameterValueException):
    """A migration could not start. `checks` are all of the preflight's checks, as in the answer of
    TestMigration: dicts with name, outcome, figure and remedy."""

    def __init__(self, message: str, checks: Sequence[dict[str, Any]]) -> None:
        super().__init__(message)
        self.checks = tuple(checks)


class CompletionRefused(InvalidReplicationGroupStateFault):
    """A migration cannot be completed now. `reason` is why, as in `Migration.Reason`."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class MigrationFailed(TransferFailed):
    """A migration that was waited for has failed; `report` is its report."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report
