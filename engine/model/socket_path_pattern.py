"""Patterns of unix sockets' paths.

What counts is the socket that is dialled: a path is judged by where its links and its `..` lead. In
a pattern `*`, `?` and `[…]` stand for parts of one name, so none of them crosses a `/`. The folders
in front of the first wildcard are the operator's own words, and their links are followed too
(`/var/run` is a link to `/run` on most machines); so are those of a path without any wildcard.
"""

from __future__ import annotations

import os
import re
from fnmatch import fnmatchcase
from itertools import takewhile
from urllib.parse import unquote

from engine.errors import UsageError

SCHEME = "unix:"
# As `glob.escape` writes a character that is meant as it stands.
_ESCAPED = re.compile(r"\[([*?[])\]")
_WILD = re.compile(r"[*?[]")
_EXPECTED = "Expected an absolute path, as unix:/run/redis/*.sock."


def read(text: str) -> str:
    """The pattern of `unix:/PATH` or `unix:///PATH`, in its shortest form.

    Raises `UsageError`, without repeating what may hold a password, for one that fits no socket.
    """
    shown = "it" if "@" in text else repr(text)
    path = text[len(SCHEME) :]
    if path.startswith("//"):
        path = unquote(path[2:])  # a URL, whose host is empty
    if not path.startswith("/"):
        raise UsageError(f"{shown} names no absolute path", remedy=_EXPECTED)
    names = [name for name in path.split("/") if name not in ("", ".")]
    if path.endswith(("/", "/.", "/..")) or not names:
        raise UsageError(
            f"{shown} names a folder, not a socket",
            remedy=f"Write {SCHEME}{'/'.join(['', *names, '*'])} for every socket in it.",
        )
    fixed = len(_fixed(names))
    if ".." in names[fixed:]:
        raise UsageError(f"{shown}: .. behind a wildcard never matches a path", remedy=_EXPECTED)
    if any("**" in name for name in names):
        raise UsageError(
            f"{shown}: ** is not a wildcard here", remedy="A * stands for (a part of) one name."
        )
    if "\0" in path:
        raise UsageError("a unix socket's path holds no NUL", remedy=_EXPECTED)
    return "/" + "/".join(names)


def fits(path: str, pattern: str) -> bool:
    """Whether `path`, which leads through no link (`os.path.realpath`), is one of `pattern`."""
    names = pattern.split("/")[1:]
    fixed = _fixed(names)
    led = os.path.realpath("/" + "/".join(fixed))
    wild = names[len(fixed) :]
    if not wild:
        return path == led
    inside = led if led.endswith("/") else f"{led}/"
    if not path.startswith(inside):
        return False
    found = path[len(inside) :].split("/")
    return len(found) == len(wild) and all(map(fnmatchcase, found, wild))


def _fixed(names: list[str]) -> list[str]:
    """The names in front of the first wildcard, as they are meant."""
    plain = takewhile(lambda name: not _WILD.search(_ESCAPED.sub("", name)), names)
    return [_ESCAPED.sub(r"\1", name) for name in plain]
