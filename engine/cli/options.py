"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from engine.cli import shorthand, sizes
from engine.cli.failure import sentences
from engine.cli.program import Option
from engine.errors import UsageError
from engine.model.settings import Fence, IfExists, SourceType, TransferSettings, Until

if TYPE_CHECKING:
    from engine.model.endpoint import Endpoint

T = TypeVar("T")

DEFAULTS = TransferSettings()
"""What an option means that is not given."""

Output = Literal["text", "json"]

OutputOption = Annotated[Output, typer.Option("--output", help="How to print the result.")]
StateOption = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="URL",
        show_default=False,
        help="Where groups and migrations are kept: a file's path, sqlite:///FILE or "
        "postgresql://…  [default: $STARTMIGRATION_STATE, else the user's folder for state]",
    ),
]
GroupOption = Annotated[
    str, typer.Option("--replication-group-id", metavar="ID", help="The target deployment's name.")
]
EndpointsOption = Annotated[
    list[str],
    typer.Option(
        shorthand.OPTION,
        metavar="Address=HOST,Port=PORT …",
        help="The source's endpoints; also a JSON list. Exactly one for a group with cluster mode "
        "disabled.",
    ),
]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait", help="Stay, show progress, wait for the end; replace a worker that is killed."
    ),
]
SourceTypeOption = Annotated[
    SourceType,
    typer.Option(
        "--source-type",
        help="How the source is read: as a replica, which follows its writes; by SCAN, which does "
        "not; auto: as a replica where that can be done.",
    ),
]
MatchOption = Annotated[
    str | None,
    typer.Option("--match", metavar="GLOB", help="Only keys that match, as SCAN's MATCH."),
]
TypeOption = Annotated[
    str | None,
    typer.Option("--type", metavar="TYPE", help="Only keys of this type, as SCAN's TYPE."),
]
DatabaseOption = Annotated[
    list[int] | None,
    typer.Option("--db", metavar="N", min=0, help="Only this database; may be repeated."),
]
IfExistsOption = Annotated[
    IfExists,
    typer.Option("--if-exists", help="What to do with a key that the target already has."),
]
UntilOption = Annotated[
    Until, typer.Option("--until", help="End after the snapshot, once in sync, or by cutting over.")
]
FenceOption = Annotated[
    Fence,
    typer.Option(
        "--fence",
        help="How writes to the source are held back during the cut-over: by CLIENT PAUSE, not at "
        "all (they have stopped), or by a command of yours.",
    ),
]
FenceHookOption = Annotated[
    str | None,
    typer.Option(
        "--fence-hook",
        metavar="CMD",
        help="The command for --fence hook; it is kept in the state, so no secrets.",
    ),
]
CutOverTimeoutOption = Annotated[
    float,
    typer.Option(
        "--cut-over-timeout",
        metavar="SECONDS",
        help="A cut-over that is not through by then is undone.",
    ),
]
SpoolDirectoryOption = Annotated[
    str | None,
    typer.Option(
        "--spool-directory",
        metavar="PATH",
        show_default=False,
        help="Where the source's writes wait on disk while the target is slower  "
        "[default: the folder for temporary files]",
    ),
]
SpoolBytesOption = Annotated[
    str,
    typer.Option("--spool-bytes", metavar="SIZE", help="How much may wait there: 512mb, 10gb."),
]
TuneSourceOption = Annotated[
    bool,
    typer.Option(
        "--tune-source/--no-tune-source",
        help="Let the source's limits for replicas be raised (CONFIG SET) while it is read.",
    ),
]
SPOOL_BYTES = sizes.write(DEFAULTS.spool_bytes)


def endpoints(values: list[str]) -> list[dict[str, Any]]:
    """The value of `EndpointsOption`, understood. Raises `typer.BadParameter` (exit code 2)."""
    return understood(shorthand.OPTION, lambda: shorthand.parse(values))


def endpoint(option: str, url: str) -> Endpoint:
    """A server's URL, understood. Raises `typer.BadParameter`, without repeating the URL."""
    from engine.model.endpoint import Endpoint

    return understood(option, lambda: Endpoint.parse(url))


def settings(
    *,
    source_type: SourceType,
    match: str | None,
    key_type: str | None,
    databases: list[int] | None,
    if_exists: IfExists,
    until: Until,
    fence: Fence,
    fence_hook: str | None,
    cut_over_timeout: float,
    spool_directory: str | None,
    spool_bytes: str,
    tune_source: bool,
) -> TransferSettings:
    """The settings of a transfer as its options say. Raises `typer.BadParameter` for options that
    make no sense, or not together."""
    size = understood("--spool-bytes", lambda: sizes.parse(spool_bytes))
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
            spool_directory=None
            if spool_directory is None
            else str(Path(spool_directory).resolve()),
            spool_bytes=size,
            tune_source=tune_source,
        ),
    )


def fitting(source: Endpoint, target: Endpoint, wanted: TransferSettings) -> None:
    """Raises `typer.BadParameter` for a file where there can be none, or options it has no use
    for."""

    def check() -> None:
        if target.rdb_path is not None:
            raise UsageError("a target is a server, not a file")
        objection = None if source.rdb_path is None else wanted.file_objection()
        if objection is not None:
            raise UsageError(
                f"--source {source.url}: {objection}",
                remedy="Leave it out, or name a server as the source.",
            )

    understood(None if target.rdb_path is None else "--target", check)


def spelled(wanted: TransferSettings) -> list[Option]:
    """The options that give these settings: (name, value), None for one that is not needed."""

    def unless_default(name: str) -> Any:
        value = getattr(wanted, name)
        return None if value == getattr(DEFAULTS, name) else value

    spool_bytes = unless_default("spool_bytes")
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
        ("--spool-directory", wanted.spool_directory),
        ("--spool-bytes", None if spool_bytes is None else sizes.write(spool_bytes)),
        ("--tune-source", wanted.tune_source or None),
    ]


def understood(option: str | None, read: Callable[[], T]) -> T:
    """`read()`; its `UsageError` becomes Typer's, which names the option and exits with 2."""
    try:
        return read()
    except UsageError as error:
        raise typer.BadParameter(sentences(error), param_hint=option) from None
