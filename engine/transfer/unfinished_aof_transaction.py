"""Whether a transaction that an append-only file ends in was cut off, or is damaged.

A server that loads the file looks every command's name up, those of a transaction that does not end
as well, and ends its process at one that it does not know (loadSingleAppendOnlyFile, aof.c). So a
name tells an EXEC with a wrong byte, behind which nothing would be applied, from an end that is
missing. The engine knows no names of modules: the target, which is to take the commands, is asked.
"""

from __future__ import annotations

from engine.model.modules import commands_known
from engine.sources.aof_findings import AofSurvey
from engine.wire.control_connection import Admin


async def check_tail(target: Admin, survey: AofSurvey) -> None:
    """Raise `ProtocolFault` where the target does not know a command of the transaction that the
    files end in, or does not tell."""
    tail = survey.tail
    if tail is None:
        return
    (reply,) = await target.pipeline([("COMMAND", "INFO", *tail.names)])
    asked = [name.decode("latin-1") for name in tail.names]
    known = commands_known(asked, reply) or frozenset()
    for name, text in zip(tail.names, asked, strict=True):
        if text.upper() not in known:
            raise tail.unknown(name)
