"""The seal: what the source is told, so that it takes no more writes once they have gone over.

Behind the cut-over nobody follows the source any more. A write that it acknowledges then is lost,
and its client is told that all is well. So, while the writers are still held off and before the
target is open, `min-replicas-to-write` is set above any number of replicas: every write then fails
at once with NOREPLICAS (a command, a transaction, a script; Redis 6.0 lets scripts through), and
reads go on. It is a setting alone: no data, no role and no replica of the source is touched, and
what was set before is put back by setting it.

What was set before is in the checkpoint (`OnlineMark.sealed`) before the fence is put up. An engine
that comes back takes the seal away if the target is not open, and puts it on if it is.

The setting is not written to the source's configuration file: a source that is restarted takes
writes again.
"""

from __future__ import annotations

from engine.errors import AuthError, ProtocolFault, ServerError
from engine.wire.admin import Admin, Arg

# More replicas than any primary has.
_NEVER = b"65535"
_WRITE, _LAG = "min-replicas-to-write", "min-replicas-max-lag"
# The server's own default. With 0 the other setting has no effect (replication.c).
_ANY_LAG = b"10"


async def ask(end: Admin) -> str | None:
    """What is set now, for `put_back`: "0 10"; None where the source refuses writes already.

    Then the seal is somebody else's (a cut-over's before this one), and it is theirs to take away:
    what they found is not to be known here.

    Raises `ServerError` and `AuthError` where the user may not ask or set it, `LinkError`.
    """
    before = await _settings(end)
    if _refuse(*before):
        return None
    # As it is: behind the fence is too late to learn that the user may not.
    await end.call("CONFIG", "SET", _WRITE, before[0])
    return b" ".join(before).decode()


async def blocks(end: Admin) -> bool | None:
    """Whether the source refuses writes as by a seal. None where it does not say; `LinkError`."""
    try:
        return _refuse(*await _settings(end))
    except (AuthError, ServerError, ProtocolFault):
        return None


async def stands(end: Admin) -> bool:
    """Whether the source refuses writes as by a seal. False where it does not say; `LinkError`."""
    return await blocks(end) is True


def commands(before: str) -> list[tuple[Arg, ...]]:
    """What has the source refuse writes, whose settings `ask` found to be `before`."""
    listed: list[tuple[Arg, ...]] = [("CONFIG", "SET", _WRITE, _NEVER)]
    if before.split()[1] == "0":
        listed.append(("CONFIG", "SET", _LAG, _ANY_LAG))
    return listed


async def put_back(end: Admin, before: str) -> bool:
    """Let the source take writes as before; False if somebody else has changed it since.

    Raises `LinkError`, `ServerError`, `AuthError`.
    """
    if await _get(end, _WRITE) != _NEVER:
        return False
    write, lag = before.split()
    await end.pipeline(
        [("CONFIG", "SET", _LAG, lag), ("CONFIG", "SET", _WRITE, write)], raise_on_error=True
    )
    return True


def remedy(before: str) -> str:
    """How an operator puts it back by hand."""
    write, lag = before.split()
    words = f"CONFIG SET {_WRITE} {write}"
    return f"{words} and CONFIG SET {_LAG} {lag}" if lag == "0" else words


async def _settings(end: Admin) -> tuple[bytes, bytes]:
    return await _get(end, _WRITE), await _get(end, _LAG)


def _refuse(write: bytes, lag: bytes) -> bool:
    """Whether a source with these settings takes no writes: with a lag of 0 it takes them all."""
    return write == _NEVER and lag != b"0"


async def _get(end: Admin, name: str) -> bytes:
    reply = await end.call("CONFIG", "GET", name)
    if not isinstance(reply, list) or len(reply) != 2 or not isinstance(reply[1], bytes):
        raise ProtocolFault(f"{end.name} does not tell its {name}", fault=end.fault)
    return reply[1]
