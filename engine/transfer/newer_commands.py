"""Commands of the stream that the target does not know, or has other ways with: which of them the
core makes of others.

The core's table says what each is made into (ext/newer_commands.pxi). What it says nothing of is
sent as it is, and refused; its keys are read again from the source.
"""

from __future__ import annotations

from engine._native import (
    CMD_LACKS_6_2,
    CMD_LACKS_7_0,
    CMD_LACKS_CONDITIONS,
    CMD_LACKS_EXACT_LIMIT,
    CMD_LACKS_FIELD_TTLS,
    CMD_LACKS_FUNCTION_VERSIONS,
    CMD_LACKS_HGETDEL,
    CMD_LACKS_HSETEX,
    CMD_LACKS_MSETEX,
    CMD_LACKS_REFERENCES,
)
from engine.model.server import ServerInfo


def lacks(target: ServerInfo) -> int:
    """What the target does not know, a sum of CMD_LACKS_… for a `StreamReader`."""
    able = target.capabilities
    # A node that takes MSETEX for any slot would keep what belongs to the slot's new owner.
    msetex = able.msetex and (able.msetex_by_slot or target.mode != "cluster")
    known = (
        (able.commands_of_6_2, CMD_LACKS_6_2),
        (able.commands_of_7_0, CMD_LACKS_7_0),
        (able.field_ttls, CMD_LACKS_FIELD_TTLS),
        (able.hsetex, CMD_LACKS_HSETEX),
        (able.hgetdel, CMD_LACKS_HGETDEL),
        (able.stream_references, CMD_LACKS_REFERENCES),
        (able.set_conditions, CMD_LACKS_CONDITIONS),
        (msetex, CMD_LACKS_MSETEX),
    )
    # (Which version a payload is of is known once it comes.)
    always = CMD_LACKS_EXACT_LIMIT | CMD_LACKS_FUNCTION_VERSIONS
    return always | sum(flag for knows, flag in known if not knows)
