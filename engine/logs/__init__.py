"""Loggers whose lines name the migration, the shard and the endpoint.

    _log = logs.logger(__name__)
    _log.info("connected", extra={"end": "source", "seconds": 0.002})

The migration is a context variable: what runs one sets it once (`migration`), and every task,
callback and thread that begins within has it. `end` ("source" or "target") in `extra` says which of
its servers a line is about, `endpoint` names another server; without either the line is about both.
All other members of `extra` are the line's figures.

A record has the attributes `migration`, `shard`, `endpoint`, `end` and `figures` (a dict) for every
handler, the caller's own included. Secrets are masked before a record is made (`masked`). Handlers
are set up by the command line and the worker (`logs.output`), never by a call of the library.

Rank 0: imports nothing of the package.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

ROOT = "engine"
"""The logger above all others of the package."""
SHARD = "0001"
"""The one shard of a migration, or the first one, as the API calls it."""

logging.getLogger(ROOT).addHandler(logging.NullHandler())

_URL_PASSWORD = re.compile(r"(://[^\s:@/'\"]*):[^\s'\"]*@")
_NAMED_SECRET = re.compile(r"(?i)(?<![A-Za-z])(password|passwd|pwd|secret|token)=[^\s&'\",;]+")
# A server that does not know AUTH, or calls it otherwise, repeats what it was sent.
_ECHOED = re.compile(r"(?s)(with args beginning with:).*")
_MASK = "***"


@dataclass(frozen=True, slots=True)
class Migration:
    """What lines of one migration have in common: its group, and its servers' addresses."""

    group: str = ""
    source: str = ""
    target: str = ""

    def endpoint(self, end: str) -> str:
        """The address of the source, of the target, or of both."""
        if end == "source":
            return self.source
        if end == "target":
            return self.target
        return f"{self.source} -> {self.target}" if self.source and self.target else ""


_NONE = Migration()
_migration: ContextVar[Migration] = ContextVar("migration", default=_NONE)
_shard: ContextVar[str] = ContextVar("shard", default=SHARD)
_end: ContextVar[str] = ContextVar("end", default="")


@contextlib.contextmanager
def migration(group: str, *, source: str = "", target: str = "") -> Iterator[None]:
    """Lines that are logged meanwhile, and by all that begins meanwhile, are of this migration.

    `source` and `target` are addresses, without secrets.
    """
    token = _migration.set(Migration(group, source, target))
    try:
        yield
    finally:
        _migration.reset(token)


def current() -> Migration:
    """The migration whose lines are logged just now."""
    return _migration.get()


@contextlib.contextmanager
def of_shard(name: str) -> Iterator[None]:
    """Lines that are logged meanwhile, and by all that begins meanwhile, are of this shard; of the
    one that there is, or of the first one, where `name` is empty."""
    token = _shard.set(name or SHARD)
    try:
        yield
    finally:
        _shard.reset(token)


@contextlib.contextmanager
def about(end: str) -> Iterator[None]:
    """Lines that are logged meanwhile are about this end ("source", "target"), unless they say
    otherwise."""
    token = _end.set(end)
    try:
        yield
    finally:
        _end.reset(token)


def masked(text: str) -> str:
    """`text` without the passwords of URLs, values of members that are called password, secret or
    token, and arguments that a server repeats in an error."""
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1:{_MASK}@", text)
    if "=" in text:
        text = _NAMED_SECRET.sub(rf"\1={_MASK}", text)
    if "args beginning" in text:
        text = _ECHOED.sub(rf"\1 {_MASK}", text)
    return text


class Log(logging.LoggerAdapter[logging.Logger]):
    """A module's logger. Where the level is off, a call costs a look at it and nothing else."""

    def log(
        self,
        level: int,
        msg: object,
        *args: object,
        extra: Mapping[str, object] | None = None,
        **options: Any,
    ) -> None:
        """As `logging.Logger.log`; for `extra` see the module."""
        if not self.logger.isEnabledFor(level):
            return
        figures = dict(extra or {})
        of, end = _migration.get(), str(figures.pop("end", _end.get()))
        endpoint = figures.pop("endpoint", None) or of.endpoint(end)
        options["stacklevel"] = options.get("stacklevel", 1) + 1
        group = str(figures.pop("migration", of.group))
        attributes = {
            "migration": group,
            "shard": _shard.get() if group else "",
            "end": end,
            "endpoint": masked(str(endpoint)),
            "figures": {
                name: masked(value) if isinstance(value, str) else value
                for name, value in figures.items()
            },
        }
        text = str(msg) % args if args else str(msg)
        self.logger.log(level, masked(text), extra=attributes, **options)


def logger(name: str) -> Log:
    """The logger of the module `name`."""
    return Log(logging.getLogger(name), {})


@contextlib.contextmanager
def timed(
    log: Log,
    what: str,
    *,
    level: int = logging.INFO,
    extra: Mapping[str, object] | None = None,
) -> Iterator[None]:
    """Log that `what` is done, with the seconds that it took; or that it failed, and why; or that
    it was cancelled, which is no failure of its own."""
    began = time.monotonic()

    def figures() -> dict[str, object]:
        return {**(extra or {}), "seconds": round(time.monotonic() - began, 4)}

    try:
        yield
    except BaseException as error:
        how = f"failed: {str(error) or type(error).__name__}"
        if isinstance(error, asyncio.CancelledError):
            how = "cancelled"
        log.info("%s: %s", what, how, extra=figures())
        raise
    log.log(level, "%s: done", what, extra=figures())


class Seldom:
    """Lets a line pass at most once in `seconds`, and at once where what it tells is new."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._due = 0.0
        self._last: object = None

    def due(self, what: object = None) -> bool:
        """Whether the line is to be written now; `what`: something that has changed passes."""
        now = time.monotonic()
        if now < self._due and what == self._last:
            return False
        self._due, self._last = now + self._seconds, what
        return True
