"""The scan path in slow, obvious Python: what the core's pipeline must agree with."""

from __future__ import annotations

from dataclasses import dataclass

from tests.reference.crc import crc64, key_slot

# The lowest RDB version that knows each type of value, by type.
LOWEST_VERSION = dict(
    enumerate([1, 1, 1, 1, 1, 8, 8, 8, 0, 4, 4, 4, 4, 4, 7, 9, 10, 10, 10, 10, 11, 11])
)


@dataclass
class Key:
    """One key of an imagined source. `ttl` as the source answers it, `payload` None: gone."""

    name: bytes
    ttl: int
    payload: bytes | None
    access: int | None = None


def payload(value: bytes, version: int = 9) -> bytes:
    """A DUMP payload: type and value, version, CRC64."""
    body = value + version.to_bytes(2, "little")
    return body + crc64(body).to_bytes(8, "little")


def restamped(data: bytes, highest: int, low: int = 1, high: int = 0) -> bytes:
    """The payload as the encoder has to send it to a target that refuses some versions."""
    version = int.from_bytes(data[-10:-8], "little")
    lowest = LOWEST_VERSION.get(data[0], 0)
    if (version <= highest and not low <= version <= high) or not lowest:
        return data
    if crc64(data[:-8]) != int.from_bytes(data[-8:], "little"):
        return data
    return payload(data[:-10], lowest)


def command(*args: bytes) -> bytes:
    """A command on the wire."""
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%s\r\n" % (len(a), a) for a in args)


def bulk(data: bytes | None) -> bytes:
    """A bulk reply, or nil."""
    return b"$-1\r\n" if data is None else b"$%d\r\n%s\r\n" % (len(data), data)


def scan_reply(cursor: int, keys: list[bytes]) -> bytes:
    """The reply to SCAN."""
    body = b"".join(bulk(key) for key in keys)
    return b"*2\r\n" + bulk(b"%d" % cursor) + b"*%d\r\n" % len(keys) + body


def value_replies(key: Key, access: bool = False) -> bytes:
    """What the source answers to the two or three commands for one key."""
    middle = b""
    if access:
        middle = b"$-1\r\n" if key.access is None else b":%d\r\n" % key.access
    return b":%d\r\n" % key.ttl + middle + bulk(key.payload)


def restore(key: Key, *, replace: bool, access: str | None = None, data: bytes | None = None):
    """The RESTORE that has to go out for a key."""
    assert key.payload is not None
    args = [b"RESTORE", key.name, b"%d" % max(key.ttl, 1) if key.ttl >= 0 else b"0"]
    args.append(key.payload if data is None else data)
    if replace:
        args.append(b"REPLACE")
    if key.ttl >= 0:
        args.append(b"ABSTTL")
    if access and key.access is not None:
        args += [access.encode(), b"%d" % key.access]
    return command(*args)


def string_value(text: bytes, form: str = "short") -> bytes:
    """Type and value of a string: its length in the shortest form, or in 4 or 8 bytes.

    "int": as a number, which `text` then has to be (32 bits, as str(int) writes it).
    """
    if form == "int":
        number = int(text)
        for code, size in ((0xC0, 1), (0xC1, 2), (0xC2, 4)):
            if -(1 << (8 * size - 1)) <= number < 1 << (8 * size - 1):
                return bytes([0, code]) + number.to_bytes(size, "little", signed=True)
        raise ValueError(text)
    if form == "32":
        return b"\0\x80" + len(text).to_bytes(4, "big") + text
    if form == "64":
        return b"\0\x81" + len(text).to_bytes(8, "big") + text
    if len(text) < 64:
        return bytes([0, len(text)]) + text
    if len(text) < 1 << 14:
        return bytes([0, 0x40 | len(text) >> 8, len(text) & 0xFF]) + text
    return b"\0\x80" + len(text).to_bytes(4, "big") + text


def plain_string(data: bytes) -> bytes | None:
    """The string in a payload; None for other types, LZF, and whatever is not sound."""
    body = data[:-10]
    if len(body) < 2 or body[0] != 0 or crc64(data[:-8]) != int.from_bytes(data[-8:], "little"):
        return None
    first, rest = body[1], body[2:]
    if first in (0xC0, 0xC1, 0xC2):
        if len(rest) != 1 << (first & 3):
            return None
        return b"%d" % int.from_bytes(rest, "little", signed=True)
    if first < 0x40:
        length = first
    elif first < 0x80 and rest:
        length, rest = (first & 0x3F) << 8 | rest[0], rest[1:]
    elif first == 0x80 and len(rest) >= 4:
        length, rest = int.from_bytes(rest[:4], "big"), rest[4:]
    elif first == 0x81 and len(rest) >= 8:
        length, rest = int.from_bytes(rest[:8], "big"), rest[8:]
    else:
        return None
    return rest if length == len(rest) else None


def with_mset(
    keys: list[Key], access: str | None, others: list[bytes], *, of_one_slot: bool = False
) -> tuple[bytes, list[int]]:
    """The commands for one batch where MSET is used, and how many keys each of them stores.

    `others` are the RESTOREs, by key, for what MSET is not used for. `of_one_slot`: the keys of an
    MSET are.
    """
    commands, stored = [], []
    run: list[bytes] = []
    held = 0

    def end_run() -> None:
        nonlocal held
        if run:
            commands.append(command(b"MSET", *run))
            stored.append(len(run) // 2)
            run.clear()
            held = 0

    for key, other in zip(keys, others, strict=True):
        assert key.payload is not None
        text = plain_string(key.payload)
        if text is None or key.ttl >= 0 or (access and key.access is not None):
            end_run()
            commands.append(other)
            stored.append(1)
            continue
        if len(run) == 2 * 64 or (run and held + len(key.payload) > 1 << 16):
            end_run()
        if of_one_slot and run and key_slot(run[0]) != key_slot(key.name):
            end_run()
        run += [key.name, text]
        held += len(key.payload)
    end_run()
    return b"".join(commands), stored
