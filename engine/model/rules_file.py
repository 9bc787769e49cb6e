"""Rules in a file (TOML): a table for each, `[[include]]` or `[[exclude]]`.

    [[include]]
    prefix = ["user:", "session:"]
    db = 3

    [[exclude]]
    regex = '^user:tmp:'

Each of `prefix`, `glob`, `regex`, `db` and `type` may be one value or several, of which one has to
hold; of the first three there is one kind in a table. They become what options say
(`model.rules`), so that what is kept of a migration has no file.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.model.rules import RULES_MOST, TYPES, Rule

_BYTES_MOST = 8 << 20
# A longer number is none of a database, and may be too long to be shown.
_BITS_MOST = 64
_WAYS = ("prefix", "glob", "regex")
_WORDS = ("db", "type", *_WAYS)


def read(path: str) -> dict[str, tuple[str, ...]]:
    """The rules of a file, as `include` and `exclude` of the settings. Raises `UsageError`, which
    names the place in the file."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(_BYTES_MOST + 1)
        text = data.decode()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}, byte {error.start}: TOML is UTF-8") from None
    if len(data) > _BYTES_MOST:
        raise UsageError(f"{path} is longer than {_BYTES_MOST >> 20} MiB")
    found = parse(text, path)
    if not any(found.values()):
        # Without rules everything would be moved.
        raise UsageError(f"{path} has no rules: expected tables [[include]] and [[exclude]]")
    return found


def parse(text: str, name: str) -> dict[str, tuple[str, ...]]:
    """The same of its text; `name` is what errors call the file."""
    try:
        found = tomllib.loads(text)
    except ValueError as error:
        # (A number of thousands of digits is one of its own.)
        raise UsageError(f"{name}: {error}") from None
    except RecursionError:
        raise UsageError(f"{name}: values in too many values") from None
    rules: dict[str, tuple[str, ...]] = {"include": (), "exclude": ()}
    for action, tables in found.items():
        if action not in rules:
            raise UsageError(f"{name}: {action!r}: expected tables [[include]] and [[exclude]]")
        if not isinstance(tables, list) or not all(isinstance(each, dict) for each in tables):
            raise UsageError(f"{name}: {action!r}: expected tables, headed [[{action}]]")
        for number, table in enumerate(tables, 1):
            try:
                rules[action] += _rules(table)
                if (count := sum(map(len, rules.values()))) > RULES_MOST:
                    raise UsageError(f"{count:,} rules up to here; at most {RULES_MOST:,}")
            except UsageError as error:
                place = _place(text, action, number)
                raise UsageError(f"{name}{place}: {error.message}") from None
    return rules


def _place(text: str, action: str, number: int) -> str:
    """Where the table of this number stands."""
    heads = re.compile(rf"\s*\[\[\s*[\"']?{action}[\"']?\s*\]\]")
    lines = [at for at, line in enumerate(text.splitlines(), 1) if heads.match(line)]
    line = f", line {lines[number - 1]}" if number <= len(lines) else ""
    return f"{line} ({action} {number})"


def _rules(table: dict[str, Any]) -> tuple[str, ...]:
    """The rules that a table comes to. Raises `UsageError`."""
    if unknown := [word for word in table if word not in _WORDS]:
        raise UsageError(f"{unknown[0]!r}: expected {', '.join(_WORDS[:-1])} or {_WORDS[-1]}")
    ways = [word for word in _WAYS if word in table]
    if len(ways) > 1:
        raise UsageError(f"{ways[0]} and {ways[1]}: one of them in a table")
    if not table:
        raise UsageError(f"it says nothing: expected {', '.join(_WORDS[:-1])} or {_WORDS[-1]}")
    dbs = [f"db:{each}" for each in _values(table, "db", int)]
    kinds = [f"type:{each}" for each in _values(table, "type", str, TYPES)]
    names = [f"{way}:{each}" for way in ways for each in _values(table, way, str)]
    conditions = [each for each in (dbs, kinds, names) if each]
    if (count := math.prod(map(len, conditions))) > RULES_MOST:
        raise UsageError(f"it comes to {count:,} rules; at most {RULES_MOST:,}")
    rules = tuple(",".join(parts) for parts in itertools.product(*conditions))
    for each in rules:
        Rule.read(each)
    return rules


def _values(
    table: dict[str, Any], word: str, kind: type[int] | type[str], known: tuple[str, ...] = ()
) -> list[Any]:
    if word not in table:
        return []
    found = table[word]
    values = found if isinstance(found, list) else [found]
    if not values:
        raise UsageError(f"{word}: nothing in the list")
    for each in values:
        if type(each) is not kind:
            what = "a number" if kind is int else "a text"
            raise UsageError(f"{word} = {each!r}: expected {what}, or a list of such")
        if isinstance(each, int) and each.bit_length() > _BITS_MOST:
            raise UsageError(f"{word}: a number of {each.bit_length():,} bits")
        if known and each not in known:
            raise UsageError(f"{word} = {each!r}: expected {', '.join(known[:-1])} or {known[-1]}")
    return values
