"""RDB snapshots in slow, obvious Python: where each value ends, and what stands before it.

Values are not decoded. The whole snapshot is in memory; whatever is wrong raises `Damaged`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from benches.support.encoded_values import length, string
from tests.reference.crc import crc64, key_slot

# The lowest RDB version that knows each type of value; and what each flavour has alone.
LOWEST_VERSION = dict(
    enumerate([1, 1, 1, 1, 1, 8, 8, 8, 0, 4, 4, 4, 4, 4, 7, 9, 10, 10, 10, 10, 11, 11])
)
OWN_LOWEST = {
    "redis": {22: 12, 23: 12, 24: 12, 25: 12, 26: 13, 27: 14, 28: 14, 33: 15},
    "valkey": {22: 80, 23: 81},
}


class Damaged(Exception):
    """The bytes are no snapshot, or not all of one."""


@dataclass
class Entry:
    """One key. `value` is its type byte and its bytes; `expire_at` in ms; `access` (kind, figure).

    Of a hash that names a template of the snapshot, `value` is the one that stands for itself, or
    None where there is none; `held` is how long it is at the most, a footer behind it, on the way.
    """

    db: int
    key: bytes
    value: bytes | None
    expire_at: int | None
    access: tuple[str, int] | None
    importing: bool = False
    held: int = 0


@dataclass
class Snapshot:
    """All that a snapshot says, in order."""

    flavour: str
    version: int
    entries: list[Entry] = field(default_factory=list)
    aux: list[tuple[bytes, bytes]] = field(default_factory=list)
    functions: list[bytes] = field(default_factory=list)
    size: int = 0
    empty: int = 0
    importing: set[int] = field(default_factory=set)

    def payload(self, value: bytes) -> bytes:
        """A value as a DUMP payload: stamped with the lowest version that its type needs."""
        version = (LOWEST_VERSION | OWN_LOWEST[self.flavour])[value[0]]
        if value[0] >= 22:
            version = min(version, self.version)
        body = value + version.to_bytes(2, "little")
        return body + crc64(body).to_bytes(8, "little")


class Reader:
    """Reads items from the front of `data`."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def raw(self, n: int) -> bytes:
        """The next `n` bytes."""
        if n > len(self.data) - self.at:
            raise Damaged(f"{n} bytes at {self.at}")
        self.at += n
        return self.data[self.at - n : self.at]

    def byte(self) -> int:
        """The next byte."""
        return self.raw(1)[0]

    def length(self) -> int:
        """A length of 6, 14, 32 or 64 bits."""
        first = self.byte()
        if first < 0x40:
            return first
        if first < 0x80:
            return (first & 0x3F) << 8 | self.byte()
        if first == 0x80:
            return int.from_bytes(self.raw(4), "big")
        if first == 0x81:
            return int.from_bytes(self.raw(8), "big")
        raise Damaged(f"no length at {self.at}")

    def string(self) -> bytes:
        """A string, decoded."""
        first = self.data[self.at] if self.at < len(self.data) else self.byte()
        if first < 0xC0:
            return self.raw(self.length())
        self.at += 1
        if first < 0xC3:
            number = int.from_bytes(self.raw(1 << (first & 3)), "little", signed=True)
            return b"%d" % number
        if first != 0xC3:
            raise Damaged(f"no string at {self.at}")
        packed, plain = self.length(), self.length()
        return inflate(self.raw(packed), plain)

    def skip_string(self) -> None:
        """A string, whose compression is not looked at."""
        first = self.data[self.at] if self.at < len(self.data) else self.byte()
        if first != 0xC3:
            self.string()
            return
        self.at += 1
        packed, _plain = self.length(), self.length()
        self.raw(packed)


def inflate(packed: bytes, plain: int) -> bytes:
    """Undo LZF."""
    out = bytearray()
    reader = Reader(packed)
    while reader.at < len(packed):
        control = reader.byte()
        if control < 32:
            out += reader.raw(control + 1)
            continue
        count = control >> 5
        if count == 7:
            count += reader.byte()
        distance = ((control & 31) << 8) + reader.byte() + 1
        if distance > len(out):
            raise Damaged("LZF goes back too far")
        for _ in range(count + 2):
            out.append(out[-distance])
    if len(out) != plain:
        raise Damaged("LZF gives another length")
    return bytes(out)


def skip_module(reader: Reader) -> None:
    """A module's items, up to the end that follows them."""
    while (kind := reader.length()) != 0:
        if kind in (1, 2):
            reader.length()
        elif kind == 3:
            reader.raw(4)
        elif kind == 4:
            reader.raw(8)
        elif kind == 5:
            reader.skip_string()
        else:
            raise Damaged(f"module item {kind}")


def skip_stream(reader: Reader, kind: int) -> None:
    """A stream: its nodes, its counters, its groups."""
    for _ in range(reader.length()):
        reader.skip_string()
        reader.skip_string()
    for _ in range(3 if kind == 15 else 8):
        reader.length()
    for _ in range(reader.length()):
        reader.skip_string()
        for _ in range(2 if kind == 15 else 3):
            reader.length()
        for _ in range(reader.length()):
            reader.raw(24)
            reader.length()
        for _ in range(reader.length()):
            reader.skip_string()
            reader.raw(8 if kind in (15, 19) else 16)
            for _ in range(reader.length()):
                reader.raw(16)
        if kind == 27:
            for _ in range(reader.length()):
                reader.raw(16)
    if kind >= 26:
        reader.length()
        reader.length()
        for _ in range(reader.length()):
            reader.skip_string()
            for _ in range(reader.length()):
                reader.skip_string()
                reader.length()
                reader.length()
        reader.length()
        reader.length()


def skip_array(reader: Reader) -> None:
    """An array: where the next insert goes, then the elements with their indexes."""
    count = reader.length()
    cursor = reader.length()
    if cursor > 1:
        raise Damaged("array cursor")
    if cursor:
        reader.length()
    for _ in range(count):
        reader.length()
        tag = reader.length()
        if tag in (0, 3):
            reader.skip_string()
        elif tag in (1, 2):
            reader.raw(8)
        else:
            raise Damaged("array tag")


Templates = dict[int, list[bytes]]
"""Their names, as they stand in the snapshot."""


def skip_value(reader: Reader, kind: int, flavour: str, templates: Templates) -> None:
    """Go to the end of a value of type `kind`."""
    if kind in (0, 9, 10, 11, 12, 13, 16, 17, 20):
        reader.skip_string()
    elif kind in (1, 2, 14):
        for _ in range(reader.length()):
            reader.skip_string()
    elif kind == 18:
        for _ in range(reader.length()):
            reader.length()
            reader.skip_string()
    elif kind in (3, 5):
        for _ in range(reader.length()):
            reader.skip_string()
            if kind == 5:
                reader.raw(8)
            elif (size := reader.byte()) < 253:
                reader.raw(size)
    elif kind == 4:
        for _ in range(reader.length()):
            reader.skip_string()
            reader.skip_string()
    elif kind == 7:
        reader.length()
        skip_module(reader)
    elif kind in (15, 19, 21) or (kind in (26, 27) and flavour == "redis"):
        skip_stream(reader, kind)
    elif kind == 22 and flavour == "valkey":
        for _ in range(reader.length()):
            reader.skip_string()
            reader.skip_string()
            reader.raw(8)
    elif kind == 23 and flavour == "valkey":
        for _ in range(reader.length()):
            reader.skip_string()
            for _ in range(2 * reader.length()):
                reader.skip_string()
    elif flavour == "valkey":
        raise Damaged(f"type {kind}")
    elif kind in (22, 24):
        if kind == 24:
            reader.raw(8)
        for _ in range(reader.length()):
            reader.length()
            reader.skip_string()
            reader.skip_string()
    elif kind in (23, 25, 30):
        if kind == 25:
            reader.raw(8)
        reader.skip_string()
    elif kind == 28:
        skip_array(reader)
    elif kind == 32:
        template = reader.length()
        if template not in templates:
            raise Damaged(f"template {template}")
        for _ in templates[template]:
            reader.skip_string()
    elif kind == 33:
        reader.length()
    else:
        raise Damaged(f"type {kind}")


def of_template(kind: int, body: bytes, templates: Templates) -> bytes | None:
    """The hash that stands for itself; None: it does not fit its template."""
    reader = Reader(body)
    if kind == 32:
        names = templates[reader.length()]
        values = []
        for _ in names:
            start = reader.at
            reader.skip_string()
            values.append(body[start : reader.at])
    else:
        # (It reads what this module has.)
        from tests.reference.values import listpack

        try:
            blob = b"" if body[0] in (0xC0, 0xC1, 0xC2) else reader.string()
            number, *elements = listpack(blob)
        except (Damaged, ValueError):
            return None
        found = templates.get(number % 2**64) if isinstance(number, int) else None
        if found is None or len(found) != len(elements):
            return None
        names = found
        values = [string(b"%d" % each if isinstance(each, int) else each) for each in elements]
    try:
        texts = [Reader(name).string() for name in names]
    except Damaged:
        return None
    if len(set(texts)) < len(texts):
        return None
    pairs = b"".join(name + value for name, value in zip(names, values, strict=True))
    return b"\4" + length(len(names)) + pairs if names else None


def parse(data: bytes) -> Snapshot:
    """Read a snapshot from the front of `data`; raises `Damaged`."""
    reader = Reader(data)
    magic = reader.raw(9)
    flavour = "redis" if magic[:5] == b"REDIS" else "valkey" if magic[:6] == b"VALKEY" else ""
    digits = magic[5 if flavour == "redis" else 6 :]
    if not flavour or not digits.isdigit() or int(digits) == 0:
        raise Damaged("magic")
    snapshot = Snapshot(flavour, int(digits))
    templates: Templates = {}
    db = 0
    expire_at: int | None = None
    access: tuple[str, int] | None = None
    while (code := reader.byte()) != 255:
        if code == 252:
            expire_at = deadline(int.from_bytes(reader.raw(8), "little", signed=True))
        elif code == 253:
            expire_at = deadline(int.from_bytes(reader.raw(4), "little", signed=True) * 1000)
        elif code == 249:
            access = ("freq", reader.byte())
        elif code == 248:
            access = ("idletime", reader.length())
            if access[1] >= 1 << 63:
                raise Damaged("idle time")
        elif code == 254:
            db = reader.length()
            if db >= 1 << 31:
                raise Damaged("database")
        elif code == 251:
            reader.length()
            reader.length()
        elif code == 244:
            reader.length()
            reader.length()
            reader.length()
        elif code == 250:
            snapshot.aux.append((reader.string(), reader.string()))
        elif code == 245:
            snapshot.functions.append(reader.string())
        elif code in (107, 121) and flavour == "redis":
            # Redis Enterprise's: how lately a key was used, its slot.
            reader.length()
        elif code >= 242:
            skip_section(reader, code, snapshot, templates)
        else:
            if not known(code, snapshot):
                raise Damaged(f"type {code} in version {snapshot.version}")
            key = reader.string()
            start = reader.at
            skip_value(reader, code, flavour, templates)
            if is_empty(code, flavour, data[start : reader.at]):
                snapshot.empty += 1
                expire_at = access = None
                continue
            value: bytes | None = bytes([code]) + data[start : reader.at]
            held = 0
            if flavour == "redis" and code in (30, 32):
                held = reader.at - start
                value = of_template(code, data[start : reader.at], templates)
                held = max(held + 1, len(value or b"")) + 10
            importing = bool(snapshot.importing) and key_slot(key) in snapshot.importing
            snapshot.entries.append(Entry(db, key, value, expire_at, access, importing, held))
            expire_at = access = None
    if snapshot.version >= 5:
        end = reader.at
        found = int.from_bytes(reader.raw(8), "little")
        if found and found != crc64(data[:end]):
            raise Damaged("checksum")
    snapshot.size = reader.at
    return snapshot


def is_empty(kind: int, flavour: str, value: bytes) -> bool:
    """Whether a value is a collection without members."""
    reader = Reader(value)
    if kind in (24, 25):
        if flavour != "redis":
            return False
        reader.raw(8)
    if kind in (1, 2, 3, 4, 5, 22, 24):
        return reader.length() == 0
    if kind in (14, 18):
        count = reader.length()
        for _ in range(count):
            if count > 4 or (kind == 18 and reader.length() != 2):
                return False
            if not is_empty_packed(kind, reader):
                return False
        return True
    return kind in (9, 10, 11, 12, 13, 16, 17, 20, 25) and is_empty_packed(kind, reader)


def is_empty_packed(kind: int, reader: Reader) -> bool:
    """Whether the string that comes is a packed collection without members."""
    size = {9: 2, 11: 8, 10: 11, 12: 11, 13: 11, 14: 11}.get(kind, 7)
    if reader.byte() != size:
        return False
    body = reader.raw(size)
    at, count = {2: (0, 1), 8: (4, 4), 11: (8, 2), 7: (4, 2)}[size]
    return not any(body[at : at + count])


def deadline(at: int) -> int | None:
    """-1 is none, all else below 0 long past."""
    return None if at == -1 else max(at, 0)


def known(code: int, snapshot: Snapshot) -> bool:
    """Whether a snapshot of this version may hold the type or opcode."""
    if snapshot.flavour == "valkey" and code in (22, 23, 243):
        return snapshot.version >= (81 if code == 23 else 80)
    first = {5: 8, 7: 8, 14: 7, 15: 9, 247: 8, 246: 10, 27: 13, 28: 13}
    first |= dict.fromkeys((16, 17, 18, 19), 10) | dict.fromkeys((20, 21), 11)
    first |= dict.fromkeys((22, 23, 24, 25, 26, 243), 12) | dict.fromkeys((30, 32, 33, 242), 14)
    return snapshot.version >= first.get(code, 1)


def skip_section(reader: Reader, code: int, snapshot: Snapshot, templates: Templates) -> None:
    """What is neither a key nor said of one."""
    redis = snapshot.flavour == "redis"
    if not known(code, snapshot):
        raise Damaged(f"opcode {code} in version {snapshot.version}")
    if code == 247:
        reader.length()
        skip_module(reader)
    elif code == 246:
        reader.skip_string()
        reader.skip_string()
        if reader.length():
            reader.skip_string()
        reader.skip_string()
    elif code == 243 and redis:
        for _ in range(reader.length()):
            reader.raw(4)
            skip_module(reader)
    elif code == 243:
        reader.skip_string()
        for _ in range(reader.length()):
            first, last = reader.length(), reader.length()
            if not first <= last < 16384:
                raise Damaged("slots")
            snapshot.importing.update(range(first, last + 1))
    elif code == 242 and redis:
        template, fields = reader.length(), reader.length()
        names = []
        for _ in range(fields):
            start = reader.at
            reader.skip_string()
            names.append(reader.data[start : reader.at])
        templates[template] = names
    else:
        raise Damaged(f"opcode {code}")
