"""Values that are longer than the target takes in one argument: whether there may be any, and what
becomes of them (`targets.rebuilt_values`)."""

from __future__ import annotations

import asyncio

from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks import required_commands
from engine.transfer.checks.check_result import Check, passed, size, warned
from engine.transfer.checks.permissions import Rights, ask_rights
from engine.wire.bulk_limit import DEFAULT_BULK_LIMIT, ask_bulk_limit
from engine.wire.control_connection import Admin

NAME = "value-limit"


async def check_bulk_limit(
    source: Admin,
    target: Admin,
    from_info: ServerInfo,
    to_info: ServerInfo,
    settings: TransferSettings,
) -> Check:
    """A value that the source could hold, and the target would not take (proto-max-bulk-len); and
    whether the target's user may run what makes one, if the source's memory has room for one."""
    ours, theirs = await asyncio.gather(ask_bulk_limit(source), ask_bulk_limit(target))
    limit = theirs or DEFAULT_BULK_LIMIT
    if from_info.used_memory > limit:
        rights = await ask_rights(target, required_commands.rebuilt(to_info, settings))
        if rights.denied:
            return _denied(rights, limit)
    if ours is None or theirs is None:
        return passed(
            NAME, "not known (CONFIG GET denied, or no such setting); 512 MiB unless it was changed"
        )
    if theirs < ours:
        return warned(
            NAME,
            f"the target takes arguments up to {size(theirs)}, the source up to {size(ours)}: "
            "longer lists, sets, sorted sets, hashes and streams are made there by commands, and "
            "other values are not migrated",
            f"CONFIG SET proto-max-bulk-len {ours} on the target.",
        )
    return passed(NAME, f"the target takes values up to {size(theirs)}")


def _denied(rights: Rights, limit: int) -> Check:
    return warned(
        NAME,
        f"{rights.figure('target')}: values of more than {size(limit)}, which the target does not "
        "take in one argument, are not migrated (the source may have some)",
        rights.remedy("target"),
    )
