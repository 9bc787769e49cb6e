"""The preflight's checks, for reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engine.cli.output_format import clean, table


def checks_table(checks: Sequence[Mapping[str, Any]]) -> str:
    """Every check with its outcome and figure; below, a way out for each that did not pass."""
    rows = [(check["name"], check["outcome"], check["figure"]) for check in checks]
    lines = [table(("Check", "Outcome", "Figure"), rows)]
    lines += [
        f"{check['outcome']}: {check['name']}: {clean(check['remedy'])}"
        for check in checks
        if check["outcome"] != "pass" and check["remedy"]
    ]
    return "\n".join(lines)


def warnings(checks: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each warning, with its figure and the way out. What failed is in the fault."""
    return [
        clean(f"warning: {check['name']}: {_said(check)}")
        for check in checks
        if check["outcome"] == "warn"
    ]


def _said(check: Mapping[str, Any]) -> str:
    return " → ".join(text for text in (check["figure"], check["remedy"]) if text)
