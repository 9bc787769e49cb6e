"""The steps of a cut-over, where something is done once at one of them on one lane."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from engine.transfer import cut_over, migration
from engine.transfer.cut_over import CUT_OVER
from engine.transfer.lane_cut_over import LaneCutOver


@dataclass(frozen=True)
class Moment:
    """Before a step is taken on a lane, or `behind` it."""

    step: str
    lane: str
    behind: bool

    def __str__(self) -> str:
        return f"{'behind' if self.behind else 'before'} {self.step!r} on lane {self.lane!r}"


class Steps:
    """A table like `CUT_OVER`, which does `act` at the moment `at`, once."""

    def __init__(self) -> None:
        self.at: Moment | None = None
        self.act: Callable[[], object] = lambda: None
        self.table = tuple(
            replace(step, act=self._taking(step.name, step.act)) for step in CUT_OVER
        )

    def install(self, put: Callable[[object, str, object], object] = setattr) -> None:
        """Have migrations that begin from now on take these; `put` as `monkeypatch.setattr`."""
        for module in (cut_over, migration):
            put(module, "CUT_OVER", self.table)

    def _taking(
        self, name: str, act: Callable[[LaneCutOver], Awaitable[None]]
    ) -> Callable[[LaneCutOver], Awaitable[None]]:
        async def taking(lane: LaneCutOver) -> None:
            self._look(Moment(name, lane.title, behind=False))
            await act(lane)
            self._look(Moment(name, lane.title, behind=True))

        return taking

    def _look(self, moment: Moment) -> None:
        if self.at == moment:
            self.at = None
            self.act()
