"""The registers of a HyperLogLog, whichever way they are stored."""

from __future__ import annotations

from engine.model.hyperloglog import registers

HEAD = b"HYLL%c\0\0\0" + bytes(8)


def test_sparse_runs() -> None:
    """XZERO of 1,000, VAL 5 twice, ZERO of 64, and XZERO of the rest."""
    rest = 16384 - 1000 - 2 - 64
    packed = bytes((0x40 | 999 >> 8, 999 & 255, 0x80 | 4 << 2 | 1, 63))
    packed += bytes((0x40 | (rest - 1) >> 8, (rest - 1) & 255))
    assert registers(HEAD % 1 + packed) == bytes(1000) + b"\5\5" + bytes(64 + rest)


def test_dense_and_sparse_say_the_same() -> None:
    values = bytes(n % 32 + 1 for n in range(16384))
    bits = sum(value << 6 * n for n, value in enumerate(values))
    dense = HEAD % 0 + bits.to_bytes(12288, "little")
    sparse = HEAD % 1 + bytes(0x80 | (value - 1) << 2 for value in values)
    assert registers(dense) == registers(sparse) == values


def test_what_is_none() -> None:
    """Cut off anywhere, too long, of another encoding, or no HyperLogLog at all."""
    dense = HEAD % 0 + bytes(12288)
    assert registers(dense) == bytes(16384)
    for wrong in (
        b"",
        b"HYLL",
        b"x" + dense[1:],
        dense[:-1],
        dense + b"\0",
        HEAD % 2 + bytes(12288),
        HEAD % 1,
        HEAD % 1 + b"\x40",
        HEAD % 1 + b"\x7f\xff\x00",
        HEAD % 1 + b"\xff" * 20_000,
    ):
        assert registers(wrong) is None, wrong[:20]
