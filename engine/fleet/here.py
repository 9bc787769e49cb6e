"""A transfer inside the calling process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import Interrupted
from engine.fleet.failure import fail
from engine.groups.process import ProcessId
from engine.groups.registry import Registry
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.progress import Progress
from engine.model.report import Report

if TYPE_CHECKING:
    from engine.transfer.switch import OnSwitch


async def run_here(
    registry: Registry,
    group_id: str,
    source: Endpoint,
    target: Endpoint,
    *,
    credentials: Credentials,
    on_progress: Callable[[Progress], None] | None = None,
    on_event: Callable[[str], None] | None = None,
    on_switch: OnSwitch | None = None,
) -> Report:
    """Claim the group's transfer and run it to the end, cut-over included.

    `source` and `target` come with their credentials, which stay in this process; `credentials` are
    for further servers of the source's replication. Raises `Interrupted` when cancelled or told to
    stop (the migration can be resumed), `StateError`, and the faults of `Registry.claim_transfer`.
    A transfer that failed, or that stopped because it needs a hand, is in the report.
    """
    claimed = registry.claim_transfer(group_id, ProcessId.here())
    try:
        # The core and the data plane: only now.
        from engine.fleet.runner import Runner

        runner = Runner(
            claimed,
            source,
            target,
            credentials=credentials,
            one_go=True,
            on_progress=on_progress,
            on_event=on_event,
            on_switch=on_switch,
        )
    except Exception as error:
        await fail(claimed, error, Progress())
        raise
    report = await runner.run()
    if report.status == "stopped" and not runner.forced and not report.needs_hand:
        why = f": {report.errors[0]}" if report.errors else ""
        raise Interrupted(
            f"the migration was stopped after {report.keys:,} keys{why}",
            remedy="Run the same command again to resume it.",
        )
    return report
