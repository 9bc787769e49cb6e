"""A coverage-guided fuzzer of the reader of append-only files:
`python -m tests.fuzz.fuzz_aof -runs=100000`.

Needs atheris (`pip install atheris`), which is no dependency of the tests. The reference reader
is instrumented, so its branches guide the inputs; the native one must agree with it on each. The
same bytes are read as a manifest, which may only be refused in one way.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tests.reference.aof", "engine.sources.aof_files"]):
    from engine.sources.aof_files import read_manifest
    from tests.reference import aof as reference

from engine._native import ProtocolError, StreamReader, early_field_ttls
from engine.errors import ProtocolFault
from tests.reference.stream import Broken, command
from tests.support.feeding import contents, push
from tests.unit.test_aof import PARTS, WRONG
from tests.unit.test_fields import PAYLOADS

SEEDS = (
    b"".join(PARTS),
    *WRONG,
    b'file a.1.base.rdb seq 1 type b\nfile "a \\x41" seq 1 type i\n',
    command(b"HSETEX", b"h", b"PXAT", b"1", b"FIELDS", b"1", b"f", b"v"),
    command(b"HEXPIREAT", b"h", b"1", b"FIELDS", b"1", b"f"),
    command(b"RESTORE", b"k", b"1", b"", b"ABSTTL"),
    *(command(b"RESTORE", b"h", b"9", payload) for payload in PAYLOADS),
)


def once(data: bytes) -> None:
    """The first byte gives the cuts and the time; ~~ stands for CRLF, so that fewer inputs die
    early."""
    if not data:
        return
    text = data[1:].replace(b"~~", b"\r\n")
    until = data[0] if data[0] & 1 else None
    with contextlib.suppress(ProtocolFault):
        read_manifest(text, "m")
    reader = StreamReader(
        0,
        batch_bytes=1 + data[0],
        append_only=True,
        publish=False,
        until=until,
    )
    failed = False
    try:
        push(reader, text, [1 + data[0] % 31])
    except ProtocolError:
        failed = True
    try:
        found = reference.read(text, until)
    except Broken:
        assert failed
        return
    assert not failed
    assert reader.parsed_offset == found.parsed
    assert reader.cut_offset == found.cut
    assert reader.timestamps == len(found.times)
    reader.flush()
    batches = reader.take()
    assert contents(batches) == found.commands()
    for batch in batches:
        early_field_ttls(batch, 100)
    _extended(text)


def _extended(text: bytes) -> None:
    """The same with every deadline lifted, as it is applied: nothing is lost."""
    reader = StreamReader(0, append_only=True, publish=False, anchor=True, extend_fields=True)
    reader.now_ms = 1
    reader.extend_before, reader.extend_by = 1 << 62, 1000
    push(reader, text)
    reader.flush()
    for batch in reader.take():
        batch.split(batch.end_offset)


def begin() -> None:
    """Run the seeds, and leave them in the folder that is named for the inputs, if one is."""
    folders = [each for each in sys.argv[1:] if not each.startswith("-")]
    for number, seed in enumerate(SEEDS):
        data = b"\x03" + seed
        once(data)
        for folder in folders[:1]:
            Path(folder, f"seed-{number}").write_bytes(data)


if __name__ == "__main__":
    begin()
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
