"""A worker process: `python -m engine.fleet.worker GROUP`, with the state's URL in the environment.

Exit codes: 0 the migration is complete, or was stopped as asked; 1 it failed, or the state did.
stderr is a log (`engine.logs.output`), in the group's file where the fleet has started the process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence

from engine import logs
from engine.fleet import local, worker_log_file
from engine.fleet.failed_transfer import fail
from engine.fleet.group_process import main_of
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.model.credentials import Credentials
from engine.model.progress import Progress

_log = logs.logger("engine.fleet.worker")


def main(arguments: Sequence[str]) -> int:
    """Run the transfer of the group named in `arguments`; return the exit code."""
    return main_of("engine.fleet.worker", "worker", work, arguments)


async def work(group_id: str) -> int:
    """Claim the group's transfer, run it, and write down how it ended."""
    registry = open_registry()
    worker_log_file.begin(local.worker_log(registry, group_id))
    claimed = registry.claim_transfer(group_id, ProcessId.here().worker)
    record = claimed.record
    _log.info(
        "The worker has claimed the migration",
        extra={
            "pid": os.getpid(),
            "attempt": record.lease.term,
            "source": record.source.address,
            "target": record.target.address,
        },
    )
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
        )
    except Exception as error:
        await fail(claimed, error, Progress())
        raise
    with signals_stop(runner):
        report = await runner.run()
    if report.status != "failed":
        # If the state wants it: an abort may have found the target open.
        await asyncio.to_thread(local.disconnect_clients, registry, group_id)
    await asyncio.to_thread(registry.store.close)
    return 1 if report.status == "failed" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
