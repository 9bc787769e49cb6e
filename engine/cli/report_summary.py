"""What a finished transfer is told as: the table of its steps, rates, and what did not arrive."""

from __future__ import annotations

from collections.abc import Iterator

from engine.cli.output_format import clean, duration, table, volume
from engine.model.figure import Figure, counted
from engine.model.report import FIGURES, Report, Step

NAMED_KEYS = 20
"""How many of the keys that were not carried are named; JSON names more (see `Report`)."""


def steps_table(steps: tuple[Step, ...]) -> str:
    """Each step with its duration and what went through it."""
    rows = (
        (
            step.name,
            duration(step.seconds),
            f"{step.keys:,}" if step.keys else "",
            volume(step.bytes) if step.bytes else "",
            "; ".join(filter(None, (step.lane, step.note))),
        )
        for step in steps
    )
    return table(("Step", "Time", "Keys", "Volume", "Note"), rows, right=(1, 2, 3))


def as_text(report: Report) -> str:
    """The whole report for reading."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    if report.steps:
        yield steps_table(report.steps)
        yield ""
    # An append-only file that was gone on with: the keys are all that the target holds.
    resumed = report.source_type == "file" and report.commands and not report.keys_per_second
    rate = "" if resumed else f": {report.keys_per_second:,.0f} keys/s"
    yield (
        f"{report.status.capitalize()}: {report.keys:,} keys, {volume(report.bytes)} in "
        f"{duration(report.seconds)}{rate}."
    )
    found = counted(_words(followed=False), report)
    if found:
        yield f"{'; '.join(found)}."
    if report.source_type == "replica":
        yield _followed(report)
    if report.verification is not None:
        yield f"Compared: {clean(report.verification.reason)}"
    if report.engine.cpu_seconds:
        yield (
            f"The engine used {report.engine.cpu_seconds:.2f} s of CPU and at most "
            f"{volume(report.engine.peak_rss_bytes)} of memory."
        )
    total = max(report.not_carried_total, len(report.not_carried))
    if total:
        named = report.not_carried[:NAMED_KEYS]
        yield f"Not migrated: {total:,} keys."
        yield from (f'  db{each.db} "{clean(each.key)}": {clean(each.reason)}' for each in named)
        if total > len(named):
            yield f"  … and {total - len(named):,} more (--output json names them)"
    if report.losses:
        yield "Migrated with a loss:"
        yield from (f"  {clean(each.words)}" for each in report.losses)
    if report.left_out:
        yield "Left out:"
        yield from (f"  {clean(each)}" for each in report.left_out)
    if report.doubts:
        yield "May differ from the server that wrote the file:"
        yield from (f"  {clean(each)}" for each in report.doubts)
    if report.lost_writes:
        yield f"Not on the target: {clean(report.lost_writes)}."
    yield from (f"Error: {clean(error)}" for error in report.errors)


def _words(*, followed: bool) -> Iterator[tuple[Figure, str]]:
    # What every transfer has comes first.
    ordered = sorted(FIGURES, key=lambda each: not each.usual)
    return ((each, each.report) for each in ordered if each.followed is followed)


def _followed(report: Report) -> str:
    """In one line, what following the source took."""
    parts = [f"{report.commands:,} commands applied"]
    if report.applied_offset is not None:
        parts[0] += f", up to offset {report.applied_offset}"
    parts += counted(_words(followed=True), report)
    if report.spool_bytes:
        parts.append(f"at most {volume(report.spool_bytes)} spooled")
    if report.fence_seconds is not None:
        last = f" (the shard {report.last_shard} was last)" if report.last_shard else ""
        parts.append(f"writes blocked for {duration(report.fence_seconds)}{last}")
    return f"Read as a replica: {'; '.join(parts)}."
