"""What servers hold beside keys: libraries of functions (7.0 and later), and search indexes.

Keys say nothing of them, and no count does. A library goes over with the snapshot and the stream,
or stays behind where the target refuses it; a search index is made again on the target
(`wire.search_indexes`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import AuthError, EngineError
from engine.wire.control_connection import Admin
from engine.wire.search_indexes import (
    IN_FILE,
    Index,
    InSnapshot,
    Named,
    ask_indexes,
    ask_named,
    carry_indexes,
    carry_named,
    differing,
    raw_name,
    shown,
)

_LIBRARIES: tuple[str, ...] = ("FUNCTION", "LIST", "WITHCODE")
_INDEXES: tuple[str, ...] = ("FT._LIST",)
SEARCH = "search "
"""So begins the name of what is the search module's."""
_INDEX = "search index "
_ALIAS = "search alias "
_DICTIONARY = "search dictionary "
_NO_MODULE = "the target has no search module"
_MISSING = "missing on the target"
_LIBRARIES_COUNTED = "function libraries"
_INDEXES_COUNTED = "search indexes"
COMMANDS: tuple[tuple[str, ...], ...] = (
    *(_LIBRARIES, _INDEXES),
    *(("INFO", "memory"), ("INFO", "modules")),
)
"""What `read` reads the replies to. INFO gives the numbers alone, to users that may list
nothing."""
LIST_LIBRARIES = " ".join(_LIBRARIES[:2])
"""As `FunctionsAndIndexes.denied` names the command."""
_LIST_INDEXES = " ".join(_INDEXES)
_LIBRARY_COUNT = re.compile(rb"^number_of_libraries:(\d+)", re.MULTILINE)
_INDEX_COUNT = re.compile(rb"^(?:search_)?number_of_indexes:(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class FunctionsAndIndexes:
    """Of one server: the code of each library by its name, and the names of search indexes.

    None: the server knows none of that. `denied` says of what its user may not even ask; then the
    counts are what INFO tells, None if it tells nothing. `definitions` of the indexes, and what is
    `named`, are there only where they were asked for (`ask`).
    """

    libraries: Mapping[str, bytes] | None = None
    indexes: frozenset[str] | None = None
    denied: tuple[str, ...] = field(default=())
    library_count: int | None = 0
    index_count: int | None = 0
    definitions: Mapping[str, Index] = field(default_factory=dict)
    named: Named = field(default_factory=Named)

    @property
    def nbytes(self) -> int:
        """Bytes of code."""
        return sum(map(len, (self.libraries or {}).values()))

    @property
    def count(self) -> int:
        """How many libraries, and indexes and other things of the search module, there are."""
        named = len(self.named.aliases) + len(self.named.dictionaries)
        return len(self.libraries or ()) + len(self.indexes or ()) + named


async def ask(
    end: Admin, names: Iterable[bytes] = (), replies: Sequence[Any] | None = None
) -> FunctionsAndIndexes:
    """What the server behind `end` holds beside keys; of the search module's aliases and
    dictionaries those that are among `names`. `replies`: to `COMMANDS`, where they were asked
    already. Raises `LinkError`."""
    found = read(await end.pipeline(COMMANDS) if replies is None else replies)
    if found.indexes is None and _LIST_INDEXES not in found.denied:
        return found
    if found.indexes:
        found = replace(found, definitions=await ask_indexes(end, found.indexes))
    return replace(found, named=await ask_named(end, names))


def read(replies: Sequence[Any]) -> FunctionsAndIndexes:
    """The replies to `COMMANDS`; an error means that the server has none."""
    denied = tuple(
        name
        for name, reply in zip((LIST_LIBRARIES, _LIST_INDEXES), replies, strict=False)
        if isinstance(reply, AuthError)
    )
    libraries, indexes = _libraries(replies[0]), index_names(replies[1])
    counts = (len(libraries or ()), len(indexes or ()))
    return FunctionsAndIndexes(
        libraries,
        indexes,
        denied,
        _number(_LIBRARY_COUNT, replies[2]) if LIST_LIBRARIES in denied else counts[0],
        _number(_INDEX_COUNT, replies[3]) if _LIST_INDEXES in denied else counts[1],
    )


def index_names(reply: Any) -> frozenset[str] | None:
    """The names in a reply to FT._LIST: a list or, by RESP3, a set; None for an error."""
    if isinstance(reply, EngineError) or not isinstance(reply, list | set | tuple | frozenset):
        return None
    return frozenset(_text(each) for each in reply)


def lacking(
    source: FunctionsAndIndexes, target: FunctionsAndIndexes, *, extra: bool
) -> dict[str, str]:
    """What of the source's the target lacks or has otherwise: {`library NAME`: what is wrong}.

    `extra`: libraries that the target alone has are named too.
    """
    return _lacking_libraries(source, target, extra) | _lacking_indexes(source, target)


def unlisted(source: FunctionsAndIndexes) -> dict[str, str]:
    """What the source has and its user may not list, so that it cannot be carried by name."""
    found = {}
    for name, what, rule, count in (
        (LIST_LIBRARIES, _LIBRARIES_COUNTED, "+function|list", source.library_count),
        (_LIST_INDEXES, _INDEXES_COUNTED, "+ft._list", source.index_count),
    ):
        if name in source.denied and count:
            found[what] = f"{count:,} on the source, and its user may not list them ({rule})"
    return found


def _lacking_libraries(
    source: FunctionsAndIndexes, target: FunctionsAndIndexes, extra: bool
) -> dict[str, str]:
    if LIST_LIBRARIES in (*source.denied, *target.denied):
        counts = source.library_count, target.library_count
        return _unequal(_LIBRARIES_COUNTED, *counts, "+function|list", extra=extra)
    found: dict[str, str] = {}
    ours, theirs = source.libraries or {}, target.libraries or {}
    for name, code in sorted(ours.items()):
        if name not in theirs:
            found[f"library {name}"] = _MISSING
        elif theirs[name] != code:
            found[f"library {name}"] = "other code on the target"
    if extra and source.libraries is not None:
        for name in sorted(theirs.keys() - ours.keys()):
            why = f"on the target alone (FUNCTION DELETE {name} there removes it)"
            found[f"library {name}"] = why
    return found


def _unequal(
    what: str, ours: int | None, theirs: int | None, rule: str, *, extra: bool = False
) -> dict[str, str]:
    """Where they cannot be listed at both ends: the numbers. `extra`: as for `lacking`."""
    if ours is None or theirs is None or ours == theirs or (theirs > ours and not extra):
        return {}
    words = f"{ours:,} on the source, {theirs:,} on the target; to see which, grant {rule} at both"
    return {what: words}


def _lacking_indexes(source: FunctionsAndIndexes, target: FunctionsAndIndexes) -> dict[str, str]:
    if _LIST_INDEXES in (*source.denied, *target.denied):
        found = _unequal(_INDEXES_COUNTED, source.index_count, target.index_count, "+ft._list")
        return found | _lacking_named(source, target)
    why = _NO_MODULE if target.indexes is None else _MISSING
    found = {
        f"{_INDEX}{name}": why
        for name in sorted((source.indexes or frozenset()) - (target.indexes or frozenset()))
    }
    for name in differing(source.definitions, target.definitions):
        found[f"{_INDEX}{name}"] = "another definition on the target"
    return found | _lacking_named(source, target)


def _lacking_named(source: FunctionsAndIndexes, target: FunctionsAndIndexes) -> dict[str, str]:
    no_module = target.indexes is None and _LIST_INDEXES not in target.denied
    why = _NO_MODULE if no_module else _MISSING
    found: dict[str, str] = {}
    ours, theirs = source.named, target.named
    for alias, index in sorted(ours.aliases.items()):
        if alias not in theirs.aliases:
            found[f"{_ALIAS}{shown(alias)}"] = why
        elif theirs.aliases[alias] != index:
            other = shown(theirs.aliases[alias])
            found[f"{_ALIAS}{shown(alias)}"] = f"on the target it is of the index {other}"
    for name, terms in sorted(ours.dictionaries.items()):
        if name not in theirs.dictionaries:
            found[f"{_DICTIONARY}{shown(name)}"] = why
        elif theirs.dictionaries[name] != terms:
            found[f"{_DICTIONARY}{shown(name)}"] = "other terms on the target"
    return found


def absent_indexes(lost: Mapping[str, str]) -> list[str]:
    """The names of search indexes that are missing, among what `lacking` has found."""
    return [
        what.removeprefix(_INDEX)
        for what, why in lost.items()
        if what.startswith(_INDEX) and why == _MISSING
    ]


async def carry_absent(source: Admin, target: Admin, names: Iterable[bytes] = ()) -> dict[str, str]:
    """Make what of the source's search module the target lacks, if it has the module: indexes, and
    those aliases and dictionaries that are among `names`.

    Gives what it lacks still, or has otherwise: {`search index NAME`: why}. Raises `LinkError`.
    """
    listed = list(names)
    ours = await ask(source, listed)
    lost = _lacking_indexes(ours, await ask(target, listed))
    if not lost:
        return {}
    refused = await carry_indexes(source, target, absent_indexes(lost))
    aliases = {
        alias: index
        for alias, index in ours.named.aliases.items()
        if lost.get(f"{_ALIAS}{shown(alias)}") == _MISSING
    }
    dictionaries = {
        name: terms
        for name, terms in ours.named.dictionaries.items()
        if lost.get(f"{_DICTIONARY}{shown(name)}") == _MISSING
    }
    refused |= await carry_named(target, Named(aliases, dictionaries))
    again = _lacking_indexes(ours, await ask(target, listed))
    return {what: refused.get(what, why) for what, why in again.items()}


async def carry_of_file(target: Admin, found: InSnapshot) -> dict[str, str]:
    """Make the dictionaries that a file has. Gives what the target lacks of the search module's,
    indexes included, which a file does not bring: {what: why}. Raises `LinkError`."""
    lost = dict.fromkeys(found.unread, "create it by hand")
    theirs = await ask(target, map(raw_name, found.dictionaries))
    if theirs.indexes is None:
        lost |= {f"{_DICTIONARY}{shown(name)}": _NO_MODULE for name in found.dictionaries}
    else:
        lost |= await carry_named(target, Named({}, found.dictionaries))
    if found.indexes > len(theirs.indexes or ()):
        lost[IN_FILE] = found.index_words
    return lost


def made_by_hand(lost: Iterable[str], target: FunctionsAndIndexes, found: InSnapshot) -> list[str]:
    """Those of what the target of a file lacked that it has by now, by their names; indexes, which
    the file does not name, by their number."""
    has = {f"library {name}" for name in target.libraries or ()}
    has |= {f"{_DICTIONARY}{shown(name)}" for name in target.named.dictionaries}
    if target.indexes is not None and len(target.indexes) >= found.indexes:
        has.add(IN_FILE)
    return [what for what in lost if what in has]


def _libraries(reply: Any) -> dict[str, bytes] | None:
    if not isinstance(reply, list):
        return None
    found = {}
    for each in reply:
        about = dict(zip(each[::2], each[1::2], strict=True))
        found[_text(about[b"library_name"])] = bytes(about[b"library_code"])
    return found


def _number(pattern: re.Pattern[bytes], info: Any) -> int | None:
    found = pattern.search(info) if isinstance(info, bytes) else None
    return int(found[1]) if found else None


def _text(name: Any) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
