"""Which server has a key: the one server of an end, the primary that Sentinels name, or a cluster's
owner of the slot."""

from __future__ import annotations

from binascii import crc_hqx
from urllib.parse import unquote, urlsplit

import redis

from benches.support.clusters import Cluster
from benches.support.proxy import Proxy
from benches.support.servers import Server
from tests.support.traffic.link import Address, address_of

SLOTS = 16384
SENTINEL = "redis+sentinel"

End = Server | Proxy | Cluster | str
"""A server, a proxy before one, a cluster, or a URL (redis:// or redis+sentinel://)."""


class Nodes:
    """The primaries of an end, as it told last; `learn` asks again.

    `all` are their addresses; `clustered`: several, each with slots.
    """

    def __init__(self, end: End) -> None:
        self._end = end
        self._password: str | None = None
        self._slots: list[Address] = []
        self.clustered = isinstance(end, Cluster) or (isinstance(end, Server) and end.cluster)
        if isinstance(end, str) and end.startswith(SENTINEL):
            self._password = urlsplit(end).password
            self.learn()
        elif isinstance(end, Cluster):
            self._first = address_of(end.nodes[0])
            self.learn()
        else:
            self._first = address_of(end)
            if self.clustered:
                self.learn()

    @property
    def all(self) -> list[Address]:
        """Each primary once."""
        return list(dict.fromkeys(self._slots)) or [self._first]

    def of(self, key: bytes) -> Address:
        """Where the key is."""
        return self._slots[slot_of(key)] if self._slots else self._first

    def learn(self) -> None:
        """Ask who has what now. Raises `OSError` if nobody answers."""
        if isinstance(self._end, str) and self._end.startswith(SENTINEL):
            self._first = self._told_by_sentinels(self._end)
        elif self.clustered:
            self._slots = self._told_by_nodes()
            self._first = self._slots[0]

    def _told_by_nodes(self) -> list[Address]:
        known = self._end.nodes if isinstance(self._end, Cluster) else [self._end]
        seeds = [address_of(each) for each in known if not isinstance(each, Server) or each.alive]
        for seed in seeds:
            try:
                with _quick(seed) as client:
                    rows = client.execute_command("CLUSTER SLOTS")
            except redis.RedisError:
                continue
            found = [seed] * SLOTS
            for first, last, (host, port, *_), *_ in rows:
                owner = Address(host.decode() or seed.host, int(port), seed.password)
                found[first : last + 1] = [owner] * (last + 1 - first)
            return found
        raise ConnectionRefusedError("no node of the cluster answers")

    def _told_by_sentinels(self, url: str) -> Address:
        parts = urlsplit(url)
        name = parts.path.lstrip("/")
        secret = unquote(parts.password) if parts.password is not None else None
        for place in parts.netloc.rpartition("@")[2].split(","):
            host, _, port = place.rpartition(":")
            try:
                with _quick(Address(host, int(port))) as client:
                    found = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
            except redis.RedisError:
                continue
            if found:
                return Address(found[0].decode(), int(found[1]), secret)
        raise ConnectionRefusedError("no Sentinel answers")


def _quick(address: Address) -> redis.Redis:
    """A client that does not wait long: whoever is silent is passed over."""
    client = redis.Redis(
        address.host,
        address.port,
        password=address.password,
        protocol=2,
        socket_timeout=2.0,
        socket_connect_timeout=2.0,
        retry=None,
    )
    client.response_callbacks.clear()
    return client


def slot_of(key: bytes) -> int:
    """The slot of a key."""
    begin = key.find(b"{")
    if begin >= 0 and (end := key.find(b"}", begin)) > begin + 1:
        key = key[begin + 1 : end]
    return crc_hqx(key, 0) % SLOTS
