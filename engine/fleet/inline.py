"""A transfer inside the calling process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import Interrupted
from engine.fleet.failed_transfer import fail
from engine.fleet.process_identity import ProcessId
from engine.groups.registry import Registry
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.progress import Progress
from engine.model.report import Report

if TYPE_CHECKING:
    from engine.groups.records import TransferRecord
    from engine.transfer.switch_hook import OnSwitch


class Inline:
    """The launcher of one migration in the calling process, on its event loop: see
    `launcher.Launcher`. `source` and `target` come with their credentials, as for `run_here`.
    """

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_event: Callable[[str], None] | None = None,
        on_switch: OnSwitch | None = None,
    ) -> None:
        self.worker = ProcessId.here().worker
        """What the state is to know of the worker from the migration's first moment on."""
        self._ends = source, target
        self._on_progress = on_progress
        self._on_event = on_event
        self._on_switch = on_switch
        self._task: asyncio.Task[Report] | None = None

    def launch(
        self,
        registry: Registry,
        transfer: TransferRecord,
        *,
        credentials: Credentials | None = None,
    ) -> None:
        """Begin, on the running event loop. What comes of it: `report`."""
        self._task = asyncio.get_running_loop().create_task(
            run_here(
                registry,
                transfer.group_id,
                *self._ends,
                credentials=Credentials.load() if credentials is None else credentials,
                on_progress=self._on_progress,
                on_event=self._on_event,
                on_switch=self._on_switch,
            )
        )

    async def report(self) -> Report:
        """Wait for the end of what was launched; raises as `run_here` does. A cancellation stops
        the migration."""
        assert self._task is not None
        return await self._task

    def tidy(self) -> None:
        """Nothing is left behind."""


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
    claimed = registry.claim_transfer(group_id, ProcessId.here().worker)
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
