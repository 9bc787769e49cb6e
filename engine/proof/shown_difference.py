"""What differs of a key, in a few words for each end: the first element that is not the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from engine._native import ProtocolError, ValueDecoder
from engine.model.report import printable_key
from engine.proof.second_looks import Found, Side

# A value is decoded for this up to so many bytes, and an element shown up to so many characters.
_DECODED_MOST = 1 << 20
_SHOWN_MOST = 120
# What is not in a collection.
_NOTHING = object()


def shown(found: Found, decoder: ValueDecoder) -> tuple[str, str]:
    """What is at the source, and at the target."""
    if "missing" in found.kinds or "extra" in found.kinds:
        return _whole(found.source, decoder), _whole(found.target, decoder)
    parts: list[tuple[str, str]] = []
    if {"type", "value", "field TTLs", "groups"} & set(found.kinds) or found.reason:
        parts.append(_values(found, decoder))
    if "TTL" in found.kinds:
        parts.append((_ttl(found.source.expire_at), _ttl(found.target.expire_at)))
    return "; ".join(each for each, _ in parts), "; ".join(each for _, each in parts)


def _whole(side: Side, decoder: ValueDecoder) -> str:
    if not side.there:
        return "nothing"
    told = _decoded(side, decoder)
    if told is None:
        return f"{side.size:,} bytes" if side.size else "it is there"
    kind, elements = told
    what = f"{kind} of {_count(kind, elements):,}"
    return f"{what}, {_ttl(side.expire_at)}"


def _values(found: Found, decoder: ValueDecoder) -> tuple[str, str]:
    ours, theirs = (_decoded(side, decoder) for side in (found.source, found.target))
    if ours is None or theirs is None:
        return f"{found.source.size:,} bytes", f"{found.target.size:,} bytes"
    if ours[0] != theirs[0]:
        return ours[0], theirs[0]
    kind = ours[0]
    one, other = _FIRST.get(kind, _in_order)(ours[1], theirs[1])
    if one == other:
        counts = [f"{kind} of {_count(kind, each[1]):,}" for each in (ours, theirs)]
        return counts[0], counts[1]
    return one, other


def _decoded(side: Side, decoder: ValueDecoder) -> tuple[str, list[Any]] | None:
    if side.value is None or not 10 < len(side.value) <= _DECODED_MOST:
        return None
    try:
        return decoder.value(side.value)
    except (ProtocolError, MemoryError):
        return None


def _count(kind: str, elements: list[Any]) -> int:
    """Elements; entries of a stream, bytes of a string."""
    return len(elements[0]) if kind in ("stream", "string") else len(elements)


# --- The first element that differs ---


def _string(ours: list[Any], theirs: list[Any]) -> tuple[str, str]:
    one, other = ours[0], theirs[0]
    at = next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    begin = max(at - 20, 0)
    place = f"at {begin:,}: " if begin else ""
    return tuple(  # type: ignore[return-value]
        f"{len(each):,} bytes, {place}{_text(each[begin:])}" for each in (one, other)
    )


def _in_order(ours: list[Any], theirs: list[Any]) -> tuple[str, str]:
    length = max(len(ours), len(theirs))
    for place in range(length):
        one, other = (each[place] if place < len(each) else _NOTHING for each in (ours, theirs))
        if one != other:
            return f"[{place}] {_element(one)}", f"[{place}] {_element(other)}"
    return "", ""


def _members(ours: list[Any], theirs: list[Any]) -> tuple[str, str]:
    one, other = set(ours), set(theirs)
    only, alone = sorted(one - other), sorted(other - one)
    return (
        f"has {_text(only[0])}" if only else f"has not {_text(alone[0])}" if alone else "",
        f"has {_text(alone[0])}" if alone else f"has not {_text(only[0])}" if only else "",
    )


def _named(ours: list[Any], theirs: list[Any]) -> tuple[str, str]:
    """Of what has a name first: fields, members with scores."""
    one, other = ({each[0]: each[1:] for each in side} for side in (ours, theirs))
    for name in sorted(one.keys() | other.keys()):
        a, b = one.get(name, _NOTHING), other.get(name, _NOTHING)
        if a != b:
            return tuple(f"{_text(name)}: {_element(each)}" for each in (a, b))  # type: ignore[return-value]
    return "", ""


def _fields(ours: list[Any], theirs: list[Any]) -> tuple[str, str]:
    sides = (
        [[name, value] if ttl < 0 else [name, value, _ttl(ttl)] for name, value, ttl in each]
        for each in (ours, theirs)
    )
    return _named(*sides)


def _stream(ours: list[Any], theirs: list[Any]) -> tuple[str, str]:
    entries = _named(ours[0], theirs[0])
    if entries[0] != entries[1]:
        return entries
    if ours[1] != theirs[1]:
        return f"last id {_text(ours[1])}", f"last id {_text(theirs[1])}"
    groups = [{each[0]: each for each in side[4]} for side in (ours, theirs)]
    for name in sorted(groups[0].keys() | groups[1].keys()):
        one, other = groups[0].get(name), groups[1].get(name)
        if one is None or other is None:
            return tuple(  # type: ignore[return-value]
                f"no group {_text(name)}" if each is None else f"group {_text(name)}"
                for each in (one, other)
            )
        if one[1] != other[1]:
            return tuple(  # type: ignore[return-value]
                f"group {_text(name)}: last id {_text(each[1])}" for each in (one, other)
            )
        pending = _named(_owned(one), _owned(other))
        if pending[0] != pending[1]:
            return tuple(f"group {_text(name)}, pending {each}" for each in pending)  # type: ignore[return-value]
    return "", ""


def _owned(group: list[Any]) -> list[list[Any]]:
    owners = {number: owner[0] for owner in group[4] for number in owner[3]}
    return [[*each, owners.get(each[0], b"")] for each in group[3]]


_FIRST: dict[str, Callable[[list[Any], list[Any]], tuple[str, str]]] = {
    "string": _string,
    "set": _members,
    "zset": _named,
    "hash": _fields,
    "stream": _stream,
}


def _element(element: Any) -> str:
    if element is _NOTHING:
        return "nothing"
    if isinstance(element, bytes):
        return _text(element)
    if isinstance(element, Sequence) and not isinstance(element, str):
        return " ".join(_element(each) for each in element)
    return str(element)


def _text(data: bytes) -> str:
    if len(data) > _SHOWN_MOST:
        return f"{printable_key(data[:_SHOWN_MOST])}… ({len(data):,} bytes)"
    return printable_key(data)


def _ttl(expire_at: int | None) -> str:
    if expire_at is None:
        return "no TTL"
    try:
        moment = datetime.fromtimestamp(expire_at / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        moment = f"{expire_at} ms"
    return f"expires {moment}"
