"""Keys that a transfer is about, to ask with whether a user may touch them.

A user's rules may be for some keys alone (`~app:*`, `%R~app:*`). So what is asked for is asked with
names that the source has; where it has none, with one that the chosen pattern takes in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from engine.errors import EngineError
from engine.model.settings import TransferSettings
from engine.transfer.checks.required_commands import ABSENT_KEY
from engine.wire.control_connection import Admin

_NAMES = 16
_PAGES = 4
_PREFIX = re.compile(rb"[^:./|{}_-]*[:./|{}_-]+")
_SHORT = 3
_COUNT = 500
_FILL = ABSENT_KEY


@dataclass(frozen=True, slots=True)
class SampleKeys:
    """Names to ask with, one at least.

    `there`: keys of these names are on the source (so that no command that reads a value is run on
    them). `sure`: the transfer wants keys like these, so that it cannot do without the right to
    them.
    """

    names: tuple[bytes, ...] = field(default=(ABSENT_KEY.encode(),))
    there: bool = False
    sure: bool = True

    @property
    def absent(self) -> bytes:
        """A name beside the first one that no key has."""
        return self.beside(_FILL.encode())

    def beside(self, fill: bytes) -> bytes:
        """The same with another `fill`."""
        if self.there:
            return self.names[0] + b":" + fill
        return self.names[0].replace(_FILL.encode(), fill)


UNKNOWN = SampleKeys(sure=False)
"""Where what is in the source was not asked."""


async def sample_keys(
    source: Admin | None, databases: list[int], settings: TransferSettings
) -> SampleKeys:
    """Some keys that the transfer would read, or a name that it would. Leaves database 0 chosen.

    Raises `LinkError`.
    """
    match, rules = settings.scan_match, settings.key_rules
    pattern = () if match is None else ("MATCH", match)
    found: list[bytes] = []
    for db in databases if source is not None else ():
        assert source is not None
        cursor: bytes | int = 0
        for _ in range(_PAGES):
            selected, page, _ = await source.pipeline(
                [("SELECT", db), ("SCAN", cursor, *pattern, "COUNT", _COUNT), ("SELECT", 0)]
            )
            if isinstance(selected, EngineError) or not isinstance(page, list):
                break
            if rules is None:
                found += page[1]
            else:
                found += [name for name in page[1] if rules.takes(db, name) is not False]
            cursor = page[0]
            if cursor == b"0":
                break
    if found:
        return SampleKeys(_varied(found), there=True)
    if match is not None:
        return SampleKeys((example(match),))
    return SampleKeys()


def _varied(names: list[bytes]) -> tuple[bytes, ...]:
    """A few names, of as many prefixes as there are: rules are for prefixes."""
    by_prefix: dict[bytes, bytes] = {}
    for name in names:
        prefix = _PREFIX.match(name)
        by_prefix.setdefault(prefix[0] if prefix is not None else name[:_SHORT], name)
    chosen = list(by_prefix.values())[:_NAMES]
    return tuple(dict.fromkeys([*chosen, *names[: _NAMES - len(chosen)]]))


def example(pattern: bytes, fill: str = _FILL) -> bytes:
    """A name that a glob of SCAN's MATCH takes in (stringmatchlen, util.c), with `fill` in place of
    its first star."""
    name = bytearray()
    left = fill.encode()
    at = 0
    while at < len(pattern):
        byte = pattern[at]
        at += 1
        if byte == ord("*"):
            name += left
            left = b""
        elif byte == ord("?"):
            name += b"x"
        elif byte == ord("\\") and at < len(pattern):
            name.append(pattern[at])
            at += 1
        elif byte == ord("["):
            letter, at = _of_class(pattern, at)
            name += letter
        else:
            name.append(byte)
    return bytes(name)


def _of_class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """A letter of the class whose bracket was opened before `at`, and where the pattern goes on."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(pattern) and pattern[at] != ord("]"):
        first = pattern[at]
        if first == ord("\\") and at + 1 < len(pattern):
            at += 1
            first = pattern[at]
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            last = pattern[at + 2]
            members.update(range(min(first, last), max(first, last) + 1))
            at += 3
            continue
        members.add(first)
        at += 1
    at += 1  # the bracket
    if negated:
        members = set(range(0x61, 0x7B)) - members or set(range(256)) - members
    return bytes([min(members)]) if members else b"", at
