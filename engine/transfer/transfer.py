"""One transfer from its first dial to its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any

from engine.errors import EngineError, LinkError, ServerError, StateError, TransferFailed
from engine.model.backoff import Backoff
from engine.model.endpoint import Endpoint
from engine.model.position import ScanPosition
from engine.model.progress import Phase, Progress
from engine.model.report import Report, Status, Step
from engine.model.settings import TransferSettings
from engine.sources.scan import ScanSource
from engine.targets.writer import RestoreWriter
from engine.transfer.checkpoint import CheckpointStore
from engine.transfer.copy import Compare, Copy, explain
from engine.transfer.cut_over import GateResult
from engine.transfer.phases import move
from engine.transfer.tally import Tally

# How often progress is told and the checkpoint written, in seconds.
_TICK_SECONDS = 0.5
_WAIT_WORTH_TELLING = 0.05
# For how long an end that cannot be reached at the start is tried again, in seconds.
_OPEN_SECONDS = 1.0
_NOT_NOW = frozenset({"LOADING", "BUSY", "MASTERDOWN"})

Gate = Callable[[], Awaitable[GateResult]]


async def _cannot_compare(db: int, keys: Sequence[bytes]) -> list[bytes]:
    """Without a way to compare, every key that the target has is a conflict."""
    del db
    return list(keys)


async def _insist(
    open_end: Callable[[], Awaitable[None]], patience: float, on_event: Callable[[str], None]
) -> None:
    """Open an end; a link that breaks just then is given a few more tries, a wrong address too.

    A server that is there and says "not now" is waited for, `patience` seconds.
    """
    began = asyncio.get_running_loop().time()
    backoff = Backoff(patience)
    while True:
        now = asyncio.get_running_loop().time()
        try:
            return await open_end()
        except LinkError:
            if now - began >= _OPEN_SECONDS:
                raise
        except ServerError as exc:
            if exc.code not in _NOT_NOW or now - began >= patience:
                raise
            if backoff.failed(now):
                on_event(f"{exc.message}: waiting for up to {patience:g} s")
        await asyncio.sleep(backoff.delay())


class Transfer:
    """Moves one source into one target.

    Args:
        checkpoints: where the acknowledged position is kept.
        on_progress: told about twice a second, and at each change of phase.
        on_event: told what an operator would want to read in a log, a sentence each.
        gate: asked at the cut-over whether the target may be opened.
        compare: which of these keys of a database differ between the ends.
        one_go: cut over without waiting for `complete`; a gate that refuses is a failure.
    """

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        settings: TransferSettings,
        *,
        checkpoints: CheckpointStore,
        on_progress: Callable[[Progress], None],
        on_event: Callable[[str], None],
        gate: Gate,
        compare: Compare = _cannot_compare,
        one_go: bool = False,
    ) -> None:
        self._settings = settings
        self._checkpoints = checkpoints
        self._on_progress = on_progress
        self._on_event = on_event
        self._gate = gate
        self._compare = compare
        self._target = RestoreWriter(target, settings)
        self._target.on_event = on_event
        self._source = ScanSource(source, settings)
        self._tally = Tally()
        self._copy: Copy | None = None
        self._phase = Phase.CONNECT
        self._steps: list[Step] = []
        self._reason = ""
        self._total_keys = 0
        self._began = 0.0
        self._copy_seconds = 0.0
        self._forced = False
        self._stopping = False
        self._one_go = one_go
        self._word = asyncio.Event()
        if one_go:
            self._word.set()
        self._task: asyncio.Task[None] | None = None

    # --- The operator's words ---

    def complete(self, *, force: bool = False) -> None:
        """Cut over as soon as everything is copied; with `force` end at once, without a check."""
        self._forced = self._forced or force
        self._word.set()
        if force and self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Stop soon. What is acknowledged stays, and the checkpoint with it."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()

    @property
    def progress(self) -> Progress:
        """How things stand now."""
        tally, now = self._tally, asyncio.get_running_loop().time()
        rate = tally.rate(now) if self._phase is Phase.SNAPSHOT else 0.0
        left = max(self._total_keys - tally.keys - tally.skipped, 0)
        copied = self._phase in (Phase.COPIED, Phase.CUT_OVER, Phase.DONE)
        return Progress(
            phase=self._phase,
            source_type=self._settings.source_type,
            keys=tally.keys,
            bytes=tally.bytes,
            total_keys=self._total_keys,
            skipped=tally.skipped,
            vanished=tally.vanished,
            not_carried=tally.not_carried_total,
            retries=self._target.retries + (self._copy.restarts if self._copy else 0),
            reconnects=self._target.reconnects,
            keys_per_second=rate,
            seconds=now - self._began if self._began else 0.0,
            eta_seconds=left / rate if rate else (0.0 if copied else None),
            can_complete=self._phase is Phase.COPIED,
            reason=self._reason,
        )

    # --- The run ---

    async def run(self) -> Report:
        """Run to the end and report; a failure of the transfer is in the report, not raised."""
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._task = asyncio.create_task(self._phases())
        if self._stopping or self._forced:
            self._task.cancel()
        errors: list[str] = []
        status: Status = "done"
        try:
            await self._task
        except asyncio.CancelledError:
            status = "stopped"
            if self._forced and not self._stopping:
                errors.append(f"ended by force: {self._not_in_sync()}")
                self._on_event(errors[-1])
            else:
                # By `stop`, or because whoever awaits us was cancelled: that comes to the same.
                current = asyncio.current_task()
                if current is not None and not self._stopping:
                    current.uncancel()
            self._reason = errors[-1] if errors else "stopped; what is acknowledged stays"
            self._enter(Phase.STOPPED)
        except EngineError as exc:
            status = "failed"
            errors.append(explain(exc))
            self._reason = errors[-1]
            self._enter(Phase.FAILED)
        finally:
            await self._source.close()
            await self._target.close()
        await self._save_last(errors)
        return self._report(status, errors, loop.time() - self._began)

    async def _phases(self) -> None:
        # 1. Both ends are there, and what was acknowledged before is known.
        with self._step("connect"):
            patience = self._settings.retry_seconds
            before = self._checkpoints.load()
            position = before.position if before is not None else None
            await _insist(self._target.open, patience, self._on_event)
            self._source.bulk_limit = self._target.bulk_limit
            await _insist(lambda: self._source.open(position), patience, self._on_event)
            if position is not None and not self._source.continues(position):
                self._on_event("the source was restarted: the checkpoint is void")
                before = position = None
            if before is not None and not self._target.info.same_data_as(before.target_identity):
                self._on_event("the target was restarted or replaced: the checkpoint is void")
                before = position = None
                await self._source.close()
                await self._source.open(None)
            self._tally = Tally(before)
            self._total_keys = self._source.total_keys
        # 2. Every key that SCAN names is acknowledged.
        self._enter(Phase.SNAPSHOT)
        with self._step("snapshot"):
            self._copy = Copy(
                self._source,
                self._target,
                self._settings,
                self._tally,
                position=position,
                on_event=self._on_event,
                compare=self._compare,
            )
            await self._ticking(self._copy.run())
        # 3. The operator's word; a gate that refuses leads back here.
        self._reason = "copied; later writes to the source are not followed"
        while True:
            self._enter(Phase.COPIED)
            with self._step("wait"):
                await self._word.wait()
            self._word.clear()
            # 4. Cut-over: the target may be opened if both ends agree.
            self._enter(Phase.CUT_OVER)
            with self._step("verify"):
                result = await self._pass_gate()
            self._reason = result.reason
            if result.ok:
                break
            self._on_event(f"cut-over refused: {result.reason}")
            if self._one_go:
                raise TransferFailed(result.reason)
        self._enter(Phase.DONE)

    async def _pass_gate(self) -> GateResult:
        lost = self._tally.not_carried_total
        if lost:
            return GateResult(False, f"{lost:,} keys were not carried")
        return await self._gate()

    def _not_in_sync(self) -> str:
        if self._phase in (Phase.COPIED, Phase.CUT_OVER):
            return "everything SCAN named is copied, and was not verified"
        tally = self._tally
        return (
            f"in {self._phase}, with {tally.keys:,} of about {self._total_keys:,} keys acknowledged"
        )

    # --- Telling ---

    def _enter(self, phase: Phase) -> None:
        self._phase = move(self._phase, phase)
        self._on_progress(self.progress)

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Time a step; a step that takes no time worth telling is left out."""
        loop = asyncio.get_running_loop()
        began, keys, moved = loop.time(), self._tally.keys, self._tally.bytes
        try:
            yield
        finally:
            seconds = loop.time() - began
            tally = self._tally
            if name == "snapshot":
                self._copy_seconds = seconds
            if name != "wait" or seconds >= _WAIT_WORTH_TELLING:
                self._steps.append(Step(name, seconds, tally.keys - keys, tally.bytes - moved))

    async def _ticking(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`; meanwhile tell the progress and write the checkpoint."""
        task = asyncio.create_task(work)
        saved: ScanPosition | None = None
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_TICK_SECONDS)
                checkpoint = self._tally.checkpoint(self._target.info.identity)
                if checkpoint is not None and checkpoint.position != saved:
                    # It was acknowledged before this line; the write may take its time.
                    await asyncio.to_thread(self._checkpoints.save, checkpoint)
                    saved = checkpoint.position
                self._on_progress(self.progress)
            await task
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, EngineError):
                    await task

    async def _save_last(self, errors: list[str]) -> None:
        if self._copy is None:
            return
        checkpoint = self._tally.checkpoint(self._target.info.identity)
        if checkpoint is None:
            return
        try:
            await asyncio.to_thread(self._checkpoints.save, checkpoint)
        except StateError as exc:
            if not errors:
                errors.append(explain(exc))

    def _report(self, status: Status, errors: list[str], seconds: float) -> Report:
        tally, progress = self._tally, self.progress
        moved = tally.keys - tally.keys_before
        return Report(
            status=status,
            keys=tally.keys,
            bytes=tally.bytes,
            seconds=seconds,
            keys_per_second=moved / self._copy_seconds if self._copy_seconds else 0.0,
            skipped=tally.skipped,
            vanished=tally.vanished,
            retries=progress.retries,
            reconnects=progress.reconnects,
            not_carried=tuple(tally.not_carried),
            not_carried_total=tally.not_carried_total,
            errors=tuple(errors + tally.beyond()),
            steps=tuple(self._steps),
        )
