"""What the source holds beside keys and a migration cannot bring, or may not overwrite."""

from __future__ import annotations

import asyncio

from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks.check_result import Check, warned
from engine.transfer.checks.required_commands import Way
from engine.wire import functions_and_indexes
from engine.wire.control_connection import Admin
from engine.wire.functions_and_indexes import LIST_LIBRARIES
from engine.wire.search_indexes import UNNAMED, UNTOLD, raw_name

NAME = "beside-keys"
_NAMED = 10


async def check_besides(
    source: Admin, target: Admin, target_info: ServerInfo, settings: TransferSettings, way: Way
) -> Check | None:
    """Name search indexes of the source that the target lacks, libraries that it cannot hold, and
    libraries of its own; None if there are none. Raises `LinkError`."""
    names = [raw_name(name) for name in settings.search_names]
    ours, theirs = await asyncio.gather(
        functions_and_indexes.ask(source, names), functions_and_indexes.ask(target, names)
    )
    if settings.rules:
        return _left_behind(ours)
    figures, remedies = [], []
    indexes = sorted((ours.indexes or frozenset()) - (theirs.indexes or frozenset()))
    unmade = [name for name in indexes if ours.definitions[name].why]
    if indexes and theirs.indexes is None:
        figures.append(
            f"{target_info.name} has no search module, and the source has indexes: {_some(indexes)}"
        )
        remedies.append("load the module on the target: without it the cut-over is refused")
    elif unmade:
        why = ours.definitions[unmade[0]].why
        figures.append(f"search indexes that cannot be made anew: {_some(unmade)} ({why})")
        remedies.append("create them on the target: without them the cut-over is refused")
    if ours.indexes:
        not_copied = f"{UNTOLD}; {UNNAMED}" if way == "scan" else UNTOLD
        figures.append(f"not migrated: {not_copied}")
        remedies.append("set up on the target what of that is needed")
    for what, why in functions_and_indexes.unlisted(ours).items():
        figures.append(f"{what}: {why}")
        remedies.append("grant it, or a scan does not migrate them and they are not compared")
    if LIST_LIBRARIES in theirs.denied and ours.library_count:
        figures.append("the target's user may not list libraries (+function|list)")
        remedies.append("grant +function|list and +function|load on the target")
    elif ours.libraries and theirs.libraries is None:
        figures.append(
            f"{target_info.name} knows no functions, and the source has libraries: "
            f"{_some(sorted(ours.libraries))}"
        )
        remedies.append("choose a target of version 7.0 or later")
    elif ours.libraries is not None:
        alone = sorted((theirs.libraries or {}).keys() - ours.libraries.keys())
        if alone:
            figures.append(f"libraries that only the target has: {_some(alone)}")
            remedies.append("delete them there (FUNCTION DELETE) if it is to equal the source")
    if not figures:
        return None
    remedy = "; ".join(remedies)
    return warned(NAME, "; ".join(figures), f"{remedy[0].upper()}{remedy[1:]}.")


def _left_behind(ours: functions_and_indexes.FunctionsAndIndexes) -> Check | None:
    """What of the source stays behind where rules choose keys."""
    figures = []
    if ours.indexes:
        figures.append(f"search indexes: {_some(sorted(ours.indexes))}")
    if ours.libraries:
        figures.append(f"libraries of functions: {_some(sorted(ours.libraries))}")
    if not figures:
        return None
    words = "; ".join(figures)
    remedy = "Set up on the target what of that is needed."
    return warned(NAME, f"not migrated, as keys are chosen: {words}", remedy)


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
