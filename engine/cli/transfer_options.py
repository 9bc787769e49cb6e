"""The options that say how a transfer is to run: one table, for every verb that starts one.

`settings` is the table: its parameters are the options, as Typer reads them. A verb that has a
parameter `wanted`, and is decorated with `with_transfer_options`, takes them in its place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from engine.cli import durations, sizes, timestamps
from engine.cli.common_options import understood
from engine.cli.program_name import Option
from engine.errors import UsageError
from engine.model.settings import (
    Fence,
    IfExists,
    Publish,
    SourceAfter,
    SourceType,
    TransferSettings,
    Until,
)

if TYPE_CHECKING:
    from engine.model.endpoint import Endpoint

DEFAULTS = TransferSettings()
"""What an option means that is not given."""
RETRY_FOR = durations.write(DEFAULTS.retry_for)
SPOOL_BYTES = sizes.write(DEFAULTS.spool_bytes)
SWITCH_TIMEOUT = durations.write(DEFAULTS.switch_timeout)
DISCONNECT_FOR = durations.write(DEFAULTS.disconnect_for)
_PLACE = "wanted"
YesNo = Literal["yes", "no"]


def settings(
    *,
    source_type: Annotated[
        SourceType,
        typer.Option(
            "--source-type",
            help="How the source is read: as a replica, which follows its writes; by SCAN, which "
            "does not; auto: as a replica where that can be done.",
        ),
    ] = DEFAULTS.source_type,
    match: Annotated[
        str | None,
        typer.Option("--match", metavar="GLOB", help="Only keys that match, as SCAN's MATCH."),
    ] = None,
    key_type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Only keys of this type, as SCAN's TYPE."),
    ] = None,
    databases: Annotated[
        list[int] | None,
        typer.Option("--db", metavar="N", min=0, help="Only this database; may be repeated."),
    ] = None,
    if_exists: Annotated[
        IfExists,
        typer.Option("--if-exists", help="What to do with a key that the target already has."),
    ] = DEFAULTS.if_exists,
    until: Annotated[
        Until,
        typer.Option("--until", help="End after the snapshot, once in sync, or by cutting over."),
    ] = DEFAULTS.until,
    fence: Annotated[
        Fence,
        typer.Option(
            "--fence",
            help="How writes to the source are blocked during the cut-over: by CLIENT PAUSE, not "
            "at all (they have stopped), or by a command of yours.",
        ),
    ] = DEFAULTS.fence,
    fence_hook: Annotated[
        str | None,
        typer.Option(
            "--fence-hook",
            metavar="CMD",
            help="The command for --fence hook; it is kept in the state, so no secrets.",
        ),
    ] = None,
    cut_over_timeout: Annotated[
        float,
        typer.Option(
            "--cut-over-timeout",
            metavar="SECONDS",
            help="A cut-over that is not through by then is undone.",
        ),
    ] = DEFAULTS.cut_over_timeout,
    source_after: Annotated[
        SourceAfter,
        typer.Option(
            "--source-after",
            help="The source once the target is open: it refuses writes (NOREPLICAS, until its "
            "min-replicas-to-write is set back), or accepts them again; they are not replicated.",
        ),
    ] = DEFAULTS.source_after,
    publish: Annotated[
        Publish,
        typer.Option(
            "--publish",
            help="Whether messages (PUBLISH, SPUBLISH) of the source reach the target's "
            "subscribers.",
        ),
    ] = DEFAULTS.publish,
    switch_hook: Annotated[
        str | None,
        typer.Option(
            "--switch-hook",
            metavar="CMD",
            help="Run once the target is promoted, before the source's clients are disconnected: "
            "points their name for the server to the target. Both ends are in its environment "
            "(STARTMIGRATION_SOURCE, STARTMIGRATION_TARGET). Kept in the state, so no secrets.",
        ),
    ] = None,
    switch_timeout: Annotated[
        str,
        typer.Option("--switch-timeout", metavar="DURATION", help="It is killed after this."),
    ] = SWITCH_TIMEOUT,
    disconnect_for: Annotated[
        str,
        typer.Option(
            "--disconnect-for",
            metavar="DURATION",
            help="For how long clients that come back to the source after the cut-over are "
            "disconnected again; 0: they are disconnected once.",
        ),
    ] = DISCONNECT_FOR,
    keep_users: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-user",
            metavar="USER",
            help="Never disconnect this ACL user of the source; may be repeated.",
        ),
    ] = None,
    search_names: Annotated[
        list[str] | None,
        typer.Option(
            "--search-name",
            metavar="NAME",
            help="A search alias or dictionary (RediSearch) of the source, which no command lists; "
            "may be repeated. A source that is followed tells them by itself.",
        ),
    ] = None,
    source_nodes: Annotated[
        list[str] | None,
        typer.Option(
            "--source-node",
            metavar="HOST:PORT",
            help="Another server of the source's replication; may be repeated. Where the source "
            "cannot be reached, and one of them was promoted and goes on with its stream, that one "
            "is followed. (Replicas that the source tells of are found without it.) "
            "HOST:PORT=detached: a copy that was detached on purpose; what is written there holds "
            "no cut-over up.",
        ),
    ] = None,
    spool_directory: Annotated[
        str | None,
        typer.Option(
            "--spool-directory",
            metavar="PATH",
            show_default=False,
            help="Where the source's writes wait on disk while the target is slower  "
            "[default: the folder for temporary files]",
        ),
    ] = None,
    spool_bytes: Annotated[
        str,
        typer.Option("--spool-bytes", metavar="SIZE", help="How much may wait there: 512mb, 10gb."),
    ] = SPOOL_BYTES,
    skip_checks: Annotated[
        list[str] | None,
        typer.Option(
            "--skip-checks",
            metavar="NAME[,NAME]",
            show_default=False,
            help="Checks before the start that are not to stand in its way, by the names that "
            "test-migration shows; different-servers cannot be skipped.",
        ),
    ] = None,
    psync_command: Annotated[
        str | None,
        typer.Option(
            "--psync-command",
            metavar="NAME",
            show_default=False,
            help="The name of PSYNC at a source whose rename-command has given it another one; the "
            "same as --command-name source:PSYNC=NAME.",
        ),
    ] = None,
    names_given: Annotated[
        list[str] | None,
        typer.Option(
            "--command-name",
            metavar="[source:|target:]NAME=OTHER",
            show_default=False,
            help="A command that rename-command has given another name: CONFIG=XYZ for both ends, "
            "source:FLUSHALL=XYZ for one; may be repeated.",
        ),
    ] = None,
    retry_for: Annotated[
        str,
        typer.Option(
            "--retry-for",
            metavar="DURATION",
            help="How long to wait for transient errors (a lost link, a server that restarts, "
            "a target out of memory), without any progress: 90s, 10m, 6h. Then the migration "
            "stops, and can be resumed.",
        ),
    ] = RETRY_FOR,
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over",
            help="Where another migration has the target: shut it out, and begin with a full sync. "
            "Where one that was not completed has left keys: remove every key of the target.",
        ),
    ] = False,
    until_time: Annotated[
        str | None,
        typer.Option(
            "--until-time",
            metavar="TIME",
            help="Of an append-only file with timestamps: nothing that was written later. Seconds "
            "since the epoch, or 2026-11-28T20:20:00Z.",
        ),
    ] = None,
    aof_load_truncated: Annotated[
        YesNo,
        typer.Option(
            "--aof-load-truncated",
            help="Whether an append-only file may end inside a command or a transaction, which is "
            "then left out.",
        ),
    ] = "yes",
    tune_source: Annotated[
        bool,
        typer.Option(
            "--tune-source/--no-tune-source",
            help="Have the source send its snapshot uncompressed: CONFIG SET rdbcompression no, "
            "put back afterwards.",
        ),
    ] = False,
) -> TransferSettings:
    """The settings of a transfer as its options say. Raises `typer.BadParameter` for options that
    make no sense, or not together."""
    size = understood("--spool-bytes", lambda: sizes.parse(spool_bytes))
    patience = understood("--retry-for", lambda: durations.parse(retry_for))
    return understood(
        None,
        lambda: TransferSettings(
            source_type=source_type,
            match=match,
            key_type=key_type,
            databases=tuple(dict.fromkeys(databases)) if databases else None,
            if_exists=if_exists,
            until=until,
            fence=fence,
            fence_hook=fence_hook,
            cut_over_timeout=cut_over_timeout,
            source_after=source_after,
            publish=publish,
            switch_hook=switch_hook,
            switch_timeout=understood("--switch-timeout", lambda: durations.parse(switch_timeout)),
            disconnect_for=understood("--disconnect-for", lambda: durations.parse(disconnect_for)),
            keep_users=tuple(dict.fromkeys(keep_users or ())),
            source_nodes=tuple(dict.fromkeys(source_nodes or ())),
            search_names=tuple(dict.fromkeys(search_names or ())),
            spool_directory=None
            if spool_directory is None
            else str(Path(spool_directory).resolve()),
            spool_bytes=size,
            retry_for=patience,
            take_over=take_over,
            tune_source=tune_source,
            until_time=None
            if until_time is None
            else understood("--until-time", lambda: timestamps.parse(until_time)),
            aof_load_truncated=aof_load_truncated == "yes",
            skip_checks=_names(skip_checks or ()),
            command_names=_command_names(psync_command, names_given or ()),
        ),
    )


def _command_names(psync: str | None, names: Iterable[str]) -> tuple[str, ...]:
    given = () if psync is None else (f"source:PSYNC={psync}",)
    return tuple(dict.fromkeys((*given, *names)))


def _names(values: Iterable[str]) -> tuple[str, ...]:
    """The names in a list of lists with commas, each once."""
    parts = (part.strip() for value in values for part in value.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def with_transfer_options(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` with the options of `settings` in the place of its parameter `wanted`, which it is
    then called with. Raises `typer.BadParameter` as `settings` does."""
    own = inspect.signature(verb, eval_str=True).parameters
    ours = inspect.signature(settings, eval_str=True).parameters
    listed: list[inspect.Parameter] = []
    for name, parameter in own.items():
        listed += ours.values() if name == _PLACE else [parameter]

    def command(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in ours}
        verb(**given, **{_PLACE: settings(**chosen)})

    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    # Typer passes everything by name, so that the order is the help's alone.
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in listed]
    )
    command.__annotations__ = {}
    return command


def fitting(source: Endpoint, target: Endpoint, wanted: TransferSettings) -> None:
    """Raises `typer.BadParameter` for a file where there can be none, or options it has no use
    for."""

    def check() -> None:
        if target.file_path is not None:
            raise UsageError("a target is a server, not a file")
        objection = wanted.objection_to(source)
        if objection is not None:
            raise UsageError(
                f"--source {source.url}: {objection}",
                remedy="Leave it out, or name a server as the source.",
            )

    understood(None if target.file_path is None else "--target", check)


def spelled(wanted: TransferSettings) -> list[Option]:
    """The options that give these settings: (name, value), None for one that is not needed."""

    def unless_default(name: str) -> Any:
        value = getattr(wanted, name)
        return None if value == getattr(DEFAULTS, name) else value

    spool_bytes, retry_for = unless_default("spool_bytes"), unless_default("retry_for")
    return [
        ("--source-type", unless_default("source_type")),
        ("--match", wanted.match),
        ("--type", wanted.key_type),
        *(("--db", number) for number in wanted.databases or ()),
        ("--if-exists", unless_default("if_exists")),
        ("--until", unless_default("until")),
        ("--fence", unless_default("fence")),
        ("--fence-hook", wanted.fence_hook),
        ("--cut-over-timeout", unless_default("cut_over_timeout")),
        ("--source-after", unless_default("source_after")),
        ("--publish", unless_default("publish")),
        ("--switch-hook", wanted.switch_hook),
        ("--switch-timeout", _span(unless_default("switch_timeout"))),
        ("--disconnect-for", _span(unless_default("disconnect_for"))),
        *(("--keep-user", user) for user in wanted.keep_users),
        *(("--source-node", node) for node in wanted.source_nodes),
        *(("--search-name", name) for name in wanted.search_names),
        ("--spool-directory", wanted.spool_directory),
        ("--spool-bytes", None if spool_bytes is None else sizes.write(spool_bytes)),
        ("--retry-for", None if retry_for is None else durations.write(retry_for)),
        ("--take-over", wanted.take_over or None),
        ("--tune-source", wanted.tune_source or None),
        (
            "--until-time",
            None if wanted.until_time is None else timestamps.write(wanted.until_time),
        ),
        ("--aof-load-truncated", None if wanted.aof_load_truncated else "no"),
        ("--skip-checks", ",".join(wanted.skip_checks) or None),
        *(("--command-name", name) for name in wanted.command_names),
    ]


def _span(seconds: float | None) -> str | None:
    return None if seconds is None else durations.write(seconds)
