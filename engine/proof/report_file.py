"""A report as files: JSON lines, written as differences are found, and a page for people.

The lines are a head, a line a difference or a key that was not compared, and a tail. Keys and
values are anybody's: the page escapes all that it shows, loads nothing, and runs nothing.

Until the comparison is at its end the lines are in a file of their own beside an older report,
which they take the place of then.
"""

from __future__ import annotations

import fcntl
import html
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from engine.errors import UsageError
from engine.model.proof import ComparedServer, KeyDifference, NotCompared, ProofReport, moment
from engine.model.report_paths import ReportPaths

_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;"
    "color:#1d2330;background:#fff}h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;"
    "padding:.3em .6em;border-bottom:1px solid #d9dde5;overflow-wrap:anywhere}"
    "code{font:13px ui-monospace,monospace}.equal{color:#0a6b33}.different{color:#a3161a}"
    ".unknown{color:#8a5a00}"
)
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
)


class ReportFile:
    """The report at `path`, and the page beside it at `path`.html; until its end at `path`.part.
    Raises `UsageError` where they cannot be written, or another process writes them."""

    def __init__(self, path: str) -> None:
        # (A link goes on to lead to it.)
        self._paths = ReportPaths(Path(os.path.realpath(path)))
        self._failed = False
        self.state = self._paths.state
        """Where a comparison that is cut off is found (`saved_proof`)."""
        for each in (self._paths.report, self._paths.page):
            if each.exists() and not each.is_file():
                raise UsageError(f"the report {each} cannot be written: it is not a file")
        try:
            # Keys and values are for nobody else. Whether it can be written is known before
            # anything is compared.
            self._file: TextIO = _opened(self._paths.part)
        except OSError as error:
            raise _unwritten(path, error) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UsageError(f"another process writes the report {path}") from None

    def begin(
        self,
        settings: Mapping[str, Any],
        source: Iterable[ComparedServer],
        target: Iterable[ComparedServer],
        began: float,
    ) -> None:
        """The head."""
        try:
            self._file.truncate(0)
        except OSError as error:
            raise _unwritten(str(self._paths.report), error) from None
        self._line(
            {
                "report": "verify",
                "began": moment(began),
                "settings": settings,
                "source": [asdict(each) for each in source],
                "target": [asdict(each) for each in target],
            }
        )

    def difference(self, found: KeyDifference) -> None:
        """A line."""
        self._line({"difference": asdict(found)})

    def not_compared(self, found: NotCompared) -> None:
        """A line."""
        self._line({"not_compared": asdict(found)})

    def repaired(self, db: int, key: str) -> None:
        """A line: the difference of this key was mended."""
        self._line({"repaired": {"db": db, "key": key}})

    def end(self, report: ProofReport) -> None:
        """The tail, and the page."""
        told = report.to_dict()
        for name in ("differences", "not_compared"):
            del told[name]
        self._line({"result": told | {"sentence": report.sentence, "ended": moment(report.ended)}})
        part = self._paths.page_part
        try:
            # A glob of the command line may be no text.
            with _opened(part) as page:
                page.truncate(0)
                page.write(page_of(report))
            os.replace(part, self._paths.page)
            os.replace(self._paths.part, self._paths.report)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise _unwritten(str(self._paths.report), error) from None

    def close(self) -> None:
        """Close the file; a second call does nothing. Lines without an end are removed unless the
        comparison can go on."""
        if self._file.closed:
            return
        try:
            if not self.state.exists():
                self._paths.part.unlink(missing_ok=True)
            self._file.close()
        except OSError as error:
            # (What was to be written was told of before, where that failed.)
            if not self._failed:
                raise _unwritten(str(self._paths.report), error) from None

    def _line(self, found: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(found) + "\n")
            self._file.flush()
        except OSError as error:
            self._failed = True
            raise _unwritten(str(self._paths.report), error) from None


def page_of(report: ProofReport) -> str:
    """The page."""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        _POLICY,
        f"<title>Comparison: {report.outcome}</title><style>{_STYLE}</style>",
        f'<h1 class="{report.outcome}">{_text(report.sentence)}</h1>',
        _table(
            ("", ""),
            [
                ("Began", moment(report.began)),
                ("Took", f"{report.seconds:,.1f} s"),
                *(
                    ("Keys compared by", f"{moment(each.ended)}: {each.compared:,}")
                    for each in (report.runs if len(report.runs) > 1 else ())
                ),
                *((_words(name), value) for name, value in report.settings.items()),
                ("Keys compared", f"{report.compared:,}"),
                ("Bytes of their values", f"{report.bytes:,}"),
                ("Keys that differ", f"{report.different:,}"),
                ("Keys that differed only at first", f"{report.resolved:,}"),
                ("Keys that could not be compared", f"{report.unknown:,}"),
                ("Keys that were repaired", f"{report.repaired:,}"),
                ("Libraries and indexes compared", f"{report.libraries:,}"),
                ("Digest of the source", report.digests[0]),
                ("Digest of the target", report.digests[1]),
            ],
        ),
    ]
    for title, servers in (("Source", report.source), ("Target", report.target)):
        parts += [
            f"<h2>{title}</h2>",
            _table(
                ("Server", "Version", "Keys", "Replication id", "Offset", "Slots"),
                [
                    (
                        each.address, each.name, f"{each.keys:,}", each.replid,
                        "" if each.offset is None else f"{each.offset:,}", each.slots,
                    )
                    for each in servers
                ],
            ),
        ]  # fmt: skip
    counts = [*report.kinds.items(), *report.reasons.items()]
    if counts:
        rows = [(name, f"{count:,}") for name, count in counts]
        parts += ["<h2>By kind</h2>", _table(("Kind", "Keys"), rows)]
    if report.differences:
        parts += [
            "<h2>Differences</h2>",
            _table(
                ("Database", "Key", "What", "Source", "Target", ""),
                [
                    (
                        str(each.db), each.key, ", ".join(each.kinds), each.source, each.target,
                        "repaired" if each.repaired else "",
                    )
                    for each in report.differences
                ],
            ),
        ]  # fmt: skip
        if report.different > len(report.differences):
            parts.append(
                f"<p>The first {len(report.differences):,} of {report.different:,}; the file of "
                "lines has all.</p>"
            )
    if report.not_compared:
        rows3 = [(str(each.db), each.key, each.reason) for each in report.not_compared]
        parts += ["<h2>Not compared</h2>", _table(("Database", "Key", "Why"), rows3)]
    if report.left_out:
        parts.append("<h2>Left out</h2><ul>")
        parts += [f"<li>{_text(each)}</li>" for each in report.left_out]
        parts.append("</ul>")
    return "\n".join(parts) + "</html>\n"


def _table(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    head = ""
    if any(header):
        head = "<tr>" + "".join(f"<th>{_text(each)}</th>" for each in header) + "</tr>"
    body = "".join(
        "<tr>" + "".join(f"<td><code>{_text(cell)}</code></td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table>{head}{body}</table>"


def _text(text: object) -> str:
    return html.escape(str(text), quote=True)


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _opened(path: Path) -> TextIO:
    """For writing, as it is."""
    return open(
        path,
        "a",
        encoding="utf-8",
        errors="backslashreplace",
        opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600),
    )


def _unwritten(path: str, error: OSError) -> UsageError:
    return UsageError(f"the report {path} cannot be written: {error.strerror}")
