"""The registers of a HyperLogLog (hyperloglog.c), whichever way a server has stored them.

Two servers with other settings (`hll-sparse-max-bytes`) keep one HyperLogLog in different bytes:
sparse or dense, with a count that is cached or not. What it counts is its registers alone.
"""

from __future__ import annotations

MAGIC = b"HYLL"
_HEADER = 16
_REGISTERS = 1 << 14
_DENSE, _SPARSE = 0, 1
LONGEST = _HEADER + _REGISTERS * 6 // 8
"""Bytes of the longest: the dense form."""


def registers(value: bytes) -> bytes | None:
    """The 16,384 registers, a byte each; None if `value` is no HyperLogLog."""
    if len(value) < _HEADER or not value.startswith(MAGIC):
        return None
    encoding, packed = value[4], value[_HEADER:]
    if encoding == _DENSE:
        return _dense(packed)
    return _sparse(packed) if encoding == _SPARSE else None


def _dense(packed: bytes) -> bytes | None:
    """Six bits each, the lowest first."""
    if len(packed) != _REGISTERS * 6 // 8:
        return None
    found = bytearray()
    for at in range(0, len(packed), 3):
        four = int.from_bytes(packed[at : at + 3], "little")
        found += bytes((four & 63, four >> 6 & 63, four >> 12 & 63, four >> 18))
    return bytes(found)


def _sparse(packed: bytes) -> bytes | None:
    """Runs: ZERO (00xxxxxx), XZERO (01xxxxxx xxxxxxxx), VAL (1vvvvvxx)."""
    found = bytearray()
    at = 0
    while at < len(packed) and len(found) <= _REGISTERS:
        code = packed[at]
        if code & 0x80:
            found += bytes(((code >> 2 & 31) + 1,)) * ((code & 3) + 1)
        elif code & 0x40:
            at += 1
            if at == len(packed):
                return None
            found += bytes(((code & 63) << 8 | packed[at]) + 1)
        else:
            found += bytes((code & 63) + 1)
        at += 1
    return bytes(found) if len(found) == _REGISTERS else None
