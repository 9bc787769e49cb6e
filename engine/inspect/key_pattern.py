"""Names of keys by a glob as the servers match it (stringmatchlen of util.c): in a file nobody else
does.

What stands between two stars is looked for behind what was found before it, and its first place is
kept: if the rest has no match behind that, it has none behind a later one. So a name takes no
longer than its length by the glob's.
"""

from __future__ import annotations

import re


def compiled(glob: bytes) -> re.Pattern[bytes]:
    """A pattern that matches a whole name where the glob does."""
    parts = [b""]
    at = 0
    while at < len(glob):
        sign = glob[at : at + 1]
        at += 1
        if sign == b"*":
            parts.append(b"")
        elif sign == b"?":
            parts[-1] += b"."
        elif sign == b"[":
            among, at = _class(glob, at)
            parts[-1] += among
        elif sign == b"\\" and at < len(glob):
            parts[-1] += re.escape(glob[at : at + 1])
            at += 1
        else:
            parts[-1] += re.escape(sign)
    found, *others = parts
    if others:
        *between, last = others
        # Several stars in a row say no more than one.
        found += b"".join(b"(?>.*?%b)" % part for part in between if part) + b".*" + last
    return re.compile(found, re.DOTALL)


def _class(glob: bytes, at: int) -> tuple[bytes, int]:
    """What stands between brackets, and where it ends; without an end it goes on to the glob's."""
    negated = glob[at : at + 1] == b"^"
    at += negated
    among: set[int] = set()
    while at < len(glob) and glob[at : at + 1] != b"]":
        if glob[at : at + 1] == b"\\" and at + 1 < len(glob):
            at += 1
            among.add(glob[at])
        elif glob[at + 1 : at + 2] == b"-" and at + 2 < len(glob):
            first, last = sorted((glob[at], glob[at + 2]))
            among.update(range(first, last + 1))
            at += 2
        else:
            among.add(glob[at])
        at += 1
    # Escaped byte by byte: a class of bytes has no other signs then.
    members = b"".join(b"\\x%02x" % each for each in sorted(among))
    if not members:
        return (b"." if negated else b"(?!)"), at + 1
    return b"[" + (b"^" if negated else b"") + members + b"]", at + 1
