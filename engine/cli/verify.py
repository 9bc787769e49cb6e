"""verify: compare every key of two deployments."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Literal

import typer

from engine.cli import sizes
from engine.cli.common_options import OutputOption, endpoint, understood
from engine.cli.error_output import complain, error_object, unwritten_output
from engine.cli.output_format import as_json, clean, duration, table, volume
from engine.cli.verb_runner import INTERRUPTED, perform
from engine.errors import Interrupted
from engine.model.cluster_shard import AddressMap
from engine.model.proof import EXIT_CODES, ProofProgress, ProofReport, ProofSettings

_SHOWN_MOST = 20
# On a terminal one line is drawn anew this often; in a pipe there is one now and then.
_REDRAW_SECONDS, _LINE_SECONDS = 0.25, 5.0
_URL_WORDS = (
    "[redis://][USER[:PASSWORD]@]HOST[:PORT], rediss://… (TLS), unix:///PATH, "
    "redis+sentinel://HOST:PORT,HOST:PORT/NAME, or any node of a cluster."
)


def verify(
    source: Annotated[
        str, typer.Option("--source", metavar="URL", help=f"The data as it should be: {_URL_WORDS}")
    ],
    target: Annotated[
        str, typer.Option("--target", metavar="URL", help="What is compared with it, likewise.")
    ],
    mode: Annotated[
        Literal["count", "ttl", "full"],
        typer.Option(
            "--mode",
            help="count: which keys there are; ttl: their types and TTLs too; full: values too.",
        ),
    ] = "full",
    match: Annotated[
        str | None,
        typer.Option("--match", metavar="GLOB", show_default=False, help="Keys that match."),
    ] = None,
    sample: Annotated[
        float,
        typer.Option("--sample", metavar="SHARE", help="This share of the keys: 0.01 is 1 in 100."),
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            show_default=False,
            help="The seed of the sample and of the digests  [default: a random one]",
        ),
    ] = None,
    rate: Annotated[
        str,
        typer.Option(
            "--rate",
            metavar="SIZE",
            show_default=False,
            help="Read at most this many bytes a second from both ends, such as 20mb  [default: "
            "no bound]",
        ),
    ] = "0",
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Store what differs on the target as the source has it, and remove what only "
            "the target has. Not while a migration has the target.",
        ),
    ] = False,
    report: Annotated[
        str | None,
        typer.Option(
            "--report",
            metavar="FILE",
            show_default=False,
            help="Write a report of JSON lines, and a page for people beside it (FILE.html).",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="FILE",
            show_default=False,
            help="Go on with the comparison of the report FILE that was cut off, by the ends and "
            "options that it was begun with. What it has compared is not compared again.",
        ),
    ] = None,
    address_map: Annotated[
        list[str] | None,
        typer.Option(
            "--address-map",
            metavar="FROM=TO",
            show_default=False,
            help="A node that a cluster announces as FROM (HOST:PORT, or HOST) is reached at TO.",
        ),
    ] = None,
    output: OutputOption = "text",
) -> None:
    """Compare every key of two deployments.

    Exit code 0: they are equal, 1: they differ, 2: that could not be told. Nothing is written to
    either, but for --repair. Writers may go on: what differs is looked at again before it counts.
    """
    if resume is not None and report is not None:
        raise typer.BadParameter(
            "it names the report itself: leave out --report", param_hint="--resume"
        )
    report = report if resume is None else resume
    here, there = endpoint("--source", source), endpoint("--target", target)
    settings = understood(
        None,
        lambda: ProofSettings(
            mode=mode,
            match=match,
            sample=sample,
            seed=seed,
            rate=sizes.parse(rate),
            repair=repair,
            addresses=AddressMap.read(tuple(address_map or ())),
        ),
    )
    shown = _Display()
    try:
        found = perform(
            None,
            lambda engine: engine.verify(
                here,
                there,
                settings=settings,
                report=report,
                resume=resume is not None,
                on_progress=shown.update,
            ),
        )
    except Exception as error:
        if isinstance(error, BrokenPipeError):
            raise
        shown.end()
        complain(error)
        if output == "json":
            print(as_json({"Error": error_object(error)}))
        code = INTERRUPTED if isinstance(error, Interrupted) else EXIT_CODES["unknown"]
        raise typer.Exit(code) from None
    shown.end()
    text = as_json(found.to_dict()) if output == "json" else "\n".join(_as_text(found, report))
    raise typer.Exit(found.exit_code if _written(text) else EXIT_CODES["unknown"])


def _written(text: str) -> bool:
    """Print it; False: standard output does not take it, or its reader has gone, so that nobody
    was told."""
    try:
        print(text, flush=True)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            complain(unwritten_output(error))
        # What is left of it is not tried again at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


class _Display:
    """Progress on stderr."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._due = time.monotonic() + (0 if self._terminal else _LINE_SECONDS)
        self._drawn = False

    def update(self, progress: ProofProgress) -> None:
        """Show it, if that is due."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (_REDRAW_SECONDS if self._terminal else _LINE_SECONDS)
        line = clean(_line(progress))
        if self._terminal:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            print(f"\r\x1b[K{line[: max(columns - 1, 1)]}", end="", file=sys.stderr, flush=True)
            self._drawn = True
        else:
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._drawn = False


def _line(progress: ProofProgress) -> str:
    parts = [progress.step]
    if progress.total:
        share = min(progress.keys / progress.total, 1.0)
        parts.append(f"{share:.0%} ({progress.keys:,} of about {progress.total:,} keys)")
    if progress.bytes:
        parts.append(volume(progress.bytes))
    if progress.step == "comparing" and (left := progress.seconds_left) is not None:
        parts.append(f"{duration(left)} left")
    if progress.doubtful:
        parts.append(f"{progress.doubtful:,} to be looked at again")
    if progress.different:
        parts.append(f"{progress.different:,} differ")
    return "  ".join(parts)


def _as_text(report: ProofReport, path: str | None) -> Iterator[str]:
    if report.differences:
        rows = [
            (
                str(each.db), each.key, ", ".join(each.kinds), each.source, each.target,
                "repaired" if each.repaired else "",
            )
            for each in report.differences[:_SHOWN_MOST]
        ]  # fmt: skip
        yield table(("db", "Key", "What", "Source", "Target", ""), rows)
        if report.different > len(rows):
            yield f"… and {report.different - len(rows):,} more (--report names them)"
        yield ""
    if report.kinds:
        yield "Differ: " + ", ".join(
            f"{count:,} {clean(kind)}" for kind, count in report.kinds.items()
        )
    for reason, count in report.reasons.items():
        yield f"Not compared: {count:,}: {clean(reason)}"
    for each in report.left_out:
        yield f"Left out: {clean(each)}"
    yield f"{report.sentence} It took {duration(report.seconds)}."
    if path is not None:
        yield f"Report: {clean(path)} and {clean(path)}.html"
