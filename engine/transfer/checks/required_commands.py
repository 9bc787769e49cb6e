"""The commands that a transfer runs, by its way and its end: as tables, with what is lost without
one.

Every form is of a kind that can be asked about with ACL DRYRUN, or queued in a transaction that is
then discarded; those marked DIRECT can as well be run: on a key that does not exist, or with no
effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Literal

from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.wire.control_connection import Arg

Way = Literal["replica", "scan"]

# A name that is not in use, in the shape of the probe's: a user may be bound to a key pattern.
ABSENT_KEY = "startmigration:probe:absent"
_OWN_KEY = OWN_PREFIX + b"position:none"
_CONTAINERS = frozenset(
    {"OBJECT", "CLIENT", "CLUSTER", "COMMAND", "CONFIG", "XINFO", "XGROUP", "FUNCTION"}
)


class Trial(Enum):
    """How a command is tried where ACL DRYRUN cannot be asked."""

    DIRECT = auto()
    """Run as it is."""
    QUEUED = auto()
    """Queued behind MULTI, and discarded."""


@dataclass(frozen=True, slots=True)
class Needed:
    """A command; `loss` says what is missing without it (empty: the transfer cannot run)."""

    args: tuple[Arg, ...]
    loss: str = ""
    trial: Trial = Trial.DIRECT

    @property
    def name(self) -> str:
        """As a person would write it: `OBJECT IDLETIME`, `DUMP`."""
        words = self.args[:2] if self.args[0] in _CONTAINERS else self.args[:1]
        return " ".join(str(word) for word in words)

    @property
    def has_key(self) -> bool:
        """Whether it names a key of the data (in whose place `ABSENT_KEY` stands)."""
        return ABSENT_KEY in self.args

    @property
    def own_key(self) -> bytes:
        """The key of ours that it names, if it does."""
        return next((arg for arg in self.args if isinstance(arg, bytes)), b"")

    def with_key(self, name: bytes) -> tuple[Arg, ...]:
        """The command with `name` in the place of `ABSENT_KEY`."""
        return tuple(name if arg == ABSENT_KEY else arg for arg in self.args)

    @property
    def rule(self) -> str:
        """What ACL SETUSER allows it with: `+object|idletime`."""
        return "+" + self.name.lower().replace(" ", "|")


def _queued(*args: Arg, loss: str = "") -> Needed:
    return Needed(args, loss, Trial.QUEUED)


_BOTH = (Needed(("PING",)), Needed(("INFO",)), Needed(("SELECT", 0)))


def of_source(info: ServerInfo, settings: TransferSettings, way: Way) -> list[Needed]:
    """What the source's user needs."""
    needed = [*_BOTH, *(_scanned(info, settings) if way == "scan" else _followed(info))]
    return [*needed, *_OF_NODES] if info.mode == "cluster" else needed


def of_target(info: ServerInfo, way: Way, *, whole: bool = True) -> list[Needed]:
    """What the target's user needs. Whether import mode can be had is another question. `whole`:
    all of its keys are the migration's, and may be removed at once."""
    needed = [
        *_BOTH,
        # The probe shows as well whether it is taken.
        _queued("RESTORE", ABSENT_KEY, 0, "", "REPLACE", "ABSTTL"),
        # A key without a value: MSET does nothing but complain.
        Needed(("MSET", ABSENT_KEY, "", ABSENT_KEY), "strings go by RESTORE, which takes longer"),
    ]
    if info.mode == "cluster":
        needed += [*_OF_NODES, *_OF_TARGET_NODES]
    if way == "replica":
        needed += _applied()
        if whole:
            loss = "a full sync that has to begin anew cannot empty the target"
            needed.append(_queued("FLUSHALL", loss=loss))
    return needed


_OF_NODES = (
    Needed(("CLUSTER", "SLOTS")),
    Needed(("CLUSTER", "NODES")),
    Needed(("CLUSTER", "MYID")),
    Needed(("CLUSTER", "COUNTKEYSINSLOT", 0)),
    Needed(("CLUSTER", "GETKEYSINSLOT", 0, 1)),
)
"""What a cluster tells of itself, and which keys a slot has."""
_OF_TARGET_NODES = (
    # No WATCH keeps another engine's connection out there: it is ended.
    Needed(("CLIENT", "ID")),
    Needed(("CLIENT", "LIST", "TYPE", "master")),
    _queued("CLIENT", "KILL", "ID", 1),
    _queued("CLIENT", "SETNAME", "startmigration"),
)


def _scanned(info: ServerInfo, settings: TransferSettings) -> Iterable[Needed]:
    scan: tuple[Arg, ...] = ("SCAN", 0, "COUNT", 1)
    if settings.key_type is not None:
        scan += ("TYPE", settings.key_type)
    yield Needed(scan)
    yield Needed(("DUMP", ABSENT_KEY))
    yield Needed(("MGET", ABSENT_KEY), "strings come by DUMP, which takes longer")
    if info.capabilities.pexpiretime:
        yield Needed(("PEXPIRETIME", ABSENT_KEY), "expire times are less exact (PTTL)")
    else:
        yield Needed(("TIME",), "expire times follow this machine's clock")
    yield Needed(("PTTL", ABSENT_KEY))
    access = "FREQ" if "lfu" in info.maxmemory_policy else "IDLETIME"
    yield Needed(("OBJECT", access, ABSENT_KEY), "idle times or counters are not kept")


def _followed(info: ServerInfo) -> Iterable[Needed]:
    """The stream, and (`transfer.key_resync`) the keys that it cannot bring."""
    yield _queued("REPLCONF", "capa", "eof")
    yield _queued("PSYNC", "?", -1)
    yield from _TRANSACTION
    yield Needed(("TIME",))
    yield Needed(("DUMP", ABSENT_KEY))
    yield Needed(("PEXPIRETIME" if info.capabilities.pexpiretime else "PTTL", ABSENT_KEY))
    if info.capabilities.command_getkeys:
        # 2.8 has none, and no modules, whose commands may not be known here.
        yield Needed(
            ("COMMAND", "GETKEYS", "GET", ABSENT_KEY),
            "a command that is not known here has every key compared before the cut-over",
        )


def _applied() -> list[Needed]:
    """Transactions that move the position, and what mends dirty keys."""
    return [
        *_TRANSACTION,
        Needed(("DISCARD",)),
        Needed(("WATCH", _OWN_KEY)),
        Needed(("UNWATCH",)),
        Needed(("GET", _OWN_KEY)),
        _queued("SET", _OWN_KEY, ""),
        _queued("DEL", _OWN_KEY),
        _queued("SADD", _OWN_KEY, ""),
        _queued("SREM", _OWN_KEY, ""),
        Needed(("SMEMBERS", _OWN_KEY)),
        _queued("PERSIST", ABSENT_KEY),
        _queued("PEXPIREAT", ABSENT_KEY, 1),
        Needed(
            ("PTTL", ABSENT_KEY),
            "from Redis before 6.0 every key that is set to a number is read again",
        ),
    ]


# EXEC outside of a transaction is an error; MULTI is tried by what queues.
_TRANSACTION = (Needed(("EXEC",)), _queued("MULTI"))


def import_mode(info: ServerInfo) -> list[Needed]:
    """What keeps a target's expire times from passing where it knows import mode; else nothing."""
    if not info.capabilities.import_mode:
        return []
    return [
        _queued("CONFIG", "SET", "import-mode", "yes"),
        _queued("CLIENT", "IMPORT-SOURCE", "ON"),
    ]


def rebuilt(info: ServerInfo, settings: TransferSettings) -> list[Needed]:
    """What makes values that are longer than the target takes (`targets.rebuilt_values`)."""
    able = info.capabilities
    rename = "RENAME" if settings.if_exists == "replace" else "RENAMENX"
    commands: list[tuple[Arg, ...]] = [
        ("DEL", ABSENT_KEY),
        ("SET", ABSENT_KEY, ""),
        ("RPUSH", ABSENT_KEY, ""),
        ("SADD", ABSENT_KEY, ""),
        ("ZADD", ABSENT_KEY, 0, ""),
        ("HSET", ABSENT_KEY, "", ""),
        ("XADD", ABSENT_KEY, "0-1", "", ""),
        ("XGROUP", "CREATE", ABSENT_KEY, "", "$"),
        ("XCLAIM", ABSENT_KEY, "", "", 0, "0-1"),
        ("XDEL", ABSENT_KEY, "0-1"),
        ("XTRIM", ABSENT_KEY, "MAXLEN", 0),
        ("XSETID", ABSENT_KEY, "0-1"),
        ("PEXPIRE", ABSENT_KEY, 1),
        ("PEXPIREAT", ABSENT_KEY, 1),
        ("PERSIST", ABSENT_KEY),
        (rename, ABSENT_KEY, ABSENT_KEY),
        ("MULTI",),
        # Whether it is whole.
        *((each, ABSENT_KEY) for each in ("STRLEN", "LLEN", "SCARD", "ZCARD", "HLEN", "XLEN")),
    ]
    if info.mode == "cluster" and settings.source_type != "scan":
        commands.append(("EVAL", "return 0", 1, ABSENT_KEY))
    if able.commands_of_6_2:
        commands.append(("XGROUP", "CREATECONSUMER", ABSENT_KEY, "", ""))
    else:
        commands.append(("XREADGROUP", "GROUP", "", "", "STREAMS", ABSENT_KEY, "0-1"))
    if able.field_ttls:
        commands.append(("HPEXPIREAT", ABSENT_KEY, 1, "FIELDS", 1, "f"))
    loss = "values that are longer than the target takes in one argument are not migrated"
    return [*(_queued(*each, loss=loss) for each in commands), Needed(("EXEC",), loss)]


def extended_ttls(info: ServerInfo) -> list[Needed]:
    """What sets extended expire times back (`transfer.extended_ttls`), its script's commands
    included."""
    needed = [
        _queued("EVAL", "return 0", 1, ABSENT_KEY),
        Needed(("SCAN", 0, "COUNT", 1)),
        Needed(("PTTL", ABSENT_KEY)),
        Needed(("TIME",)),
    ]
    if info.capabilities.pexpiretime:
        return [*needed, Needed(("PEXPIRETIME", ABSENT_KEY))]
    return [*needed, _queued("PEXPIRE", ABSENT_KEY, 1)]


def extended_field_ttls(info: ServerInfo) -> list[Needed]:
    """What sets extended expire times of hash fields back (`transfer.restore_field_ttls`); nothing
    where the target has none, or keeps them in import mode."""
    if not info.capabilities.field_ttls or info.capabilities.import_mode:
        return []
    return [
        _queued("EVAL", "return 0", 1, ABSENT_KEY),
        Needed(("TYPE", ABSENT_KEY)),
        Needed(("HSCAN", ABSENT_KEY, 0)),
        Needed(("HPEXPIRETIME", ABSENT_KEY, "FIELDS", 1, "f")),
        _queued("HPEXPIREAT", ABSENT_KEY, 1, "FIELDS", 1, "f"),
    ]


PAUSE = (_queued("CLIENT", "PAUSE", 1), _queued("CLIENT", "UNPAUSE"))
"""What `--fence pause` runs. (Before 6.2 there is no UNPAUSE, and none is run.)"""

WRITE_BLOCK = (
    Needed(
        ("CONFIG", "GET", "min-replicas-to-write"),
        "it still accepts writes, which are not replicated",
    ),
    _queued(
        "CONFIG",
        "SET",
        "min-replicas-to-write",
        0,
        loss="it still accepts writes, which are not replicated",
    ),
    _queued("CLIENT", "KILL", "TYPE", "pubsub", loss="clients that wait there go on waiting"),
)
"""What has the source refuse writes behind the cut-over (`transfer.write_block`,
`transfer.fence`)."""

TUNING = (
    Needed(("CONFIG", "GET", "rdbcompression")),
    _queued("CONFIG", "SET", "rdbcompression", "no"),
)
"""What `--tune-source` runs."""

_COMPARISON = (
    Needed(("TYPE", ABSENT_KEY)),
    Needed(("SCAN", 0, "COUNT", 1)),
    Needed(("EXISTS", ABSENT_KEY)),
    Needed(("GET", ABSENT_KEY)),
    Needed(("LRANGE", ABSENT_KEY, 0, 0)),
    Needed(("SMEMBERS", ABSENT_KEY)),
    Needed(("HGETALL", ABSENT_KEY)),
    Needed(("ZRANGE", ABSENT_KEY, 0, 0)),
)
_COMPARISON_OF_STREAMS = (
    Needed(("XRANGE", ABSENT_KEY, "-", "+", "COUNT", 1)),
    Needed(("XINFO", "STREAM", ABSENT_KEY)),
)


def comparison(info: ServerInfo) -> tuple[Needed, ...]:
    """What the comparison before the cut-over reads with; some of it."""
    streams = _COMPARISON_OF_STREAMS if info.capabilities.streams else ()
    return (*_COMPARISON, *streams)


def whole_comparison(info: ServerInfo, way: Way) -> tuple[Needed, ...]:
    """The same with what some values, and the counts of a scan, take beside that."""
    # An engine that follows counts by INFO, in the moment of the comparison.
    counts = (Needed(("DBSIZE",)),) if way == "scan" else ()
    return (*comparison(info), Needed(("GETRANGE", ABSENT_KEY, 0, 0)), *counts)


WRITES = tuple(
    _queued(*args)
    for args in (
        ("SET", ABSENT_KEY, ""),
        ("APPEND", ABSENT_KEY, ""),
        ("SETRANGE", ABSENT_KEY, 0, ""),
        ("SETBIT", ABSENT_KEY, 0, 0),
        ("INCRBY", ABSENT_KEY, 0),
        ("INCRBYFLOAT", ABSENT_KEY, 0),
        ("MSET", ABSENT_KEY, ""),
        ("PFADD", ABSENT_KEY),
        ("HSET", ABSENT_KEY, "", ""),
        ("HINCRBY", ABSENT_KEY, "", 0),
        ("HDEL", ABSENT_KEY, ""),
        ("LPUSH", ABSENT_KEY, ""),
        ("RPUSH", ABSENT_KEY, ""),
        ("LPOP", ABSENT_KEY),
        ("RPOP", ABSENT_KEY),
        ("LREM", ABSENT_KEY, 0, ""),
        ("LTRIM", ABSENT_KEY, 0, 0),
        ("SADD", ABSENT_KEY, ""),
        ("SREM", ABSENT_KEY, ""),
        ("ZADD", ABSENT_KEY, 0, ""),
        ("ZINCRBY", ABSENT_KEY, 0, ""),
        ("ZREM", ABSENT_KEY, ""),
        ("XADD", ABSENT_KEY, "*", "", ""),
        ("XDEL", ABSENT_KEY, "0-1"),
        ("XTRIM", ABSENT_KEY, "MAXLEN", 0),
        ("XGROUP", "CREATE", ABSENT_KEY, "", "$"),
        ("DEL", ABSENT_KEY),
        ("UNLINK", ABSENT_KEY),
        ("RENAME", ABSENT_KEY, ABSENT_KEY),
        ("PEXPIREAT", ABSENT_KEY, 1),
        ("PERSIST", ABSENT_KEY),
    )
)
"""What most streams are made of."""
