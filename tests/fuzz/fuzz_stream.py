"""A coverage-guided fuzzer of the stream reader: `python -m tests.fuzz.fuzz_stream -runs=100000`.

Needs atheris (`pip install atheris`), which is no dependency of the tests. The reference reader
is instrumented, so its branches guide the inputs; the native one must agree with it on each.
"""

from __future__ import annotations

import os
import sys

import atheris

with atheris.instrument_imports(
    include=["tests.reference.stream", "tests.reference.newer_commands"]
):
    from tests.reference import newer_commands
    from tests.reference import stream as reference

from engine._native import NamedKeys, ProtocolError, StreamReader
from tests.support.feeding import contents, push
from tests.unit.test_stream import MIXED, check

SEEDS = (
    MIXED,
    reference.command(b"MULTI") + reference.command(b"SWAPDB", b"1", b"2"),
    reference.command(b"EXEC") * 2,
    b"*1\r\n$5\r\nMULTI\r\n" * 2,
    reference.command(b"ZUNIONSTORE", b"d", b"2", b"a", b"b"),
    reference.command(b"XREADGROUP", b"GROUP", b"g", b"c", b"STREAMS", b"a", b">"),
    reference.command(b"SORT", b"a", b"BY", b"w*", b"STORE", b"b"),
    reference.command(b"MIGRATE", b"h", b"1", b"", b"0", b"1", b"KEYS", b"a"),
    reference.command(b"COPY", b"a", b"b", b"DB", b"1"),
    reference.command(b"MSETEX", b"2", b"a", b"1", b"b", b"2", b"NX", b"PXAT", b"9"),
    reference.command(b"HSETEX", b"a", b"FNX", b"PXAT", b"9", b"FIELDS", b"1", b"f", b"v"),
    reference.command(b"XADD", b"a", b"NOMKSTREAM", b"MAXLEN", b"=", b"4", b"LIMIT", b"9", b"1-1"),
    reference.command(b"XGROUP", b"CREATE", b"a", b"g", b"$", b"ENTRIESREAD", b"3"),
)


def once(data: bytes) -> None:
    """The first byte gives the cuts; ~~ stands for CRLF, so that fewer inputs die early."""
    if not data:
        return
    text = data[1:].replace(b"~~", b"\r\n")
    # Every other one has all but the first bytes in a file.
    file = (lambda: os.memfd_create("fuzz")) if data[0] % 2 else None
    reader = StreamReader(1000, batch_bytes=1 + data[0], file=file, memory_bytes=data[0] // 8)
    failed = False
    try:
        push(reader, text, [1 + data[0] % 31])
    except ProtocolError:
        failed = True
    try:
        stream = reference.read(text, 1000)
    except reference.Broken:
        assert failed
        return
    assert not failed
    assert reader.parsed_offset == 1000 + len(text) - len(stream.rest)
    reader.flush()
    batches = reader.take()
    check(batches, text)
    for batch in batches:
        changed, strange = batch.changed()
        batch.derived(changed[:3])
        assert strange == [at for at in range(len(batch)) if batch.keys(at) is None]
        named = NamedKeys(seed=data[0], most_bytes=4 * data[0])
        named.note(batch)
        assert all(named.has(db, key) for db, key in changed)
        assert named.everything or not named.complete or set(changed) <= set(named.names())
    older = StreamReader(1000, file=file, memory_bytes=data[0] // 8, lacks=2 * data[0] + 1)
    push(older, text, [1 + data[0] % 31])
    older.flush()
    assert contents(older.take()) == [
        (offset, db, made)
        for offset, db, args in contents(batches)
        for made in newer_commands.made(args, 2 * data[0] + 1)
    ]


if __name__ == "__main__":
    for seed in SEEDS:
        once(b"\x03" + seed)
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
