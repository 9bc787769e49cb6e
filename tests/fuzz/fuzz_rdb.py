"""A coverage-guided fuzzer of the snapshots: `python -m tests.fuzz.fuzz_rdb -max_total_time=60`.

Needs atheris (`pip install atheris`), which is no dependency of the tests. The reference parser is
instrumented, so its branches guide the inputs; the native reader must agree with it on each.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["tests.reference.rdb"]):
    from tests.reference import rdb as reference  # noqa: F401

from tests.unit.test_rdb_fuzz import HEAD, check, seeds, without_checksum


def once(data: bytes) -> None:
    """The first byte gives the cuts; a head and an end are put around the rest."""
    if data:
        body = data[1:] if data[1:2] == b"R" else HEAD + data[1:]
        check(without_checksum(body + b"\xff" + bytes(8)), [data[0] + 1])


if __name__ == "__main__":
    for seed in seeds():
        once(b"\x03" + seed)
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
