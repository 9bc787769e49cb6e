"""Runs as plain tables, as ratios within the run, and as JSON to compare with later ones."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benches.adapters.base import Measurement

MIB = 1 << 20

BUSY = 0.95
"""From this share of a core on a process counts as fully busy: the one that all wait for."""

OTHERS = 0.1
"""From so many cores on, taken by anything else on the machine, a rate is called too low."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure of the engine should reach on the machine class that the goals are for."""

    value: float
    at_least: bool

    def met(self, value: float) -> bool:
        """Whether the figure is good enough."""
        return value >= self.value if self.at_least else value <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:g}"


_RSS = Goal(150, at_least=False)
GOALS: dict[tuple[str, str], Goal] = {
    ("strings", "engine ÷ bound"): Goal(0.88, at_least=True),
    ("strings", "engine ÷ redis_py_loop"): Goal(8, at_least=True),
    ("strings", "engine ÷ redis_shake_scan"): Goal(2.8, at_least=True),
    ("strings", "engine CPU, µs/key"): Goal(0.8, at_least=False),
    ("strings", "engine peak RSS, MiB"): _RSS,
    ("strings", "engine_replica ÷ replicaof"): Goal(1.18, at_least=True),
    ("strings", "engine_replica ÷ redis_shake_sync"): Goal(2.9, at_least=True),
    ("strings", "engine_replica CPU, µs/key"): Goal(0.7, at_least=False),
    ("strings", "engine_replica peak RSS, MiB"): _RSS,
    ("mixed", "engine_replica ÷ replicaof"): Goal(1.35, at_least=True),
    ("mixed", "engine_replica ÷ redis_shake_sync"): Goal(13, at_least=True),
    ("mixed", "engine_replica_tuned ÷ engine_replica"): Goal(1.6, at_least=True),
    ("mixed", "engine_replica peak RSS, MiB"): _RSS,
    ("large", "engine_replica peak RSS, MiB"): _RSS,
    ("mixed", "engine ÷ bound"): Goal(0.85, at_least=True),
    ("mixed", "engine peak RSS, MiB"): _RSS,
    ("large", "engine peak RSS, MiB"): _RSS,
}


@dataclass(slots=True)
class SetResult:
    """All runs over one data set. `rounds` holds, per round, each rival's measurement."""

    name: str
    keys: int
    bytes: int
    rounds: list[dict[str, Measurement]]
    failures: dict[str, str]

    def of(self, adapter: str) -> list[Measurement]:
        """This rival's measurements, in order of the rounds."""
        return [round_[adapter] for round_ in self.rounds if adapter in round_]

    def adapters(self) -> list[str]:
        """Those that ran, in order."""
        return list(dict.fromkeys(name for round_ in self.rounds for name in round_))


def seconds_of(run: Measurement) -> float:
    """The time that a rate is computed from: the tool's own if it says one, else its lifetime."""
    return run.own_seconds or run.seconds


def rate(run: Measurement) -> float:
    """Keys a second."""
    return run.keys / seconds_of(run)


def _median(runs: Iterable[Measurement], figure: Callable[[Measurement], float]) -> float:
    return statistics.median(map(figure, runs))


def _busiest(runs: Sequence[Measurement], name: str) -> str:
    """Which process was at a full core; in brackets the busiest one where none was."""
    if name == "raw_bounds":
        return "one server each"
    # The servers do nothing while a tool starts up.
    shares = {
        "source": _median(runs, lambda run: run.cpu_source / seconds_of(run)),
        "target": _median(runs, lambda run: run.cpu_target / seconds_of(run)),
        "tool": _median(runs, lambda run: run.cpu_tool / run.seconds),
    }
    full = [f"{who} {share:.0%}" for who, share in shares.items() if share >= BUSY]
    if full:
        return ", ".join(full)
    who = max(shares, key=lambda each: shares[each])
    return f"({who} {shares[who]:.0%})"


def table(result: SetResult) -> str:
    """One line a rival, medians over the rounds."""
    head = [
        "",
        "keys/s",
        "MB/s",
        "s",
        "life s",
        "CPU s: src",
        "tool",
        "tgt",
        "µs/key: src",
        "tool",
        "tgt",
        "RSS MiB",
        "tree",
        "at 100 % of a core",
    ]
    rows = []
    for name in result.adapters():
        runs = result.of(name)

        def per_key(
            figure: Callable[[Measurement], float], runs: Sequence[Measurement] = runs
        ) -> str:
            return f"{_median(runs, lambda run: figure(run) / run.keys) * 1e6:.2f}"

        rows.append(
            [
                name,
                f"{_median(runs, rate):,.0f}",
                f"{_median(runs, lambda run: run.bytes / seconds_of(run)) / 1e6:,.1f}",
                f"{_median(runs, seconds_of):.2f}",
                f"{_median(runs, lambda run: run.seconds):.2f}",
                f"{_median(runs, lambda run: run.cpu_source):.2f}",
                f"{_median(runs, lambda run: run.cpu_tool):.2f}",
                f"{_median(runs, lambda run: run.cpu_target):.2f}",
                per_key(lambda run: run.cpu_source),
                per_key(lambda run: run.cpu_tool),
                per_key(lambda run: run.cpu_target),
                f"{_median(runs, lambda run: run.peak_rss_tool) / MIB:.0f}",
                f"{_median(runs, lambda run: run.peak_tree_tool) / MIB:.0f}",
                _busiest(runs, name),
            ]
        )
    lines = [_title(result), *_aligned([head, *rows])]
    if bounds := result.of("raw_bounds"):
        each = [
            f"{phase} {_median(bounds, lambda run, p=phase: run.extra[p + '_us_per_key']):.2f} µs"  # type: ignore[misc]
            f" ({_median(bounds, lambda run, p=phase: run.extra[p + '_keys_per_second']):,.0f}/s)"  # type: ignore[misc]
            for phase in ("scan", "dump_pttl", "restore")
        ]
        bound = _median(bounds, lambda run: run.extra["bound_keys_per_second"])
        lines.append(
            f"one server alone: {', '.join(each)}; the scan path's bound is {bound:,.0f} keys/s"
        )
    lines += [f"{name}: {why}" for name, why in result.failures.items()]
    for name in result.adapters():
        others = _median(result.of(name), lambda run: run.extra.get("others_cores", 0.0))
        if others > OTHERS:
            lines.append(f"{name}: other processes took {others:.2f} cores: its rate is too low")
    notes = {name: result.of(name)[-1].note for name in result.adapters()}
    lines += [f"{name}: {note}" for name, note in notes.items() if note]
    return "\n".join(lines)


def _title(result: SetResult) -> str:
    rounds = len(result.rounds)
    return (
        f"== {result.name}: {result.keys:,} keys, {result.bytes / 1e6:,.1f} MB, "
        f"{'one run' if rounds == 1 else f'medians of {rounds} runs'}"
    )


def ratios(result: SetResult) -> dict[str, float]:
    """The engine against the others, each ratio taken within its round, then the median."""
    found: dict[str, list[float]] = {}
    for round_ in result.rounds:
        for name, value in _replica_ratios(round_):
            found.setdefault(name, []).append(value)
        engine = round_.get("engine")
        if engine is None:
            continue
        if bounds := round_.get("raw_bounds"):
            bound = bounds.extra["bound_keys_per_second"]
            found.setdefault("engine ÷ bound", []).append(rate(engine) / bound)
            if snapshot := engine.extra.get("snapshot_seconds"):
                found.setdefault("engine ÷ bound, snapshot step alone", []).append(
                    engine.keys / snapshot / bound
                )
            found.setdefault("engine ÷ bound, whole process", []).append(
                engine.keys / engine.seconds / bound
            )
        for name, other in round_.items():
            if name not in ("engine", "raw_bounds", *_REPLICA):
                found.setdefault(f"engine ÷ {name}", []).append(rate(engine) / rate(other))
        found.setdefault("engine CPU, µs/key", []).append(engine.cpu_tool / engine.keys * 1e6)
        if own := engine.extra.get("own_cpu_seconds"):
            found.setdefault("engine CPU by its own count, µs/key", []).append(
                own / engine.keys * 1e6
            )
        found.setdefault("engine peak RSS, MiB", []).append(engine.peak_tree_tool / MIB)
    return {name: statistics.median(values) for name, values in found.items()}


_REPLICA = ("engine_replica", "engine_replica_tuned")
# What a replica's snapshot is held against; by its own time, without its start-up, as theirs is.
_REPLICA_RIVALS = ("replicaof", "redis_shake_sync")


def _replica_ratios(round_: dict[str, Measurement]) -> Iterator[tuple[str, float]]:
    """The replica path's figures of one round."""
    for name in _REPLICA:
        run = round_.get(name)
        if run is None:
            continue
        for rival in _REPLICA_RIVALS:
            if other := round_.get(rival):
                yield f"{name} ÷ {rival}", rate(run) / rate(other)
        yield f"{name} CPU, µs/key", run.cpu_tool / run.keys * 1e6
        yield f"{name} peak RSS, MiB", run.peak_tree_tool / MIB
    plain, tuned = (round_.get(name) for name in _REPLICA)
    if plain and tuned:
        yield "engine_replica_tuned ÷ engine_replica", rate(tuned) / rate(plain)


def ratio_table(result: SetResult, *, full_size: bool) -> str:
    """The ratios, and the goals where there are some; those are for the full sets only."""
    rows = []
    for name, value in ratios(result).items():
        row = [name, f"{value:.2f}"]
        goal = GOALS.get((result.name, name))
        if goal is not None:
            verdict = ("met" if goal.met(value) else "MISSED") if full_size else "full size only"
            row += [f"goal {goal}", verdict]
        rows.append(row)
    return "\n".join(_aligned(rows))


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns padded to their widest cell, the first to the left and figures to the right."""
    width = max((len(row) for row in rows), default=0)
    full = [row + [""] * (width - len(row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*full, strict=True)]
    last = width - 1
    lines = []
    for row in full:
        cells = [
            cell.ljust(size) if at in (0, last) else cell.rjust(size)
            for at, (cell, size) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


# ---------------------------------------------------------------------------------------------
# JSON


def to_json(results: Sequence[SetResult], about: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, and what it was measured on."""
    return {
        "about": about,
        "sets": {
            result.name: {
                "keys": result.keys,
                "bytes": result.bytes,
                "ratios": ratios(result),
                "failures": result.failures,
                "rounds": [
                    {name: asdict(run) for name, run in round_.items()} for round_ in result.rounds
                ],
            }
            for result in results
        },
    }


def from_json(data: dict[str, Any]) -> list[SetResult]:
    """What `to_json` wrote."""
    return [
        SetResult(
            name=name,
            keys=found["keys"],
            bytes=found["bytes"],
            rounds=[
                {adapter: Measurement(**run) for adapter, run in round_.items()}
                for round_ in found["rounds"]
            ],
            failures=found["failures"],
        )
        for name, found in data["sets"].items()
    ]


def comparison(new: Sequence[SetResult], old_file: Path) -> str:
    """Then and now, a line each for a data set and rival; and the ratios, which travel better."""
    old = {result.name: result for result in from_json(json.loads(old_file.read_text()))}
    rows = [["", "keys/s then", "now", "now ÷ then", "tool µs/key then", "now", "now ÷ then"]]
    for result in new:
        before = old.get(result.name)
        if before is None:
            continue
        if before.keys != result.keys:
            rows.append([f"{result.name}: another size ({before.keys:,} keys)"])
            continue
        for name in result.adapters():
            then, now = before.of(name), result.of(name)
            if not then:
                continue
            row = [f"{result.name} {name}"]
            for figure, form in ((rate, "{:,.0f}"), (_tool_micros, "{:.2f}")):
                one, other = _median(then, figure), _median(now, figure)
                row += [form.format(one), form.format(other), _quotient(other, one)]
            rows.append(row)
        earlier = ratios(before)
        for name, value in ratios(result).items():
            if name in earlier:
                one = earlier[name]
                rows.append([f"{result.name} {name}", f"{one:.2f}", f"{value:.2f}"])
                rows[-1].append(_quotient(value, one))
    return "\n".join([f"== compared with {old_file}", *_aligned(rows)])


def _tool_micros(run: Measurement) -> float:
    return run.cpu_tool / run.keys * 1e6


def _quotient(now: float, then: float) -> str:
    return f"{now / then:.2f}" if then else "–"
