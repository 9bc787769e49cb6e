"""Of what a file was found to hold: what the target cannot be given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from engine.model.modules import (
    GRAPH_PART,
    GRAPH_PART_TYPE,
    GRAPH_TYPES,
    TELEMETRY_LEFT,
    ModuleTypes,
)
from engine.model.report import printable_key
from engine.model.server import ServerInfo
from engine.transfer.checks.check_result import Check, failed, passed, warned
from engine.transfer.checks.modules import refusals
from engine.transfer.checks.server_pair import rewritten_types, rewritten_words
from engine.transfer.checks.type_names import type_name
from engine.transfer.graphs_in_parts import FILE_REMEDY, IN_FILE_PARTS
from engine.wire.search_indexes import IN_FILE

_REMEDY_LONG = "Raise it on the target (CONFIG SET proto-max-bulk-len BYTES), and start again. "


class Surveyed(Protocol):
    """What `rdb_file.Survey` and `aof.AofSurvey` have in common."""

    @property
    def info(self) -> ServerInfo: ...
    @property
    def types(self) -> Mapping[int, int]: ...
    @property
    def modules(self) -> Mapping[str, int]: ...
    @property
    def refused(self) -> tuple[tuple[bytes, str], ...]: ...
    @property
    def refused_total(self) -> int: ...
    @property
    def left_out(self) -> tuple[str, ...]: ...


def writer_of(found: Surveyed) -> str:
    """The server that wrote the file, for people."""
    return found.info.name if any(found.info.version) else "a server that does not say its version"


def check_carried(
    found: Surveyed, target: ServerInfo | None, modules: ModuleTypes | None
) -> Iterator[Check]:
    """Types and values that cannot be carried, and what is no key."""
    if target is not None and found.types:
        yield _types(found, target)
    carried = dict(found.modules)
    whole_alone = modules is not None and modules.refusal(GRAPH_PART_TYPE) == GRAPH_PART
    if whole_alone and carried.pop(GRAPH_PART_TYPE, 0):
        yield failed("large-graphs", IN_FILE_PARTS, FILE_REMEDY)
    left = [TELEMETRY_LEFT] if GRAPH_TYPES.intersection(found.modules) else []
    if modules is not None and (refused := refusals(carried, modules)):
        yield warned(
            "modules",
            "; ".join([*refused, *left]),
            "Load the same modules on the target, or do without those keys: the report names them.",
        )
    elif left:
        yield passed("modules", *left)
    if found.refused_total:
        key, why = found.refused[0]
        too_long = any("proto-max-bulk-len" in each for _, each in found.refused)
        yield warned(
            "values",
            f"{found.refused_total:,} cannot be migrated; the first, {printable_key(key)[:100]}: "
            f"{why}",
            f"{_REMEDY_LONG if too_long else ''}The report names them all; the cut-over is refused "
            "while there are any.",
        )
    if found.left_out:
        indexes = any(each.startswith(IN_FILE) for each in found.left_out)
        yield warned(
            "beside-the-keys",
            f"not migrated: {'; '.join(found.left_out[:5])}",
            "Set it up on the target by hand, if it is needed there"
            + (": without the indexes the cut-over is refused." if indexes else "."),
        )


def _types(found: Surveyed, target: ServerInfo) -> Check:
    name = "value-types"
    known = target.capabilities.known_types
    foreign = {kind: count for kind, count in found.types.items() if kind not in known}
    if not foreign:
        return passed(name, f"the target loads all {len(found.types)} that are there")
    rewritten = rewritten_types(foreign, target)
    if rewritten.issuperset(foreign):
        words = rewritten_words(found.types, found.info.flavour, target)
        return passed(name, f"the target does not load all as they are; {words}")
    foreign = {kind: count for kind, count in foreign.items() if kind not in rewritten}
    what = ", ".join(
        f"{count:,} {type_name(kind, found.info.flavour)}" for kind, count in foreign.items()
    )
    return warned(
        name,
        f"{target.name} does not load: {what}",
        "Choose a target at least as new as the file's server and of its flavour; keys that "
        "cannot be loaded are named in the report.",
    )
