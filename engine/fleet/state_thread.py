"""The one thread that talks to the state while a transfer runs.

The event loop hands it progress and events and never waits for the disk. In turn it reads what the
operator asks for. A state that fails for longer than `GIVE_UP` ends the transfer: a migration that
cannot be seen or stopped must not go on.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeVar

from engine import logs
from engine.errors import StateError
from engine.groups.claimed_transfer import ClaimedTransfer
from engine.groups.schema import LANE
from engine.groups.states import Request
from engine.groups.store import TransientStateError
from engine.model.checkpoint import Checkpoint
from engine.model.lane_plan import PlannedLane
from engine.model.progress import ENDS, Phase, Progress
from engine.model.retry import Deadline, retry_blocking
from engine.model.throttle import Steering

_log = logs.logger(__name__)
POLL = 0.2
"""Seconds between looks at what the operator asks for."""
PROGRESS_EVERY = 0.5
BEAT_EVERY = 1.0
GIVE_UP = 10.0
"""For how long (seconds) a full disk or a locked database is tried again."""
EVENTS_LIMIT = 1000
"""Events that wait to be written; beyond it the oldest are dropped."""

T = TypeVar("T")


def persist(action: Callable[[], T]) -> T:
    """Run `action`; while the state has an error that may pass, again, for `GIVE_UP` seconds."""
    return retry_blocking(action, Deadline(GIVE_UP, POLL), TransientStateError)


class StateCheckpointStore:
    """The checkpoint store that a transfer is handed: the state's, of one lane. Remembers its
    failure."""

    def __init__(self, claimed: ClaimedTransfer, lane: str = LANE) -> None:
        self._claimed = claimed
        self._lane = lane
        # The store whose failure is that of all lanes.
        self._of: StateCheckpointStore | None = None
        self.failure: StateError | None = None

    def load(self) -> Checkpoint | None:
        """The last checkpoint saved. Raises `StateError`."""
        return self._kept(lambda: self._claimed.load_checkpoint(self._lane))

    def save(self, checkpoint: Checkpoint) -> None:
        """Make `checkpoint` durable before returning. Raises `StateError`."""
        self._kept(lambda: self._claimed.save_checkpoint(checkpoint, self._lane))
        _log.debug("The checkpoint is in the state", extra={"keys": checkpoint.keys})

    @property
    def lanes(self) -> tuple[PlannedLane, ...]:
        """The lanes that the start has planned."""
        return self._claimed.record.plans

    def plan(self, lanes: tuple[PlannedLane, ...]) -> None:
        """Keep which lanes there are. Raises `StateError`."""
        self._kept(lambda: self._claimed.plan(lanes))

    def of_lane(self, name: str) -> StateCheckpointStore:
        """The store of a lane."""
        found = StateCheckpointStore(self._claimed, name)
        found._of = self
        return found

    def _kept(self, action: Callable[[], T]) -> T:
        try:
            # Patience once: a transfer that ends for this reason tries to save a last time.
            return persist(action) if self.failure is None else action()
        except StateError as error:
            self.failure = error
            if self._of is not None:
                self._of.failure = error
            raise


class StateThread:
    """Writes down a running transfer and listens for the operator.

    `on_request`, `on_steering` and `on_failure` are called on the event loop that `start` was
    called on.
    """

    def __init__(
        self,
        claimed: ClaimedTransfer,
        *,
        on_request: Callable[[Request], None],
        on_steering: Callable[[Steering], None],
        on_failure: Callable[[StateError], None],
    ) -> None:
        self._claimed = claimed
        self._on_request = on_request
        self._on_steering = on_steering
        self._steering: Steering | None = None
        self._on_failure = on_failure
        self._progress: Progress | None = None
        self._written: Progress | None = None
        self._of_lanes: Mapping[str, Progress] | None = None
        self._written_at = self._beaten_at = 0.0
        self._events: deque[str] = deque(maxlen=EVENTS_LIMIT)
        self._refusal: str | None = None
        self._asked = Request.NONE
        self._failing_since: float | None = None
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread
        self.failure: StateError | None = None

    # --- On the event loop ---

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        # Its lines of the log, and what it calls on the loop, are the migration's.
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="bookkeeper", daemon=True
        )
        self._thread.start()

    def progress(self, progress: Progress, of_lanes: Mapping[str, Progress] | None = None) -> None:
        """The latest progress, and that of each lane if it is known anew; a cut-over that led back
        was refused."""
        last = self._progress
        self._progress = progress
        if of_lanes is not None:
            self._of_lanes = of_lanes
        if last is None or last.phase is progress.phase:
            return
        led_back = last.phase is Phase.CUT_OVER and progress.phase not in ENDS
        # One that is tried again by itself is still asked for, and waited for.
        if led_back and not progress.trying_again:
            self._refusal = progress.reason
        self._wake.set()

    def event(self, message: str) -> None:
        """Something that happened, for the group's events."""
        self._events.append(message)
        self._wake.set()

    async def close(self) -> None:
        """Write what is left, and end the thread. A failure is in `failure`."""
        self._closing = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    # --- On the thread ---

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.wait(POLL)
                self._wake.clear()
                self._turn()
            if self.failure is None:
                self._turn()
        except Exception as error:
            # Whatever it is: a bookkeeper that is gone unnoticed is worse.
            known = isinstance(error, StateError)
            failure = error if known else StateError(f"the state's writer broke: {error!r}")
            assert isinstance(failure, StateError)
            self.failure = failure
            self._loop.call_soon_threadsafe(self._on_failure, failure)

    def _turn(self) -> None:
        try:
            self._write()
        except TransientStateError as error:
            now = time.monotonic()
            if self._failing_since is None:
                self._failing_since = now
                _log.warning("The state cannot be written, and the engine tries again: %s", error)
            if self._closing or now - self._failing_since >= GIVE_UP:
                raise
        else:
            if self._failing_since is not None:
                _log.info("The state can be written again")
            self._failing_since = None

    def _write(self) -> None:
        while self._events:
            self._claimed.add_event(self._events[0])
            self._events.popleft()
        if self._refusal is not None:
            self._claimed.refuse(self._refusal)
            self._refusal = None
            self._asked = Request.NONE
        request = self._beat()
        if request is not self._asked:
            self._asked = request
            self._loop.call_soon_threadsafe(self._on_request, request)
        steering = self._claimed.read_steering()
        if steering is not None and steering != self._steering:
            self._steering = steering
            self._loop.call_soon_threadsafe(self._on_steering, steering)

    def _beat(self) -> Request:
        now, latest = time.monotonic(), self._progress
        # An end is written by `ClaimedTransfer.finish`, together with its status.
        going_on = latest is not None and latest.phase not in ENDS
        fresh = going_on and latest != self._written
        turned = fresh and (self._written is None or latest.phase != self._written.phase)  # type: ignore[union-attr]
        if fresh and (turned or self._closing or now - self._written_at >= PROGRESS_EVERY):
            of_lanes, self._of_lanes = self._of_lanes, None
            request = self._claimed.beat(latest, of_lanes)
            self._written, self._written_at, self._beaten_at = latest, now, now
            return request
        if now - self._beaten_at >= BEAT_EVERY:
            self._beaten_at = now
            return self._claimed.beat(None)
        return self._claimed.read_request()
