"""What can be known of a source that is a file: all of it, by reading it to its end once.

So a file that is damaged or cut off never puts its first half onto a target.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine._native import KeyRules
from engine.errors import EngineError, ProtocolFault
from engine.model.endpoint import STDIN_PATH, Endpoint
from engine.model.modules import ModuleTypes
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.sources.rdb_file import Survey, survey
from engine.transfer.checks.check_result import Check, failed, listed, passed, size, warned
from engine.transfer.checks.file_values import check_carried, writer_of


async def check_file(
    source: Endpoint, *, value_limit: int, rules: KeyRules | None = None
) -> tuple[list[Check], Survey | None]:
    """Read the file; None in the place of its survey if that cannot be done."""
    path = source.rdb_path or ""
    try:
        found = await survey(path, value_limit=value_limit, rules=rules)
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
            f"{figure}; {found.behind:,} bytes after its end are ignored",
            "A server ignores them too. If they should be keys, the file is damaged.",
        ),
        passed("source-version", f"RDB {found.rdb_version}, by {writer_of(found)}"),
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
    yield from check_carried(found, target, modules)


def moved_from(found: Survey, settings: TransferSettings) -> list[int]:
    """The databases that are moved, ascending."""
    if settings.databases is not None:
        return sorted(set(settings.databases))
    return list(found.keys)


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
    if found.excluded:
        figure += f"; {found.excluded:,} more are left out by the rules"
    if not total:
        right = "Are they the right rules?" if found.excluded else "Is it the right file?"
        return warned("source-keys", figure, right)
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
