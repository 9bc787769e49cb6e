"""CRC64 and CRC16 as the servers define them, one bit at a time, and slots one byte at a time."""

from __future__ import annotations


def mirrored(value: int, width: int) -> int:
    """The same bits, the lowest first."""
    return int(f"{value:0{width}b}"[::-1], 2)


CRC64_POLY = mirrored(0xAD93D23594C935A9, 64)  # "Jones", crc64.c of the servers
CRC16_POLY = 0x1021  # XMODEM, crc16.c of the servers


def crc64(data: bytes, crc: int = 0) -> int:
    """Reflected, initial value 0, no final xor."""
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (CRC64_POLY if crc & 1 else 0)
    return crc


def crc16(data: bytes) -> int:
    """Not reflected, initial value 0, no final xor."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (CRC16_POLY if crc & 0x8000 else 0)
            crc &= 0xFFFF
    return crc


def key_slot(key: bytes) -> int:
    """The Redis Cluster specification, "Hash tags"."""
    _, opening, after = key.partition(b"{")
    tag, closing, _ = after.partition(b"}")
    return crc16(tag if opening and closing and tag else key) % 16384
