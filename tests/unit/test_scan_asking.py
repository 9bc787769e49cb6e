"""The scan pipeline by MGET and without TTLs, with another client that writes between requests."""

from __future__ import annotations

import contextlib
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import ProtocolError, RecordBatch, ReplyError, ScanPipeline
from tests.reference import scan as reference
from tests.reference.crc import crc64
from tests.reference.source import NOW, Entry, Source
from tests.support.feeding import push

MORTAL = NOW + 60_000


def entry(text: bytes, mortal: bool, other: bool = False) -> Entry:
    return Entry(text + (b" mortal" if mortal else b" lasting"), MORTAL if mortal else None, other)


def check(key: bytes, value: bytes, expire_at: int | None) -> None:
    """A record is sound, and what was read with a deadline has got it."""
    assert crc64(value[:-8]) == int.from_bytes(value[-8:], "little")
    text = reference.plain_string(value)
    text = value[1:-10] if text is None else text
    assert text.startswith(key)
    assert expire_at == (MORTAL if text.endswith(b" mortal") else None), (key, text)


@settings(max_examples=1000 if os.environ.get("ENGINE_SOAK") else 100)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    ttl=st.sampled_from(["pttl", "pexpiretime"]),
    access=st.sampled_from([None, "idletime"]),
    batch_bytes=st.sampled_from([1, 200, 1 << 20]),
    stream_above=st.sampled_from([60, 1 << 20]),
    info=st.sampled_from(["told", "told", "refused", "hidden", "long"]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    busy=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_nothing_is_lost_and_no_deadline_either(
    seed, sizes, ttl, access, batch_bytes, stream_above, info, share, busy
):
    """Steady keys all arrive, once their page is passed; what had a deadline when it was read
    keeps it, whoever sets and drops deadlines meanwhile."""
    rng = random.Random(seed)
    names = [b"key%d" % i for i in range(rng.randrange(150))]
    pages, at = [], 0
    while at < len(names):
        size = rng.randrange(40)
        pages.append(names[at : at + size])
        at += size
    source = Source({}, pages or [[]], info=info)
    steady = {name for name in names if rng.random() < 0.8}
    some_mortal = rng.random() < 0.3
    for name in names:
        filler = name + b"x" * rng.choice([0, 5, 80, 300])
        source.keys[name] = entry(
            filler, some_mortal and rng.random() < 0.1, other=rng.random() >= share
        )

    def another_client(source: Source) -> None:
        if rng.random() < busy and len(steady) < len(names):
            name = rng.choice([name for name in names if name not in steady])
            # A lock is taken, or let go, or the key is changed for good.
            new = rng.choice([None, None, entry(name, True), entry(name, False)])
            source.write(name, new)

    source.meanwhile = another_client
    pipeline = ScanPipeline(
        7, ttl=ttl, access=access, batch_bytes=batch_bytes, stream_above=stream_above
    )
    arrived: set[bytes] = set()
    open_value: list[bytes] = []
    streamed: RecordBatch | None = None

    def end_stream() -> None:
        nonlocal streamed
        if streamed is not None:
            value = b"".join(open_value)
            assert len(value) == streamed.value_size(0)
            check(streamed.key(0), value, streamed.expire_at(0))
            streamed = None
            open_value.clear()

    def take() -> None:
        nonlocal streamed
        for item in pipeline.take():
            if isinstance(item, bytes):
                open_value.append(item)
                continue
            end_stream()
            assert not item.errors
            streamed = item if item.streamed else None
            for i in range(len(item)):
                arrived.add(item.key(i))
                if not item.streamed:
                    check(item.key(i), item.value(i), item.expire_at(i))
            assert item.streamed or item.value_bytes == sum(
                item.value_size(i) for i in range(len(item))
            )
            if item.cursor is not None:
                passed = source.pages[: item.cursor or len(source.pages)]
                assert steady.intersection(name for page in passed for name in page) <= arrived

    while not pipeline.finished:
        requests = b""
        if pipeline.may_scan and rng.random() < 0.7:
            requests += pipeline.request_scan(10)
        for _ in range(rng.randrange(3)):
            requests += pipeline.request_values(
                rng.randrange(1, 80),
                mget=rng.choice([0, 1, 3, 64]),
                without_ttl=rng.random() < 0.6,
            )
        push(pipeline, source.answer(requests), sizes)
        if rng.random() < 0.2:
            pipeline.flush()
        take()
    pipeline.flush(last=True)
    take()
    end_stream()
    assert steady <= arrived
    assert not pipeline.owed
    assert pipeline.waiting == pipeline.queued_bytes == 0
    assert info == "told" or not pipeline.proven


def read_all(source: Source, sizes: list[int] | None = None, **how: object) -> ScanPipeline:
    """Read a source of one page, asking `how` for everything."""
    pipeline = ScanPipeline(7, **{k: v for k, v in how.items() if k not in ("mget", "without_ttl")})
    push(pipeline, source.answer(pipeline.request_scan(10)), sizes)
    asked = {k: v for k, v in how.items() if k in ("mget", "without_ttl")}
    while not pipeline.finished:
        push(pipeline, source.answer(pipeline.request_values(1000, **asked)), sizes)
    pipeline.flush(last=True)
    return pipeline


def quiet(*entries: Entry, **options: object) -> Source:
    keys = {each.text.partition(b" ")[0].rstrip(b"x"): each for each in entries}
    return Source(keys, [list(keys)], **options)


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_what_is_asked_by_mget_and_without_ttls(size: int) -> None:
    source = quiet(*(entry(b"k%d" % i, False) for i in range(5)), entry(b"list", False, True))
    pipeline = read_all(source, [size], mget=4, without_ttl=True)
    (batch,) = pipeline.take()
    assert source.asked[1:] == [
        (b"INFO", b"keyspace"),
        (b"INFO", b"persistence"),
        (b"MGET", b"k0", b"k1", b"k2", b"k3"),
        (b"MGET", b"k4", b"list"),
        (b"INFO", b"keyspace"),
        (b"INFO", b"persistence"),
        (b"PEXPIRETIME", b"list"),
        (b"DUMP", b"list"),
    ]
    assert [batch.key(i) for i in range(6)] == [*(b"k%d" % i for i in range(5)), b"list"]
    assert (pipeline.proven, pipeline.unproven) == (1, 0)
    assert (pipeline.strings, pipeline.others) == (5, 1)


def test_one_proof_serves_the_runs_on_both_its_sides() -> None:
    source = quiet(*(entry(b"k%d" % i, False) for i in range(6)))
    pipeline = ScanPipeline(7)
    push(pipeline, source.answer(pipeline.request_scan(10)))
    for _ in range(3):
        push(pipeline, source.answer(pipeline.request_values(2, mget=2, without_ttl=True)))
    assert pipeline.finished
    assert pipeline.proven == 3
    assert sum(args[0] == b"INFO" for args in source.asked) == 2 * 4
    # A run with TTLs between: the proof before it is too old to be used.
    assert not any(args[0] == b"PEXPIRETIME" for args in source.asked)


@pytest.mark.parametrize("info", ["refused", "hidden", "long"])
def test_without_a_proof_every_key_is_asked_again(info: str) -> None:
    source = quiet(*(entry(b"k%d" % i, False) for i in range(5)), info=info)
    pipeline = read_all(source, [13], mget=4, without_ttl=True)
    assert (pipeline.proven, pipeline.unproven) == (0, 1)
    (batch,) = pipeline.take()
    assert len(batch) == 5
    assert batch.value_bytes == sum(batch.value_size(i) for i in range(5))
    assert sum(args[0] == b"PEXPIRETIME" for args in source.asked) == 5


@pytest.mark.parametrize("when", range(1, 7))
def test_a_lock_taken_and_released_between_two_proofs(when: int) -> None:
    """INFO says `expires=0` before and after: only that something was written gives it away."""
    source = quiet(*(entry(b"k%d" % i, False) for i in range(4)))
    source.pages[0].append(b"lock")
    turn = 0

    def lock(source: Source) -> None:
        nonlocal turn
        turn += 1
        if turn == when:
            source.write(b"lock", entry(b"lock", True))
        elif turn == when + 3:
            source.write(b"lock", None)

    pipeline = ScanPipeline(7)
    push(pipeline, source.answer(pipeline.request_scan(10)))
    source.meanwhile = lock
    while not pipeline.finished:
        push(pipeline, source.answer(pipeline.request_values(9, mget=1, without_ttl=True)))
    pipeline.flush(last=True)
    for batch in pipeline.take():
        for i in range(len(batch)):
            check(batch.key(i), batch.value(i), batch.expire_at(i))
            assert batch.key(i) != b"lock" or batch.expire_at(i) is not None


def test_a_position_waits_for_the_proof_and_for_keys_asked_again() -> None:
    source = Source(
        {b"a": entry(b"a", False), b"b": entry(b"b", False, True), b"c": entry(b"c", False)},
        [[b"a", b"b"], [b"c"]],
    )
    pipeline = ScanPipeline(7)
    push(pipeline, source.answer(pipeline.request_scan(10)))
    replies = source.answer(pipeline.request_values(9, mget=2, without_ttl=True))
    proof = replies.rindex(b"$", 0, replies.rindex(b"# Keyspace"))
    push(pipeline, replies[:proof])
    assert pipeline.outstanding == 0
    assert pipeline.waiting == 3, "b twice: held, and to be asked for again"
    assert pipeline.owed
    assert not pipeline.may_flush
    assert pipeline.safe_cursor is None
    push(pipeline, replies[proof:])
    assert pipeline.safe_cursor is None, "b was no string"
    push(pipeline, source.answer(pipeline.request_scan(10)))
    push(pipeline, source.answer(pipeline.request_values(1)))
    assert source.asked[-1] == (b"DUMP", b"b"), "it goes before c"
    assert pipeline.safe_cursor == 1
    push(pipeline, source.answer(pipeline.request_values(1)))
    assert pipeline.safe_cursor == 0


def test_a_refused_mget_leads_to_dump() -> None:
    pipeline = ScanPipeline(7)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"a", b"b"]))
    assert not pipeline.mget_refused
    pipeline.request_values(9, mget=64)
    push(pipeline, b":-1\r\n:-1\r\n-NOPERM no MGET for you\r\n", [3])
    assert pipeline.mget_refused
    assert pipeline.request_values(9, mget=64) == b"".join(
        reference.command(word, key) for key in (b"a", b"b") for word in (b"PEXPIRETIME", b"DUMP")
    )
    replies = [
        reference.value_replies(reference.Key(k, -1, reference.payload(b"\0\1x")))
        for k in (b"a", b"b")
    ]
    push(pipeline, b"".join(replies))
    assert pipeline.finished
    with pytest.raises(ValueError, match="at most 64"):
        pipeline.request_values(9, mget=65)


def test_gone_and_made_anew_by_mget() -> None:
    pipeline = ScanPipeline(7)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"gone", b"anew", b"there"]))
    pipeline.request_values(9, mget=64)
    push(pipeline, b":-2\r\n:-2\r\n:-1\r\n*3\r\n$-1\r\n$3\r\nnew\r\n$0\r\n\r\n", [2])
    assert pipeline.request_values(9).count(b"anew") == 2
    assert not pipeline.queued
    payload = reference.payload(reference.string_value(b"new"))
    push(pipeline, reference.value_replies(reference.Key(b"anew", 9, payload)))
    pipeline.flush(last=True)
    (batch,) = pipeline.take()
    assert [(batch.key(i), batch.expire_at(i)) for i in range(2)] == [
        (b"there", None),
        (b"anew", 9),
    ]
    assert batch.vanished == 1
    assert batch.value(0) == reference.payload(b"\0\0", version=1)


@pytest.mark.parametrize("length", [0, 1, 63, 64, 16_383, 16_384, 70_000])
@pytest.mark.parametrize("stream_above", [10, 1 << 20])
def test_the_payload_made_of_a_string(length: int, stream_above: int) -> None:
    text = random.Random(length).randbytes(length)
    source = Source({b"k": Entry(text)}, [[b"k"]])
    pipeline = read_all(source, [1000], mget=64, stream_above=stream_above)
    batch, *pieces = pipeline.take()
    if batch.streamed:
        value = b"".join(piece for piece in pieces if isinstance(piece, bytes))
        assert batch.value_size(0) == len(value)
    else:
        value = batch.value(0)
    assert value == reference.payload(reference.string_value(text), version=1)


def test_a_string_over_the_limit() -> None:
    source = quiet(entry(b"a" + b"x" * 100, False), entry(b"b", False))
    (batch,) = read_all(source, [5], mget=64, value_limit=60).take()
    assert [key for key, _ in batch.errors] == [b"a"]
    assert [batch.key(i) for i in range(len(batch))] == [b"b"]


def test_what_cannot_be_held_until_it_is_proven_is_asked_again() -> None:
    source = quiet(*(entry(b"k%d" % i + b"x" * 100, False) for i in range(9)))
    pipeline = read_all(source, [50], mget=64, without_ttl=True, batch_bytes=500)
    assert pipeline.proven == 1
    batches = pipeline.take()
    assert all(batch.nbytes <= 500 for batch in batches)
    assert sorted(batch.key(i) for batch in batches for i in range(len(batch))) == sorted(
        source.keys
    )
    assert 0 < sum(args[0] == b"DUMP" for args in source.asked) < 9


@pytest.mark.parametrize(
    ("bytes_", "expected"),
    [
        (b":-1\r\n", "a bulk, the reply to INFO"),
        (b"$-1\r\n", "a bulk, the reply to INFO"),
        (b"$3\r\nabcXY", "CRLF"),
        (b"$70000\r\n" + b"x" * 70_000 + b"XY", "CRLF"),
        (b"$0\r\n\r\n*1\r\n", "a bulk, the reply to INFO"),
        (b"$0\r\n\r\n$0\r\n\r\n$-1\r\n", "a value for each key"),
        (b"$0\r\n\r\n$0\r\n\r\n*1\r\n", "a value for each key"),
        (b"$0\r\n\r\n$0\r\n\r\n*3\r\n", "a value for each key"),
        (b"$0\r\n\r\n$0\r\n\r\n*-1\r\n", "a value for each key"),
        (b"$0\r\n\r\n$0\r\n\r\n*2\r\n:1\r\n", "a bulk"),
        (b"$0\r\n\r\n$0\r\n\r\n*2\r\n$-2\r\n", "a bulk"),
        (b"$0\r\n\r\n$0\r\n\r\n*2\r\n-ERR\r\n", "a bulk"),
        (b"$0\r\n\r\n$0\r\n\r\n*2\r\n$1\r\naXY", "CRLF"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 100_000])
def test_bytes_that_are_no_reply(bytes_: bytes, expected: str, size: int) -> None:
    pipeline = ScanPipeline(7)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"a", b"b"]))
    pipeline.request_values(9, mget=64, without_ttl=True)
    with pytest.raises(ProtocolError, match=expected):
        push(pipeline, bytes_, [size])


@settings(max_examples=300)
@given(data=st.data(), seed=st.integers(0, 2**32), without_ttl=st.booleans())
def test_hostile_replies_never_crash(data, seed, without_ttl):
    """Real replies, mutated: an error or a result, nothing else; and requests still work."""
    rng = random.Random(seed)
    source = quiet(*(entry(b"k%d" % i + b"x" * rng.randrange(90), False) for i in range(8)))
    options = {"stream_above": 64, "batch_bytes": 256, "value_limit": 4096}
    try_run = ScanPipeline(7, **options)
    stream = bytearray(source.answer(try_run.request_scan(10)))
    push(try_run, bytes(stream))
    stream += source.answer(try_run.request_values(9, mget=3, without_ttl=without_ttl))
    for _ in range(data.draw(st.integers(1, 4))):
        at = rng.randrange(len(stream))
        match rng.randrange(3):
            case 0:
                stream[at] = rng.randrange(256)
            case 1:
                del stream[at : at + rng.randrange(1, 6)]
            case 2:
                stream[at:at] = rng.choice([b"*", b"$", b"-1", b"\r\n", b"9" * 18, b":"])
    pipeline = ScanPipeline(7, **options)
    pipeline.request_scan(10)
    with contextlib.suppress(ProtocolError, ReplyError):
        for at in range(0, len(stream), 9):
            push(pipeline, bytes(stream[at : at + 9]))
            pipeline.request_values(9, mget=3, without_ttl=without_ttl)
    with contextlib.suppress(ValueError):  # in the middle of a value
        pipeline.flush()
    for item in pipeline.take():
        for i in range(0 if isinstance(item, bytes) else len(item)):
            item.value(i)
