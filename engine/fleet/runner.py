"""One claimed transfer, from its claim to its last word in the state; in whichever process.

The end of a run is one transaction: report, event, and the group's status. What the status
becomes:

    the transfer ended    and                        transfer    group
    done                                             done        available
    failed                                           failed      available
    stopped               the operator aborted it    forced      available
    stopped               otherwise                  stopped     migrating (to be resumed)
    not done              the state failed           stopped     migrating (if it can be written)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from engine import logs
from engine.errors import AuthError, LinkError, ServerError, StateError
from engine.fleet import holding
from engine.fleet.cut_over_comparisons import (
    FilesVerificationGate,
    compare_of,
    comparison_of,
    comparisons_of,
    holds_keys,
    verification_gate_of,
)
from engine.fleet.failed_transfer import fail
from engine.fleet.lane_processes import LaneProcesses
from engine.fleet.progress_log import ProgressLog
from engine.fleet.resource_usage import engine_use
from engine.fleet.state_thread import PROGRESS_EVERY, StateCheckpointStore, StateThread, persist
from engine.groups.claimed_transfer import ClaimedTransfer, ClaimLost
from engine.groups.states import CUT_OVERS, Request, TransferStatus
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.joined_sentences import tidied
from engine.model.progress import Progress
from engine.model.report import EngineUse, Report
from engine.model.throttle import PAUSED, Steering, rate_words
from engine.transfer import lane_plan
from engine.transfer.async_helpers import to_the_end
from engine.transfer.switch_hook import OnSwitch
from engine.transfer.transfer import Transfer

_log = logs.logger(__name__)
STOP_SECONDS = 10.0
"""How long a transfer that was asked to stop may take before it is cancelled."""
_LEVELS = {TransferStatus.FAILED: logging.ERROR, TransferStatus.STOPPED: logging.WARNING}


class Runner:
    """Runs one claimed transfer. `source` and `target` come with their credentials."""

    def __init__(
        self,
        claimed: ClaimedTransfer,
        source: Endpoint,
        target: Endpoint,
        *,
        credentials: Credentials,
        one_go: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        on_event: Callable[[str], None] | None = None,
        on_switch: OnSwitch | None = None,
    ) -> None:
        self._claimed = claimed
        self._show_progress = on_progress
        self._show_event = on_event
        settings = claimed.record.settings
        source, target = settings.named("source", source), settings.named("target", target)
        self._source, self._target = source, target
        self._held_before = claimed.record.held_before
        self._progress = Progress()
        self._progress_log = ProgressLog()
        self._forced = False
        self._stopping = False
        # A cut-over that was asked of a worker before this one waits until it can come.
        self._inherited = claimed.record.request in CUT_OVERS
        self._waiting: Request | None = None
        self._lanes_at = 0.0
        self._checkpoint = StateCheckpointStore(claimed)
        self._state = StateThread(
            claimed,
            on_request=self._asked,
            on_steering=self._steered,
            on_failure=self._state_failed,
        )
        self._transfer = Transfer(
            source,
            target,
            settings,
            checkpoints=self._checkpoint,
            on_progress=self._progressed,
            on_event=self._happened,
            gate=verification_gate_of(source, target, settings, self._had_keys),
            gate_of_files=FilesVerificationGate(target, settings),
            comparison=comparison_of(source, target, settings, self._had_keys),
            comparisons=lambda lanes: comparisons_of(lanes, settings, self._had_keys),
            compare=compare_of(source, target),
            one_go=one_go,
            on_switch=on_switch,
            credentials=credentials,
            held_before=lambda: self._held_before,
            processes=LaneProcesses(self._had_keys),
            first=self._look_at_target,
        )
        if claimed.record.paused:
            # By the operator, of a worker before this one.
            self._transfer.steer(Steering(settings.max_rate, settings.max_key_rate, PAUSED))

    async def run(self) -> Report:
        """Run to the end and write it down. A failed transfer is in the report.

        A cancellation stops the transfer, and is not raised again: the report says "stopped". So
        does the operator's request in the state. Raises `StateError` if the state failed: the
        transfer was stopped, and can be resumed.
        """
        with logs.migration(
            self._claimed.record.group_id,
            source=self._source.address,
            target=self._target.address,
        ):
            return await self._run()

    async def _run(self) -> Report:
        # 1. Run, with the checkpoint kept; a cancellation of ours is a stop.
        self._state.start()
        try:
            # A file is one file, from the first byte that is carried to the last that is compared.
            with holding(self._source.rdb_path, self._claimed.record.settings, self._happened):
                report = await self._until_ended()
        except Exception as error:
            await to_the_end(self._state.close())
            await fail(self._claimed, error, self._progress)
            raise
        await to_the_end(self._state.close())
        report = replace(
            report,
            source_type=self._progress.source_type,
            engine=_with(engine_use(), self._transfer.elsewhere),
            errors=tuple(map(tidied, report.errors)),
        )
        # 2. What the end means for the state.
        failure = self._checkpoint.failure or self._state.failure
        if isinstance(failure, ClaimLost):
            raise failure
        if failure is not None and report.status != "done":
            await self._give_up(report, failure)
            raise failure
        # 3. The last word.
        status, message = self._verdict(report)
        try:
            await to_the_end(self._finish(status, report, message))
        except StateError as error:
            raise StateError(
                f"{message}; but this could not be written down: {error.message}",
                remedy=error.remedy,
            ) from None
        return report

    async def _finish(self, status: TransferStatus, report: Report, message: str) -> None:
        disconnect_for = self._disconnect_for(status)
        level = _LEVELS.get(status, logging.INFO)
        figures = {"keys": report.keys, "bytes": report.bytes}
        seconds = round(report.seconds, 3)
        _log.log(level, message, extra={"event": True, **figures, "seconds": seconds})
        of_lanes = self._known_lanes()
        await asyncio.to_thread(
            persist,
            lambda: self._claimed.finish(
                status,
                report,
                self._progress,
                message,
                disconnect_for=disconnect_for,
                of_lanes=of_lanes,
            ),
        )

    @property
    def forced(self) -> bool:
        """Whether the operator aborted the migration (the API's `Force`)."""
        return self._forced and not self._stopping

    def stop(self) -> None:
        """Stop soon; what is acknowledged stays, and the migration can be resumed."""
        if not self._stopping:
            _log.info("The migration is asked to stop")
        self._stopping = True
        self._transfer.stop()

    def _had_keys(self) -> bool:
        """Whether the target had keys of its own before the first of ours."""
        known = self._transfer.held_before
        return bool(self._held_before) if known is None else known

    async def _look_at_target(self) -> None:
        """Note whether the target has keys of its own, while none of ours is among them."""
        if self._held_before is not None:
            return
        # A target that cannot be asked now cannot be migrated into either, as the transfer will
        # say; if it can after all, the gate takes it for an empty one, which is the stricter view.
        settings = self._claimed.record.settings
        with contextlib.suppress(LinkError, AuthError, ServerError):
            targets = lane_plan.targets_of(self._claimed.record.plans, self._target, settings)
            had_keys = any([await holds_keys(each, settings) for each in targets])
            self._held_before = had_keys
            await asyncio.to_thread(persist, lambda: self._claimed.note_held_before(had_keys))

    async def _until_ended(self) -> Report:
        task = asyncio.create_task(self._transfer.run())
        stop_by: float | None = None
        loop = asyncio.get_running_loop()
        while not task.done():
            if self._stopping and stop_by is None:
                stop_by = loop.time() + STOP_SECONDS
            try:
                # The short timeout is for a stop that came from elsewhere.
                await asyncio.wait({task}, timeout=1.0)
            except asyncio.CancelledError:
                self.stop()
            if stop_by is not None and loop.time() > stop_by:
                task.cancel()
        return task.result()

    def _disconnect_for(self, status: TransferStatus) -> float | None:
        """For how long the source's clients are to be disconnected behind this end, in seconds;
        None: nothing was cut over that closes it."""
        settings = self._claimed.record.settings
        ended = status is TransferStatus.DONE or self._transfer.cut_over
        cut_over = ended and self._progress.source_type == "replica"
        return settings.disconnect_for if cut_over and settings.closes_source else None

    def _verdict(self, report: Report) -> tuple[TransferStatus, str]:
        reason = report.errors[0] if report.errors else self._progress.reason
        if report.status == "done":
            return TransferStatus.DONE, f"migration completed: {reason}"
        if report.status == "failed":
            return TransferStatus.FAILED, f"migration failed: {reason}"
        if self.forced:
            return TransferStatus.FORCED, f"migration {reason}"
        why = f": {reason}" if report.errors else ""
        return TransferStatus.STOPPED, f"migration stopped{why}; it can be resumed"

    async def _give_up(self, report: Report, failure: StateError) -> None:
        # The disk may have room again, or the lock be gone; if not, the dead claim says enough.
        message = f"migration stopped: {failure.message}; it can be resumed"
        report = replace(report, status="stopped", errors=(str(failure), *report.errors))
        with contextlib.suppress(StateError):
            await asyncio.to_thread(
                self._claimed.finish, TransferStatus.STOPPED, report, self._progress, message
            )

    # --- What the transfer and the state say ---

    def _progressed(self, progress: Progress) -> None:
        if (reason := tidied(progress.reason)) != progress.reason:
            progress = replace(progress, reason=reason)
        before, self._progress = self._progress, progress
        turned = (before.phase, before.can_complete) != (progress.phase, progress.can_complete)
        self._state.progress(progress, self._of_lanes(at_once=turned))
        self._progress_log.note(progress)
        if self._show_progress is not None:
            self._show_progress(progress)
        if self._waiting is not None and progress.can_complete:
            self._asked(self._waiting)

    def _of_lanes(self, *, at_once: bool) -> dict[str, Progress] | None:
        """How each lane stands, now and then; None: not now, or there is one alone."""
        now = time.monotonic()
        if not self._claimed.record.parts:
            return None
        if not at_once and now - self._lanes_at < PROGRESS_EVERY:
            return None
        self._lanes_at = now
        return self._known_lanes()

    def _known_lanes(self) -> dict[str, Progress]:
        """How each lane stands, as far as the state knows its name."""
        names = {each.name for each in self._claimed.record.parts}
        return {name: each for name, each in self._transfer.of_lanes.items() if name in names}

    def _happened(self, message: str) -> None:
        message = tidied(message)
        _log.info(message, extra={"event": True})
        self._state.event(message)
        if self._show_event is not None:
            self._show_event(message)

    def _asked(self, request: Request) -> None:
        if request is not Request.NONE:
            _log.info("The operator asks: %s", request.value)
        if request is Request.STOP:
            self.stop()
        elif self._inherited and request in CUT_OVERS and not self._progress.can_complete:
            self._waiting = request
        elif request is not Request.NONE:
            self._inherited, self._waiting = False, None
            self._forced = self._forced or request is Request.FORCE
            self._transfer.complete(
                force=request is Request.FORCE,
                skip_verification=request is Request.COMPLETE_UNVERIFIED,
            )

    def _steered(self, steering: Steering) -> None:
        words = rate_words(steering.max_rate, steering.max_key_rate)
        paused = bool(steering.paused)
        _log.info("The operator steers the migration", extra={"rate": words, "paused": paused})
        self._transfer.steer(steering)

    def _state_failed(self, failure: StateError) -> None:
        _log.error("The state failed, and the migration stops: %s", failure)
        if self._show_event is not None:
            self._show_event(f"stopping: {failure}")
        self.stop()


def _with(here: EngineUse, elsewhere: EngineUse) -> EngineUse:
    return EngineUse(
        here.cpu_seconds + elsewhere.cpu_seconds, here.peak_rss_bytes + elsewhere.peak_rss_bytes
    )


@contextlib.contextmanager
def signals_stop(runner: Runner) -> Iterator[None]:
    """SIGINT and SIGTERM stop the runner, on the running event loop."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, runner.stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
