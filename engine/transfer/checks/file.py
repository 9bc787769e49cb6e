"""What can be known of a source that is a file: all of it, by reading it to its end once.

So a file that is damaged or cut off never puts its first half onto a target.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.errors import EngineError, ProtocolFault
from engine.model.endpoint import STDIN_PATH, Endpoint
from engine.model.modules import ModuleTypes
from engine.model.report import printable_key
from engine.model.server import ServerInfo, known_types
from engine.model.settings import TransferSettings
from engine.sources.rdb_file import Survey, survey
from engine.transfer.checks.modules import refusals
from engine.transfer.checks.result import Check, failed, listed, passed, size, warned
from engine.transfer.checks.types import type_name

_REMEDY_LONG = "Raise it on the target (CONFIG SET proto-max-bulk-len BYTES), and start again. "


async def check_file(source: Endpoint, *, value_limit: int) -> tuple[list[Check], Survey | None]:
    """Read the file; None in the place of its survey if that cannot be done."""
    path = source.rdb_path or ""
    try:
        found = await survey(path, value_limit=value_limit)
    except ProtocolFault as error:
        remedy = error.remedy or "Have its server write it anew."
        return [failed("source-file", error.message, remedy)], None
    except EngineError as error:
        remedy = error.remedy or "See the system's log: its disk may be failing."
        return [failed("source-file", error.message, remedy)], None
    rate = found.size / found.seconds if found.seconds else 0.0
    sound = "checksum right" if found.checksummed else "no checksum in it (rdbchecksum no)"
    packed = f" ({', '.join(found.packed)})" if found.packed else ""
    figure = (
        f"{'standard input' if path == STDIN_PATH else path}: {size(found.size)}{packed}, read to "
        f"its end in {found.seconds:.1f} s ({size(round(rate))}/s), {sound}"
    )
    checks = [
        passed("source-file", figure)
        if not found.behind
        else warned(
            "source-file",
            f"{figure}; {found.behind:,} bytes behind its end are passed over",
            "A server passes them over too. If they were to be keys, the file is damaged.",
        ),
        passed("source-version", f"RDB {found.rdb_version}, by {_writer(found)}"),
    ]
    return checks, found


def check_contents(
    found: Survey,
    target: ServerInfo | None,
    settings: TransferSettings,
    modules: ModuleTypes | None = None,
) -> Iterator[Check]:
    """Keys, databases, values that cannot be carried, and what is no key."""
    yield _keys(found)
    if settings.databases is not None:
        yield _chosen(found, settings.databases)
    if target is not None:
        yield _types(found, target)
    if modules is not None and (refused := refusals(found.modules, modules)):
        yield warned(
            "modules",
            "; ".join(refused),
            "Load the same modules on the target, or do without those keys: the report names them.",
        )
    if found.refused_total:
        key, why = found.refused[0]
        yield warned(
            "values",
            f"{found.refused_total:,} cannot be carried; the first, {printable_key(key)[:100]}: "
            f"{why}",
            f"{_REMEDY_LONG if _too_long(found) else ''}The report names them all; the "
            "cut-over is refused while there are any.",
        )
    if found.left_out:
        yield warned(
            "beside-the-keys",
            f"not carried: {'; '.join(found.left_out[:5])}",
            "Set it up on the target by hand, if it is needed there.",
        )


def _too_long(found: Survey) -> bool:
    return any("proto-max-bulk-len" in why for _, why in found.refused)


def moved_from(found: Survey, settings: TransferSettings) -> list[int]:
    """The databases that are moved, ascending."""
    if settings.databases is not None:
        return sorted(set(settings.databases))
    return list(found.keys)


def _writer(found: Survey) -> str:
    return found.info.name if any(found.info.version) else "a server that does not say its version"


def _keys(found: Survey) -> Check:
    total = sum(found.keys.values())
    figure = f"{total:,} in databases {listed(list(found.keys))}"
    if found.expired:
        figure += f"; {found.expired:,} more have expired since, and are left out"
    if found.empty:
        figure += (
            f"; {found.empty:,} more are collections without members, and are left out, as servers "
            "from 6.2 on do"
        )
    if not total:
        return warned("source-keys", figure, "Is it the right file?")
    return passed("source-keys", figure)


def _chosen(found: Survey, chosen: tuple[int, ...]) -> Check:
    name = "chosen-databases"
    empty = [db for db in sorted(set(chosen)) if db not in found.keys]
    if empty:
        return warned(
            name,
            f"no keys in database {listed(empty)} of the file",
            f"With keys: {listed(list(found.keys))}.",
        )
    return passed(name, "; ".join(f"database {db}: {found.keys[db]:,} keys" for db in chosen))


def _types(found: Survey, target: ServerInfo) -> Check:
    name = "value-types"
    known = known_types(target.flavour, target.version)
    foreign = {kind: count for kind, count in found.types.items() if kind not in known}
    if foreign:
        what = ", ".join(
            f"{count:,} {type_name(kind, found.info.flavour)}" for kind, count in foreign.items()
        )
        return warned(
            name,
            f"{target.name} does not load: {what}",
            "Choose a target at least as new as the file's server and of its flavour; keys that "
            "cannot be loaded are named in the report.",
        )
    return passed(name, f"the target loads all {len(found.types)} that are there")
