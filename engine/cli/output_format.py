"""Responses as JSON and as text; tables and numbers for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

# Control characters never reach a terminal: some of the text comes from servers.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


def clean(text: object) -> str:
    """`text` on one line, without control characters."""
    return str(text).translate(_CONTROLS)


def as_json(value: object, *, indent: int | None = 4) -> str:
    """JSON as the AWS CLI prints it: four spaces, times in ISO 8601."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)


def as_text(response: Mapping[str, Any]) -> str:
    """A response for reading: a member a line, nested ones indented, lists item by item."""
    return "\n".join(_lines(response, ""))


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()
) -> str:
    """A table of plain text; the columns whose numbers are in `right` are aligned to the right."""
    cells = [list(header), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def volume(size: float) -> str:
    """Bytes for people, in powers of 1000 as rates on networks are given: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:,.1f} {unit}"


def duration(seconds: float) -> str:
    """A time span for people: 0.42 s, 12.3 s, 4:05, 3:04:05."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _plain(value: object) -> object:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _lines(value: Any, margin: str) -> Iterable[str]:
    if isinstance(value, Mapping):
        width = max((len(str(name)) for name in value), default=0)
        for name, member in value.items():
            if isinstance(member, (Mapping, list, tuple)) and member:
                yield f"{margin}{name}"
                yield from _lines(member, margin + "  ")
            else:
                yield f"{margin}{name!s:{width}}  {_scalar(member)}".rstrip()
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, (Mapping, list, tuple)):
                for number, line in enumerate(_lines(item, "")):
                    yield f"{margin}{'  ' if number else '- '}{line}"
            else:
                yield f"{margin}- {_scalar(item)}"
    else:
        yield f"{margin}{_scalar(value)}"


def _scalar(value: object) -> str:
    if value is None or (isinstance(value, (Mapping, list, tuple)) and not value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    if isinstance(value, float):
        return f"{value:,.2f}".rstrip("0").rstrip(".")
    return clean(value)
