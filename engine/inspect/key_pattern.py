"""Names of keys by a glob as the servers match it (stringmatchlen of util.c): in a file nobody else
does.

What stands between two stars is looked for behind what was found before it, and its first place is
kept: if the rest has no match behind that, it has none behind a later one. So a name takes no
longer than its length by the glob's.
"""

from __future__ import annotations

import re

from engine.model.key_glob import byte_class


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
            members, at = byte_class(glob, at)
            parts[-1] += _among(members)
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


def _among(members: frozenset[int]) -> bytes:
    """What matches one byte of these."""
    # Escaped byte by byte: a class of bytes has no other signs then.
    escaped = b"".join(b"\\x%02x" % each for each in sorted(members))
    return b"[" + escaped + b"]" if escaped else b"(?!)"
