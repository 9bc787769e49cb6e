"""Types of values that modules bring: which server has them, and what RESTORE does with them.

No reply says which types a server has. The commands that it knows tell of the modules in the table
below; of another type it is only known that some module must bring it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from engine.model.server import ServerInfo

GRAPH_MODULE = "graph"
"""FalkorDB's name, and RedisGraph's."""
TIME_SERIES_MODULE = "timeseries"
HEAD_BYTES = 96
"""So many bytes of a value's beginning say of which module it is, and whether FalkorDB has written
it for itself."""
TELEMETRY = b"telemetry{"
"""So begin the names of the streams in which FalkorDB notes queries, each server its own."""
FIRST_FIELD = b"Received at"
"""The name of the first field of such a stream."""
TELEMETRY_WORDS = "FalkorDB's notes of queries, which each server makes for itself"
TELEMETRY_LEFT = f"telemetry{{…}} ({TELEMETRY_WORDS}) is not migrated and not compared"
GRAPH_PART = (
    "a part of a large graph, which RESTORE does not put together: DUMP gives the graph whole "
    "(--source-type scan)"
)
"""Why a value of the type that only snapshots have is not sent."""
GRAPH_PART_TYPE = "graphmeta"
GRAPH_TYPES = frozenset({"graphdata", GRAPH_PART_TYPE})
"""The types that FalkorDB brings."""


@dataclass(frozen=True, slots=True)
class ModuleType:
    """A module's type: the modules' names that bring it (MODULE LIST), and a command by which such
    a server is told from one that has another module of that name. `replaces`: RESTORE … REPLACE
    was seen to leave nothing of the value that was there. `same_dump`: one value has one DUMP at
    servers with the same version of the module, also where it was restored at one of them."""

    modules: frozenset[str]
    command: str
    replaces: bool = True
    same_dump: bool = False


def _brought_by(*modules: str) -> frozenset[str]:
    return frozenset(modules)


TYPES: dict[str, ModuleType] = {
    "ReJSON-RL": ModuleType(_brought_by("ReJSON", "json"), "JSON.SET", same_dump=True),
    "MBbloom--": ModuleType(_brought_by("bf"), "BF.SCANDUMP", same_dump=True),
    "MBbloomCF": ModuleType(_brought_by("bf"), "CF.RESERVE", same_dump=True),
    "CMSk-TYPE": ModuleType(_brought_by("bf"), "CMS.INITBYDIM", same_dump=True),
    "TopK-TYPE": ModuleType(_brought_by("bf"), "TOPK.RESERVE"),
    "TDIS-TYPE": ModuleType(_brought_by("bf"), "TDIGEST.CREATE", same_dump=True),
    "TSDB-TYPE": ModuleType(_brought_by("timeseries"), "TS.CREATE"),
    "trietype0": ModuleType(_brought_by("search"), "FT.SUGADD", same_dump=True),
    "vectorset": ModuleType(_brought_by("vectorset"), "VADD"),
    "bloomfltr": ModuleType(_brought_by("bf"), "BF.LOAD", replaces=False),
    # FalkorDB and RedisGraph: the nodes of the value are added to those of the graph.
    "graphdata": ModuleType(_brought_by(GRAPH_MODULE), "GRAPH.QUERY", replaces=False),
    GRAPH_PART_TYPE: ModuleType(_brought_by(GRAPH_MODULE), "GRAPH.QUERY", replaces=False),
}
"""By the nine characters of the type's name, as TYPE says it."""

TYPELESS = frozenset({"lua", "rediscompat", "redisgears_2"})
"""Modules in INFO's list that bring no type of value."""
_KNOWN_MODULES = TYPELESS.union(*(each.modules for each in TYPES.values()))

COMMANDS: tuple[str, ...] = tuple(sorted({each.command for each in TYPES.values()}))
"""What a target is asked for (COMMAND INFO)."""


@dataclass(frozen=True, slots=True)
class ModuleTypes:
    """What one server does with values of modules.

    `commands`: those of `COMMANDS` that it knows, in capitals; None: it does not tell.
    """

    info: ServerInfo
    commands: frozenset[str] | None = None

    def refusal(self, name: str) -> str:
        """Why a value of the type `name` must not be sent there; empty: it may be."""
        if not name:
            return "a value of a module whose type cannot be read"
        if not self.info.capabilities.survives_module_values:
            return (
                f"a value of module {name}, and {self.info.name} is not sent it: a server before "
                "6.2 may end at one"
            )
        if not self._has(name):
            return f"a value of module {name}, which the target does not have"
        return GRAPH_PART if name == GRAPH_PART_TYPE else ""

    def judge(self, name: str) -> tuple[str, bool]:
        """(`refusal`, whether RESTORE … REPLACE may add to what is there), for `ModuleGuard`."""
        known = TYPES.get(name)
        return self.refusal(name), known is None or not known.replaces

    def _has(self, name: str) -> bool:
        known = TYPES.get(name)
        if known is None:
            # Some module that is not in the table brings it; the target has such a one, or not.
            return not _KNOWN_MODULES.issuperset(self.info.modules)
        if self.commands is not None:
            return known.command in self.commands
        return not known.modules.isdisjoint(self.info.modules)


def has_graphs(module_data: Iterable[tuple[str, bytes | None]]) -> bool:
    """Whether a snapshot is of a server with FalkorDB, by what was read so far of its modules' data
    (`SnapshotReader.module_data`), which comes before the keys."""
    return any(name in GRAPH_TYPES for name, _ in module_data)


def is_telemetry_name(key: bytes) -> bool:
    """Whether a key is called like a stream in which FalkorDB notes queries."""
    return key.startswith(TELEMETRY) and key.endswith(b"}")


def commands_known(asked: Collection[str], reply: object) -> frozenset[str] | None:
    """Those of `asked` that the server knows, by its reply to COMMAND INFO; None for an error."""
    if not isinstance(reply, list) or len(reply) != len(asked):
        return None
    return frozenset(
        name.upper() for name, each in zip(asked, reply, strict=True) if isinstance(each, list)
    )


def made_by(kind: bytes, info: ServerInfo) -> bytes:
    """The module, with its version, whose DUMP of a value of this type says all of it: where two
    servers name the same one, other bytes are another value. Empty: no module's is known to."""
    known = TYPES.get(kind.decode("latin-1"))
    if known is None or not known.same_dump:
        return b""
    versions = zip(info.modules, info.module_versions, strict=False)
    found = [f"{name} {version}" for name, version in versions if name in known.modules and version]
    return found[0].encode() if found else b""
