"""Modules: which the target lacks, and whether values of theirs were seen on the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from engine.model.modules import (
    COMMANDS,
    GRAPH_MODULE,
    TELEMETRY_LEFT,
    TYPELESS,
    ModuleTypes,
    commands_known,
)
from engine.model.server import ServerInfo
from engine.transfer.checks.check_result import Check, passed, warned
from engine.transfer.checks.first_keys import some_of_each
from engine.wire.control_connection import Admin

_NAME = "modules"
# What TYPE says of values that no module brings.
_PLAIN = frozenset({b"string", b"list", b"set", b"zset", b"hash", b"stream", b"array", b"none"})
_REMEDY = "Load the modules on the target, or do without those keys: the report names them."


async def ask_module_types(end: Admin, info: ServerInfo) -> ModuleTypes:
    """What the server behind `end` does with values of modules. Raises `LinkError`."""
    (reply,) = await end.pipeline([("COMMAND", "INFO", *COMMANDS)])
    return ModuleTypes(info, commands_known(COMMANDS, reply))


async def check_modules(
    source: Admin, target: Admin, infos: tuple[ServerInfo, ServerInfo], databases: list[int]
) -> Check:
    """Modules of the source that the target lacks, and values of theirs among some keys. Raises
    `LinkError`."""
    ours, theirs = (set(info.modules) - TYPELESS for info in infos)
    if not ours:
        return passed(_NAME, "none on the source")
    types = await ask_module_types(target, infos[1])
    seen, looked = await _look(source, databases)
    figures = []
    if absent := sorted(ours - theirs):
        names = ", ".join(absent)
        figures.append(f"only on the source: {names}; the target cannot load values of their types")
    refused = refusals(seen, types)
    figures += [f"among {looked} keys looked at: {each}" for each in refused]
    left = f"; {TELEMETRY_LEFT}" if GRAPH_MODULE in ours else ""
    if figures:
        return warned(_NAME, f"{'; '.join(figures)}{left}", _REMEDY)
    return passed(_NAME, f"{', '.join(sorted(ours))}{left}")


def refusals(seen: Mapping[str, int], types: ModuleTypes) -> list[str]:
    """Why values of the module types in `seen` (with their numbers) are not carried."""
    return [
        f"{count:,} x {why}" for name, count in sorted(seen.items()) if (why := types.refusal(name))
    ]


async def _look(source: Admin, databases: list[int]) -> tuple[Counter[str], int]:
    """Count module types among some keys of each database."""
    seen: Counter[str] = Counter()
    looked = 0
    async for keys in some_of_each(source, databases):
        kinds = await source.pipeline([("TYPE", key) for key in keys])
        types = [kind for kind in kinds if isinstance(kind, bytes)]
        looked += len(types)
        seen.update(kind.decode("ascii", "replace") for kind in types if kind not in _PLAIN)
    return seen, looked
