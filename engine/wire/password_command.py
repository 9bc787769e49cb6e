"""The password that a command of the operator's prints.

It is run with each dial, and once for those of the same second: the connections of many lanes are
dialled together. Its standard error is shown nowhere, for it may repeat secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import weakref
from dataclasses import dataclass

from engine import logs
from engine.errors import UsageError
from engine.model.password_source import PasswordCommand
from engine.wire.operator_process import environment

# How long it may take, and how many bytes it may print.
_SECONDS = 10.0
_MOST = 1 << 16
# How long what it printed holds.
_HOLDS_SECONDS = 1.0
_REMEDY = (
    "Run it by hand as the engine's user: it has to print the password alone. What it writes to "
    "its standard error is not shown, for that may hold secrets."
)
_log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run, which may be under way, and when it began by the loop's clock."""

    printed: asyncio.Task[str]
    began: float


# Of each loop of the process, by command.
_runs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[PasswordCommand, _Run]] = (
    weakref.WeakKeyDictionary()
)


async def printed_by(command: PasswordCommand, *, anew: bool = False) -> str:
    """What the command prints, without the line's end. `anew`: what was printed before is of no
    use, however fresh it is.

    Raises `UsageError` with what went wrong and what to do.
    """
    loop = asyncio.get_running_loop()
    runs = _runs.setdefault(loop, {})
    run = runs.get(command)
    if run is None or (
        run.printed.done()
        and (anew or run.printed.cancelled() or loop.time() - run.began >= _HOLDS_SECONDS)
    ):
        run = runs[command] = _Run(loop.create_task(_run(command)), loop.time())
        # Those who wait for it may be gone when it fails.
        run.printed.add_done_callback(lambda task: task.cancelled() or task.exception())
    return await asyncio.shield(run.printed)


async def _run(command: PasswordCommand) -> str:
    _log.debug("Runs %s", command.name)
    try:
        process = await asyncio.create_subprocess_exec(
            *command.words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise _failed(f"{command.name} cannot be run: {error.strerror}") from None
    output = b""
    try:
        async with asyncio.timeout(_SECONDS):
            assert process.stdout is not None
            while len(output) <= _MOST and (part := await process.stdout.read(_MOST)):
                output += part
            code = None if len(output) > _MOST else await process.wait()
    except TimeoutError:
        raise _failed(f"{command.name} did not end within {_SECONDS:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if code is None:
        raise _failed(f"{command.name} printed more than {_MOST >> 10} KiB")
    if code:
        ended = f"exit code {code}" if code > 0 else f"signal {-code}"
        raise _failed(f"{command.name} ended with {ended}")
    try:
        password = output.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise _failed(f"{command.name} printed what is not UTF-8 text") from None
    if not password:
        raise _failed(f"{command.name} printed no password")
    return password


def _failed(problem: str) -> UsageError:
    return UsageError(problem, remedy=_REMEDY)
