"""The clients that a source still has behind its cut-over, and what was done about them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

ADDRESSES_LIMIT = 100
"""So many addresses are named, those seen last; further ones are counted."""


def moment(seconds: float) -> str:
    """A time (seconds since the epoch) for people: `2026-11-28 13:05:00 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """Clients from one address, with one library and one user, since the cut-over.

    `library` is the name and version that the client gave (CLIENT SETINFO, Redis 7.2 and later;
    empty: unknown). `disconnected` counts connections that were closed, `last_seen` is seconds
    since the epoch.
    """

    address: str
    library: str
    user: str
    disconnected: int
    last_seen: float


@dataclass(frozen=True, slots=True)
class SourceClients:
    """What is known of the clients of a source whose migration was cut over.

    `until`: clients that connect to the source are disconnected until then. `connected`: how many
    there were at the last look, at `looked_at`, before they were disconnected (None: the source was
    not asked yet, or does not answer). `kept`: those of users that are not to be disconnected.
    `last_seen`: when the last client was there, None if none was seen since the cut-over.
    `more_addresses`: connections from addresses beyond the named ones. `trouble`: why the last look
    failed. `scripts`: how many scripts the source has run since the cut-over, where it does not
    refuse what they write (before 6.2); None: it does, or it is not known. `ended`: why clients are
    no longer disconnected; empty while they are. Times are seconds since the epoch.
    """

    until: float
    connected: int | None = None
    kept: int = 0
    disconnected: int = 0
    looked_at: float | None = None
    last_seen: float | None = None
    addresses: tuple[ClientAddress, ...] = ()
    more_addresses: int = 0
    trouble: str = ""
    scripts: int | None = None
    ended: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SourceClients:
        """Inverse of `to_dict`."""
        addresses = tuple(ClientAddress(**each) for each in data.get("addresses", ()))
        return cls(**{**data, "addresses": addresses})
