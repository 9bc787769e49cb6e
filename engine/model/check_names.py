"""The names of the preflight's checks, and which of them may be skipped."""

from __future__ import annotations

from collections.abc import Iterable

from engine.errors import UsageError

_OF_EACH_END = (
    "answer",
    "auth",
    "comparison",
    "endpoints",
    "loading",
    "mode",
    "permissions",
    "reachable",
    "role",
    "tls",
    "version",
)
CHECKS = frozenset(
    {f"{side}-{what}" for side in ("source", "target") for what in _OF_EACH_END}
    | {
        "beside-keys",
        "beside-the-keys",
        "chosen-databases",
        "clocks",
        "databases",
        "different-servers",
        "durability",
        "eviction",
        "existing-keys",
        "other-migration",
        "fence",
        "following",
        "hot-slot",
        "hyperloglogs",
        "large-graphs",
        "leftovers",
        "memory",
        "modules",
        "probe",
        "rdb-version",
        "script-effects",
        "source-after",
        "source-file",
        "source-keys",
        "source-replica",
        "source-scripts",
        "source-writes",
        "spool",
        "stream-commands",
        "tune-source",
        "value-limit",
        "value-types",
        "values",
    }
)
"""Every check that a preflight can make."""
NEVER_SKIPPED = frozenset({"different-servers"})
"""A server that is its own source, or is fed by it, is destroyed by what it is sent: no operator
knows better."""


def check_skipped(names: Iterable[str]) -> None:
    """Raise `UsageError` for a name that is no check's, or of one that cannot be skipped."""
    for name in names:
        if name in NEVER_SKIPPED:
            raise UsageError(
                f"the check {name} cannot be skipped", remedy="Leave it out of --skip-checks."
            )
        if name not in CHECKS:
            known = ", ".join(sorted(CHECKS - NEVER_SKIPPED))
            raise UsageError(f"there is no check {name[:80]!r} to skip", remedy=f"Known: {known}.")
