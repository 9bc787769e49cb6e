"""Scripts at a source that refuses writes: a server before 6.2 does not refuse theirs.

There the script itself is no write, and what it calls is not asked for `min-replicas-to-write`
(`processCommand` and `luaRedisGenericCommand` of 6.0): behind the cut-over it is run and
acknowledged as before, and what it wrote is lost. So such a server is held by a pause
(`transfer.hold`) where scripts are in use; whoever starts a migration is told so, and behind the
cut-over the scripts that are run all the same are counted. INFO commandstats
tells how often EVAL and EVALSHA were called, in transactions too.
"""

from __future__ import annotations

from engine.errors import AuthError, ProtocolFault, ServerError
from engine.model.server import ServerInfo
from engine.wire.admin import Admin, Arg

ASK: tuple[Arg, ...] = ("INFO", "commandstats")
_CALLS = ("cmdstat_eval:calls=", "cmdstat_evalsha:calls=")


def refused(info: ServerInfo) -> bool:
    """Whether this server's `min-replicas-to-write` holds for what scripts write."""
    return info.version >= (6, 2, 0)


def calls_in(reply: object) -> int | None:
    """How many scripts a reply to `ASK` tells of: since the server's start, or since CONFIG
    RESETSTAT. None where it does not tell."""
    if not isinstance(reply, bytes):
        return None
    lines = reply.decode("utf-8", "replace").splitlines()
    # A server that tells anything has run a command: this INFO's connection has.
    if not any(line.startswith("cmdstat_") for line in lines):
        return None
    calls = 0
    for line in lines:
        if line.startswith(_CALLS):
            count = line.partition("=")[2].partition(",")[0]
            if not count.isdigit():
                return None
            calls += int(count)
    return calls


async def ask(end: Admin) -> int | None:
    """How many scripts the server has run, as `calls_in`. Raises `LinkError`."""
    try:
        return calls_in(await end.call(*ASK))
    except (AuthError, ServerError, ProtocolFault):
        return None


def since(calls: int | None, before: int | None) -> int | None:
    """How many were run from `before` on, None where either is not known. Where the figure was
    reset meanwhile it is what was counted since."""
    if calls is None or before is None:
        return None
    return calls - before if calls >= before else calls


def told(name: str, run: int) -> str:
    """The event: `name` has run so many."""
    many = "1 script" if run == 1 else f"{run:,} scripts"
    return f"{name} has run {many} since the cut-over: what they wrote is on the source alone"
