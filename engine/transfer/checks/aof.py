"""What can be known of a source that is an append-only file: all of it, by reading it to its end
once. So one that is damaged never puts its first half onto a target."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

from engine.errors import EngineError, ProtocolFault
from engine.model.endpoint import Endpoint
from engine.model.modules import ModuleTypes
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.sources.aof_files import AofFiles
from engine.sources.aof_findings import AofSurvey
from engine.sources.aof_survey import survey_aof
from engine.transfer.aof_migration import NOT_EMPTY, not_empty
from engine.transfer.checks import required_commands
from engine.transfer.checks.check_result import Check, failed, listed, passed, size, warned
from engine.transfer.checks.file_values import check_carried, writer_of
from engine.transfer.checks.permissions import ask_rights
from engine.transfer.unfinished_aof_transaction import check_tail
from engine.wire.control_connection import Admin
from engine.wire.engine_key_count import count_own


async def check_aof(
    source: Endpoint, settings: TransferSettings, *, value_limit: int
) -> tuple[list[Check], AofSurvey | None]:
    """Read the files; None in the place of their survey if that cannot be done."""
    name = "source-file"
    files: AofFiles | None = None
    try:
        files = await asyncio.to_thread(AofFiles, source.aof_path or "")
        found = await survey_aof(files, settings, value_limit=value_limit)
    except ProtocolFault as error:
        return [failed(name, error.message, error.remedy)], None
    except EngineError as error:
        remedy = error.remedy or "See the system's log: its disk may be failing."
        return [failed(name, error.message, remedy)], None
    finally:
        if files is not None:
            files.close()
    return list(_of_files(source, found)), found


async def check_open_tail(target: Admin, found: AofSurvey) -> list[Check]:
    """What is wrong with the end of the files by what the target says; empty: nothing. Raises
    `LinkError`."""
    try:
        await check_tail(target, found)
    except ProtocolFault as error:
        return [failed("source-file", error.message, error.remedy)]
    return []


def check_commands(
    found: AofSurvey, target: ServerInfo | None, modules: ModuleTypes | None
) -> Iterator[Check]:
    """Commands and values that cannot be carried, or lead elsewhere when they run again."""
    keys = sum(found.keys.values())
    figure = f"{found.commands:,} commands"
    if found.snapshot:
        figure = f"a snapshot of {keys:,} keys, {figure}"
    if not keys and not found.commands:
        yield warned("source-keys", "no keys and no commands", "Is it the right file?")
    else:
        yield passed("source-keys", f"{figure}, in databases {listed(list(found.databases))}")
    yield from check_carried(found, target, modules)
    if doubts := list(_doubts(found)):
        yield warned(
            "stream-commands",
            "; ".join(doubts),
            "The target may differ here from the server that wrote the file, as any server that "
            "loads it may. The report names the keys.",
        )


async def check_empty(target: Admin) -> Check:
    """Whether the target is empty, but for what an earlier migration has left."""
    name = "existing-keys"
    keys = (await target.info()).keys
    if not keys:
        return passed(name, "none on the target")
    own = await count_own(target)
    if keys == own:
        return passed(name, "none on the target but the engine's own")
    if own:
        # Whose they are is said by `other-migration` and `leftovers`.
        return warned(name, f"{keys - own:,} on the target", NOT_EMPTY)
    return failed(name, not_empty(keys), NOT_EMPTY)


async def check_scripts_allowed(
    target: Admin, info: ServerInfo, *, fields: bool = False
) -> list[Check]:
    """Whether expire times can be set back on the target, which a script does; empty: they can.
    `fields`: those of hash fields."""
    needed = (
        required_commands.extended_field_ttls(info)
        if fields
        else required_commands.extended_ttls(info)
    )
    rights = await ask_rights(target, needed)
    if not rights.denied:
        return []
    why = f"{rights.figure('target')}: TTLs cannot be set back"
    return [failed("target-permissions", why, rights.remedy("target"))]


def _of_files(source: Endpoint, found: AofSurvey) -> Iterator[Check]:
    name = "source-file"
    rate = found.size / found.seconds if found.seconds else 0.0
    files = "1 file" if found.files == 1 else f"{found.files} files"
    figure = (
        f"{source.aof_path}: {files}, {size(found.size)}, read to the end in "
        f"{found.seconds:.1f} s ({size(round(rate))}/s)"
    )
    if found.timestamps is not None:
        first, last = (_moment(each) for each in found.timestamps)
        figure += f", timestamps from {first} to {last}"
    if found.cut:
        yield warned(
            name,
            f"{figure}; left out: {found.cut}",
            "A server with aof-load-truncated yes leaves a cut last command out as well; "
            "--aof-load-truncated no refuses it.",
        )
    else:
        yield passed(name, figure)
    if found.snapshot:
        yield passed("source-version", f"RDB {found.rdb_version}, by {writer_of(found)}")


def _doubts(found: AofSurvey) -> Iterator[str]:
    if found.scripts:
        yield (
            f"{found.scripts:,} run a script again: chance, the order in a set and the clock are "
            "the target's own"
        )
    if found.unknown:
        yield f"not known here: {', '.join(found.unknown)}"


def _moment(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(seconds)
