"""The write block: what the source is told, so that it takes no more writes once they have gone
over.

After the cut-over the source is not followed any more. A write that it acknowledges then is lost,
and its client is told that all is well. So, while the writers are still held off and before the
target is open, `min-replicas-to-write` is set above any number of replicas: every write then fails
at once with NOREPLICAS (a command, a transaction, a script), and reads go on. Before 6.2 scripts
are let through (`transfer.scripts_behind_cut_over`), before 6.0 transactions whose writes were
queued before: for these the source is held (`transfer.hold_source`). It is a setting alone: no
data, no role and no replica of the source is touched, and what was set before is put back by
setting it.

Before Redis 5.0 the two settings are called `min-slaves-to-write` and `min-slaves-max-lag`, and 5.0
knows both names: the source is asked for either.

What was set before is in the checkpoint (`OnlineCheckpoint.sealed`) before the fence is put up. An
engine that comes back takes the write block away if the target is not open, and puts it on if it
is.

The setting is not written to the source's configuration file: a source that is restarted takes
writes again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.errors import AuthError, ProtocolFault, ServerError
from engine.model.server import ServerInfo
from engine.wire.control_connection import Admin, Arg

# More replicas than any primary has.
_NEVER = b"65535"
# What they are called, the present names first: to write, the lag of a replica that counts.
_NAMES = (
    ("min-replicas-to-write", "min-replicas-max-lag"),
    ("min-slaves-to-write", "min-slaves-max-lag"),
)
_GOOD = re.compile(rb"^min_slaves_good_slaves:(\d+)", re.MULTILINE)
# The server's own default. With 0 the other setting has no effect (replication.c).
_ANY_LAG = b"10"


ASK = ("CONFIG", "GET", "min-*")
"""What asks for the settings, for `refused`."""


@dataclass(frozen=True, slots=True)
class _Settings:
    """The two settings as they are at a server, and what they are called there."""

    names: tuple[str, str]
    write: bytes
    lag: bytes

    @property
    def refuse(self) -> bool:
        """Whether a source with them takes no writes: with a lag of 0 it takes them all."""
        return self.write == _NEVER and self.lag != b"0"

    @classmethod
    def read(cls, before: str) -> _Settings:
        """What `ask` returned."""
        words = before.split()
        if len(words) == 2:
            return cls(_NAMES[0], words[0].encode(), words[1].encode())
        return cls((words[0], words[2]), words[1].encode(), words[3].encode())


async def ask(end: Admin) -> str | None:
    """What is set now, for `put_back`: "0 10", with the names before the values where they are
    those of before 5.0; None where the source refuses writes already.

    Then the write block is another's (of a cut-over before this one), which has to take it away:
    what that one found is unknown here.

    Raises `ServerError` and `AuthError` where the user may not ask or set it, `LinkError`.
    """
    before = await _settings(end)
    if before.refuse:
        return None
    # As it is: behind the fence is too late to learn that the user may not.
    await end.call("CONFIG", "SET", before.names[0], before.write)
    values = before.write.decode(), before.lag.decode()
    if before.names == _NAMES[0]:
        return " ".join(values)
    return " ".join(f"{name} {value}" for name, value in zip(before.names, values, strict=True))


def refused(reply: object) -> bool:
    """Whether a reply to `ASK` says that the source refuses writes as by a write block."""
    found = _read(reply)
    return found is not None and found.refuse


@dataclass(frozen=True, slots=True)
class Refusal:
    """Whether a server refuses every write, by the number of replicas that it is to have.

    `why`: in words; empty: it does not. Where that is not `known`, why not.
    """

    why: str = ""
    known: bool = True


async def refusal(end: Admin) -> Refusal:
    """What the server says of that. Raises `LinkError`."""
    told, replication = await end.pipeline([ASK, ("INFO", "replication")])
    found = _read(told)
    good = _GOOD.search(replication) if isinstance(replication, bytes) else None
    if found is None:
        if not isinstance(replication, bytes):
            return Refusal("it answers neither CONFIG GET nor INFO", known=False)
        if good is None:
            # It tells how many are near enough where both settings are above 0.
            return Refusal()
        why = f"it has {int(good[1])} replicas that are near enough, and does not say (CONFIG GET)"
        return Refusal(f"{why} how many it is to have", known=False)
    written = f"{found.names[0]} is {found.write.decode()}"
    if found.refuse:
        return Refusal(f"{written}, as behind a cut-over")
    if found.lag == b"0" or good is None or int(good[1]) >= int(found.write):
        return Refusal()
    return Refusal(f"{written}, and it has {int(good[1])} replicas that are near enough")


async def blocks(end: Admin) -> bool | None:
    """Whether the source refuses writes as by a write block. None where it does not say;
    `LinkError`."""
    try:
        return (await _settings(end)).refuse
    except (AuthError, ServerError, ProtocolFault):
        return None


async def stands(end: Admin) -> bool:
    """Whether the source refuses writes as by a write block. False where it does not say;
    `LinkError`."""
    return await blocks(end) is True


def commands(before: str) -> list[tuple[Arg, ...]]:
    """What has the source refuse writes, whose settings `ask` found to be `before`."""
    found = _Settings.read(before)
    listed: list[tuple[Arg, ...]] = [("CONFIG", "SET", found.names[0], _NEVER)]
    if found.lag == b"0":
        listed.append(("CONFIG", "SET", found.names[1], _ANY_LAG))
    return listed


async def put_back(end: Admin, before: str) -> bool:
    """Let the source take writes as before; False if another client has changed it since.

    Raises `LinkError`, `ServerError`, `AuthError`.
    """
    found, now = _Settings.read(before), await _settings(end)
    if now.write != _NEVER:
        return False
    # By the names that it has now: it may have been replaced by a newer version meanwhile.
    write, lag = now.names
    await end.pipeline(
        [("CONFIG", "SET", lag, found.lag), ("CONFIG", "SET", write, found.write)],
        raise_on_error=True,
    )
    return True


def remedy(before: str) -> str:
    """How an operator puts it back by hand."""
    found = _Settings.read(before)
    words = f"CONFIG SET {found.names[0]} {found.write.decode()}"
    if found.lag != b"0":
        return words
    return f"{words} and CONFIG SET {found.names[1]} {found.lag.decode()}"


def setting(before: str) -> str:
    """The name of the setting that has the source refuse writes."""
    return _Settings.read(before).names[0]


def setting_of(info: ServerInfo) -> str:
    """What the setting is called at this server."""
    return _NAMES[0 if info.capabilities.min_replicas_names else 1][0]


async def _settings(end: Admin) -> _Settings:
    found = _read(await end.call(*ASK))
    if found is None:
        raise ProtocolFault(f"{end.name} does not give its {_NAMES[0][0]}", fault=end.fault)
    return found


def _read(reply: object) -> _Settings | None:
    settings: dict[object, object] = {}
    if isinstance(reply, list):
        settings = dict(zip(reply[::2], reply[1::2], strict=False))
    for names in _NAMES:
        write, lag = (settings.get(name.encode()) for name in names)
        if isinstance(write, bytes) and isinstance(lag, bytes):
            return _Settings(names, write, lag)
    return None
