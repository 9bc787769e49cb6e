"""What the ways of moving data share: the phase, the steps, the counters, the operator's word."""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

from engine import logs
from engine.errors import FaultOf, LinkError, ServerError
from engine.model.backoff import Patience
from engine.model.progress import ENDS, Phase, Progress
from engine.model.report import Step
from engine.model.retry import Attempts
from engine.model.settings import TransferSettings
from engine.model.throttle import Steering, Throttle
from engine.model.transient_errors import transient
from engine.model.verification import Verification
from engine.transfer.phases import move
from engine.transfer.shared_promotion import Peers
from engine.transfer.stats import TransferStats
from engine.transfer.switch_hook import OnSwitch
from engine.wire.dial import Untrusted

_log = logs.logger(__name__)
_WAIT_WORTH_TELLING = 0.05
# From one word of a pause to the next, in seconds.
_TELL_SECONDS = 0.5
_NOT_NOW = transient("dial")
_COMPLETABLE = frozenset({Phase.FOLLOW, Phase.COPIED})
_IN_SYNC = frozenset({Phase.COPIED, Phase.CATCH_UP, Phase.FOLLOW, Phase.CUT_OVER, Phase.DONE})


class Orders:
    """What the operator wants of a migration: of all its lanes alike."""

    def __init__(self, *, one_go: bool, steering: Steering) -> None:
        self.one_go = one_go
        """The cut-over is not waited for: it is wanted as soon as it can be."""
        self.word = asyncio.Event()
        """Set when the operator wants the cut-over."""
        self.skip_verification = False
        """Whether the operator wants that cut-over without the comparison of both ends."""
        self.steering = steering
        """How fast data is to be moved, and whether it is paused."""
        self._throttles: weakref.WeakSet[Throttle] = weakref.WeakSet()
        if one_go:
            self.word.set()

    def throttle(self) -> Throttle:
        """The throttle of one more lane."""
        made = Throttle(self.steering)
        self._throttles.add(made)
        return made

    def steer(self, steering: Steering) -> None:
        """This is how fast data is to be moved from now on."""
        self.steering = steering
        for each in list(self._throttles):
            each.steer(steering)


class MigrationContext:
    """Where one lane of a transfer stands, and what is told of it.

    `lane`: its name; empty for a transfer's only one. A transfer that does not follow has one.
    `title`: what people read for it.
    """

    def __init__(
        self,
        settings: TransferSettings,
        *,
        on_progress: Callable[[Progress], None],
        on_event: Callable[[str], None],
        orders: Orders,
        peers: Peers,
        on_switch: OnSwitch | None = None,
        lane: str = "",
        title: str = "",
    ) -> None:
        self.settings = settings
        self.on_switch = on_switch
        self.orders = orders
        self.throttle = orders.throttle()
        self.peers = peers
        self.lane = lane
        self.title = title
        self.on_event = on_event
        self._on_progress = on_progress
        self.phase = Phase.CONNECT
        self.source_type: str = settings.source_type
        self.reason = ""
        self.can_complete = False
        self.only_uncomparable = False
        """Nothing but `uncomparable` closes the gate."""
        self.few_replicas = ""
        """What the target lacks of the replicas that are asked for (`--durability`)."""
        self.passing = False
        """What closes the gate may pass in a moment, by itself: an order waits for it."""
        self.advice = ""
        """What a refusal adds to the reason where that does not pass."""
        self.trying_again = self.lets_scripts = False
        """A cut-over that came to nothing is tried again by itself: it is not refused yet."""
        # What is waited for just now, by its waiter.
        self._troubles: dict[str, str] = {}
        # Of what went on with the lane before, in this run of the engine.
        self._keys_before: int | None = None
        self._commands_before = 0
        self.stats: TransferStats
        self.count_with(TransferStats())
        self.total_keys: int | None = None
        """The source's own count; None: it was not asked yet."""
        self.failed_dials = 0
        """How many times an end could not be opened at the start."""
        self.steps: list[Step] = []
        self.copy_seconds = 0.0
        self.began = 0.0
        self.figures: Callable[[], dict[str, Any]] = dict
        """Members of `Progress` that only the way of moving knows."""
        self.verification: Verification | None = None
        """What the last comparison of both ends has shown."""
        self.lost: dict[str, str] = {}
        """Libraries and the like that the target does not have as the source: {name: why}."""
        self.uncomparable: str | None = ""
        """Why both ends cannot be compared with the users that there are; empty: nothing is known
        against it. None: that is still to be asked."""

    @property
    def one_go(self) -> bool:
        """As of `Orders`."""
        return self.orders.one_go

    @property
    def word(self) -> asyncio.Event:
        """As of `Orders`."""
        return self.orders.word

    @property
    def skip_verification(self) -> bool:
        """As of `Orders`."""
        return self.orders.skip_verification

    def event_of(self, end: Literal["source", "target"]) -> Callable[[str], None]:
        """`on_event`, for what happens at one end: the log names that server."""

        def report(text: str) -> None:
            with logs.about(end):
                self.on_event(text)

        return report

    def count_with(self, stats: TransferStats) -> None:
        """From now on this one counts what arrives."""
        self.stats = stats
        if self._keys_before is not None:
            stats.keys_before = self._keys_before
        stats.on_telemetry = stats.on_loss = self.on_event

    def go_on_from(self, former: MigrationContext) -> None:
        """The lane goes on that `former` was the context of: what is told of it counts on."""
        self._keys_before = former.stats.keys_before
        self._commands_before = former.progress.commands
        self.steps, self.copy_seconds = list(former.steps), former.copy_seconds
        self.total_keys = former.total_keys

    def keep_commands(self) -> None:
        """What counts the lane's commands begins anew: those that it has counted stay."""
        self._commands_before = self.progress.commands

    @property
    def lost_words(self) -> str:
        """What of `lost` keeps a gate closed; empty if nothing."""
        return "; ".join(f"{what}: {why}" for what, why in self.lost.items())

    def report_refusal(self, why: str, *, repeated: bool = False) -> None:
        """Tell what `refusal_words` says."""
        self.on_event(self.refusal_words(why, repeated=repeated))

    def refusal_words(self, why: str, *, repeated: bool = False) -> str:
        """That a cut-over was refused, and what asks for the next one: we ourselves, if it is
        `repeated`, where no operator can."""
        if self.one_go:
            follows = (
                "the engine tries it again by itself"
                if repeated
                else "the engine does not try it again"
            )
        elif self.settings.auto_cut_over:
            follows = "the engine tries it again within about a minute"
        else:
            follows = "run complete-migration to try it again"
        return f"cut-over refused: {why.removesuffix('.')}; {follows}"

    def enter(self, phase: Phase, *, publish: bool = True) -> None:
        """Move to `phase`, and tell, unless the caller is going to: a phase that can be
        completed is published together with its gate.
        """
        self.phase = move(self.phase, phase)
        if phase not in _COMPLETABLE:
            self.can_complete = self.only_uncomparable = False
        if phase in ENDS:
            # Nothing is waited for any more.
            self._troubles.clear()
        if publish:
            self.publish()

    def lead_back(self, phase: Phase, reason: str) -> None:
        """A cut-over came to nothing, for `reason`: back to `phase`. That is told whatever is
        waited for just now: it is the reason of the refusal."""
        self.reason = reason
        self.enter(phase, publish=False)
        self._on_progress(replace(self.progress, reason=reason))

    def publish(self) -> None:
        """Tell how things stand now."""
        self._on_progress(self.progress)

    @property
    def progress(self) -> Progress:
        """How things stand now."""
        stats, now = self.stats, asyncio.get_running_loop().time()
        rate = stats.rate(now) if self.phase is Phase.SNAPSHOT else 0.0
        left = max((self.total_keys or 0) - stats.keys - stats.skipped, 0)
        steering, paused = self.throttle.steering, self.throttle.paused
        if self.phase in ENDS:
            paused = ""
        members: dict[str, Any] = {
            "phase": self.phase,
            "source_type": self.source_type,
            "keys": stats.keys,
            "bytes": stats.bytes,
            "total_keys": self.total_keys,
            "skipped": stats.skipped,
            "vanished": stats.vanished,
            # Before there is a way that counts its own beside them.
            "retries": self.failed_dials,
            "not_carried": stats.not_carried_total,
            "evicted_keys": stats.evictions.known,
            "keys_per_second": rate,
            "seconds": now - self.began if self.began else 0.0,
            "eta_seconds": left / rate if rate else (0.0 if self.phase in _IN_SYNC else None),
            "trying_again": self.trying_again,
            "lets_scripts": self.lets_scripts,
            "can_complete": self.can_complete and not (self._troubles or paused),
            "uncomparable": self.only_uncomparable and not (self._troubles or paused),
            "max_rate": steering.max_rate or None,
            "max_key_rate": steering.max_key_rate or None,
            "paused": paused,
            "throttled": "" if self.phase in ENDS else self.throttle.throttled,
            "reason": self.trouble or paused or self.reason,
        }
        members |= self.figures()
        members["commands"] = members.get("commands", 0) + self._commands_before
        return Progress(**members)

    # --- What is waited for ---

    @property
    def trouble(self) -> str:
        """What is waited for just now, and what is tried next; empty: nothing."""
        return "; ".join(self._troubles.values())

    def trouble_of(self, whose: str) -> Callable[[str], None]:
        """What tells us of the trouble that `whose` has; with an empty text, that it has none."""

        def report(text: str) -> None:
            if text:
                self._troubles[whose] = text
            elif self._troubles.pop(whose, None) is None:
                return
            self.publish()

        return report

    async def unpaused(self) -> None:
        """Wait until it is not paused any more, and tell so meanwhile."""
        while self.throttle.paused:
            self.publish()
            await self.throttle.unpaused(_TELL_SECONDS)

    async def takes_word(self) -> bool:
        """The operator's word, which was heard, is taken. False: it is not, for the migration is
        paused: the cut-over was refused, which is shown as a phase to whatever waits for an answer.
        """
        if self.one_go:
            await self.throttle.unpaused()
        elif paused := self.throttle.paused:
            self.word.clear()
            self.report_refusal(paused)
            self.enter(Phase.CUT_OVER)
            self.lead_back(Phase.COPIED, paused)
            return False
        self.word.clear()
        return True

    def end(self, phase: Phase, reason: str) -> None:
        """The transfer is over, for `reason`."""
        self.reason = reason
        self.can_complete = self.only_uncomparable = False
        self.enter(phase)

    def patience(
        self, whose: str, *, ended: str, next_step: str, fault: FaultOf, limit: float = math.inf
    ) -> Patience:
        """Waits for what passes by itself, for as long as the operator wants, and tells us.

        `limit`: seconds that are enough, whatever the operator wants.
        """
        return Patience(
            min(self.settings.retry_for, limit),
            ended=ended,
            next_step=next_step,
            fault=fault,
            report=self.trouble_of(whose),
            event=self.on_event,
        )

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step; a wait that takes no time worth telling is left out."""
        loop = asyncio.get_running_loop()
        began, keys, moved = loop.time(), self.stats.keys, self.stats.bytes
        try:
            yield
        finally:
            seconds = loop.time() - began
            stats = self.stats
            if name == "snapshot":
                self.copy_seconds += seconds
            if name not in ("wait", "follow") or seconds >= _WAIT_WORTH_TELLING:
                done = Step(name, seconds, stats.keys - keys, stats.bytes - moved)
                self.steps.append(done)
                _log.info(
                    "Step %s ends",
                    name,
                    extra={"seconds": round(seconds, 3), "keys": done.keys, "bytes": done.bytes},
                )

    async def insist(
        self, open_end: Callable[[], Awaitable[object]], side: Literal["source", "target"]
    ) -> None:
        """Open an end. One that is not there, or there and says "not now", is waited for.

        Raises what `open_end` raises of another kind; `TransferStopped`.
        """
        patience = self.patience(
            f"the {side} at the start",
            ended=f"the {side} could not be reached",
            next_step=f"the {side} is connected to again",
            fault=side,
        )
        async for attempt in Attempts(patience):
            try:
                await open_end()
                patience.progress()
                return
            except Untrusted:
                raise
            except (LinkError, ServerError) as exc:
                if isinstance(exc, ServerError) and exc.code not in _NOT_NOW:
                    raise
                self.failed_dials += 1
                attempt.failed(exc.message, remedy=exc.remedy)
