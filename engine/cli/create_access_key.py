"""create-access-key: a key for a client of the HTTP API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from engine.cli.common_options import OutputOption
from engine.cli.error_output import show
from engine.cli.output_format import as_json, as_text
from engine.cli.verb_runner import fail


def create_access_key(
    credentials: Annotated[
        Path,
        typer.Option(
            "--credentials",
            metavar="FILE",
            help="The file of keys; it is created with access for its owner only.",
        ),
    ],
    role: Annotated[
        Literal["read", "migrate", "admin"],
        typer.Option(
            "--role",
            help="What the key may do: read (describe, watch); migrate (that, and test, start, "
            "complete); admin (that, and create and delete groups).",
        ),
    ],
    output: OutputOption = "text",
) -> None:
    """Make an access key for the API, and print it.

    The secret is shown this once. A key is revoked by deleting its line from the file; a running
    server takes note.
    """
    from engine.front.access_keys import Role, create

    try:
        key = create(credentials, Role(role))
    except Exception as error:
        fail(error, output)
    shown = {
        "AccessKey": {
            "AccessKeyId": key.id,
            "SecretAccessKey": key.secret,
            "Role": key.role.value,
        }
    }
    show(as_json(shown) if output == "json" else as_text(shown["AccessKey"]))
