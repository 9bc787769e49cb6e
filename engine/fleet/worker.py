"""A worker process: `python -m engine.fleet.worker GROUP`, with the state's URL in the environment.

Exit codes: 0 the migration is complete, or was stopped as asked; 1 it failed, or the state did.
stderr is a log: every line begins with the time (UTC).
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import traceback
from collections.abc import Sequence

from engine.errors import EngineError
from engine.fleet import local, run
from engine.fleet.failure import fail
from engine.groups.process import ProcessId
from engine.groups.registry import Registry
from engine.model.credentials import Credentials
from engine.model.progress import Phase, Progress


def main(arguments: Sequence[str]) -> int:
    """Run the transfer of the group named in `arguments`; return the exit code."""
    if len(arguments) != 1:
        log("usage: python -m engine.fleet.worker GROUP")
        return 2
    try:
        return run(work(arguments[0]))
    except EngineError as error:
        log(f"{type(error).__name__}: {error}")
    except Exception:
        log("a bug:")
        traceback.print_exc()
    return 1


async def work(group_id: str) -> int:
    """Claim the group's transfer, run it, and write down how it ended."""
    _log_what_is_not_told()
    registry = Registry()
    claimed = registry.claim_transfer(group_id, ProcessId.here())
    log(f"{group_id}: claimed, attempt {claimed.record.attempt}")
    try:
        # Here, so that an engine that cannot be imported leaves its reason in the state.
        from engine.fleet.runner import Runner, signals_stop

        credentials = Credentials.load()
        source = credentials.apply(claimed.record.source)
        target = credentials.apply(claimed.record.target)
        runner = Runner(
            claimed,
            source,
            target,
            credentials=credentials,
            on_progress=_Phases(),
            on_event=log,
        )
    except Exception as error:
        await fail(claimed, error, Progress())
        raise
    with signals_stop(runner):
        report = await runner.run()
    log(f"{group_id}: {report.status}, {report.keys:,} keys{_errors(report.errors)}")
    if report.status != "failed":
        # If the state wants it: an abort may have found the target open.
        await asyncio.to_thread(local.disconnect_clients, registry, group_id)
    await asyncio.to_thread(registry.store.close)
    return 1 if report.status == "failed" else 0


def log(line: str) -> None:
    """Write a line to the log."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    sys.stderr.write(f"{stamp} {line}\n")
    sys.stderr.flush()


def _log_what_is_not_told() -> None:
    """Why a server could not be reached, where whoever asked is not told (`wire.reach`)."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter("%(asctime)sZ %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("startmigration")
    logger.handlers[:] = [handler]
    logger.propagate = False


class _Phases:
    """Logs each change of phase."""

    def __init__(self) -> None:
        self._phase: Phase | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.phase is not self._phase:
            self._phase = progress.phase
            log(f"{progress.phase}: {progress.keys:,} of about {progress.total_keys:,} keys")


def _errors(errors: Sequence[str]) -> str:
    return "".join(f"; {error}" for error in errors)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
