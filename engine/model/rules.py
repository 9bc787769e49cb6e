"""Which keys go over: rules that include and exclude keys by name, database and type.

A key goes over if it matches a rule that includes (or there is none) and none that excludes; the
order of the rules says nothing. A rule is written as its conditions, all of which have to hold:
`db:N` and `type:TYPE` with a comma behind each, and last what names have to be like: `prefix:`,
`glob:` or `regex:` with all that follows, so that commas and colons in names mean nothing.

Names are bytes: what a command line says that is no UTF-8 is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from engine.errors import UsageError
from engine.model.key_glob import as_prefix, of_prefix
from engine.model.key_glob import compiled as compiled_glob

if TYPE_CHECKING:
    from engine._native import KeyRules

TYPES = ("string", "list", "set", "zset", "hash", "stream")
"""Types that rules name, in the order of their numbers (`KeyRules.takes`); all others have the next
one, and no rule names them."""
RULES_MOST = 20_000
_PATTERNS = ("prefix", "glob", "regex")
_EXPECTED = (
    "expected db:N, type:TYPE, or prefix:…, glob:… or regex:… with a part of a name; several with "
    "commas, the name last: db:3,type:hash,prefix:user:"
)
_ANY = -1
_DIGITS_MOST = 10


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `way` is how names are matched (prefix, glob, regex), and empty where every name
    is; `db` and `kind` are None for every database, every type."""

    text: str
    way: str = ""
    pattern: str = ""
    db: int | None = None
    kind: str | None = None

    @classmethod
    def read(cls, text: str) -> Rule:
        """The rule that is written so. Raises `UsageError`."""
        db: int | None = None
        kind: str | None = None
        rest = text
        while rest:
            word, colon, value = rest.partition(":")
            if colon and word in _PATTERNS:
                rule = cls(text, word, value, db, kind)
                rule.check()
                return rule
            value, comma, rest = value.partition(",")
            if word == "db" and colon and db is None:
                known = value.isascii() and value.isdigit() and len(value) <= _DIGITS_MOST
                if not known or int(value) > 0x7FFFFFFF:
                    raise UsageError(f"{value!r} is not a database number")
                db = int(value)
            elif word == "type" and colon and kind is None:
                if value not in TYPES:
                    raise UsageError(
                        f"type {value!r}: expected {', '.join(TYPES[:-1])} or {TYPES[-1]}"
                    )
                kind = value
            else:
                raise UsageError(_EXPECTED)
            if comma and not rest:
                raise UsageError(f"nothing follows the last comma: {_EXPECTED}")
        if db is None and kind is None:
            raise UsageError(_EXPECTED)
        return cls(text, "", "", db, kind)

    def check(self) -> None:
        """Raises `UsageError` where the pattern is none."""
        if not self.pattern:
            raise UsageError(f"{self.way}: does not say which names")
        try:
            self._compiled()
        except ValueError as error:
            what = "regular expression" if self.way == "regex" else self.way
            raise UsageError(f"the {what}: {error}") from None

    @property
    def name(self) -> bytes:
        """The pattern, as the bytes of a name."""
        return self.pattern.encode("utf-8", "surrogateescape")

    @property
    def prefix(self) -> bytes | None:
        """What all names begin with that it matches, if that is all that it says of names."""
        if self.way == "glob":
            return as_prefix(compiled_glob(self.name)[0])
        return self.name if self.way == "prefix" else None

    def _compiled(self) -> Any:
        if self.way == "glob":
            return compiled_glob(self.name)
        if self.way == "regex":
            # Only for whoever has any.
            from engine.model.key_regex import compiled

            found = compiled(self.pattern)
            return found.steps, found.sets, found.head, found.anchored
        return self.name


@dataclass(frozen=True, slots=True)
class Rules:
    """All rules of a migration. Without any every key goes over."""

    include: tuple[Rule, ...] = ()
    exclude: tuple[Rule, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.include or self.exclude)

    def takes_db(self, db: int) -> bool:
        """Whether keys of this database can go over."""
        if self.include and not any(each.db in (None, db) for each in self.include):
            return False
        return not any(each.db == db and not each.way and not each.kind for each in self.exclude)

    @property
    def of_type(self) -> Rule | None:
        """The first one that asks for a key's type."""
        return next((each for each in (*self.include, *self.exclude) if each.kind), None)

    @property
    def scan_glob(self) -> bytes | None:
        """A glob that matches every key that goes over, for a server to look for; None: none that
        says anything."""
        first: bytes | None = None
        for each in self.include:
            # Of many rules the first two mostly tell.
            prefix = each.prefix
            if not prefix or (first is not None and prefix != first):
                return None
            first = prefix
        return None if first is None else of_prefix(first)

    def compiled(self) -> KeyRules:
        """The same for the core."""
        from engine._native import KeyRules

        return KeyRules(_groups(self.include), _groups(self.exclude))


def type_number(name: str) -> int:
    """The number that rules have for a type, as TYPE names it."""
    return TYPES.index(name) if name in TYPES else len(TYPES)


def _groups(rules: Iterable[Rule]) -> list[Any]:
    """Rules of one database and type together."""
    found: dict[tuple[int, int], list[Rule]] = {}
    for rule in rules:
        db = _ANY if rule.db is None else rule.db
        kind = _ANY if rule.kind is None else TYPES.index(rule.kind)
        found.setdefault((db, kind), []).append(rule)
    return [(*where, *_of_names(among)) for where, among in found.items()]


def _of_names(rules: Sequence[Rule]) -> tuple[bool, list[bytes], list[Any], list[Any]]:
    prefixes: list[bytes] = []
    for prefix in sorted({each for rule in rules if (each := rule.prefix) is not None}):
        # One that begins with another says nothing more.
        if not prefixes or not prefix.startswith(prefixes[-1]):
            prefixes.append(prefix)
    every = prefixes[:1] == [b""] or any(not rule.way for rule in rules)
    globs = [rule._compiled() for rule in rules if rule.way == "glob" and rule.prefix is None]
    regexes = [rule._compiled() for rule in rules if rule.way == "regex"]
    return every, [] if every else prefixes, [] if every else globs, [] if every else regexes


@lru_cache(maxsize=16)
def rules_of(include: tuple[str, ...], exclude: tuple[str, ...]) -> Rules:
    """The rules that are written so. Raises `UsageError`, which names the one that is wrong."""
    if len(include) + len(exclude) > RULES_MOST:
        raise UsageError(f"{len(include) + len(exclude):,} rules; at most {RULES_MOST:,}")
    return Rules(_read("--include", include), _read("--exclude", exclude))


def _read(option: str, texts: Iterable[str]) -> tuple[Rule, ...]:
    found = []
    for text in texts:
        try:
            found.append(Rule.read(text))
        except UsageError as error:
            raise UsageError(f"{option} {text!r}: {error.message}") from None
    return tuple(found)


@lru_cache(maxsize=16)
def key_rules_of(include: tuple[str, ...], exclude: tuple[str, ...]) -> KeyRules | None:
    """The same for the core; None: there are none."""
    rules = rules_of(include, exclude)
    return rules.compiled() if rules else None
