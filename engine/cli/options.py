"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from engine.cli import shorthand
from engine.cli.failure import sentences
from engine.errors import UsageError

if TYPE_CHECKING:
    from engine.model.endpoint import Endpoint
    from engine.model.settings import TransferSettings

T = TypeVar("T")

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
WaitOption = Annotated[bool, typer.Option("--wait", help="Stay, show progress, wait for the end.")]
SourceTypeOption = Annotated[
    Literal["scan"], typer.Option("--source-type", help="How the source is read.")
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
    Literal["replace", "skip", "fail"],
    typer.Option("--if-exists", help="What to do with a key that the target already has."),
]


def endpoints(values: list[str]) -> list[dict[str, Any]]:
    """The value of `EndpointsOption`, understood. Raises `typer.BadParameter` (exit code 2)."""
    return understood(shorthand.OPTION, lambda: shorthand.parse(values))


def endpoint(option: str, url: str) -> Endpoint:
    """A server's URL, understood. Raises `typer.BadParameter`, without repeating the URL."""
    from engine.model.endpoint import Endpoint

    return understood(option, lambda: Endpoint.parse(url))


def settings(
    source_type: Literal["scan"],
    match: str | None,
    key_type: str | None,
    databases: list[int] | None,
    if_exists: Literal["replace", "skip", "fail"],
) -> TransferSettings:
    """The settings of a transfer as its options say."""
    from engine.model.settings import TransferSettings

    return TransferSettings(
        source_type=source_type,
        match=match,
        key_type=key_type,
        databases=tuple(dict.fromkeys(databases)) if databases else None,
        if_exists=if_exists,
    )


def understood(option: str, read: Callable[[], T]) -> T:
    """`read()`; its `UsageError` becomes Typer's, which names the option and exits with 2."""
    try:
        return read()
    except UsageError as error:
        raise typer.BadParameter(sentences(error), param_hint=option) from None
