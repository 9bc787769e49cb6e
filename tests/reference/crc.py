"""CRCs bit by bit."""


def crc64(data: bytes, crc: int = 0) -> int:
    """The servers' CRC64: Jones's polynomial, reflected."""
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x95AC9329AC4BC9B5 if crc & 1 else 0)
    return crc
