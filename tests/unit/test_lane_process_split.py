"""When lanes that share a process are parted, and which of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.model.lane_plan import PlannedEnd, PlannedLane
from engine.model.settings import TransferSettings
from engine.model.slots import ALL_SLOTS
from engine.transfer import machine_cpu
from engine.transfer.lane_process_split import LaneProcessSplit, Load, Sample, Window, parted
from engine.transfer.overview import Overview


def lane(source: int, target: int) -> PlannedLane:
    """Between a shard and another one."""
    ends = [
        PlannedEnd("host", number, (f"{side}{number}",))
        for side, number in (("s", source), ("t", target))
    ]
    return PlannedLane(f"{source}-{target}", ALL_SLOTS, *ends)


FOUR = [lane(n, n) for n in range(1, 5)]


def load(*cpu: float, idle: float | None = 1.0, **commands: float) -> Load:
    told = {name.strip("_").replace("_", "-"): rate for name, rate in commands.items()}
    return Load(10.0, cpu, idle, told, {})


BUSY = load(0.83, _1_1=10.0, _2_2=100.0, _3_3=50.0, _4_4=60.0)


def test_a_busy_process_gives_half_of_its_commands_away() -> None:
    found = parted(FOUR, [[0, 1, 2, 3]], BUSY, cpus=2)
    assert found is not None
    assert (found.process, found.share) == (0, 0.83)
    # 110 of them, and 110.
    assert sorted(found.groups) == [(0, 1), (2, 3)]


def test_nothing_is_parted() -> None:
    def no(busy: Load, groups: list[list[int]], cpus: int = 8) -> bool:
        return parted(FOUR, groups, busy, cpus) is None

    everything = [[0, 1, 2, 3]]
    assert not no(BUSY, everything)
    # There is no other CPU, or it has something else to do; not the whole core is used.
    assert no(BUSY, everything, cpus=1)
    assert no(load(0.83, idle=0.2), everything)
    assert no(load(0.7), everything)
    # As many processes as CPUs; the process that is busy has one lane.
    assert no(load(0.8, 0.8), [[0, 1], [2, 3]], cpus=2)
    assert no(load(0.1, 0.9), [[0, 1, 2], [3]])


def test_the_busiest_process_that_has_several_lanes() -> None:
    found = parted(FOUR, [[0], [1, 2], [3]], load(0.99, 0.75, 0.1, _1_1=9.0), cpus=4)
    assert found is not None
    assert found.process == 1
    assert sorted(found.groups) == [(0,), (1,), (2,), (3,)]


def test_lanes_that_share_a_server_stay_together() -> None:
    lanes = [lane(1, 1), lane(1, 2), lane(2, 2)]
    assert parted(lanes, [[0, 1, 2]], load(0.9, _1_1=5.0), cpus=4) is None
    found = parted([*lanes, lane(3, 3)], [[0, 1, 2, 3]], load(0.9, _1_1=5.0), cpus=4)
    assert found is not None
    assert sorted(found.groups) == [(0, 1, 2), (3,)]


def sample(at: float, cpu: float, *, caught_up: bool = True) -> Sample:
    return Sample(at, (cpu,), at, {"a": int(at) * 7}, {"a": int(at) * 70}, caught_up)


def test_a_window() -> None:
    """Ten seconds of lanes that follow; a minute where one catches up."""
    window = Window()
    for n in range(10):
        window.note(sample(n, n * 0.5))
        assert window.load is None
    for n in range(10, 100):
        window.note(sample(n, n * 0.5))
        assert window.load == Load(10.0, (0.5,), 1.0, {"a": 7.0}, {"a": 70.0})
    window.clear()
    assert window.load is None
    for n in range(100, 160):
        window.note(sample(n, n * 0.9, caught_up=n % 9 != 0))
        assert window.load is None
    window.note(sample(160, 160 * 0.9))
    assert window.load is not None
    assert window.load.seconds == 60.0
    for n in range(161, 172):
        window.note(sample(n, 160 * 0.9))
    assert window.load.cpu == (0.0,)


def test_lanes_stay_where_they_are() -> None:
    """Where slots have moved those that are new go with those that they share a server with."""
    overview = Overview(TransferSettings(), on_progress=print, on_event=print, one_go=False)
    parting = LaneProcessSplit(overview, TransferSettings())
    assert parting.groups(FOUR) == [[0, 1, 2, 3]]
    parting._note(FOUR, [[0, 1], [2], [3]])
    assert parting.groups(FOUR) == [[0, 1], [2], [3]]
    assert parting.groups([*FOUR, lane(3, 5)]) == [[0, 1], [2, 4], [3]]
    # One that has none there: where there are fewest; and a process without a lane is none.
    assert parting.groups([*FOUR[:3], lane(6, 6)]) == [[0, 1], [2], [3]]
    assert parting.groups([FOUR[1], FOUR[2]]) == [[0], [1]]


async def test_what_a_lane_leaves_out_stays_so_where_its_slots_move() -> None:
    """The lane that had them says that it leaves out nothing before the one that has them asks."""
    overview = Overview(TransferSettings(), on_progress=print, on_event=print, one_go=False)
    overview.lane()
    overview.planned(FOUR[:2])
    overview.peers.crashing[FOUR[0].name] = ((0, b"key"),)
    overview.planned(FOUR)
    overview.peers.crashing[FOUR[0].name] = ()
    assert overview.peers.all_crashing == ((0, b"key"),)


@pytest.mark.parametrize("version", [1, 2])
def test_the_quota_of_a_group(
    version: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The narrowest of those that this process is in, as a service's or a container's."""
    groups, within = tmp_path / "groups", "system.slice/one.service"
    monkeypatch.setattr(machine_cpu, "_GROUPS", groups)
    monkeypatch.setattr(machine_cpu, "_MOUNT", tmp_path)
    controllers = "" if version == 2 else "cpuacct,cpu"
    groups.write_text(f"7:memory:/other\n3:{controllers}:/{within}\n")
    root = tmp_path if version == 2 else tmp_path / "cpu"
    assert machine_cpu._quota() is None

    def limit(folder: Path, quota: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if version == 2:
            (folder / "cpu.max").write_text(f"{'max' if quota is None else quota} 100000\n")
            return
        (folder / "cpu.cfs_quota_us").write_text(f"{-1 if quota is None else quota}\n")
        (folder / "cpu.cfs_period_us").write_text("100000\n")

    limit(root / within, None)
    assert machine_cpu._quota() is None
    limit(root / "system.slice", 250_000)
    assert machine_cpu._quota() == 2
    limit(root / within, 100_000)
    assert machine_cpu._quota() == 1


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_cpu.cpus() >= 1
    before = machine_cpu.idle_seconds()
    if before is not None:
        now = machine_cpu.idle_seconds()
        assert now is not None
        assert now >= before
    monkeypatch.setattr(machine_cpu, "_quota", lambda: 0)
    assert machine_cpu.cpus() == 1
