"""Values as servers keep them in DUMP payloads, made by hand: one value in every encoding that it
has had. Nothing is compressed but by `compressed`."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

Element = bytes | int
Fields = Sequence[tuple[bytes, bytes, int]]
REDIS, VALKEY = 15, 80


def length(n: int) -> bytes:
    """A length as short as it can be."""
    if n < 64:
        return bytes([n])
    if n < 1 << 14:
        return struct.pack(">H", 0x4000 | n)
    return b"\x80" + struct.pack(">I", n) if n < 1 << 32 else b"\x81" + struct.pack(">Q", n)


def string(body: bytes) -> bytes:
    """As it is."""
    return length(len(body)) + body


def compressed(body: bytes) -> bytes:
    """By LZF, though it gets longer: literals alone."""
    packed = b"".join(
        bytes([len(body[at : at + 32]) - 1]) + body[at : at + 32] for at in range(0, len(body), 32)
    )
    return b"\xc3" + length(len(packed)) + length(len(body)) + packed


def as_number(body: bytes) -> bytes:
    """As a number where it is one of 32 bits, written as servers write numbers."""
    try:
        number = int(body)
    except ValueError:
        return string(body)
    if b"%d" % number != body or not -(2**31) <= number < 2**31:
        return string(body)
    for code, form in ((0xC0, "<b"), (0xC1, "<h"), (0xC2, "<i")):
        try:
            return bytes([code]) + struct.pack(form, number)
        except struct.error:
            continue
    raise AssertionError(number)


def payload(number: int, body: bytes, version: int = REDIS) -> bytes:
    """A DUMP payload; its CRC64 is not looked at by the decoder."""
    return bytes([number]) + body + struct.pack("<H", version) + bytes(8)


def numeric(body: bytes) -> Element:
    """As listpacks and ziplists keep it: a number where it is written as one."""
    try:
        number = int(body)
    except ValueError:
        return body
    fits = -(2**63) <= number < 2**63 and len(body) < 21
    return number if fits and b"%d" % number == body else body


def listpack(elements: Iterable[Element]) -> bytes:
    """With the shortest form of each."""
    entries = [_listpack_entry(each) for each in elements]
    body = b"".join(entries)
    return struct.pack("<IH", len(body) + 7, min(len(entries), 0xFFFF)) + body + b"\xff"


def _listpack_entry(element: Element) -> bytes:
    if isinstance(element, int):
        if 0 <= element < 128:
            entry = bytes([element])
        elif -4096 <= element < 4096:
            entry = struct.pack(">H", 0xC000 | element & 0x1FFF)
        else:
            bits = next(n for n in (16, 24, 32, 64) if -(1 << n - 1) <= element < 1 << n - 1)
            code = {16: 0xF1, 24: 0xF2, 32: 0xF3, 64: 0xF4}[bits]
            entry = bytes([code]) + element.to_bytes(bits // 8, "little", signed=True)
    elif len(element) < 64:
        entry = bytes([0x80 | len(element)]) + element
    elif len(element) < 4096:
        entry = struct.pack(">H", 0xE000 | len(element)) + element
    else:
        entry = b"\xf0" + struct.pack("<I", len(element)) + element
    size = len(entry)
    back = [size & 0x7F]
    while size := size >> 7:
        back.insert(0, size & 0x7F)
    return entry + bytes([back[0], *(group | 0x80 for group in back[1:])])


def ziplist(elements: Iterable[Element]) -> bytes:
    """With the shortest form of each."""
    body, last, count = b"", 10, 0
    before = 0
    for element in elements:
        entry = bytes([before]) if before < 254 else b"\xfe" + struct.pack("<I", before)
        entry += _ziplist_entry(element)
        last = 10 + len(body)
        body += entry
        before, count = len(entry), count + 1
    return struct.pack("<IIH", len(body) + 11, last, min(count, 0xFFFF)) + body + b"\xff"


def _ziplist_entry(element: Element) -> bytes:
    if isinstance(element, int):
        if 0 <= element <= 12:
            return bytes([0xF1 + element])
        for code, size in ((0xFE, 1), (0xC0, 2), (0xF0, 3), (0xD0, 4), (0xE0, 8)):
            if -(1 << 8 * size - 1) <= element < 1 << 8 * size - 1:
                return bytes([code]) + element.to_bytes(size, "little", signed=True)
        raise AssertionError(element)
    if len(element) < 64:
        return bytes([len(element)]) + element
    if len(element) < 1 << 14:
        return struct.pack(">H", 0x4000 | len(element)) + element
    return b"\x80" + struct.pack(">I", len(element)) + element


def intset(members: Iterable[int], width: int = 8) -> bytes:
    """The members in their order."""
    ordered = sorted(members)
    body = b"".join(each.to_bytes(width, "little", signed=True) for each in ordered)
    return struct.pack("<II", width, len(ordered)) + body


def zipmap(fields: Fields) -> bytes:
    """Fields and values, one of them with a spare byte behind it."""
    body = b""
    for place, (name, value, _) in enumerate(fields):
        spare = place % 2
        body += _zipmap_length(name) + name + _zipmap_length(value) + bytes([spare]) + value
        body += b"\0" * spare
    return bytes([min(len(fields), 254)]) + body + b"\xff"


def _zipmap_length(text: bytes) -> bytes:
    return bytes([len(text)]) if len(text) < 254 else b"\xfe" + struct.pack("<I", len(text))


# --- Every encoding of a value ---


def strings(body: bytes) -> list[bytes]:
    """A string."""
    return [payload(0, each) for each in (string(body), as_number(body), compressed(body))]


def lists(items: Sequence[bytes]) -> list[bytes]:
    """A list."""
    packed = [numeric(each) for each in items]
    half = len(items) // 2
    nodes = [part for part in (packed[:half], packed[half:]) if part]
    plain = b"".join(length(1) + string(each) for each in items)
    return [
        payload(1, length(len(items)) + b"".join(map(string, items))),
        payload(1, length(len(items)) + b"".join(map(as_number, items))),
        payload(10, string(ziplist(packed))),
        payload(10, compressed(ziplist(items))),
        payload(14, length(len(nodes)) + b"".join(string(ziplist(each)) for each in nodes)),
        payload(
            18, length(len(nodes)) + b"".join(length(2) + string(listpack(each)) for each in nodes)
        ),
        payload(18, length(len(items)) + plain),
    ]


def sets(members: Sequence[bytes]) -> list[bytes]:
    """A set, in several orders."""
    turned = list(reversed(members))
    found = [
        payload(2, length(len(members)) + b"".join(map(string, members))),
        payload(2, length(len(members)) + b"".join(map(as_number, turned))),
        payload(20, string(listpack(map(numeric, members)))),
        payload(20, compressed(listpack(turned))),
    ]
    numbers = [numeric(each) for each in members]
    integers = [each for each in numbers if isinstance(each, int)]
    if len(integers) == len(members):
        found.append(payload(11, string(intset(integers))))
    return found


def zsets(members: Sequence[tuple[bytes, float]]) -> list[bytes]:
    """A sorted set, in several orders."""
    flat: list[Element] = []
    for member, score in members:
        flat += [numeric(member), numeric(written(score))]
    turned = list(reversed(members))
    count = length(len(members))
    return [
        payload(3, count + b"".join(string(member) + _ascii(score) for member, score in members)),
        payload(5, count + b"".join(string(m) + struct.pack("<d", s) for m, s in turned)),
        payload(12, string(ziplist(flat))),
        payload(17, string(listpack(flat))),
    ]


def written(score: float) -> bytes:
    """A score as text."""
    return b"%d" % score if score.is_integer() and abs(score) < 1e15 else repr(score).encode()


def _ascii(score: float) -> bytes:
    if score in (float("inf"), float("-inf")):
        return b"\xfe" if score > 0 else b"\xff"
    text = repr(score).encode()
    return bytes([len(text)]) + text


def hashes(fields: Fields) -> list[bytes]:
    """A hash; one whose fields have expire times in the forms that know them."""
    turned = list(reversed(fields))
    count = length(len(fields))
    ttls = [ttl for _, _, ttl in fields if ttl >= 0]
    earliest = min(ttls, default=0)
    triples: list[Element] = []
    for name, value, ttl in fields:
        triples += [numeric(name), numeric(value), max(ttl, 0)]
    far = [(max(ttl - earliest + 1, 0) if ttl >= 0 else 0) for _, _, ttl in fields]
    found = [
        payload(22, count + b"".join(
            string(name) + string(value) + struct.pack("<q", ttl) for name, value, ttl in turned
        ), VALKEY),
        payload(22, count + b"".join(
            length(max(ttl, 0)) + string(name) + string(value) for name, value, ttl in fields
        )),
        payload(24, struct.pack("<q", earliest) + count + b"".join(
            length(away) + string(name) + as_number(value)
            for away, (name, value, _) in zip(far, fields, strict=True)
        )),
        payload(23, string(listpack(triples))),
        payload(25, struct.pack("<q", earliest) + compressed(listpack(triples))),
    ]  # fmt: skip
    if ttls:
        return found
    flat: list[Element] = []
    for name, value, _ in turned:
        flat += [numeric(name), numeric(value)]
    names = b"".join(string(name) for name, _, _ in fields)
    values = [numeric(value) for _, value, _ in fields]
    return [
        *found,
        payload(4, count + b"".join(string(name) + string(value) for name, value, _ in fields)),
        payload(9, string(zipmap(fields))),
        payload(13, string(ziplist(flat))),
        payload(16, string(listpack(flat))),
        *(
            payload(number, form + body)
            for number, body in (
                (29, string(listpack([7, *values]))),
                (31, b"".join(as_number(value) for _, value, _ in fields)),
            )
            for form in (
                b"\0" + string(listpack([numeric(name) for name, _, _ in fields])),
                b"\1" + count + names,
            )
        ),
    ]
