"""What a release of Redis or Valkey can do: one table, and the only place that compares versions.

Each capability is a row of `ServerCapabilities`: the first release of either flavour that has it,
and where that is to be read. Valkey began as Redis 7.2.4, so it has what Redis had by then in
every release. A reimplementation ("keydb", "dragonfly", "garnet") says which Redis it is compatible
with; a row tells whether that is believed.

Facts about RDB versions and value types are those of `rdb.h` in the two code bases. RESTORE
(`verifyDumpPayload`, cluster.c) looks at the payload's footer first: the number there must not be
above the server's own, and Valkey 8.1 and later also refuse 12 to 79, the numbers that Redis took
after the two parted. A footer that passes says nothing of the value: a type byte that the server
does not know is a "Bad data format" whatever the footer says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, overload

Flavour = Literal["redis", "valkey"]
Version = tuple[int, int, int]

EVERY: Version = (0, 0, 0)
"""Every release has it."""

# First version of each RDB version, newest first: RDB_VERSION in rdb.h at the releases' tags.
_RDB_VERSIONS: dict[Flavour, tuple[tuple[Version, int], ...]] = {
    "redis": (
        ((8, 10, 0), 15),
        ((8, 8, 0), 14),
        ((8, 6, 0), 13),
        ((7, 4, 0), 12),
        ((7, 2, 0), 11),
        ((7, 0, 0), 10),
        ((5, 0, 0), 9),
        ((4, 0, 0), 8),
        ((3, 2, 0), 7),
    ),
    "valkey": (((9, 2, 0), 81), ((9, 0, 0), 80), ((7, 2, 0), 11)),
}
# Valkey's own numbers start here; 12 up to it are Redis's (RDB_FOREIGN_VERSION_MIN and _MAX).
VALKEY_RDB_VERSION_MIN = 80
SHARED_RDB_VERSION_MAX = 11
# Enough for every server that knows RESTORE … REPLACE at all.
_OLDEST_RDB_VERSION = 6
# What every fork reads: they parted from Redis at 6.x, and claim compatibility with later versions'
# commands.
_FORKS_RDB_VERSION_MAX = 9
_FORKS_TYPES = frozenset({*range(6), 7, *range(9, 16)})

# RDB_TYPE_* that came with a release. 6 (modules before 4.0's release) is loaded by none; 22 and 23
# are left out for Redis: there they were hashes of 7.4's release candidates, which no release
# writes, and a payload with that byte comes from a Valkey that means something else by it.
_TYPES: dict[Flavour, tuple[tuple[Version, frozenset[int]], ...]] = {
    "redis": (
        (EVERY, frozenset({0, 1, 2, 3, 4, 9, 10, 11, 12, 13, 14})),
        ((4, 0, 0), frozenset({5, 7})),
        ((5, 0, 0), frozenset({15})),
        ((7, 0, 0), frozenset({16, 17, 18, 19})),
        ((7, 2, 0), frozenset({20, 21})),
        ((7, 4, 0), frozenset({24, 25})),
        ((8, 6, 0), frozenset({26})),
        ((8, 8, 0), frozenset({27, 28})),
        ((8, 10, 0), frozenset({29, 30, 31, 32, 33})),
    ),
    "valkey": (
        (EVERY, frozenset({0, 1, 2, 3, 4, 5, 7, *range(9, 22)})),
        ((9, 0, 0), frozenset({22})),
        ((9, 2, 0), frozenset({23})),
    ),
}
# The first Valkey of whose snapshots not everything can be read (RDB 81: commands inside of them),
# and what is said to it and later ones, which then write RDB 80.
_VALKEY_UNREAD: Version = (9, 2, 0)
_NEWEST_VALKEY: Version = (9, 1, 0)


@dataclass(frozen=True, slots=True)
class Capability:
    """A row of the table, and the property of `ServerCapabilities` that answers it.

    `what` is said of the server. `redis`, `valkey`: the first release; None: none has it yet.
    `forks`: whether a fork has it if it claims to be compatible with that release.
    `source`: where that is to be read.
    """

    what: str
    redis: Version | None
    valkey: Version | None
    source: str
    forks: bool = True

    @overload
    def __get__(self, server: None, owner: type) -> Capability: ...
    @overload
    def __get__(self, server: ServerCapabilities, owner: type) -> bool: ...
    def __get__(self, server: ServerCapabilities | None, owner: type) -> Capability | bool:
        if server is None:
            return self
        if server.fork and not self.forks:
            return False
        since = self.valkey if server.flavour == "valkey" else self.redis
        return since is not None and server.version >= since


@dataclass(frozen=True)
class ServerCapabilities:
    """What the releases `version` of `flavour` can do, or `fork`, which claims to be one.

    `ServerInfo.capabilities` gives that of a server.
    """

    flavour: Flavour
    version: Version
    fork: str = ""

    # --- The table ---

    client_pause = Capability(
        "knows CLIENT PAUSE",
        redis=(2, 9, 50),
        valkey=EVERY,
        source="redis.c of 3.0, and of 2.9.50 before it",
    )
    pause_of_writes = Capability(
        "can pause those clients alone that write (CLIENT PAUSE … WRITE), and ends a pause when it"
        " is asked to (CLIENT UNPAUSE)",
        redis=(6, 2, 0),
        valkey=EVERY,
        source="clientCommand, networking.c",
    )
    command_getkeys = Capability(
        "tells which keys a command names (COMMAND GETKEYS)",
        redis=(2, 9, 50),
        valkey=EVERY,
        source="commandCommand, redis.c of 3.0",
    )
    exists_of_many = Capability(
        "EXISTS takes more keys than one",
        redis=(3, 0, 3),
        valkey=EVERY,
        source="existsCommand, db.c",
    )
    replication_ids = Capability(
        "gives each replication history a name, which partial syncs after a failover need (PSYNC2)",
        redis=(4, 0, 0),
        valkey=EVERY,
        source="master_replid of INFO, replication.c",
    )
    min_replicas_names = Capability(
        "calls its settings min-replicas-*, which were min-slaves-* before",
        redis=(5, 0, 0),
        valkey=EVERY,
        source="config.c",
    )
    restore_absttl = Capability(
        "RESTORE takes ABSTTL, IDLETIME and FREQ",
        redis=(5, 0, 0),
        valkey=EVERY,
        source="restoreCommand, cluster.c",
    )
    streams = Capability(
        "has streams (XRANGE, XINFO)", redis=(5, 0, 0), valkey=EVERY, source="t_stream.c"
    )
    script_effects = Capability(
        "sends what scripts did, unless it was told to send the scripts (lua-replicate-commands)",
        redis=(5, 0, 0),
        valkey=EVERY,
        source="scripting.c of 5.0; possible since 3.2",
    )
    script_effects_alone = Capability(
        "sends what scripts did, and no script",
        redis=(7, 0, 0),
        valkey=EVERY,
        source="script.c of 7.0",
    )
    acl_users = Capability("has users (ACL)", redis=(6, 0, 0), valkey=EVERY, source="acl.c")
    scan_type = Capability("SCAN takes TYPE", redis=(6, 0, 0), valkey=EVERY, source="db.c")
    xinfo_full = Capability(
        "tells all of a stream in one reply (XINFO STREAM … FULL)",
        redis=(6, 0, 0),
        valkey=EVERY,
        source="xinfoCommand, t_stream.c",
        forks=False,
    )
    floats_keep_ttl = Capability(
        "sends INCRBYFLOAT as SET … KEEPTTL; before as SET, which takes the key's TTL away",
        redis=(6, 0, 0),
        valkey=EVERY,
        source="incrbyfloatCommand, t_string.c",
    )
    refuses_exec = Capability(
        "min-replicas-to-write holds for EXEC of a transaction that was begun before it was set",
        redis=(6, 0, 0),
        valkey=EVERY,
        source="processCommand, server.c",
    )
    refuses_writes_of_scripts = Capability(
        "min-replicas-to-write holds for what scripts write",
        redis=(6, 2, 0),
        valkey=EVERY,
        source="processCommand, server.c, and luaRedisGenericCommand, scripting.c",
    )
    survives_module_values = Capability(
        "goes on whatever value of a module RESTORE is given; before, its process may end",
        redis=(6, 2, 0),
        valkey=EVERY,
        source="rdbLoadObject, rdb.c",
    )
    absolute_ttls = Capability(
        "sends TTLs as points in time (PEXPIREAT); before, some count from when the command ran",
        redis=(7, 0, 0),
        valkey=EVERY,
        source="expireGenericCommand, expire.c",
    )
    pexpiretime = Capability(
        "knows PEXPIRETIME", redis=(7, 0, 0), valkey=EVERY, source="expire.c", forks=False
    )
    xclaim_drops_deleted = Capability(
        "XCLAIM drops a pending entry that was deleted; before, it keeps it",
        redis=(7, 0, 0),
        valkey=EVERY,
        source="xclaimCommand, t_stream.c",
    )
    silent_bitfield = Capability(
        "BITFIELD of which every write overflows (OVERFLOW FAIL) lengthens its string and is not"
        " replicated",
        redis=(7, 0, 0),
        valkey=EVERY,
        source="bitfieldGeneric, bitops.c",
    )
    field_ttls = Capability(
        "fields of its hashes may have TTLs", redis=(7, 4, 0), valkey=(9, 0, 0), source="t_hash.c"
    )
    hpexpiretime = Capability(
        "knows HPEXPIRETIME",
        redis=(7, 4, 0),
        valkey=(9, 0, 0),
        source="t_hash.c",
        forks=False,
    )
    floats_keep_field_ttl = Capability(
        "sends HINCRBYFLOAT so that the field keeps its TTL; before as HSET, which takes it away",
        redis=(8, 2, 3),
        valkey=EVERY,
        source="hincrbyfloatCommand, t_hash.c; seen so at 7.4.1, 8.0.2, 8.2.3 and Valkey 9.1.2",
    )
    replica_version = Capability(
        "chooses a snapshot's RDB version by REPLCONF version",
        redis=None,
        valkey=(8, 0, 0),
        source="replconfCommand, replication.c",
    )
    import_mode = Capability(
        "lets no key expire while data is imported (import-mode, CLIENT IMPORT-SOURCE)",
        redis=None,
        valkey=(8, 1, 0),
        source="expire.c",
        forks=False,
    )
    counts_past_ttls = Capability(
        "counts a key that is deleted at once, because the TTL that it is given is over, among"
        " expired_keys",
        redis=None,
        valkey=(8, 1, 0),
        source="expireGenericCommand, expire.c",
    )

    # Commands, in the forms in which a source replicates them (ext/newer_commands.pxi).
    commands_of_6_2 = Capability(
        "knows LMOVE, SET … PXAT, LPOP of several, XADD … NOMKSTREAM, XGROUP CREATECONSUMER and"
        " FLUSHALL SYNC",
        redis=(6, 2, 0),
        valkey=EVERY,
        source="the command table, server.c",
    )
    commands_of_7_0 = Capability(
        "knows SPUBLISH, and takes how many entries a group has read (XGROUP … ENTRIESREAD)",
        redis=(7, 0, 0),
        valkey=EVERY,
        source="pubsub.c and t_stream.c of 7.0",
    )
    hsetex = Capability("knows HSETEX", redis=(8, 0, 0), valkey=(9, 0, 0), source="COMMAND DOCS")
    hgetdel = Capability("knows HGETDEL", redis=(8, 0, 0), valkey=(9, 1, 0), source="COMMAND DOCS")
    stream_references = Capability(
        "takes what becomes of references to an entry (XDELEX, XADD … KEEPREF)",
        redis=(8, 2, 0),
        valkey=None,
        source="COMMAND DOCS; t_stream.c",
    )
    set_conditions = Capability(
        "compares before it changes, in all ways of Redis 8.4 (SET … IFEQ, IFNE, DELEX)",
        redis=(8, 4, 0),
        valkey=None,
        source="COMMAND DOCS; Valkey 8.1 has IFEQ alone",
    )
    msetex = Capability("knows MSETEX", redis=(8, 4, 0), valkey=(9, 1, 0), source="COMMAND DOCS")
    msetex_by_slot = Capability(
        "refuses MSETEX at a cluster's node that does not own the slot of its keys",
        redis=(8, 4, 0),
        valkey=None,
        source="findings/msetex-at-a-node-without-its-slot.sh",
    )

    # --- What follows ---

    @property
    def rdb_version(self) -> int:
        """The RDB version of the DUMPs it writes, and the highest its RESTORE takes."""
        return rdb_version(self.flavour, self.version)

    @property
    def known_types(self) -> frozenset[int]:
        """The value-type bytes (RDB_TYPE_*) that it can load (`known_types`); of a fork those that
        all forks do."""
        found = known_types(self.flavour, self.version)
        return found & _FORKS_TYPES if self.fork else found

    @property
    def announced_version(self) -> Version | None:
        """The version that a replica should say it is (REPLCONF version); None: say nothing."""
        if not self.replica_version:
            return None
        return self.version if self.version < _VALKEY_UNREAD else _NEWEST_VALKEY

    @property
    def footer_bounds(self) -> tuple[int, int, int]:
        """What its RESTORE refuses, for the encoder: (highest, low, high).

        `highest` is the highest RDB version taken; low to high, both included, are refused though
        they are not above it. (1, 0) is the empty range.
        """
        highest = min(self.rdb_version, _FORKS_RDB_VERSION_MAX) if self.fork else self.rdb_version
        if highest >= VALKEY_RDB_VERSION_MIN:
            return highest, SHARED_RDB_VERSION_MAX + 1, VALKEY_RDB_VERSION_MIN - 1
        return highest, 1, 0

    def accepts_rdb_version(self, number: int) -> bool:
        """Whether its RESTORE takes a payload whose footer says RDB version `number`."""
        highest, low, high = self.footer_bounds
        return number <= highest and not low <= number <= high

    def numbers_types_as(self, number: int) -> bool:
        """Whether the types of values that one flavour has alone are its own where a footer says
        RDB version `number`."""
        return (number >= VALKEY_RDB_VERSION_MIN) == (self.flavour == "valkey")

    def accepts_footer_of(self, source: ServerCapabilities) -> bool:
        """Whether it takes the DUMP payloads of `source` as they are; if not, stamp them anew.

        A fork's footer is not trusted to be what the version it claims would write.
        """
        if source.fork and source.fork != self.fork:
            return False
        return self.accepts_rdb_version(source.rdb_version)


@lru_cache(maxsize=256)
def capabilities_of(flavour: Flavour, version: Version, fork: str) -> ServerCapabilities:
    """Those of one release: made once."""
    return ServerCapabilities(flavour, version, fork)


def flavour_named(name: str) -> Flavour:
    """The flavour that a snapshot's reader says (`SnapshotReader.flavour`)."""
    return "valkey" if name == "valkey" else "redis"


def rdb_version(flavour: Flavour, version: Version) -> int:
    """The RDB version of the server: of the DUMPs it writes, and the highest its RESTORE takes."""
    for since, number in _RDB_VERSIONS[flavour]:
        if version >= since:
            return number
    return _OLDEST_RDB_VERSION if flavour == "redis" else SHARED_RDB_VERSION_MAX


def known_types(flavour: Flavour, version: Version) -> frozenset[int]:
    """The value-type bytes (RDB_TYPE_*) that the server can load.

    7 (module values) is always among them: whether the one module is there is another question.
    """
    found: frozenset[int] = frozenset()
    for since, types in _TYPES[flavour]:
        if version >= since:
            found |= types
    return found
