"""Values as DUMP gives them, in slow, obvious Python: their elements, in the form of the core's
`ValueDecoder.value`. Whatever is wrong raises `Damaged`."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

from tests.reference.rdb import Damaged, Reader

Element = bytes | int
ZSETS, HASHES = {3, 5, 12, 17}, {4, 9, 13, 16, 22, 23, 24, 25, 29, 31}
LISTS, SETS = {1, 10, 14, 18}, {2, 11, 20}
STREAMS = {15, 19, 21, 26, 27}


def decode(payload: bytes) -> tuple[str, list[Any]]:
    """The type and the elements of a DUMP payload."""
    if len(payload) <= 10:
        raise Damaged("too short")
    valkey = int.from_bytes(payload[-10:-8], "little") >= 80
    reader = Reader(payload[1:-10])
    kind, elements = _body(payload[0], valkey, reader)
    if reader.at != len(reader.data):
        raise Damaged("more behind the value")
    if kind in ("list", "set", "zset", "hash") and not elements:
        raise Damaged("no members")
    return kind, elements


def _body(number: int, valkey: bool, reader: Reader) -> tuple[str, list[Any]]:
    if number == 0:
        return "string", [reader.string()]
    if number in LISTS:
        return "list", _items(number, reader)
    if number in SETS:
        return "set", _items(number, reader)
    if number in ZSETS:
        return "zset", _scored(number, reader)
    if number == 7:
        return "module", _module(reader)
    if valkey and number == 23:
        return "path hash", _paths(reader)
    if valkey and number > 23:
        raise Damaged(f"type {number}")
    if number in HASHES:
        return "hash", _fields(number, valkey, reader)
    if number in STREAMS:
        return "stream", _stream(number, reader)
    if number == 28:
        return "array", _array(reader)
    if number == 33:
        return "gcra", [b"%d" % _signed(reader.length())]
    raise Damaged(f"type {number}")


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _text(element: Element) -> bytes:
    return element if isinstance(element, bytes) else b"%d" % element


def _blob(reader: Reader) -> bytes:
    if reader.at < len(reader.data) and 0xC0 <= reader.data[reader.at] < 0xC3:
        raise Damaged("a number where a collection should be")
    return reader.string()


# --- Packed collections ---


def listpack(blob: bytes) -> list[Element]:
    """The entries of a listpack."""
    if len(blob) < 7 or int.from_bytes(blob[:4], "little") != len(blob) or blob[-1] != 0xFF:
        raise Damaged("listpack")
    reader = Reader(blob[6:-1])
    found: list[Element] = []
    while reader.at < len(reader.data):
        start = reader.at
        first = reader.byte()
        if first < 0x80:
            found.append(first)
        elif first < 0xC0:
            found.append(reader.raw(first & 0x3F))
        elif first < 0xE0:
            number = (first & 0x1F) << 8 | reader.byte()
            found.append(number - 8192 if number >= 4096 else number)
        elif first < 0xF0:
            found.append(reader.raw((first & 0x0F) << 8 | reader.byte()))
        elif first == 0xF0:
            found.append(reader.raw(int.from_bytes(reader.raw(4), "little")))
        elif first <= 0xF4:
            size = {0xF1: 2, 0xF2: 3, 0xF3: 4, 0xF4: 8}[first]
            found.append(int.from_bytes(reader.raw(size), "little", signed=True))
        else:
            raise Damaged("listpack entry")
        if not _says(reader, reader.at - start):
            raise Damaged("length behind an entry")
    told = int.from_bytes(blob[4:6], "little")
    if told not in (0xFFFF, len(found)):
        raise Damaged("number of entries")
    return found


def _says(reader: Reader, size: int) -> bool:
    groups = [size & 0x7F]
    while size := size >> 7:
        groups.insert(0, size & 0x7F)
    wanted = bytes([groups[0], *(group | 0x80 for group in groups[1:])])
    return reader.raw(len(wanted)) == wanted


def ziplist(blob: bytes) -> list[Element]:
    """The entries of a ziplist."""
    if len(blob) < 11 or int.from_bytes(blob[:4], "little") != len(blob) or blob[-1] != 0xFF:
        raise Damaged("ziplist")
    reader = Reader(blob[10:-1])
    found: list[Element] = []
    before = 0
    while reader.at < len(reader.data):
        start = reader.at
        told = reader.byte()
        if told == 0xFF:
            raise Damaged("ziplist entry")
        if told == 0xFE:
            told = int.from_bytes(reader.raw(4), "little")
        if told != before:
            raise Damaged("length of the entry before")
        first = reader.byte()
        sizes = {0xC0: 2, 0xD0: 4, 0xE0: 8, 0xF0: 3, 0xFE: 1}
        if first < 0x40:
            found.append(reader.raw(first))
        elif first < 0x80:
            found.append(reader.raw((first & 0x3F) << 8 | reader.byte()))
        elif first == 0x80:
            found.append(reader.raw(int.from_bytes(reader.raw(4), "big")))
        elif 0xF1 <= first <= 0xFD:
            found.append(first - 0xF1)
        elif first in sizes:
            found.append(int.from_bytes(reader.raw(sizes[first]), "little", signed=True))
        else:
            raise Damaged("ziplist entry")
        before = reader.at - start
    if int.from_bytes(blob[8:10], "little") not in (0xFFFF, len(found)):
        raise Damaged("number of entries")
    if int.from_bytes(blob[4:8], "little") != len(blob) - 1 - before:
        raise Damaged("place of the last entry")
    return found


def intset(blob: bytes) -> list[Element]:
    """The members of an intset."""
    if len(blob) < 8:
        raise Damaged("intset")
    width, count = struct.unpack("<II", blob[:8])
    if width not in (2, 4, 8) or len(blob) != 8 + width * count:
        raise Damaged("intset")
    found = [
        int.from_bytes(blob[at : at + width], "little", signed=True)
        for at in range(8, len(blob), width)
    ]
    if found != sorted(set(found)):
        raise Damaged("order of an intset")
    return list(found)


def zipmap(blob: bytes) -> list[Element]:
    """The fields and values of a zipmap, in turn."""
    if len(blob) < 2 or blob[-1] != 0xFF:
        raise Damaged("zipmap")
    reader = Reader(blob[1:-1])

    def length() -> int:
        first = reader.byte()
        if first == 255:
            raise Damaged("zipmap length")
        return first if first < 254 else int.from_bytes(reader.raw(4), "little")

    found: list[Element] = []
    while reader.at < len(reader.data):
        found.append(reader.raw(length()))
        size, spare = length(), reader.byte()
        found.append(reader.raw(size))
        reader.raw(spare)
    if blob[0] < 254 and blob[0] != len(found) // 2:
        raise Damaged("number of fields")
    return found


# --- Types ---


def _items(number: int, reader: Reader) -> list[Any]:
    if number in (1, 2):
        return [reader.string() for _ in range(reader.length())]
    if number == 11:
        return [_text(each) for each in intset(_blob(reader))]
    if number == 20:
        return [_text(each) for each in listpack(_blob(reader))]
    if number == 10:
        return [_text(each) for each in ziplist(_blob(reader))]
    found: list[Any] = []
    for _ in range(reader.length()):
        container = reader.length() if number == 18 else 2
        if container == 1:
            found.append(reader.string())
        elif container == 2:
            packed = listpack if number == 18 else ziplist
            found += [_text(each) for each in packed(_blob(reader))]
        else:
            raise Damaged("node")
    return found


def _score(text: Element) -> float:
    if isinstance(text, int):
        return float(text)
    if not text or len(text) > 255 or text.strip() != text or b"_" in text:
        raise Damaged("score")
    try:
        score = float(text)
    except ValueError:
        raise Damaged("score") from None
    if math.isnan(score):
        raise Damaged("score")
    return score + 0.0


def _scored(number: int, reader: Reader) -> list[Any]:
    found: list[Any] = []
    if number in (12, 17):
        flat = (ziplist if number == 12 else listpack)(_blob(reader))
        if len(flat) % 2:
            raise Damaged("pairs")
        return [[_text(flat[i]), _score(flat[i + 1])] for i in range(0, len(flat), 2)]
    for _ in range(reader.length()):
        member = reader.string()
        if number == 5:
            (score,) = struct.unpack("<d", reader.raw(8))
            if math.isnan(score):
                raise Damaged("score")
            score += 0.0
        else:
            size = reader.byte()
            if size == 253:
                raise Damaged("score")
            infinite = {254: math.inf, 255: -math.inf}
            score = infinite[size] if size > 253 else _score(reader.raw(size))
        found.append([member, score])
    return found


def _fields(number: int, valkey: bool, reader: Reader) -> list[Any]:
    if number in (9, 13, 16):
        flat = {9: zipmap, 13: ziplist, 16: listpack}[number](_blob(reader))
        if len(flat) % 2:
            raise Damaged("pairs")
        return [[_text(flat[i]), _text(flat[i + 1]), -1] for i in range(0, len(flat), 2)]
    if number in (23, 25):
        if number == 25:
            reader.raw(8)
        flat = listpack(_blob(reader))
        if len(flat) % 3:
            raise Damaged("triples")
        return [
            [_text(flat[i]), _text(flat[i + 1]), _field_ttl(_whole(flat[i + 2]))]
            for i in range(0, len(flat), 3)
        ]
    if number in (29, 31):
        return _of_template(number, reader)
    found: list[Any] = []
    earliest = int.from_bytes(reader.raw(8), "little", signed=True) if number == 24 else 0
    for _ in range(reader.length()):
        ttl = -1
        if number in (22, 24) and not valkey and (far := reader.length()):
            ttl = far if number == 22 else (far + earliest - 1) % 2**64
            if not 0 <= ttl < 2**63:
                raise Damaged("expire time")
        name, value = reader.string(), reader.string()
        if valkey and number == 22:
            ttl = int.from_bytes(reader.raw(8), "little", signed=True)
            if ttl < -1:
                raise Damaged("expire time")
        found.append([name, value, ttl])
    return found


def _whole(element: Element) -> int:
    if isinstance(element, int):
        return element
    digits = element.removeprefix(b"-")
    if not digits.isdigit() or len(digits) > 19 or abs(int(element)) >= 2**63:
        raise Damaged("number")
    return int(element)


def _field_ttl(at: int) -> int:
    if at < 0:
        raise Damaged("expire time")
    return at or -1


def _of_template(number: int, reader: Reader) -> list[Any]:
    form = reader.length()
    if form > 1:
        raise Damaged("form of a template's names")
    if form == 0:
        names = [_text(each) for each in listpack(_blob(reader))]
    else:
        names = [reader.string() for _ in range(reader.length())]
    if number == 29:
        values = listpack(_blob(reader))
        if not values or isinstance(values.pop(0), bytes) or len(values) != len(names):
            raise Damaged("template")
        return [[name, _text(value), -1] for name, value in zip(names, values, strict=True)]
    return [[name, reader.string(), -1] for name in names]


def _paths(reader: Reader) -> list[Any]:
    found: list[Any] = []
    for _ in range(reader.length()):
        path, fields = reader.string(), reader.length()
        if not fields:
            raise Damaged("path without fields")
        found.append([path, *(reader.string() for _ in range(2 * fields))])
    return found


def _module(reader: Reader) -> list[Any]:
    found: list[Any] = [reader.length()]
    while kind := reader.length():
        if kind == 1:
            found.append(_signed(reader.length()))
        elif kind == 2:
            found.append(reader.length())
        elif kind == 3:
            found.append(int.from_bytes(reader.raw(4), "little"))
        elif kind == 4:
            found.append(struct.unpack("<d", reader.raw(8))[0])
        elif kind == 5:
            found.append(reader.string())
        else:
            raise Damaged("module item")
    return found


def _array(reader: Reader) -> list[Any]:
    count = reader.length()
    if (cursor := reader.length()) > 1:
        raise Damaged("cursor")
    if cursor:
        reader.length()
    found: list[Any] = []
    for _ in range(count):
        index, tag = reader.length(), reader.length()
        if found and index <= found[-1][0]:
            raise Damaged("order")
        if tag in (0, 3):
            found.append([index, reader.string()])
        elif tag == 1:
            found.append([index, int.from_bytes(reader.raw(8), "little", signed=True)])
        elif tag == 2:
            found.append([index, struct.unpack("<d", reader.raw(8))[0]])
        else:
            raise Damaged("array tag")
    return found


# --- Streams ---


def _id(reader: Reader) -> bytes:
    return b"%d-%d" % struct.unpack(">QQ", reader.raw(16))


def _two(reader: Reader) -> bytes:
    return b"%d-%d" % (reader.length(), reader.length())


def _entries(master: bytes, items: Iterator[Element]) -> Iterator[tuple[bool, list[bytes]]]:
    ms, seq = struct.unpack(">QQ", master)
    live, deleted = _number(items), _number(items)
    names = [_text(_next(items)) for _ in range(_count(items))]
    if live < 0 or deleted < 0 or _number(items) != 0:
        raise Damaged("head")
    for element in items:
        flags = _whole(element)
        if flags & ~3:
            raise Damaged("flags")
        number = b"%d-%d" % ((ms + _number(items)) % 2**64, (seq + _number(items)) % 2**64)
        entry = [number]
        if flags & 2:
            for name in names:
                entry += [name, _text(_next(items))]
            items_told = len(names) + 3
        else:
            fields = _count(items)
            entry += [_text(_next(items)) for _ in range(2 * fields)]
            items_told = 2 * fields + 4
        if _number(items) != items_told:
            raise Damaged("items of an entry")
        live, deleted = (live, deleted - 1) if flags & 1 else (live - 1, deleted)
        yield bool(flags & 1), entry
    if live or deleted:
        raise Damaged("entries of a node")


def _next(items: Iterator[Element]) -> Element:
    for item in items:
        return item
    raise Damaged("another entry")


def _number(items: Iterator[Element]) -> int:
    return _whole(_next(items))


def _count(items: Iterator[Element]) -> int:
    count = _number(items)
    if count < 0:
        raise Damaged("count")
    return count


def _stream(number: int, reader: Reader) -> list[Any]:
    entries: list[list[bytes]] = []
    last = (-1, -1)
    for _ in range(reader.length()):
        master = reader.string()
        if len(master) != 16:
            raise Damaged("id of a node")
        for deleted, entry in _entries(master, iter(listpack(_blob(reader)))):
            ms, _, seq = entry[0].partition(b"-")
            if (int(ms), int(seq)) <= last:
                raise Damaged("order of entries")
            last = int(ms), int(seq)
            if not deleted:
                entries.append(entry)
    length, last_id = reader.length(), _two(reader)
    ms, _, seq = last_id.partition(b"-")
    if length != len(entries) or last > (int(ms), int(seq)):
        raise Damaged("length")
    found: list[Any] = [entries, last_id]
    if number == 15:
        found += [-1, -1]
    else:
        _two(reader)
        found += [_two(reader), reader.length()]
    found.append([_group(number, reader) for _ in range(reader.length())])
    if number >= 26:
        found += [reader.length(), reader.length()]
        found.append([_producer(reader) for _ in range(reader.length())])
        found += [reader.length(), reader.length()]
    return found


def _producer(reader: Reader) -> list[Any]:
    name = reader.string()
    return [name, *([reader.string(), _two(reader)] for _ in range(reader.length()))]


def _group(number: int, reader: Reader) -> list[Any]:
    group: list[Any] = [reader.string(), _two(reader)]
    group.append(-1 if number == 15 else _signed(reader.length()))
    pending = [
        [_id(reader), int.from_bytes(reader.raw(8), "little"), reader.length()]
        for _ in range(reader.length())
    ]
    consumers = []
    held = 0
    for _ in range(reader.length()):
        name = reader.string()
        seen = int.from_bytes(reader.raw(8), "little", signed=True)
        active = -2
        if number not in (15, 19):
            active = int.from_bytes(reader.raw(8), "little", signed=True)
        ids = [_id(reader) for _ in range(reader.length())]
        held += len(ids)
        consumers.append([name, seen, active, ids])
    group += [pending, consumers]
    if number >= 27:
        group.append([_id(reader) for _ in range(reader.length())])
        held += len(group[-1])
    if held != len(pending):
        raise Damaged("owners")
    return group
