"""A coverage-guided fuzzer of the RESP reader: `python -m tests.fuzz.fuzz_resp -max_total_time=60`.

Needs atheris (`pip install atheris`), which is no dependency of the tests. The reference decoder
is instrumented, so its branches guide the inputs; the native reader must agree with it on each.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["tests.reference.resp"]):
    from tests.reference import resp as reference  # noqa: F401

from tests.unit.test_resp_fuzz import compare

SEEDS = (
    b"*2\r\n$3\r\nGET\r\n$-1\r\n",
    b"*2\r\n:1\r\n*1\r\n+a\r\n",
    b"-ERR x\r\n*-1\r\n*0\r\n",
)


def once(data: bytes) -> None:
    """The first byte gives the cuts; ~~ stands for CRLF, so that fewer inputs die early."""
    if not data:
        return
    text = data[1:].replace(b"~~", b"\r\n")
    compare(text, [data[0] % (len(text) + 1), (data[0] * 7) % (len(text) + 1)])


if __name__ == "__main__":
    for seed in SEEDS:
        once(b"\x03" + seed)
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
