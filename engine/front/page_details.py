"""What the page shows of a migration beyond the API's shapes."""

from __future__ import annotations

import math
from typing import Any

from engine.front import client_disconnection, response_shapes
from engine.groups.records import LaneRecord, TransferRecord
from engine.groups.states import GroupStatus
from engine.model.figure import Figure
from engine.model.progress import FIGURES, Phase, Progress
from engine.model.report import Report
from engine.model.sentinel_group import node_address
from engine.model.settings import TransferSettings

_PHASES = list(Phase)
_BEHIND_SNAPSHOT = (Phase.CATCH_UP, Phase.FOLLOW, Phase.COPIED, Phase.CUT_OVER, Phase.DONE)
# It is asked each second, and an answer may take one.
_TARGET_SILENT_SECONDS = 2.0


def details(status: str, transfer: TransferRecord | None) -> dict[str, Any] | None:
    """Where a group's migration comes from, since when, and its gates; or what the last one came
    to. None for a group that never had one."""
    if transfer is None:
        return None
    shown: dict[str, Any] = {
        "Source": response_shapes.endpoint(transfer.source),
        "StartTime": response_shapes.timestamp(transfer.created_at),
    }
    if status == GroupStatus.MIGRATING:
        by_itself = bool(transfer.settings_data.get("auto_cut_over"))
        return {
            **shown,
            "AutoCutOver": by_itself,
            "PausedByOperator": transfer.paused,
            "Gates": gates(transfer),
            "Counters": counters(transfer.known),
            "Shards": shards(transfer),
        }
    ended = {
        "Status": str(transfer.status),
        "EndTime": response_shapes.timestamp(transfer.changed_at),
    }
    found = transfer.source_clients
    seen = (
        {}
        if found is None
        else {"SourceClients": client_disconnection.shape(found, transfer.group_id)}
    )
    blocked = {"SourceBlocked": transfer.report is not None and bool(transfer.report.sealed)}
    return {
        **shown,
        **ended,
        "Phase": transfer.progress.phase,
        **_outcome(transfer.report),
        **blocked,
        **seen,
    }


def shards(transfer: TransferRecord) -> list[dict[str, Any]]:
    """Each lane of a migration with a cluster at an end, the one that is furthest from being
    followed, or behind, first; none where no end is a cluster."""
    leased = transfer.leased()
    return [_shard(transfer, lane, leased) for lane in sorted(transfer.parts, key=_how_far)]


def _how_far(lane: LaneRecord) -> tuple[int, float, float, float]:
    progress = lane.progress
    stands = progress.phase in (Phase.FAILED, Phase.STOPPED)
    copied = progress.keys / progress.total_keys if progress.total_keys else 0.0
    return (
        -1 if stands else _PHASES.index(progress.phase),
        copied if progress.phase is Phase.SNAPSHOT else 0.0,
        # What is not known may be any number.
        -math.inf if progress.lag_bytes is None else -(progress.lag_seconds or 0.0),
        -(progress.lag_bytes or 0),
    )


def _shard(transfer: TransferRecord, lane: LaneRecord, leased: bool) -> dict[str, Any]:
    assert lane.plan is not None
    progress = lane.progress
    ends = (lane.plan.source, transfer.source), (lane.plan.target, transfer.target)
    source, target = (
        node_address(planned.host, planned.port) if planned.ids else str(named)
        for planned, named in ends
    )
    return {
        "Name": lane.title,
        "Source": source,
        "Target": target,
        "Slots": lane.plan.slots.words,
        "Phase": progress.phase.value,
        "Keys": progress.keys,
        "TotalKeys": progress.total_keys,
        "KeysPerSecond": progress.keys_per_second,
        "Commands": progress.commands,
        "LagBytes": progress.lag_bytes if leased else None,
        "LagSeconds": progress.lag_seconds if leased else None,
        "Link": (progress.link or None) if leased else None,
        "Reason": progress.reason,
    }


def counters(progress: Progress) -> list[dict[str, Any]]:
    """The figures that the page lists, those first that may be a worry."""
    shown = sorted((each for each in FIGURES if each.label), key=lambda each: each.worry is None)
    return [_counter(each, getattr(progress, each.name)) for each in shown]


def _counter(each: Figure, value: int | None) -> dict[str, Any]:
    worry = each.worry is not None and value is not None and value > each.worry
    return {"Name": each.label, "Value": value, "Form": each.form, "Worry": worry}


def gates(transfer: TransferRecord) -> list[dict[str, Any]]:
    """What must be so before a cut-over may begin, in the order in which it comes to be so.

    `Open` is None for what takes its time, False for what is in the way. The last
    word is `Migration.CanComplete`: the engine also looks at what no figure shows.
    """
    progress = transfer.known
    leased = transfer.leased()
    behind = progress.phase in _BEHIND_SNAPSHOT
    found = [
        _gate("worker", leased, "a worker process has it" if leased else "no process works on it"),
        _gate("snapshot", True if behind else None, progress.keys_words),
    ]
    if response_shapes.source_type(transfer) != "scan":
        found += [_heard(progress, leased), _target_heard(progress, leased)]
        found += [_caught_up(progress), _lag(progress, _most(transfer), leased)]
    lost = progress.not_carried
    found.append(
        _gate("everything migrated", lost == 0, f"{lost:,} keys not migrated" if lost else "so far")
    )
    found.append(_kept(progress))
    return found


def _kept(progress: Progress) -> dict[str, Any]:
    evicted = progress.evicted_keys
    if evicted is None:
        return _gate("nothing evicted", None, "not known")
    return _gate("nothing evicted", not evicted, f"{evicted:,} keys by the target's memory limit")


def _caught_up(progress: Progress) -> dict[str, Any]:
    if progress.phase not in _BEHIND_SNAPSHOT:
        return _gate("caught up", None, "after the snapshot")
    if progress.phase is Phase.CATCH_UP:
        return _gate("caught up", None, "what was written meanwhile is being applied")
    return _gate("caught up", True, "every write is followed")


def _heard(progress: Progress, leased: bool) -> dict[str, Any]:
    seconds = progress.source_heard_seconds
    if not progress.link or seconds is None:
        return _gate("source heard", None, "not yet" if leased and seconds is None else "not known")
    return _gate(
        "source heard", progress.link == "up", f"link {progress.link}, {seconds:.0f} s ago"
    )


def _target_heard(progress: Progress, leased: bool) -> dict[str, Any]:
    seconds = progress.target_heard_seconds
    if seconds is None:
        return _gate("target heard", None, "not yet" if leased else "not known")
    return _gate("target heard", seconds <= _TARGET_SILENT_SECONDS, f"{seconds:.0f} s ago")


def _lag(progress: Progress, most: tuple[int, float], leased: bool) -> dict[str, Any]:
    if not leased:
        return _gate("lag", None, "not known")
    if progress.lag_unknown:
        return _gate("lag", False, "unknown while the source does not answer")
    if progress.lag_bytes is None or progress.phase not in _BEHIND_SNAPSHOT:
        return _gate("lag", None, "after the snapshot")
    seconds = progress.lag_seconds or 0.0
    within = progress.lag_bytes <= most[0] and seconds <= most[1]
    figure = f"{progress.lag_bytes:,} bytes, at most {most[0]:,}"
    return _gate("lag", within, f"{figure}; {seconds:.1f} s, at most {most[1]:g}")


def _most(transfer: TransferRecord) -> tuple[int, float]:
    """Bytes and seconds by which the target may be behind."""
    data, known = transfer.settings_data, TransferSettings()
    settings = TransferSettings(
        max_lag_bytes=data.get("max_lag_bytes", known.max_lag_bytes),
        cut_over_timeout=data.get("cut_over_timeout", known.cut_over_timeout),
    )
    return settings.max_lag_bytes, settings.max_lag_seconds


def _gate(name: str, is_open: bool | None, figure: str) -> dict[str, Any]:
    return {"Name": name, "Open": is_open, "Figure": figure}


def _outcome(report: Report | None) -> dict[str, Any]:
    return {} if report is None else response_shapes.outcome(report)
