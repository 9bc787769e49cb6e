"""Where what does not fit in memory is kept."""

from __future__ import annotations

import os
import tempfile


def spool_directory(chosen: str | None) -> str:
    """Where the files go: `chosen`, else $TMPDIR, else /var/tmp, for /tmp is often memory."""
    if chosen is not None:
        return chosen
    named = os.environ.get("TMPDIR")
    if named:
        return named
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()
