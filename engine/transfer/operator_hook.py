"""Commands of the operator's, run by the engine and waited for within a bound."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import Mapping

from engine.errors import TransferFailed
from engine.model.endpoint import Endpoint
from engine.wire.dial import named_last
from engine.wire.operator_process import environment as inherited


async def run_hook(
    what: str,
    command: str,
    *arguments: str,
    limit: float,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `command` (split as a shell would, no shell is used) with `arguments`, and wait.

    `what` names it in errors ("the fence's hook"); `limit` is seconds, after which it is killed;
    `environment` is added to ours. Raises `TransferFailed` (whose fault: the user's) if it cannot
    be run, does not end in time, or ends with anything but 0.
    """
    try:
        words = [*shlex.split(command), *arguments]
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            env={**inherited(), **(environment or {})},
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise TransferFailed(f"{what} cannot be run: {reason}", fault="user") from None
    try:
        async with asyncio.timeout(limit):
            code = await process.wait()
    except TimeoutError:
        raise TransferFailed(f"{what} did not end within {limit:g} s", fault="user") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if code:
        given = f" for {' '.join(arguments)!r}" if arguments else ""
        raise TransferFailed(f"{what} ended with {code}{given}", fault="user")


def ends_in_environment(source: Endpoint, target: Endpoint) -> dict[str, str]:
    """Both ends as a hook's environment: `STARTMIGRATION_SOURCE`, `…_SOURCE_HOST`, `…_SOURCE_PORT`
    and the same of the target. No user and no password."""
    variables: dict[str, str] = {}
    for name, end in (("SOURCE", source), ("TARGET", target)):
        variables[f"STARTMIGRATION_{name}"] = end.address
        # Where clients are: a replica of it may be read.
        end = end.of_primary
        if end.looked_up:
            # Where it was last.
            end = named_last(end) or end
        variables[f"STARTMIGRATION_{name}_HOST"] = end.unix_path or end.file_path or end.host
        served = end.unix_path is None and end.file_path is None
        variables[f"STARTMIGRATION_{name}_PORT"] = str(end.port) if served else ""
    return variables
