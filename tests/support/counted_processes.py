"""Processes of lanes, which a test counts and kills."""

from __future__ import annotations

from engine.fleet.lane_processes import LaneProcess, LaneProcesses


class Counted(LaneProcesses):
    """Notes the processes that were started."""

    def __init__(self) -> None:
        super().__init__(lambda: False)
        self.started: list[LaneProcess] = []

    async def start(self) -> LaneProcess:
        process = await super().start()
        self.started.append(process)
        return process
