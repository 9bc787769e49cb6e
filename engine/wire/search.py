"""Search indexes (RediSearch): what FT.INFO tells of one, and the commands that make it again.

An index is no key: its definition is read from the source, and the target fills it from the keys
that it has. FT.INFO does not tell PHONETIC, TEMPORARY and SKIPINITIALSCAN; and no command lists
aliases and dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError
from engine.wire.admin import Admin

Words = tuple[bytes, ...]

UNTOLD = (
    "PHONETIC and TEMPORARY of search indexes, their aliases, and dictionaries: no command of the "
    "source tells of them"
)
"""What is beside an index, and cannot be carried."""

# Members of `index_definition`, and the options of FT.CREATE that set them. What an index has
# unless something else was said is left out.
_OPTIONS = {
    b"filter": b"FILTER",
    b"default_language": b"LANGUAGE",
    b"language_field": b"LANGUAGE_FIELD",
    b"default_score": b"SCORE",
    b"score_field": b"SCORE_FIELD",
    b"payload_field": b"PAYLOAD_FIELD",
}
_PLAIN_OPTIONS = frozenset({b"NOFREQS", b"NOOFFSETS", b"NOHL", b"NOFIELDS", b"MAXTEXTFIELDS"})
# Of a field: what has a value, and what stands alone; FT.CREATE wants the last three at the end.
_VALUED = frozenset({b"WEIGHT", b"SEPARATOR", b"PHONETIC"})
_FLAGS = frozenset({b"NOSTEM", b"CASESENSITIVE", b"WITHSUFFIXTRIE", b"INDEXEMPTY", b"INDEXMISSING"})
_LAST = (b"SORTABLE", b"UNF", b"NOINDEX")
_VECTOR = {
    b"data_type": b"TYPE",
    b"dim": b"DIM",
    b"distance_metric": b"DISTANCE_METRIC",
    b"M": b"M",
    b"ef_construction": b"EF_CONSTRUCTION",
    b"block_size": b"BLOCK_SIZE",
}


class Unknown(Exception):
    """FT.INFO says something that is not known here; the text is what."""


@dataclass(frozen=True, slots=True)
class Index:
    """One index: the commands that make it, or why there are none (`why`)."""

    commands: tuple[Words, ...]
    why: str = ""


async def ask_indexes(end: Admin, names: Iterable[str]) -> dict[str, Index]:
    """What the server tells of these indexes. Raises `LinkError`."""
    listed = sorted(names)
    asked = [(command, name) for name in listed for command in ("FT.INFO", "FT.SYNDUMP")]
    replies = await end.pipeline(asked) if asked else []
    return {
        name: index_of(name, info, synonyms)
        for name, info, synonyms in zip(listed, replies[::2], replies[1::2], strict=True)
    }


def index_of(name: str, info: Any, synonyms: Any) -> Index:
    """An index by the replies to FT.INFO and FT.SYNDUMP."""
    for reply in (info, synonyms):
        if isinstance(reply, EngineError):
            return Index((), f"the source does not tell its definition: {reply.message}")
    try:
        create = _create(name.encode("utf-8", "surrogateescape"), _pairs(info))
        return Index((create, *_synonyms(create[1], synonyms)))
    except Unknown as exc:
        return Index((), f"FT.INFO tells of it what is not known here ({exc}): make it by hand")


def differing(ours: Mapping[str, Index], theirs: Mapping[str, Index]) -> list[str]:
    """The names of indexes that both ends have, with other definitions."""
    return [
        name
        for name, index in sorted(ours.items())
        if name in theirs and index.commands != theirs[name].commands
    ]


async def carry_indexes(source: Admin, target: Admin, names: Iterable[str]) -> dict[str, str]:
    """Make these indexes of the source on the target.

    Gives what could not be made: {`search index NAME`: why}. Raises `LinkError`.
    """
    failed: dict[str, str] = {}
    for name, index in (await ask_indexes(source, names)).items():
        why = index.why
        for reply in await target.pipeline(index.commands) if index.commands else ():
            if isinstance(reply, EngineError):
                why = why or f"the target refuses it: {reply.message}"
        if why:
            failed[f"search index {name}"] = why
    return failed


def _create(name: bytes, info: Mapping[bytes, Any]) -> Words:
    definition = _pairs(info.get(b"index_definition"))
    words = [b"FT.CREATE", name]
    for member, value in definition.items():
        if member == b"key_type":
            words += [b"ON", _word(value)]
        elif member == b"prefixes":
            prefixes = [_word(each) for each in _list(value)]
            if prefixes != [b""]:
                words += [b"PREFIX", b"%d" % len(prefixes), *prefixes]
        elif member in _OPTIONS:
            words += [_OPTIONS[member], _word(value)]
        else:
            raise Unknown(member.decode("utf-8", "replace"))
    for option in _list(info.get(b"index_options")):
        if option not in _PLAIN_OPTIONS:
            raise Unknown(_word(option).decode("utf-8", "replace"))
        words.append(option)
    if b"stopwords_list" in info:
        stopwords = [_word(each) for each in _list(info[b"stopwords_list"])]
        words += [b"STOPWORDS", b"%d" % len(stopwords), *stopwords]
    words.append(b"SCHEMA")
    for attribute in _list(info.get(b"attributes")):
        words += _field([_word(each) for each in _list(attribute)])
    return tuple(words)


def _field(told: list[bytes]) -> list[bytes]:
    """A field of the schema: `identifier …, attribute …, type …`, then what depends on the type."""
    if len(told) < 6 or told[0:5:2] != [b"identifier", b"attribute", b"type"]:
        raise Unknown("a field without a name or type")
    identifier, attribute, kind, rest = told[1], told[3], told[5], told[6:]
    words = [identifier, b"AS", attribute, kind]
    last: set[bytes] = set()
    vector: list[bytes] = []
    while rest:
        word = rest.pop(0)
        if kind == b"VECTOR" and word == b"algorithm" and rest:
            words.append(rest.pop(0))
        elif kind == b"VECTOR" and word in _VECTOR and rest:
            vector += [_VECTOR[word], rest.pop(0)]
        elif word == b"coord_system" and rest:
            words.append(rest.pop(0))
        elif word in _VALUED and rest:
            words += [word, rest.pop(0)]
        elif word in _FLAGS:
            words.append(word)
        elif word in _LAST:
            last.add(word)
        else:
            raise Unknown(word.decode("utf-8", "replace"))
    if kind == b"VECTOR":
        words[5:5] = [b"%d" % len(vector), *vector]
    return words + [each for each in _LAST if each in last]


def _synonyms(name: bytes, told: Any) -> list[Words]:
    """FT.SYNUPDATE of each group; FT.SYNDUMP tells the groups of each term."""
    groups: dict[bytes, list[bytes]] = {}
    for term, ids in _pairs(told).items():
        for each in _list(ids):
            groups.setdefault(_word(each), []).append(term)
    return [
        (b"FT.SYNUPDATE", name, group, *sorted(terms)) for group, terms in sorted(groups.items())
    ]


def _pairs(told: Any) -> dict[bytes, Any]:
    listed = _list(told)
    if len(listed) % 2:
        raise Unknown("a list of pairs of an odd length")
    return {_word(name): value for name, value in zip(listed[::2], listed[1::2], strict=True)}


def _list(told: Any) -> list[Any]:
    if not isinstance(told, list):
        raise Unknown(f"{told!r:.40} in the place of a list")
    return told


def _word(told: Any) -> bytes:
    if isinstance(told, bytes):
        return told
    if isinstance(told, int):
        return b"%d" % told
    raise Unknown(f"{told!r:.40} in the place of a word")
