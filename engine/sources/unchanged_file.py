"""Whether a file that is read more than once is the same each time.

A file that is written to in place keeps its name, its inode, and perhaps its size and its times. So
what its bytes were is noted at their first reading, and compared whenever they are read again,
before anything is made of them.
"""

from __future__ import annotations

from array import array

from engine._native import crc64

PORTION_BYTES = 1 << 20
"""A file is read, and compared, by portions of so many bytes; the last one is shorter."""


class FileChecksums:
    """The CRC64s of a file's portions, eight bytes each, in the order of their first reading."""

    def __init__(self) -> None:
        # What all bytes before each portion add up to.
        self._sums = array("Q", [0])

    @property
    def checksum(self) -> int:
        """The CRC64 of all that was read so far."""
        return self._sums[-1]

    @property
    def portions(self) -> int:
        """How many were noted."""
        return len(self._sums) - 1

    def holds(self, number: int, portion: bytes) -> bool:
        """Whether the portion with that number (0: the first) is what it was; one that is read for
        the first time is noted. Raises `IndexError` where portions before it were not read."""
        found = crc64(portion, self._sums[number])
        if number + 1 == len(self._sums):
            self._sums.append(found)
        return self._sums[number + 1] == found
