"""What a server is: what INFO says of it. What its release can do is another table
(`model.server_capabilities`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from engine.errors import ProtocolFault
from engine.model.server_capabilities import (
    Flavour,
    ServerCapabilities,
    Version,
    capabilities_of,
)

Mode = Literal["standalone", "cluster", "sentinel"]

# INFO's own field names the fork. They say `redis_version` too, and mean "compatible with".
_FORKS = {"keydb": "keydb_version", "dragonfly": "dragonfly_version", "garnet": "garnet_version"}


@dataclass(frozen=True, slots=True)
class Keyspace:
    """One non-empty database: `keys` in it, `expires` of them with a time to live, and
    `field_expires` (hashes) with fields that have one."""

    db: int
    keys: int
    expires: int
    field_expires: int = 0


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What INFO says. Memory is in bytes, 0 where the server does not tell (or has no limit).

    `evicted_keys` is counted by the process since its start or CONFIG RESETSTAT; None: not told.
    `version` is the flavour's own (a Valkey also claims to be Redis 7.2.4). `fork` names a
    reimplementation ("keydb", "dragonfly", "garnet"; else empty). `primary` is the `host:port` that
    a replica follows. `expired_keys` and `expired_fields` (of hashes) count since the process began
    or CONFIG RESETSTAT. `module_versions` are those of `modules`, in their order, 0: not told.
    `loading` is true while the data set is read from disk or from a primary.
    `replicas_in_step`: how many of its own replicas are online; None: it does not tell. `started`:
    the second since the epoch in which the process has, by the server's clock; None: likewise.
    `replid_before`: of a server that was a replica before, the history that it went on from.
    """

    flavour: Flavour
    version: Version
    run_id: str = ""
    role: str = ""
    mode: Mode = "standalone"
    fork: str = ""
    tcp_port: int = 0
    used_memory: int = 0
    used_memory_dataset: int = 0
    maxmemory: int = 0
    maxmemory_policy: str = ""
    evicted_keys: int | None = None
    total_system_memory: int = 0
    keyspace: tuple[Keyspace, ...] = ()
    modules: tuple[str, ...] = ()
    module_versions: tuple[int, ...] = ()
    expired_keys: int = 0
    expired_fields: int = 0
    loading: bool = False
    replid: str = ""
    primary: str = ""
    primary_link_up: bool = True
    replicas_in_step: int | None = None
    started: int | None = None
    replid_before: str = ""

    @property
    def name(self) -> str:
        """Flavour and version for people: `Valkey 8.1.8`, `Redis 7.0.15 (keydb)`."""
        fork = f" ({self.fork})" if self.fork else ""
        return f"{self.flavour.capitalize()} {'.'.join(map(str, self.version))}{fork}"

    @property
    def process(self) -> str:
        """Names the process, as far as it tells: by its `run_id`; else by the second in which it
        has started, and, of a primary, the id of its replication history, for each start begins
        another one, also within that second. Empty where all of that is hidden. Beside it whose
        data it took last, as a replica: what it had before is gone then."""
        history = self.replid if self.role == "master" else ""
        if self.run_id:
            told = self.run_id
        elif self.started is None:
            return history
        else:
            told = f"started {self.started} {history}".rstrip()
        return f"{told} {self.replid if self.is_replica else self.replid_before}".rstrip()

    @property
    def identity(self) -> str:
        """Names the data set: process and replication history; empty if the server hides both.

        It changes with a restart, a failover, and when a primary was made a replica and back: each
        may have cost keys.
        """
        return f"{self.run_id}:{self.replid}" if self.run_id or self.replid else ""

    @property
    def capabilities(self) -> ServerCapabilities:
        """What its release can do; nothing else asks for the version."""
        return capabilities_of(self.flavour, self.version, self.fork)

    def readable_behind(self, fence: str) -> bool:
        """Whether it answers while `fence` (`TransferSettings.fence`) holds its writers off: before
        6.2 CLIENT PAUSE is for all clients. Before 3.0 there is none: writes are refused, and reads
        go on."""
        able = self.capabilities
        return fence != "pause" or able.pause_of_writes or not able.client_pause

    def same_data_as(self, identity: str) -> bool:
        """Whether `identity` was this data set's; False where the server does not tell."""
        return bool(identity) and self.identity == identity

    def same_version_as(self, other: ServerInfo) -> bool:
        """Whether both run the same code, as far as they tell."""
        return self.capabilities == other.capabilities

    @property
    def keys(self) -> int:
        """Keys in all databases together."""
        return sum(each.keys for each in self.keyspace)

    @property
    def is_replica(self) -> bool:
        """Whether it follows a primary."""
        return self.role == "slave"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ServerInfo:
        """Inverse of `to_dict`."""
        data = dict(data)
        major, minor, patch = data["version"]
        data["version"] = (major, minor, patch)
        data["keyspace"] = tuple(Keyspace(**each) for each in data["keyspace"])
        data["modules"] = tuple(data["modules"])
        data["module_versions"] = tuple(data.get("module_versions", ()))
        return cls(**data)


_REPLICA = re.compile(r"slave\d+")
_LINE = re.compile(r"^([^#:\r\n][^:\r\n]*):([^\r\n]*)", re.MULTILINE)


def parse_info(text: str) -> ServerInfo:
    """Read INFO's reply (`genValkeyInfoString`/`genRedisInfoString`, server.c).

    Sections that were not asked for, or that a managed service hides, leave their fields at the
    defaults. Raises `ProtocolFault` if the text names no version: the section `server` is needed.
    """
    # Without a turn for each of the two hundred lines: both ends are asked all the time.
    lines = _LINE.findall(text)
    fields = {name: value.strip() for name, value in lines}
    modules: list[tuple[str, int]] = []
    if "module" in fields:  # one such line a module: name=…,ver=…,…
        del fields["module"]
        found = (_attributes(value.strip()) for name, value in lines if name == "module")
        modules += [(about.get("name", "?"), _number(about, "ver")) for about in found]
    flavour: Flavour = "redis"
    version = fields.get("redis_version")
    if "valkey_version" in fields or fields.get("server_name") == "valkey":
        flavour = "valkey"
        # Valkey 7.2 (and 8.0's candidates) knew redis_version alone, and it was their own.
        version = fields.get("valkey_version", version)
    if version is None:
        raise ProtocolFault(
            "the server's INFO names no version",
            remedy="Expected redis_version or valkey_version in the section `server`.",
        )
    replica_of = fields.get("master_host", "")
    if replica_of:
        port = fields.get("master_port", "")
        replica_of = f"[{replica_of}]:{port}" if ":" in replica_of else f"{replica_of}:{port}"
    return ServerInfo(
        flavour=flavour,
        version=parse_version(version),
        run_id=_id(fields, "run_id"),
        role=fields.get("role", ""),
        mode=_mode(fields),
        fork=next((name for name, field in _FORKS.items() if field in fields), ""),
        tcp_port=_number(fields, "tcp_port"),
        used_memory=_number(fields, "used_memory"),
        used_memory_dataset=_number(fields, "used_memory_dataset"),
        maxmemory=_number(fields, "maxmemory"),
        maxmemory_policy=fields.get("maxmemory_policy", ""),
        evicted_keys=_number(fields, "evicted_keys") if "evicted_keys" in fields else None,
        total_system_memory=_number(fields, "total_system_memory"),
        keyspace=tuple(sorted(_keyspace(fields), key=lambda each: each.db)),
        modules=tuple(module for module, _ in sorted(modules)),
        module_versions=tuple(version for _, version in sorted(modules)),
        expired_keys=_number(fields, "expired_keys"),
        # Redis says subkeys, Valkey fields.
        expired_fields=_number(fields, "expired_subkeys") or _number(fields, "expired_fields"),
        loading=fields.get("loading", "0") != "0" or fields.get("async_loading", "0") != "0",
        replid=_id(fields, "master_replid"),
        replid_before=_id(fields, "master_replid2"),
        primary=replica_of,
        primary_link_up=fields.get("master_link_status", "up") == "up",
        replicas_in_step=_in_step(fields),
        started=_started(fields),
    )


def _id(fields: dict[str, str], name: str) -> str:
    """A service that hides an id may answer noughts for every server."""
    told = fields.get(name, "")
    return told if told.strip("0") else ""


def _started(fields: dict[str, str]) -> int | None:
    """The second in which it has started, by its clock: both times are of the same moment. None: it
    does not tell them (before 6.2). Within that second it is up for 0."""
    now, up = _number(fields, "server_time_usec") // 1_000_000, _number(fields, "uptime_in_seconds")
    return now - up if now > 0 and "uptime_in_seconds" in fields else None


def _in_step(fields: dict[str, str]) -> int | None:
    listed = [fields[name] for name in fields if _REPLICA.fullmatch(name)]
    if _number(fields, "connected_slaves") > len(listed) or "connected_slaves" not in fields:
        return None
    return sum("state=online" in each for each in listed)


def parse_version(text: str) -> Version:
    """`7.2.4`, `8.0`, `7.4.0-rc1` → (major, minor, patch); a part that is missing counts as 0."""
    parts: list[int] = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        parts.append(int(digits or 0))
        if digits != part:  # a suffix ends the number: 0-rc1
            break
    major, minor, patch = (*parts, 0, 0, 0)[:3]
    return major, minor, patch


def _mode(fields: dict[str, str]) -> Mode:
    # Valkey 8 renamed redis_mode to server_mode; managed services may hide both.
    said = fields.get("redis_mode") or fields.get("server_mode") or ""
    if said == "cluster" or fields.get("cluster_enabled") == "1":
        return "cluster"
    return "sentinel" if said == "sentinel" else "standalone"


def _keyspace(fields: dict[str, str]) -> Iterator[Keyspace]:
    # db0:keys=2,expires=1,avg_ttl=0,…; Redis 8 also has db0_distrib_strings_sizes and the like.
    for name, value in fields.items():
        if name.startswith("db") and name[2:].isdigit():
            counts = _attributes(value)
            keys, expires = counts.get("keys", "0"), counts.get("expires", "0")
            # Redis, and Valkey.
            fields_too = counts.get("subexpiry", counts.get("keys_with_volatile_items", "0"))
            yield Keyspace(int(name[2:]), int(keys), int(expires), int(fields_too))


def _attributes(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(",") if "=" in pair)


def _number(fields: dict[str, str], name: str) -> int:
    digits = fields.get(name, "")
    return int(digits) if digits.isdigit() else 0


def same_process(identity: str, other: str) -> bool:
    """Whether two identities (`ServerInfo.identity`) are one process's; True where that is not
    told."""
    return identity.partition(":")[0] == other.partition(":")[0]
