"""The clients that a source still has behind its cut-over, and what was done about them."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.model.calls_despite_write_block import Calls, calls_words

ADDRESSES_LIMIT = 100
"""So many addresses are named, those seen last; further ones are counted."""

# The source is looked at each second: figures that are older are not what is there now.
_SEEN_SECONDS = 10.0


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
    failed. `lets_scripts`: the source refuses writes, but not what scripts write (before 6.2).
    `scripts`: how many it has run since the cut-over then, and `writes` how many commands that
    write; None: it refuses them, or it is not known. `ended`: why clients are no longer
    disconnected; empty while they are. `unattended_since`: since when no process disconnects them
    although they are to be; None: one does. Times are seconds since the epoch.
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
    lets_scripts: bool = False
    scripts: int | None = None
    writes: int | None = None
    ended: str = ""
    unattended_since: float | None = None

    @property
    def calls(self) -> Calls | None:
        """What the source has run since the cut-over and did not refuse; None: not known."""
        return None if self.scripts is None else Calls(self.scripts, self.writes)

    @property
    def unseen(self) -> bool:
        """Whether the source is to be looked at each second, and is not: no process does it, the
        process has stopped, or the source does not answer."""
        if self.unattended_since is not None:
            return True
        looked_at = self.looked_at
        return not self.ended and looked_at is not None and time.time() - looked_at > _SEEN_SECONDS

    @property
    def calls_now(self) -> Calls | None:
        """What the source has run from the cut-over until now; None: not known. Once clients are
        no longer disconnected nothing counts what scripts do there."""
        return None if self.ended or self.unseen else self.calls

    def end(self, why: str, *, refuses: bool = True) -> SourceClients:
        """The same with the reason why clients are no longer disconnected. `refuses`: as far as is
        known the source still refuses writes."""
        if self.lets_scripts and refuses:
            why += (
                "; the source refuses writes (NOREPLICAS), but runs scripts (EVAL), and what they "
                "write from now on is only on the source and is not counted: stop the source, or "
                "keep its clients away"
            )
        return replace(self, ended=why)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SourceClients:
        """Inverse of `to_dict`."""
        addresses = tuple(ClientAddress(**each) for each in data.get("addresses", ()))
        return cls(**{**data, "addresses": addresses})


def ending(found: SourceClients) -> str:
    """The event of the end."""
    text = "clients of the source are no longer disconnected: "
    text += f"{found.ended}; since the cut-over {described(found)}"
    if (calls := found.calls) is not None and calls.any:
        text += f"; {calls_words('the source', calls)}"
    elif found.lets_scripts and calls is None:
        text += "; how many scripts the source has run since then is not known"
    return text


def alone(found: SourceClients, group_id: str) -> str:
    """The event, and the reason, where no process disconnects clients although one is to."""
    text = f"no process disconnects the clients of the source since {moment(_alone_since(found))}"
    if found.lets_scripts:
        text += (
            ": nothing holds them either, and what scripts (EVAL) have written there since then is "
            "only on the source; how much that is is not known"
        )
    return f"{text}. disconnect-clients --replication-group-id {group_id} goes on"


def _alone_since(found: SourceClients) -> float:
    return found.unattended_since or found.looked_at or 0.0


def described(found: SourceClients) -> str:
    """One sentence about the clients that were seen."""
    if not found.disconnected:
        return "no client came back to the source"
    libraries = sorted({each.library for each in found.addresses if each.library})
    hosts = list(dict.fromkeys(each.address for each in reversed(found.addresses)))
    text = f"{found.disconnected:,} connections were closed, the last one"
    text += f" at {moment(found.last_seen or 0.0)}"
    text += f", from {', '.join(hosts[:3])}{' and others' if len(hosts) > 3 else ''}"
    return f"{text} ({', '.join(libraries[:3])})" if libraries else text
