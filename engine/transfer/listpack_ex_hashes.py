"""Hashes that were freed of their field TTLs, and keep the form of one that has some.

Redis 7.4 and later keep a small hash that ever had a field TTL as a listpack of (field, value,
TTL), also when the last TTL is gone, and DUMP gives that form (RDB_TYPE_HASH_LISTPACK_EX, rdb.h). A
target that knows no field TTLs refuses it, though it could have every field and value. So those are
taken from the payload. This is for keys that were refused and are read again: few, and small.
"""

from __future__ import annotations

from collections.abc import Iterator

_LISTPACK_EX = 0x19
# Type and earliest TTL before the listpack; RDB version and CRC behind it.
_HEAD, _FOOT = 9, 10
# A hash in this form is no longer (hash-max-listpack-entries and -value), by far.
_MOST = 4 << 20
_LZF = 0xC3
_END = 0xFF


def fields_of(payload: object) -> list[bytes] | None:
    """Fields and values in turn of a DUMP payload in this form, if no field has a TTL; None for any
    other, or a damaged one."""
    if not isinstance(payload, bytes) or not _HEAD + _FOOT < len(payload) <= _MOST:
        return None
    if payload[0] != _LISTPACK_EX:
        return None
    try:
        pack, end = _string(payload, _HEAD)
        if end != len(payload) - _FOOT or len(pack) != int.from_bytes(pack[:4], "little"):
            return None
        items = list(_entries(pack))
    except (IndexError, ValueError):
        return None
    if not items or len(items) % 3 or any(ttl != b"0" for ttl in items[2::3]):
        return None
    return [part for at in range(0, len(items), 3) for part in items[at : at + 2]]


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A length and where it ends (`rdbLoadLen`). Raises `ValueError`, `IndexError`."""
    first = data[at]
    kind = first >> 6
    if kind == 0:
        return first & 0x3F, at + 1
    if kind == 1:
        return (first & 0x3F) << 8 | data[at + 1], at + 2
    size = {0x80: 4, 0x81: 8}.get(first)
    if size is None:
        raise ValueError("no length")
    return int.from_bytes(_part(data, at + 1, size), "big"), at + 1 + size


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """A string and where it ends (`rdbGenericLoadStringObject`)."""
    if data[at] != _LZF:
        size, at = _length(data, at)
        return _part(data, at, size), at + size
    packed, at = _length(data, at + 1)
    size, at = _length(data, at)
    return _unpacked(_part(data, at, packed), size), at + packed


def _part(data: bytes, at: int, size: int) -> bytes:
    if size > len(data) - at:
        raise ValueError("cut off")
    return data[at : at + size]


def _unpacked(data: bytes, size: int) -> bytes:
    """What LZF has packed (lzf_d.c): literal runs, and references back."""
    if size > _MOST:
        raise ValueError("too long")
    out = bytearray()
    at = 0
    while at < len(data):
        head = data[at]
        at += 1
        if head < 32:
            out += _part(data, at, head + 1)
            at += head + 1
        else:
            count = head >> 5
            if count == 7:
                count += data[at]
                at += 1
            start = len(out) - ((head & 0x1F) << 8 | data[at]) - 1
            at += 1
            if start < 0:
                raise ValueError("a reference before the beginning")
            for place in range(start, start + count + 2):
                out.append(out[place])
        if len(out) > size:
            raise ValueError("longer than told")
    if len(out) != size:
        raise ValueError("shorter than told")
    return bytes(out)


def _entries(pack: bytes) -> Iterator[bytes]:
    """The entries of a listpack (listpack.c), numbers in decimal."""
    at = 6
    while pack[at] != _END:
        head = pack[at]
        if head < 0x80:
            value, size = b"%d" % head, 1
        elif head < 0xC0:
            size = 1 + (head & 0x3F)
            value = _part(pack, at + 1, size - 1)
        elif head < 0xE0:
            number = (head & 0x1F) << 8 | pack[at + 1]
            value, size = b"%d" % (number - 8192 if number >= 4096 else number), 2
        elif head < 0xF0:
            size = 2 + ((head & 0x0F) << 8 | pack[at + 1])
            value = _part(pack, at + 2, size - 2)
        elif head == 0xF0:
            size = 5 + int.from_bytes(_part(pack, at + 1, 4), "little")
            value = _part(pack, at + 5, size - 5)
        elif head <= 0xF4:
            wide = {0xF1: 2, 0xF2: 3, 0xF3: 4, 0xF4: 8}[head]
            number = int.from_bytes(_part(pack, at + 1, wide), "little", signed=True)
            value, size = b"%d" % number, 1 + wide
        else:
            raise ValueError("no entry")
        yield value
        at += size + _back(size)
    if at + 1 != len(pack):
        raise ValueError("bytes behind the end")


def _back(size: int) -> int:
    """How many bytes say how long an entry was, behind it."""
    return next(
        count
        for count, most in enumerate((127, 16383, 2097151, 268435455, 1 << 40), 1)
        if size <= most
    )
