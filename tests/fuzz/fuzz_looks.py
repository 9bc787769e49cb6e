"""A coverage-guided fuzzer of what compares two servers: `python -m tests.fuzz.fuzz_looks`.

Needs atheris (`pip install atheris`), which is no dependency of the tests. Replies of any bytes are
taken in or refused; of two payloads it is said that they are equal only where their digests, or
their bytes, are, whichever end has which.
"""

from __future__ import annotations

import contextlib
import sys
from itertools import pairwise
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tests.reference.values"]):
    from tests.reference import values as reference

from benches.support.encoded_values import REDIS, VALKEY, payload
from engine._native import LookReader, ProtocolError, ValueDecoder
from tests.reference.rdb import Damaged
from tests.support.feeding import push
from tests.unit.test_proof_looks import KEY, compared
from tests.unit.test_value_decoder import seeds

SHAPES = (b"Td", b"td", b"yT", b"e", b"", b"Ts", b"tm", b"m")
DECODER = ValueDecoder(KEY)
REPLIES = (
    b"*2\r\n$10\r\n1700000000\r\n$6\r\n250000\r\n:-2\r\n$-1\r\n:7\r\n$12\r\n0123456789ab\r\n:1\r\n-ERR\r\n",
    b"+string\r\n:-1\r\n+none\r\n:-2\r\n-NOPERM no\r\n:5\r\n",
    b"*2\r\n$2\r\n17\r\n*2\r\n$1\r\na\r\n$4\r\nown:\r\n",
    b":1\r\n$9223372036854775807\r\nx",
    b"",
    b":1\r\n$1\r\na\r\n:-1\r\n-WRONGTYPE\r\n:-1\r\n$-1\r\n",
    b"*2\r\n$10\r\n1700000000\r\n$6\r\n250000\r\n:1\r\n:1\r\n:1\r\n*3\r\n$1\r\na\r\n$0\r\n\r\n$-1\r\n",
    b"*3\r\n$-1\r\n$40\r\n0123456789012345678901234567890123456789\r\n$1\r\nx\r\n",
)


def _digest(data: bytes) -> object:
    """What of the value does not depend on its form; its bytes where it is not understood."""
    try:
        return DECODER.digest(data)[:3]
    except ProtocolError:
        return data[:-10]


def _not_understood(one: bytes, other: bytes) -> bool:
    """Whether nothing tells what the values are, and they come from servers of two flavours, where
    the same bytes may be something else."""
    return isinstance(_digest(one), bytes) and (one[-10] >= VALKEY) != (other[-10] >= VALKEY)


def _elements(data: bytes) -> str:
    try:
        return repr(reference.decode(data))
    except Damaged:
        return ""


def _replies(flags: int, text: bytes) -> None:
    reader = LookReader(KEY, b"own:", held=30, held_together=60)
    if shape := SHAPES[flags % len(SHAPES)]:
        reader.expect_looks(shape, 3)
    reader.expect_page()
    with contextlib.suppress(ProtocolError):
        push(reader, text, [1 + flags % 31])
        reader.take()


def _values(one: bytes, other: bytes) -> None:
    found, comparer = compared([one, other, one], [other, one, one])
    assert 2 not in found
    assert (0 in found) == (1 in found)
    if 0 in found:
        assert found[0] == found[1]
        assert _digest(one) != _digest(other) or one[0] == 7 or _not_understood(one, other)
        assert _elements(one) != _elements(other) or not _elements(one) or one[0] == 7
    else:
        assert _digest(one) == _digest(other)
        assert comparer.digests[0] == comparer.digests[1]


def once(data: bytes) -> None:
    """The first byte chooses; behind it replies, ~~ for CRLF, or two values' types and the place of
    the cut between them."""
    if len(data) < 4:
        return
    if data[0] & 0x80:
        _replies(data[0] & 0x7F, data[1:].replace(b"~~", b"\r\n"))
        return
    body = data[4:]
    cut = len(body) * data[3] // 255
    _values(
        payload(data[1] & 0x3F, body[:cut], VALKEY if data[0] & 1 else REDIS),
        payload(data[2] & 0x3F, body[cut:], VALKEY if data[0] & 2 else REDIS),
    )


def begin() -> None:
    """Run the seeds, and leave them in the folder that is named for the inputs, if one is."""
    inputs = [bytes([0x80 + 9 * n]) + each for n, each in enumerate(REPLIES)]
    for one, other in pairwise(each for each in seeds() if len(each) < 400):
        flags = (one[-10] >= VALKEY) + 2 * (other[-10] >= VALKEY)
        body = one[1:-10] + other[1:-10]
        cut = -(-255 * len(one[1:-10]) // max(len(body), 1))
        inputs.append(bytes([flags, one[0], other[0], min(cut, 255)]) + body)
    folders = [each for each in sys.argv[1:] if not each.startswith("-")]
    for number, data in enumerate(inputs):
        once(data)
        for folder in folders[:1]:
            Path(folder, f"seed-{number}").write_bytes(data)


if __name__ == "__main__":
    begin()
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
