"""About how much memory a key takes in a server: what MEMORY USAGE would say, within a third.

Servers differ, and so do their versions and allocators; where a server can be asked it is the one
that knows. Of a file nobody does: the figure tells keys apart by their order of size.
"""

from __future__ import annotations

# An entry of the keyspace with its object: robj, dictEntry, a place in the table.
_KEY = 56
_EXPIRE = 40
_STRING = 11
"""Of an sds: its head, its end, what the allocator rounds up."""
_FOR_EACH = {"string": 0, "list": 40, "set": 35, "hash": 51, "zset": 75, "stream": 0, "array": 16}
"""Of an element that stands for itself: dictEntry, a place in the table, sds; of a member of a
sorted set its node in the skiplist too."""


def estimated(
    kind: str, key: int, ttl: bool, elements: int, data: int, packed: int, loose: int
) -> int:
    """Bytes of a key of `key` bytes with a value of this type: `data` bytes in `elements`, of which
    `loose` stand for themselves, and `packed` bytes of packed collections."""
    found = _KEY + _STRING + key + (_EXPIRE if ttl else 0)
    if loose:
        share = data * min(loose, elements) // max(elements, 1) if kind != "string" else data
        found += share + loose * (_FOR_EACH.get(kind, 40) + (_STRING if kind != "string" else 3))
    elif not packed:
        # What a module wrote: no more is known of it.
        found += data
    return found + packed
