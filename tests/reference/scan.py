"""The scan path in slow, obvious Python: what the core's pipeline must agree with."""

from __future__ import annotations

from dataclasses import dataclass

from tests.reference.crc import crc64

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
