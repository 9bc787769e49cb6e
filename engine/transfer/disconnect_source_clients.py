"""The source's clients are disconnected: once at the cut-over, and again whenever they come back.

A client that dials before the application's name for the server points to the target is at the
source again, and stays there: its writes are refused, what it reads grows old, what it subscribes
to is silent. No client library dials again because of NOREPLICAS. So every connected client is
disconnected, until they have all moved.

Never disconnected are replicas (flag S of CLIENT LIST, or a handshake under way), a primary that
the source itself follows (M), this engine's own connections (by their names), and the users that
the operator names.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace

from engine.errors import AuthError, EngineError, ProtocolFault, ServerError
from engine.model.calls_despite_write_block import Calls
from engine.model.clients_after_cut_over import ADDRESSES_LIMIT, ClientAddress, SourceClients
from engine.wire.control_connection import Admin, Arg
from engine.wire.dial import CLIENT_NAME

# CLIENT KILLs in one pipeline.
_AT_ONCE = 1000
# No client has this number: CLIENT KILL closes nothing, and answers 0.
_NO_CLIENT = (1 << 63) - 1
# Commands of a connection that is about to become a replica.
_HANDSHAKE = frozenset({"psync", "sync", "replconf"})


@dataclass(frozen=True, slots=True)
class Client:
    """One line of CLIENT LIST. `kill` is what CLIENT KILL is told to close it."""

    address: str
    library: str
    user: str
    kill: tuple[Arg, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """The clients that were found and disconnected, and how many were left alone for their
    users."""

    disconnected: tuple[Client, ...]
    kept: int


async def disconnect(end: Admin, keep_users: Collection[str]) -> Look:
    """Disconnect every client of the server but those named above.

    Raises `AuthError` and `ServerError` where CLIENT LIST or CLIENT KILL is refused, `LinkError`.
    """
    # Whether KILL is allowed has to be known before clients come.
    listed, probe = await end.pipeline([("CLIENT", "LIST"), ("CLIENT", "KILL", "ID", _NO_CLIENT)])
    if isinstance(listed, EngineError):
        raise listed
    if not isinstance(listed, bytes):
        raise ProtocolFault(f"{end.name} answered CLIENT LIST with no text", fault=end.fault)
    found, kept = _others(listed.decode("utf-8", "replace"), keep_users)
    gone: list[Client] = []
    for at in range(0, len(found), _AT_ONCE):
        part = found[at : at + _AT_ONCE]
        replies = await end.pipeline(("CLIENT", "KILL", *each.kill) for each in part)
        for client, reply in zip(part, replies, strict=True):
            if isinstance(reply, AuthError):
                raise reply
            # One that has gone by itself meanwhile: 0, or "No such client" in the older form.
            if isinstance(reply, ServerError) and "No such client" not in reply.message:
                raise reply
            gone.append(client)
    if not found:
        unknown = isinstance(probe, ServerError) and "unknown command" in probe.message.lower()
        if isinstance(probe, AuthError) or unknown:
            raise probe
    return Look(tuple(gone), kept)


def _others(listed: str, keep_users: Collection[str]) -> tuple[list[Client], int]:
    """The clients in CLIENT LIST's text that are to be disconnected, and how many are kept."""
    found: list[Client] = []
    kept = 0
    for line in listed.splitlines():
        words = dict(word.partition("=")[::2] for word in line.split(" "))
        flags, name = words.get("flags", ""), words.get("name", "")
        if "S" in flags or "M" in flags or words.get("cmd", "") in _HANDSHAKE:
            continue
        if name.startswith(CLIENT_NAME):
            continue
        user = words.get("user", "")
        if user and user in keep_users:
            kept += 1
            continue
        address = words.get("addr", "")
        # Before 2.8.12 clients have no number, and are closed by their address.
        kill: tuple[Arg, ...] = ("ID", words["id"]) if words.get("id") else (address,)
        library = " ".join(filter(None, (words.get("lib-name"), words.get("lib-ver"))))
        found.append(Client(_host(address), library, user, kill))
    return found, kept


def _host(address: str) -> str:
    """The host of CLIENT LIST's `addr`; a unix socket's is its path, with the port 0."""
    return address.rpartition(":")[0] or address


class ClientTally:
    """What the looks found, added up; `found` is the sum so far."""

    def __init__(self, before: SourceClients) -> None:
        self.found = before
        self._addresses = {_key(each): each for each in before.addresses}

    def add(self, look: Look) -> None:
        """Add what a look found."""
        now = time.time()
        beyond = 0
        for client in look.disconnected:
            key = client.address, client.library, client.user
            known = self._addresses.pop(key, None)
            if known is None and len(self._addresses) >= ADDRESSES_LIMIT:
                # In the order in which they were seen last: the first one is the oldest.
                oldest = next(iter(self._addresses))
                beyond += self._addresses.pop(oldest).disconnected
            count = 1 + (known.disconnected if known is not None else 0)
            self._addresses[key] = ClientAddress(*key, disconnected=count, last_seen=now)
        gone = len(look.disconnected)
        self.found = replace(
            self.found,
            connected=gone,
            kept=look.kept,
            disconnected=self.found.disconnected + gone,
            looked_at=now,
            last_seen=now if gone else self.found.last_seen,
            addresses=tuple(self._addresses.values()),
            more_addresses=self.found.more_addresses + beyond,
            trouble="",
        )

    def count_calls(self, run: Calls | None) -> None:
        """So much was run since the cut-over that was not refused; None: that is not known."""
        if run is None:
            self.found = replace(self.found, scripts=None, writes=None)
        else:
            self.found = replace(self.found, scripts=run.scripts, writes=run.writes)

    def failed(self, error: EngineError) -> None:
        """The source could not be asked: how many clients it has is not known."""
        self.found = replace(self.found, connected=None, trouble=error.message)

    def extend(self, until: float) -> None:
        """Another end."""
        self.found = replace(self.found, until=until)


def _key(each: ClientAddress) -> tuple[str, str, str]:
    return each.address, each.library, each.user
