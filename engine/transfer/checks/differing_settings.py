"""Settings by which the same data, or the same commands, are unlike at the two ends."""

from __future__ import annotations

import asyncio

from engine.model.server import ServerInfo
from engine.transfer import scripts_behind_cut_over
from engine.transfer.checks.check_result import Check, passed, warned
from engine.wire.control_connection import Admin

_AS_THEY_ARE = (
    "its stream has scripts (EVAL) as they are, and not what they did: the keys that one names are "
    "read again from the source, and where one may write others every key is compared"
)
_EFFECTS = "lua-replicate-commands"
_SPARSE = "hll-sparse-max-bytes"


async def check_script_effects(source: Admin, info: ServerInfo) -> Check | None:
    """Whether a source that is followed tells what its scripts did; None where each does. Raises
    `LinkError`."""
    name = "script-effects"
    if info.capabilities.script_effects_alone:
        return None
    if not info.capabilities.script_effects:
        run = await scripts_behind_cut_over.ask(source)
        if run is not None and run.scripts == 0:
            return passed(name, f"{info.name} sends scripts as they are; it has run none")
        return warned(
            name,
            f"{info.name}: {_AS_THEY_ARE}",
            "A cut-over takes longer while such scripts are run. Where they are run all the time "
            "no moment is left for it: stop those writers first (--fence hook, or none once they "
            "have stopped).",
        )
    value = await _setting(source, _EFFECTS)
    if value is None:
        return passed(
            name, f"{_EFFECTS} is not known (CONFIG GET denied); yes unless it was changed"
        )
    if value == "yes":
        return passed(name, f"the source's stream has what scripts did ({_EFFECTS} yes)")
    return warned(
        name,
        f"{_EFFECTS} is {value} on the source: {_AS_THEY_ARE}",
        f"CONFIG SET {_EFFECTS} yes on the source.",
    )


async def check_hyperloglogs(source: Admin, target: Admin) -> Check | None:
    """Whether both ends keep HyperLogLogs in the same form; None where an end does not tell. Raises
    `LinkError`."""
    name = "hyperloglogs"
    ours, theirs = await asyncio.gather(_setting(source, _SPARSE), _setting(target, _SPARSE))
    if ours is None or theirs is None:
        return None
    if ours == theirs:
        return passed(name, f"{_SPARSE} is {ours} at both ends")
    return warned(
        name,
        f"{_SPARSE} is {ours} on the source and {theirs} on the target: HyperLogLogs count the "
        "same there in other bytes, and take other memory",
        f"CONFIG SET {_SPARSE} {ours} on the target.",
    )


async def _setting(end: Admin, setting: str) -> str | None:
    """The value of a setting; None where the server does not tell, or has none of that name."""
    (reply,) = await end.pipeline([("CONFIG", "GET", setting)])
    if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], bytes):
        return None
    return reply[1].decode("utf-8", "replace")
