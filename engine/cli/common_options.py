"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from engine.cli import node_list_option
from engine.cli.error_output import sentences
from engine.errors import UsageError

if TYPE_CHECKING:
    from engine.model.endpoint import Endpoint

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
        node_list_option.OPTION,
        metavar="Address=HOST,Port=PORT …",
        help="The source's endpoints; also a JSON list. Exactly one for a group with cluster mode "
        "disabled; else one node of a cluster, or several.",
    ),
]
LossOption = Annotated[
    bool,
    typer.Option(
        "--accept-source-loss",
        help="Go on although the source has lost data: the next full sync makes the target what "
        "the source is now.",
    ),
]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="Stay, show progress, wait for the end (a start: until it can be completed); "
        "replace a worker that is killed.",
    ),
]


def endpoints(values: list[str]) -> list[dict[str, Any]]:
    """The value of `EndpointsOption`, understood. Raises `typer.BadParameter` (exit code 2)."""
    return understood(node_list_option.OPTION, lambda: node_list_option.parse(values))


def endpoint(option: str, url: str) -> Endpoint:
    """A server's URL, understood. Raises `typer.BadParameter`, without repeating the URL."""
    from engine.model.endpoint import Endpoint

    return understood(option, lambda: Endpoint.parse(url))


def understood(option: str | None, read: Callable[[], T]) -> T:
    """`read()`; its `UsageError` becomes Typer's, which names the option and exits with 2."""
    try:
        return read()
    except UsageError as error:
        raise typer.BadParameter(sentences(error), param_hint=option) from None
