"""What servers hold beside keys: libraries of functions (7.0 and later), and search indexes.

Keys say nothing of them, and no count does. A library goes over with the snapshot and the stream,
or stays behind where the target refuses it; a search index is made again on the target
(`wire.search`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.errors import AuthError, EngineError
from engine.wire.admin import Admin
from engine.wire.search import Index, ask_indexes, carry_indexes, differing

_LIBRARIES: tuple[str, ...] = ("FUNCTION", "LIST", "WITHCODE")
_INDEXES: tuple[str, ...] = ("FT._LIST",)
_INDEX = "search index "
_MISSING = "missing on the target"
COMMANDS = (_LIBRARIES, _INDEXES)
"""What `read` reads the replies to."""


@dataclass(frozen=True, slots=True)
class Held:
    """Of one server: the code of each library by its name, and the names of search indexes.

    None: the server knows none of that. `denied` says of what its user may not even ask.
    `definitions` of the indexes are there only where they were asked for (`ask`).
    """

    libraries: Mapping[str, bytes] | None = None
    indexes: frozenset[str] | None = None
    denied: tuple[str, ...] = field(default=())
    definitions: Mapping[str, Index] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of code."""
        return sum(map(len, (self.libraries or {}).values()))

    @property
    def count(self) -> int:
        """How many libraries and indexes there are."""
        return len(self.libraries or ()) + len(self.indexes or ())


async def ask(end: Admin) -> Held:
    """What the server behind `end` holds beside keys. Raises `LinkError`."""
    held = read(await end.pipeline(COMMANDS))
    if not held.indexes:
        return held
    return replace(held, definitions=await ask_indexes(end, held.indexes))


def read(replies: Sequence[Any]) -> Held:
    """The replies to `COMMANDS`; an error means that the server has none."""
    denied = tuple(
        " ".join(command[:2])
        for command, reply in zip(COMMANDS, replies, strict=True)
        if isinstance(reply, AuthError)
    )
    return Held(_libraries(replies[0]), index_names(replies[1]), denied)


def index_names(reply: Any) -> frozenset[str] | None:
    """The names in a reply to FT._LIST: a list or, by RESP3, a set; None for an error."""
    if isinstance(reply, EngineError) or not isinstance(reply, list | set | tuple | frozenset):
        return None
    return frozenset(_text(each) for each in reply)


def lacking(source: Held, target: Held, *, extra: bool) -> dict[str, str]:
    """What of the source's the target lacks or has otherwise: {`library NAME`: what is wrong}.

    `extra`: libraries that the target alone has are named too.
    """
    found: dict[str, str] = {}
    ours, theirs = source.libraries, target.libraries or {}
    if ours is not None and "FUNCTION LIST" not in target.denied:
        for name, code in sorted(ours.items()):
            if name not in theirs:
                found[f"library {name}"] = _MISSING
            elif theirs[name] != code:
                found[f"library {name}"] = "other code on the target"
        if extra:
            for name in sorted(theirs.keys() - ours.keys()):
                found[f"library {name}"] = "on the target alone"
    return found | _lacking_indexes(source, target)


def _lacking_indexes(source: Held, target: Held) -> dict[str, str]:
    if "FT._LIST" in target.denied:
        return {}
    why = "the target has no search module" if target.indexes is None else _MISSING
    found = {
        f"{_INDEX}{name}": why
        for name in sorted((source.indexes or frozenset()) - (target.indexes or frozenset()))
    }
    for name in differing(source.definitions, target.definitions):
        found[f"{_INDEX}{name}"] = "another definition on the target"
    return found


def absent_indexes(lost: Mapping[str, str]) -> list[str]:
    """The names of search indexes that are missing, among what `lacking` has found."""
    return [
        what.removeprefix(_INDEX)
        for what, why in lost.items()
        if what.startswith(_INDEX) and why == _MISSING
    ]


async def carry_absent(source: Admin, target: Admin) -> dict[str, str]:
    """Make the search indexes that the target lacks, if it has the module.

    Gives those that it lacks still, or has otherwise: {`search index NAME`: why}. Raises
    `LinkError`.
    """
    ours = await ask(source)
    if not ours.indexes:
        return {}
    lost = _lacking_indexes(ours, await ask(target))
    refused = await carry_indexes(source, target, absent_indexes(lost))
    again = _lacking_indexes(ours, await ask(target))
    return {what: refused.get(what, why) for what, why in again.items()}


def _libraries(reply: Any) -> dict[str, bytes] | None:
    if not isinstance(reply, list):
        return None
    found = {}
    for each in reply:
        about = dict(zip(each[::2], each[1::2], strict=True))
        found[_text(about[b"library_name"])] = bytes(about[b"library_code"])
    return found


def _text(name: Any) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)
