"""A decoded value as JSON has it: text, numbers, lists, and objects where parts have names.

Bytes that are no UTF-8 are written as \\xff. Fields stand in pairs: two of them may read alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from engine._native import module_type

NEVER = -1


def text(data: bytes) -> str:
    """Bytes for people."""
    return data.decode("utf-8", "backslashreplace")


def shown(kind: str, elements: list[Any], payload: bytes) -> Any:
    """What `ValueDecoder.value` gave, as JSON has it."""
    return _SHOWN[kind](elements, payload)


def _string(elements: list[Any], _: bytes) -> Any:
    return text(elements[0])


def _items(elements: list[Any], _: bytes) -> Any:
    return [text(each) for each in elements]


def _scored(elements: list[Any], _: bytes) -> Any:
    return [[text(member), _number(score)] for member, score in elements]


def _number(number: float) -> Any:
    """JSON has no infinities."""
    return number if math.isfinite(number) else str(number)


def _fields(elements: list[Any], _: bytes) -> Any:
    return [
        [text(name), text(value)] if ttl < 0 else [text(name), text(value), ttl]
        for name, value, ttl in elements
    ]


def _stream(elements: list[Any], _: bytes) -> Any:
    entries, last_id, deleted, added, groups, *idempotent = elements
    found: dict[str, Any] = {
        "entries": [[text(number), _pairs(rest)] for number, *rest in entries],
        "last_id": text(last_id),
        "groups": [_group(*each) for each in groups],
    }
    if added != NEVER:
        found |= {"max_deleted_id": text(deleted), "entries_added": added}
    if idempotent:
        duration, most, producers, counted, doubled = idempotent
        found["producers"] = {
            "duration": duration,
            "most": most,
            "sent": [
                [text(name), [[text(theirs), text(number)] for theirs, number in sent]]
                for name, *sent in producers
            ],
            "added": counted,
            "duplicates": doubled,
        }
    return found


def _pairs(flat: list[bytes]) -> list[list[str]]:
    return [[text(flat[i]), text(flat[i + 1])] for i in range(0, len(flat), 2)]


def _group(
    name: bytes, last_id: bytes, read: int, pending: list[Any], consumers: list[Any],
    released: list[bytes] | None = None,
) -> dict[str, Any]:  # fmt: skip
    owners = {number: owner for owner, _, _, ids in consumers for number in ids}
    found: dict[str, Any] = {
        "name": text(name),
        "last_id": text(last_id),
        "entries_read": None if read == NEVER else read,
        "pending": [
            {
                "id": text(number),
                "consumer": text(owners[number]) if number in owners else None,
                "delivered_at": at,
                "deliveries": times,
            }
            for number, at, times in pending
        ],
        "consumers": [
            {"name": text(consumer), "seen_at": seen, "active_at": None if at < 0 else at}
            for consumer, seen, at, _ in consumers
        ],
    }
    return found if released is None else found | {"released": [text(each) for each in released]}


def _module(elements: list[Any], payload: bytes) -> Any:
    items = [text(each) if isinstance(each, bytes) else _finite(each) for each in elements[1:]]
    return {"module_type": module_type(payload), "items": items}


def _finite(number: float) -> Any:
    return _number(number) if isinstance(number, float) else number


def _paths(elements: list[Any], _: bytes) -> Any:
    return [[text(path), _pairs(fields)] for path, *fields in elements]


def _array(elements: list[Any], _: bytes) -> Any:
    return [
        [index, text(each) if isinstance(each, bytes) else _finite(each)]
        for index, each in elements
    ]


_SHOWN: dict[str, Callable[[list[Any], bytes], Any]] = {
    "string": _string,
    "list": _items,
    "set": _items,
    "zset": _scored,
    "hash": _fields,
    "stream": _stream,
    "module": _module,
    "array": _array,
    "gcra": _string,
    "path hash": _paths,
}
