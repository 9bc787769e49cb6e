"""serve: the HTTP API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from engine.cli import log_options
from engine.cli.common_options import StateOption, understood
from engine.cli.log_options import LogFormatOption, LogLevelOption, VerboseOption
from engine.cli.verb_runner import fail
from engine.errors import UsageError

LISTEN = "127.0.0.1:8321"


def serve(
    listen: Annotated[
        list[str] | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            show_default=False,
            help=f"Where to listen; may be repeated.  [default: {LISTEN}]",
        ),
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(
            "--credentials",
            metavar="FILE",
            show_default=False,
            help="The access keys of the API's clients (see create-access-key).",
        ),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Do not authenticate requests; only on the loopback.")
    ] = False,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert", metavar="FILE", show_default=False, help="The certificate (PEM) for TLS."
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            "--tls-key",
            metavar="FILE",
            show_default=False,
            help="The certificate's private key (PEM).",
        ),
    ] = None,
    metrics_token_file: Annotated[
        Path | None,
        typer.Option(
            "--metrics-token-file",
            metavar="FILE",
            show_default=False,
            help="A token that opens /metrics, as Prometheus sends it (Authorization: Bearer …).",
        ),
    ] = None,
    allow_endpoint: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-endpoint",
            metavar="NETWORK|NAME[:PORTS]",
            show_default=False,
            help="Sources and targets that are allowed: 10.0.0.0/8, *.cache.example.com:6379, "
            "[fd00::/8]:6379-6390, unix:/run/*.sock; may be repeated. The address or socket that "
            "is connected to counts.  [default: all but link-local addresses, which only a network "
            "allows]",
        ),
    ] = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    verbose: VerboseOption = 0,
    state: StateOption = None,
) -> None:
    """Serve ElastiCache's API over HTTP.

    Migrations run in worker processes, which outlive the server; one that is killed is replaced.
    """
    if no_auth == (credentials is not None):
        raise typer.BadParameter("give either --credentials or --no-auth")
    addresses = understood("--listen", lambda: [_address(each) for each in listen or [LISTEN]])
    allowed = allow_endpoint or []
    understood("--allow-endpoint", lambda: check_allowed(allowed))
    log_options.begin(log_level, log_format, verbose, otherwise="info")
    try:
        run(
            state,
            addresses,
            credentials,
            tls_cert,
            tls_key,
            metrics_token_file,
            allowed,
        )
    except Exception as error:
        fail(error, "text")


def run(
    state: str | None,
    addresses: list[tuple[str, int]],
    credentials: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    metrics_token_file: Path | None,
    allowed: list[str],
) -> None:
    """Serve until a signal comes. Raises `UsageError`, `StateError`."""
    try:
        from engine.front.http import server
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the server needs {error.name}, which is not installed",
            remedy="pip install 'startmigration[server]'",
        ) from None
    from engine.fleet import run as run_loop

    settings = server.Settings(
        listen=addresses,
        access_keys=credentials,
        tls_cert=tls_cert,
        tls_key=tls_key,
        metrics_token_file=metrics_token_file,
        allowed=allowed,
    )
    run_loop(server.serve(state, settings))


def check_allowed(texts: list[str]) -> None:
    """Raises `UsageError` for what is no rule."""
    from engine.model import allowed_endpoints

    allowed_endpoints.check(texts)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"{text!r} is not an address", remedy="Expected HOST:PORT.")
    return host, int(port)
