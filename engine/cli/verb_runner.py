"""One verb's run: the engine, the event loop, signals, and what goes wrong.

A first SIGINT or SIGTERM cancels the work, which leaves its state as it should be; a second one
ends the process at once, which the state survives as well (as it survives a crash).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer

from engine.cli.common_options import Output
from engine.cli.error_output import complain, error_object, show
from engine.cli.output_format import as_json, as_text
from engine.errors import EngineError, Interrupted, StateError, UsageError

if TYPE_CHECKING:
    from engine.front.engine import Engine

T = TypeVar("T")
Work = Callable[["Engine"], Awaitable[T]]

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def respond(
    state: str | None,
    output: Output,
    work: Work[dict[str, Any]],
    *,
    as_shown: Callable[[dict[str, Any]], str] = as_text,
    on_interrupt: Callable[[], str] = str,
    asks: bool = False,
    lacks: Callable[[dict[str, Any]], EngineError | None] = lambda _: None,
) -> None:
    """Run `work` and print the response that it returns, as text by `as_shown`; or fail.

    `on_interrupt` says how to go on after Ctrl-C. `asks`: the verb only asks, so a state that was
    named must be there. `lacks`: what is missing of what the response tells, as an error.
    """
    try:
        if asks:
            _check_state(state)
        response = perform(state, work)
    except Exception as error:
        checks = getattr(error, "checks", None)
        result = {"Checks": list(checks)} if checks else None
        fail(error, output, on_interrupt=on_interrupt, result=result)
    if (missing := lacks(response)) is not None:
        if output == "text":
            show(as_shown(response))
        fail(missing, output, result=response)
    show(as_json(response) if output == "json" else as_shown(response))


def _check_state(state: str | None) -> None:
    """Raise `StateError` for a file that was named, and is not there. (The default one is made by
    the first verb that has something to keep.)"""
    from engine.groups.store import STATE_VARIABLE, absent

    if (state or os.environ.get(STATE_VARIABLE)) and (file := absent(state)) is not None:
        raise StateError(
            f"there is no state {file}",
            remedy="Check the path; register-replication-group, migrate and serve make a state.",
        )


def perform(state: str | None, work: Work[T]) -> T:
    """Run `work` with an engine on `state`, on an event loop. Raises what it raises, and
    `Interrupted` after a signal."""
    # Here, so that --help and wrong usage cost nothing.
    from engine.fleet import run
    from engine.front.engine import Engine

    async def main() -> T:
        return await _stoppable(work(Engine(state)))

    try:
        return run(main())
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None


def fail(
    error: BaseException,
    output: Output,
    *,
    on_interrupt: Callable[[], str] = str,
    result: dict[str, Any] | None = None,
    indent: int | None = 4,
) -> NoReturn:
    """Report `error` and leave with its exit code; `result` are members beside `Error` in
    JSON."""
    if isinstance(error, BrokenPipeError):
        raise error  # the reader has gone: Typer ends quietly
    complain(error)
    stopped = isinstance(error, Interrupted)
    if stopped and (way := on_interrupt()):
        print(way, file=sys.stderr)
    if output == "json":
        answer = {**(result or {}), "Error": error_object(error)}
        show(as_json(answer, indent=indent))
    if stopped:
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(WRONG_USAGE if isinstance(error, UsageError) else FAILED) from None


async def _stoppable(work: Awaitable[T]) -> T:
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        asked = True
        if task is not None:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await work
    except asyncio.CancelledError:
        if not asked:
            raise
        raise Interrupted("interrupted") from None
