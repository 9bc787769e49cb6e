"""What a server says of its place in a replication: its role, its primary, its replicas.

From INFO replication (`genValkeyInfoString`/`genRedisInfoString`, server.c; the section there). A
reply is small, so a server can be asked every second, and inside a MULTI.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Replication:
    """One reply to INFO replication.

    `offset` is the end of the server's own stream in bytes; a replica's is what it has applied.
    `replid` names that stream, `replid2` the one before the last failover, which is the same up to
    `second_offset` (-1: there is none); all three are empty or -1 before Redis 4.0, and where a
    managed service hides them. `primary` is the `host:port` that a replica follows, empty for a
    primary; `primary_link_up` whether it is in step with it. `replicas` are the `host:port` of the
    replicas that the server has; one that announced no port (this engine's) is left out.
    """

    role: str
    offset: int
    replid: str = ""
    replid2: str = ""
    second_offset: int = -1
    primary: str = ""
    primary_link_up: bool = True
    replicas: tuple[str, ...] = ()

    @property
    def is_replica(self) -> bool:
        """Whether it follows a primary."""
        return self.role == "slave"

    def goes_on_from(self, replid: str, offset: int) -> bool:
        """Whether its history holds that of `replid` up to `offset`, the last byte received."""
        if not replid:
            return False
        if replid == self.replid:
            return offset <= self.offset
        # `second_offset` is the first byte of the new history.
        return replid == self.replid2 and offset < self.second_offset

    @property
    def place(self) -> str:
        """Its role for people: `a primary`, `a replica of 10.0.0.2:6379`."""
        return f"a replica of {self.primary}" if self.is_replica else "a primary"


def parse_replication(reply: object) -> Replication | None:
    """Read a reply to INFO replication (bytes); None where it tells no offset."""
    if not isinstance(reply, bytes):
        return None
    fields: dict[str, str] = {}
    for line in reply.decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#"):
            fields[name] = value.strip()
    offset = fields.get("master_repl_offset", "")
    if not offset.isdigit():
        return None
    second = fields.get("second_repl_offset", "")
    replicas = [_replica(value) for name, value in fields.items() if _is_replica(name)]
    return Replication(
        role=fields.get("role", ""),
        offset=int(offset),
        replid=fields.get("master_replid", ""),
        # All zeros: there was no failover.
        replid2=fields.get("master_replid2", "").strip("0") and fields["master_replid2"],
        second_offset=int(second) if second.isdigit() else -1,
        primary=_address(fields.get("master_host", ""), fields.get("master_port", "")),
        primary_link_up=fields.get("master_link_status", "up") == "up",
        replicas=tuple(each for each in replicas if each),
    )


def _is_replica(name: str) -> bool:
    # slave0:ip=10.0.0.3,port=6379,state=online,offset=…,lag=…
    return name.startswith("slave") and name[5:].isdigit()


def _replica(value: str) -> str:
    fields = dict(pair.split("=", 1) for pair in value.split(",") if "=" in pair)
    return _address(fields.get("ip", ""), fields.get("port", ""))


def _address(host: str, port: str) -> str:
    if not host or not port.isdigit() or port == "0":
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
