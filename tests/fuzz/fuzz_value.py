"""A coverage-guided fuzzer of the decoder of values: `python -m tests.fuzz.fuzz_value`.

Needs atheris (`pip install atheris`), which is no dependency of the tests. The reference decoder is
instrumented, so its branches guide the inputs; the native one must agree with it on each.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["tests.reference.values"]):
    from tests.reference import values as reference  # noqa: F401

from benches.support.encoded_values import REDIS, VALKEY, payload
from engine._native import ValueDecoder
from tests.unit.test_value_commands import check_commands
from tests.unit.test_value_decoder import check, seeds
from tests.unit.test_value_encode import TARGETS, rewritten, sealed

DECODER = ValueDecoder(most=1 << 24)


def once(data: bytes) -> None:
    """The first byte gives the type and the flavour; a footer is put behind the rest."""
    if data:
        value = payload(data[0] & 0x3F, data[1:], VALKEY if data[0] & 0x40 else REDIS)
        check(value, DECODER)
        # Rewritten for an older target it is the same value, or is left as it is.
        rewritten(list(TARGETS)[len(data) % len(TARGETS)], sealed(value))
        # And the commands that make it come to it.
        check_commands(sealed(value))


if __name__ == "__main__":
    for seed in seeds():
        once(bytes([seed[0] | (0x40 if seed[-10] >= VALKEY else 0)]) + seed[1:-10])
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
