"""Where the log goes, and in which form: lines of text, or a JSON object a line.

    2026-11-29T04:00:00.123Z INFO engine.sources.replica [migration=g shard=0001
        endpoint=10.0.0.1:6379] The source sends the stream from offset 5,120; tries=2

    {"time": "2026-11-29T04:00:00.123Z", "level": "INFO", "logger": "engine.sources.replica",
        "migration": "g", "shard": "0001", "end": "source", "endpoint": "10.0.0.1:6379",
        "message": "The source sends …", "tries": 2}

Times are UTC. A record is one line (broken here for reading), whatever its text holds; in text a
traceback follows on lines of its own. Warnings of other libraries come in the same form.

Rank 0: imports nothing of the package but the loggers.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Literal, get_args

from engine import logs

Level = Literal["debug", "info", "warning", "error"]
Form = Literal["text", "json"]

LEVEL_VARIABLE = "STARTMIGRATION_LOG_LEVEL"
FORM_VARIABLE = "STARTMIGRATION_LOG_FORMAT"
"""In the environment: what a worker is started with."""

_OF = ("migration", "shard", "end", "endpoint")
# What a terminal acts on, and what is a line's end to some readers.
_CONTROLS = {
    **{code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))},
    **{code: f"\\u{code:04x}" for code in (0x2028, 0x2029)},
}


def from_environment() -> tuple[Level, Form]:
    """The level and the form that the environment names; info and text where it names none that
    exists."""
    named = os.environ.get(LEVEL_VARIABLE, "")
    level: Level = next((each for each in get_args(Level) if each == named), "info")
    return level, "json" if os.environ.get(FORM_VARIABLE) == "json" else "text"


def to_stderr(level: Level, form: Form) -> None:
    """From now on the log goes to stderr."""
    install(logging.StreamHandler(sys.stderr), level, form)


def install(handler: logging.Handler, level: Level, form: Form) -> None:
    """From now on the log goes to `handler`, in the place of one that was installed before."""
    handler.setFormatter(Json() if form == "json" else Text())
    root = logging.getLogger()
    for before in root.handlers[:]:
        if isinstance(before.formatter, Line):
            root.removeHandler(before)
            before.close()
    root.addHandler(handler)
    logging.getLogger(logs.ROOT).setLevel(level.upper())
    # What these say when they start and end is said by us.
    logging.getLogger("uvicorn.error").setLevel("ERROR")
    logging.captureWarnings(True)


class Line(logging.Formatter):
    """What both forms share."""

    def time(self, record: logging.LogRecord) -> str:
        """When it was logged, in UTC, to the millisecond."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{stamp}.{int(record.msecs):03d}Z"

    def trace(self, record: logging.LogRecord) -> str:
        """The traceback of the exception that it is about, if any."""
        return logs.masked(self.formatException(record.exc_info)) if record.exc_info else ""


class Text(Line):
    """A line for people, with the figures behind the text."""

    def format(self, record: logging.LogRecord) -> str:
        """As the module shows it."""
        named = ((name, getattr(record, name, "")) for name in ("migration", "shard", "endpoint"))
        where = " ".join(f"{name}={value}" for name, value in named if value)
        figures = getattr(record, "figures", {})
        shown = "".join(
            # Whether a line is an event as well is for programs.
            f" {name}={_shown(value)}"
            for name, value in figures.items()
            if name != "event"
        )
        line = (
            f"{self.time(record)} {record.levelname} {record.name} "
            f"{f'[{where}] ' if where else ''}{logs.masked(record.getMessage())}"
            f"{';' if shown else ''}{shown}"
        ).translate(_CONTROLS)
        return "\n".join(filter(None, (line, self.trace(record))))


class Json(Line):
    """One JSON object; the figures are members of it."""

    def format(self, record: logging.LogRecord) -> str:
        """As the module shows it."""
        members: dict[str, object] = {
            "time": self.time(record),
            "level": record.levelname,
            "logger": record.name,
            **{name: getattr(record, name, "") for name in _OF},
            "message": logs.masked(record.getMessage()),
            "exception": self.trace(record),
        }
        figures = getattr(record, "figures", {})
        members |= {name: value for name, value in figures.items() if name not in members}
        said = {name: value for name, value in members.items() if value != ""}
        return json.dumps(said, default=str)


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    text = str(value)
    return json.dumps(text) if " " in text else text
