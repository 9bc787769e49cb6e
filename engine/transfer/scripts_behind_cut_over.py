"""What a source runs behind its cut-over although it refuses writes, and how that is counted.

Before 6.2 a script is no write itself, and what it calls is not asked for `min-replicas-to-write`
(`processCommand` and `luaRedisGenericCommand` of 6.0): behind the cut-over it is run and
acknowledged as before, and what it wrote is lost. Before 6.0 the same holds for EXEC of a
transaction whose commands were queued before. So such a server is stopped by a pause
(`transfer.hold_source`) where it can be; the operator that starts a migration is told so, and what
is run behind the cut-over all the same is counted. INFO commandstats tells how often EVAL and
EVALSHA were called, in transactions too, and how often each command that writes was: those of
scripts and transactions count, those that are refused do not.
"""

from __future__ import annotations

from engine._native import (
    CMD_FLUSHES,
    CMD_KEYLESS,
    CMD_PUBLISHES,
    CMD_SCRIPT,
    CMD_SWAPS,
    CMD_UNKNOWN,
    command_flags,
)
from engine.errors import AuthError, ProtocolFault, ServerError
from engine.model.calls_despite_write_block import ASK_COUNTS, Calls, counts_in
from engine.wire.control_connection import Admin, Arg

ASK: tuple[Arg, ...] = ASK_COUNTS
_SCRIPTS = frozenset({"eval", "evalsha"})
_WRITES = CMD_FLUSHES | CMD_SWAPS
_NO_WRITES = CMD_KEYLESS | CMD_PUBLISHES | CMD_SCRIPT | CMD_UNKNOWN


def calls_in(reply: object) -> Calls | None:
    """What a reply to `ASK` tells of (`model.calls_despite_write_block.counts_in`); None where it
    does not tell."""
    counts = counts_in(reply)
    if counts is None:
        return None
    return Calls(
        sum(count for name, count in counts.items() if name in _SCRIPTS),
        sum(count for name, count in counts.items() if name not in _SCRIPTS and _writes(name)),
    )


def _writes(name: str) -> bool:
    flags = command_flags(name.encode())
    # PFCOUNT writes what it has counted, and is taken for a read all the same.
    return bool(flags & _WRITES) or not (flags & _NO_WRITES or name == "pfcount")


async def ask(end: Admin) -> Calls | None:
    """What the server has run, as `calls_in`. Raises `LinkError`."""
    try:
        return calls_in(await end.call(*ASK))
    except (AuthError, ServerError, ProtocolFault):
        return None
