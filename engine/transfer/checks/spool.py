"""Whether what waits for the target has a place to wait in."""

from __future__ import annotations

from engine.errors import SpoolFull, UsageError
from engine.model.settings import TransferSettings
from engine.sources.spool import Spool
from engine.transfer.checks.check_result import Check, failed, passed, size


def check_spool(settings: TransferSettings) -> Check:
    """Looks as the migration's start does, on this machine."""
    name = "spool"
    spool = Spool(settings.spool_directory, settings.spool_bytes, lambda: None)
    try:
        spool.check()
    except (SpoolFull, UsageError) as error:
        return failed(name, error.message, error.remedy)
    return passed(
        name,
        f"{size(spool.free)} free in {spool.directory}; at most {size(spool.limit)} of it is used",
    )
