"""What follows from both servers' INFO together. No server is asked here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from engine.model.carried_with_loss import foreseen
from engine.model.server import ServerInfo
from engine.model.server_capabilities import Flavour
from engine.model.settings import TransferSettings
from engine.targets.known_forms import transcoder_for
from engine.transfer.checks.check_result import Check, failed, passed, size, warned
from engine.transfer.checks.replication_chain import Member, same_place
from engine.transfer.checks.type_names import type_name

# Above this share of the free memory the fit is called tight: encodings and allocators differ.
_TIGHT = 0.9
# Hashes whose fields may have expire times, of either flavour.
_WITH_FIELD_TTLS = frozenset({22, 24, 25})


def check_pair(
    source: ServerInfo,
    target: ServerInfo,
    settings: TransferSettings,
) -> Iterator[Check]:
    """RDB version, memory, eviction."""
    yield _rdb(source, target)
    yield check_memory(source, target, settings)
    yield check_eviction(target)


def check_apart(source: Sequence[Member], target: Sequence[Member]) -> Check:
    """Whether the two are different servers with different data, by the lineage of each.

    Two ends of one replication would feed the migration its own output.
    """
    name = "different-servers"
    one, other = source[0], target[0]
    if one.is_one_with(other):
        return failed(
            name,
            "the source is its own target (both addresses belong to one server)",
            "Name another server as the target.",
        )
    relation = _relation(source, target)
    if relation:
        return failed(
            name,
            relation,
            "Name a target of its own; or promote the replica, if that is what you want.",
        )
    return passed(name, "two servers, no replication between them")


def _relation(source: Sequence[Member], target: Sequence[Member]) -> str:
    """What the two have to do with each other, empty if nothing."""
    shared = ": they hold the same data already"
    above = {
        "the source is a replica of the target": (source[1:], target[0]),
        "the target is a replica of the source": (target[1:], source[0]),
    }
    for relation, (line, end) in above.items():
        if any(each.is_one_with(end) for each in line):
            through = "" if same_place(line[0].endpoint, end.endpoint) else _through(line)
            return f"{relation}{through}{shared}"
    for each in source:
        if any(each.shares_data_with(member) for member in target):
            return f"both belong to one replication{shared}"
    return ""


def _through(line: Sequence[Member]) -> str:
    return f" (its primary is {line[0].endpoint.address})"


def unloadable_types(source: ServerInfo, target: ServerInfo) -> frozenset[int]:
    """Value-type bytes that the source may write and the target cannot load."""
    return source.capabilities.known_types - target.capabilities.known_types


def rewritten_types(types: Iterable[int], target: ServerInfo) -> frozenset[int]:
    """Those of which every value is stored in an older form that the target loads."""
    found = frozenset(filter(transcoder_for(target).wants, types))
    return found if target.capabilities.field_ttls else found - _WITH_FIELD_TTLS


def rewritten_words(types: Iterable[int], source: Flavour, target: ServerInfo) -> str:
    """Which kinds are rewritten for a target, by the types that the source has, and what they
    lose; empty: none."""
    known = target.capabilities.known_types
    found = rewritten_types(set(types) - known, target)
    if not found:
        return ""
    words = f"{', '.join(sorted({type_name(number, source) for number in found}))} are rewritten"
    lost = foreseen(set(types), known)
    return f"{words} (migrated with a loss: {'; '.join(lost)})" if lost else words


def _rdb(source: ServerInfo, target: ServerInfo) -> Check:
    versions = (
        f"source writes {source.capabilities.rdb_version},"
        f" target reads up to {target.capabilities.rdb_version}"
    )
    how = (
        "payloads go over as they are"
        if target.capabilities.accepts_footer_of(source.capabilities)
        else "payloads are stamped with the version that their type needs"
    )
    if unloadable_types(source, target):
        how += ", and values of types that the target does not load are rewritten where it can be"
    return passed("rdb-version", f"{versions}: {how}")


def check_memory(source: ServerInfo, target: ServerInfo, settings: TransferSettings) -> Check:
    """Whether the source's data will fit into the target."""
    name = "memory"
    needed = source.used_memory_dataset or source.used_memory
    limit = target.maxmemory or target.total_system_memory
    if not needed or not limit:
        return warned(
            name,
            "an end does not say how much memory it has",
            "Compare the source's data set with the target's size yourself.",
        )
    free = max(limit - target.used_memory, 0)
    kind = "maxmemory" if target.maxmemory else "the machine's memory"
    partial = settings.chooses_keys
    most = "at most " if partial else ""
    figure = f"{most}{size(needed)} needed, {size(free)} free of {size(limit)} ({kind})"
    if needed <= free * _TIGHT:
        return passed(name, figure)
    remedy = "Give the target more memory (maxmemory, or a larger machine) before starting."
    # A part of the data may fit; and keys on the target that are replaced give their memory back.
    if needed <= free or partial or (target.keys and needed <= limit * _TIGHT):
        return warned(name, figure + ": tight", remedy)
    return failed(name, figure, remedy)


def check_eviction(target: ServerInfo) -> Check:
    """Whether keys can vanish from the target by themselves."""
    name = "eviction"
    policy = target.maxmemory_policy or "unknown"
    if not target.maxmemory:
        return passed(name, f"{policy}, without a limit")
    if policy == "noeviction":
        return passed(name, f"noeviction at {size(target.maxmemory)}")
    return warned(
        name,
        f"{policy} at {size(target.maxmemory)}: when it is full, keys vanish without an error",
        "Set maxmemory-policy noeviction on the target until the migration is verified.",
    )
