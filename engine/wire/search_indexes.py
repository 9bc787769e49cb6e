"""Search indexes (RediSearch): what FT.INFO tells of one, and the commands that make it again.

An index is no key: its definition is read from the source, and the target fills it from the keys
that it has. FT.INFO does not tell PHONETIC, TEMPORARY and SKIPINITIALSCAN.

No command lists aliases and dictionaries, but a snapshot has them (`in_snapshot`), and of a name it
can be asked whether it is one: FT.INFO of an alias tells of the index, FT.DICTDUMP gives the terms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine._native import module_items
from engine.errors import EngineError
from engine.wire.control_connection import Admin

Words = tuple[bytes, ...]

UNTOLD = "PHONETIC and TEMPORARY of search indexes: no command of the source lists them"
"""What of an index cannot be carried."""
UNNAMED = (
    "aliases and dictionaries of the search module, if there are others than --search-name names: "
    "no command lists them"
)
"""What a scan does not know."""
IN_FILE = "search indexes"
"""Those of a file are lost under this name."""

_INDEXES, _DICTIONARIES = "ft_index0", "scdtype00"
# So many texts of a snapshot's indexes are asked about: their fields and prefixes are among them.
_NAMES_MOST = 100_000
_ASKED_AT_ONCE = 500

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


@dataclass(frozen=True, slots=True)
class Named:
    """What a server says of some names: {alias: index}, {dictionary: terms}."""

    aliases: Mapping[str, str] = field(default_factory=dict)
    dictionaries: Mapping[str, frozenset[bytes]] = field(default_factory=dict)

    @property
    def names(self) -> list[bytes]:
        """Those of all."""
        return [raw_name(name) for name in (*self.aliases, *self.dictionaries)]


@dataclass(frozen=True, slots=True)
class InSnapshot:
    """What a snapshot tells of the search module.

    `indexes` is their number, `first` the first one's name. Among `names` are those of all aliases
    and dictionaries. `dictionaries` has their terms. `unread` is what could not be read.
    """

    indexes: int = 0
    first: str = ""
    names: frozenset[bytes] = frozenset()
    dictionaries: Mapping[str, frozenset[bytes]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def there(self) -> bool:
        """Whether there is anything."""
        return bool(self.indexes or self.dictionaries or self.unread)

    @property
    def words(self) -> list[str]:
        """For people, a line each: what there is that a file alone does not bring."""
        lines = list(self.unread)
        if self.indexes:
            lines.append(f"{IN_FILE}: {self.index_words}")
        return lines

    @property
    def index_words(self) -> str:
        """How many indexes there are, and what is to be done."""
        return (
            f"{self.indexes:,} in the file (the first is {self.first}), with their aliases: a file "
            "does not bring their definitions; load it into a server with the module and migrate "
            "from that one, or create them on the target by hand"
        )


def in_snapshot(module_data: Iterable[tuple[str, bytes | None]]) -> InSnapshot:
    """What `SnapshotReader.module_data` tells of the search module."""
    indexes, first = 0, ""
    names: set[bytes] = set()
    dictionaries: dict[str, frozenset[bytes]] = {}
    unread: list[str] = []
    for kind, data in module_data:
        if kind not in (_INDEXES, _DICTIONARIES) or data == b"":
            continue
        what = "search indexes" if kind == _INDEXES else "search dictionaries"
        try:
            if data is None:
                raise ValueError("the data is too long")
            items = module_items(data)[1:]
            if kind == _INDEXES:
                count, texts = items[0], [each for each in items if isinstance(each, bytes)]
                if not isinstance(count, int) or not texts:
                    raise ValueError("the number of indexes is missing")
                indexes, first = indexes + count, first or shown(_bare(texts[0]))
                names.update(map(_bare, texts[:_NAMES_MOST]))
            else:
                dictionaries |= _dictionaries(items)
        except (ValueError, IndexError, TypeError) as exc:
            unread.append(f"{what} of the snapshot, which could not be read ({exc})")
    names.update(raw_name(name) for name in dictionaries)
    return InSnapshot(indexes, first, frozenset(names), dictionaries, tuple(unread))


def _dictionaries(items: list[Any]) -> dict[str, frozenset[bytes]]:
    """Their number; of each its name, the number of its terms, and each term with a score."""
    found: dict[str, frozenset[bytes]] = {}
    rest = iter(items)
    for _ in range(next(rest, 0)):
        name, count = next(rest, None), next(rest, None)
        if not isinstance(name, bytes) or not isinstance(count, int):
            raise ValueError("a dictionary has no name, or no number of terms")
        terms = []
        for _ in range(count):
            term, score = next(rest, None), next(rest, None)
            if not isinstance(term, bytes) or not isinstance(score, float):
                raise ValueError("a dictionary's term has no text, or no score")
            terms.append(_bare(term))
        found[_bare(name).decode("utf-8", "surrogateescape")] = frozenset(terms)
    if next(rest, None) is not None:
        raise ValueError("data follows the last dictionary")
    return found


def _bare(text: bytes) -> bytes:
    """A text as the module keeps it, without the 0 at its end."""
    return text.removesuffix(b"\0")


def shown(name: str | bytes) -> str:
    """A name for people."""
    raw = name if isinstance(name, bytes) else raw_name(name)
    return raw.decode("utf-8", "backslashreplace")


async def ask_named(end: Admin, names: Iterable[bytes]) -> Named:
    """Which of these names are an alias's or a dictionary's. Raises `LinkError`."""
    aliases: dict[str, str] = {}
    dictionaries: dict[str, frozenset[bytes]] = {}
    listed = sorted(set(names))
    for at in range(0, len(listed), _ASKED_AT_ONCE):
        some = listed[at : at + _ASKED_AT_ONCE]
        replies = await end.pipeline(
            [(command, name) for name in some for command in ("FT.INFO", "FT.DICTDUMP")]
        )
        for raw, info, terms in zip(some, replies[::2], replies[1::2], strict=True):
            name = raw.decode("utf-8", "surrogateescape")
            index = info[1] if isinstance(info, list) and info[:1] == [b"index_name"] else raw
            if index != raw:
                aliases[name] = index.decode("utf-8", "surrogateescape")
            if isinstance(terms, list | set) and terms:
                dictionaries[name] = frozenset(terms)
    return Named(aliases, dictionaries)


async def carry_named(target: Admin, named: Named) -> dict[str, str]:
    """Make these aliases and dictionaries on the target.

    Gives what could not be made: {`search alias NAME`: why}. Raises `LinkError`.
    """
    commands: list[Words] = []
    whats: list[str] = []
    for alias, index in named.aliases.items():
        whats.append(f"search alias {shown(alias)}")
        commands.append((b"FT.ALIASADD", raw_name(alias), raw_name(index)))
    for name, terms in named.dictionaries.items():
        for some in _portions(sorted(terms)):
            whats.append(f"search dictionary {shown(name)}")
            commands.append((b"FT.DICTADD", raw_name(name), *some))
    replies = await target.pipeline(commands) if commands else ()
    failed: dict[str, str] = {}
    for what, reply in zip(whats, replies, strict=True):
        if isinstance(reply, EngineError):
            failed.setdefault(what, f"the target refuses it: {reply.message}")
    return failed


def _portions(terms: list[bytes]) -> Iterable[list[bytes]]:
    return (terms[at : at + _ASKED_AT_ONCE] for at in range(0, len(terms), _ASKED_AT_ONCE))


def raw_name(name: str) -> bytes:
    """A name's bytes."""
    return name.encode("utf-8", "surrogateescape")


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
            return Index((), f"the source does not give its definition: {reply.message}")
    try:
        create = _create(raw_name(name), _pairs(info))
        return Index((create, *_synonyms(create[1], synonyms)))
    except Unknown as exc:
        return Index((), f"FT.INFO lists an unknown attribute ({exc}): create it by hand")


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


def _field(reply: list[bytes]) -> list[bytes]:
    """A field of the schema: `identifier …, attribute …, type …`, then what depends on the type."""
    if len(reply) < 6 or reply[0:5:2] != [b"identifier", b"attribute", b"type"]:
        raise Unknown("a field without a name or type")
    identifier, attribute, kind, rest = reply[1], reply[3], reply[5], reply[6:]
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


def _synonyms(name: bytes, reply: Any) -> list[Words]:
    """FT.SYNUPDATE of each group; FT.SYNDUMP tells the groups of each term."""
    groups: dict[bytes, list[bytes]] = {}
    for term, ids in _pairs(reply).items():
        for each in _list(ids):
            groups.setdefault(_word(each), []).append(term)
    return [
        (b"FT.SYNUPDATE", name, group, *sorted(terms)) for group, terms in sorted(groups.items())
    ]


def _pairs(reply: Any) -> dict[bytes, Any]:
    listed = _list(reply)
    if len(listed) % 2:
        raise Unknown("a list of pairs of an odd length")
    return {_word(name): value for name, value in zip(listed[::2], listed[1::2], strict=True)}


def _list(reply: Any) -> list[Any]:
    if not isinstance(reply, list):
        raise Unknown(f"{reply!r:.40} in the place of a list")
    return reply


def _word(reply: Any) -> bytes:
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, int):
        return b"%d" % reply
    raise Unknown(f"{reply!r:.40} in the place of a word")
