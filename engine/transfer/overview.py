"""Where a migration stands as a whole: what its lanes tell, put together.

Each lane has a `MigrationContext` of its own. The phase of the whole is that of the lane that is
least advanced (`transfer.phases`), its figures are the lanes' totals (`model.progress.total`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from engine.model.lane_plan import PlannedLane
from engine.model.progress import Phase, Progress, total
from engine.model.report import NotCarried, Step
from engine.model.settings import TransferSettings
from engine.model.throttle import Steering
from engine.model.verification import Verification
from engine.model.verification import total as compared
from engine.transfer.migration_context import MigrationContext, Orders
from engine.transfer.phases import least_advanced
from engine.transfer.shared_promotion import Peers
from engine.transfer.stats import TransferStats
from engine.transfer.switch_hook import OnSwitch

# Between two totals of several lanes of which nothing but figures has changed.
_APART_SECONDS = 0.4


class Overview:
    """The contexts of a migration's lanes. `lane` makes one; there is at least one."""

    def __init__(
        self,
        settings: TransferSettings,
        *,
        on_progress: Callable[[Progress], None],
        on_event: Callable[[str], None],
        one_go: bool,
        on_switch: OnSwitch | None = None,
    ) -> None:
        self.settings = settings
        self.on_event = on_event
        self.on_switch = on_switch
        steering = Steering(settings.max_rate, settings.max_key_rate)
        self.orders = Orders(one_go=one_go, steering=steering)
        self.peers = Peers(settings.parallel_snapshots)
        self._on_progress = on_progress
        self._contexts: list[MigrationContext] = []
        # The lanes change together, and that is published once.
        self._quiet = False
        # What each lane has said of itself last, and when the total was told.
        self._said: dict[MigrationContext, Progress] = {}
        self._told_at = float("-inf")
        # A lane has begun to copy a snapshot.
        self._copies = False

    def lane(self, name: str = "", title: str = "") -> MigrationContext:
        """The context of one more lane. `name` tells it from others, and is empty for a migration's
        only one; `title` is what people read for it, else its name."""
        title = title or name

        def publish(progress: Progress) -> None:
            if not self._quiet and self._is_news(context, progress):
                self._on_progress(self._total(context, progress))

        context = MigrationContext(
            self.settings,
            on_progress=publish,
            on_event=self._naming(title),
            orders=self.orders,
            peers=self.peers,
            on_switch=self.on_switch,
            lane=name,
            title=title,
        )
        self._contexts.append(context)
        return context

    def planned(
        self, lanes: Sequence[PlannedLane], *, parted: bool = False
    ) -> list[MigrationContext]:
        """The contexts of these lanes, in the place of those that there were until they were known:
        the only one, or those of lanes that were planned before. `parted`: the lanes are the same,
        and go on elsewhere."""
        only, before = self._contexts[0], {each.lane: each for each in self._contexts if each.lane}
        # A lane that is new, or has other slots, says anew what it leaves out.
        crashing = self.peers.all_crashing
        self._contexts, self.peers = [], Peers(self.settings.parallel_snapshots)
        self.peers.crashing[""] = crashing
        self._said.clear()
        self._copies = False
        found = [self.lane(each.name, each.title) for each in lanes]
        for each in found:
            each.began, each.failed_dials = only.began, only.failed_dials
            if (former := before.get(each.lane)) is not None:
                each.go_on_from(former)
                if parted:
                    each.phase = Phase.CATCH_UP
        return found

    @property
    def of_lanes(self) -> dict[str, Progress]:
        """How things stand now on each lane, by its name; without one where there is one alone."""
        return {each.lane: each.progress for each in self._contexts}

    def begin(self, now: float) -> None:
        """The transfer begins, at `now` by the loop's clock."""
        for context in self._contexts:
            context.began = now

    def end(self, phase: Phase, reason: str) -> None:
        """The transfer is over, on all its lanes, for `reason`."""
        self._quiet = True
        *others, last = self._contexts
        for context in others:
            context.end(phase, reason)
        self._quiet = False
        last.end(phase, reason)

    @property
    def progress(self) -> Progress:
        """How things stand now."""
        return self._total()

    def _is_news(self, lane: MigrationContext, progress: Progress) -> bool:
        """Whether the total is told, now that a lane has said this: figures of many lanes are put
        together some times a second, what else has changed at once."""
        before, now = self._said.get(lane), time.monotonic()
        self._said[lane] = progress
        same = before is not None and _turns(before) == _turns(progress)
        if same and len(self._contexts) > 1 and now - self._told_at < _APART_SECONDS:
            return False
        self._told_at = now
        return True

    def _known(self, context: MigrationContext) -> Progress:
        """What a lane has said last, unless it stands otherwise by now."""
        said = self._said.get(context)
        gate = context.can_complete and not context.trouble
        if said is None or (said.phase, said.can_complete) != (context.phase, gate):
            return context.progress
        return said

    def _total(
        self, lane: MigrationContext | None = None, progress: Progress | None = None
    ) -> Progress:
        """The total; `progress` is what the lane of `lane` has said of itself, at a moment at which
        the others may be as they said last."""
        if progress is None:
            of_lanes = [context.progress for context in self._contexts]
        else:
            of_lanes = [
                progress if context is lane else self._known(context) for context in self._contexts
            ]
        found = total(
            self._once_a_target(of_lanes),
            self._phase(of_lanes),
            [context.title for context in self._contexts],
        )
        if found.phase is Phase.DONE and len(of_lanes) > 1 and (seen := self.verification):
            # What one of them has compared is not what the migration came to.
            return replace(found, reason=seen.reason)
        return found

    def _phase(self, of_lanes: Sequence[Progress]) -> Phase:
        phases = [each.phase for each in of_lanes]
        found = least_advanced(phases)
        self._copies = self._copies or Phase.SNAPSHOT in phases
        # A lane that waits for its source's snapshot while others have theirs.
        return Phase.SNAPSHOT if found is Phase.CONNECT and self._copies else found

    def _once_a_target(self, of_lanes: Sequence[Progress]) -> list[Progress]:
        """The same, with what a target says of itself told by one of its lanes alone."""
        found = {context.lane: each for context, each in zip(self._contexts, of_lanes, strict=True)}
        for target in self.peers.targets:
            first, *others = target.lanes
            known = [n for lane in target.lanes if (n := found[lane].evicted_keys) is not None]
            evicted = max(known) if len(known) == len(target.lanes) else None
            found[first] = replace(found[first], evicted_keys=evicted)
            for lane in others:
                found[lane] = replace(found[lane], evicted_keys=0)
        return list(found.values())

    def _naming(self, title: str) -> Callable[[str], None]:
        if not title:
            return self.on_event
        return lambda text: self.on_event(f"lane {title}: {text}")

    # --- What a report tells ---

    @property
    def tallies(self) -> list[TransferStats]:
        """The counters of each lane."""
        return [context.stats for context in self._contexts]

    @property
    def steps(self) -> Iterator[Step]:
        """The steps of all lanes, lane by lane."""
        return (
            replace(step, lane=context.title)
            for context in self._contexts
            for step in context.steps
        )

    @property
    def copy_seconds(self) -> float:
        """For how long snapshots were copied: of the lane where that took longest."""
        return max(context.copy_seconds for context in self._contexts)

    @property
    def not_carried(self) -> Iterator[NotCarried]:
        """The names of keys that were not carried."""
        return (each for stats in self.tallies for each in stats.not_carried)

    @property
    def verification(self) -> Verification | None:
        """What the last comparison has shown; None where a lane had none."""
        found = [(context.title, context.verification) for context in self._contexts]
        known = [(title, each) for title, each in found if each is not None]
        if len(known) < len(found) and all(each.ok for _, each in known):
            return None
        return compared(known)


def _turns(progress: Progress) -> tuple[object, ...]:
    """What is told at once when it changes."""
    turns = progress.phase, progress.can_complete, progress.reason, progress.link
    return *turns, progress.paused, progress.throttled
