"""The core's scan pipeline and encoder against slow Python, on bytes cut anywhere."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import (
    ProtocolError,
    RecordBatch,
    ReplyCounter,
    ReplyError,
    RestoreEncoder,
    ScanPipeline,
)
from tests.reference import scan as reference
from tests.reference.scan import Key
from tests.support.feeding import push


def sent(encoder: RestoreEncoder, items: list[RecordBatch | bytes]) -> bytes:
    """All of it as bytes for the target."""
    out = b""
    for item in items:
        if isinstance(item, bytes):
            out += encoder.piece(item)
        elif item.streamed:
            out += bytes(encoder.begin(item))
        else:
            out += bytes(encoder.encode(item))
    return out


def run_scan(
    keys: list[Key],
    *,
    page: int = 3,
    sizes: list[int] | None = None,
    access: str | None = None,
    **options: int,
) -> tuple[ScanPipeline, list[RecordBatch | bytes]]:
    """Let a pipeline talk to an imagined source that holds `keys`."""
    pipeline = ScanPipeline(7, access=access, **options)
    by_name = {key.name: key for key in keys}
    pages = [keys[i : i + page] for i in range(0, len(keys), page)] or [[]]
    for number, names in enumerate(pages):
        cursor = number + 1 if number + 1 < len(pages) else 0
        expected = reference.command(b"SCAN", b"%d" % number, b"COUNT", b"10", b"MATCH", b"*")
        assert pipeline.request_scan(10, "*") == expected
        push(pipeline, reference.scan_reply(cursor, [key.name for key in names]), sizes)
        requests = pipeline.request_values(1000)
        asked = [by_name[key.name] for key in names]
        expected = b""
        for key in asked:
            expected += reference.command(b"PEXPIRETIME", key.name)
            if access:
                expected += reference.command(b"OBJECT", access.upper().encode(), key.name)
            expected += reference.command(b"DUMP", key.name)
        assert requests == expected
        replies = b"".join(reference.value_replies(key, bool(access)) for key in asked)
        push(pipeline, replies, sizes)
    assert pipeline.finished
    pipeline.flush(last=True)
    return pipeline, pipeline.take()


numbers = st.integers(-(2**31), 2**31 - 1).map(lambda n: b"%d" % n)
values = st.one_of(
    st.binary(min_size=1, max_size=60).map(lambda body: bytes([body[0] % 22]) + body),
    st.builds(
        reference.string_value, st.binary(max_size=100), st.sampled_from(["short", "32", "64"])
    ),
    st.builds(reference.string_value, numbers, st.just("int")),
    # Lengths and numbers that do not fit what follows.
    st.builds(lambda head, rest: b"\0" + head + rest, st.binary(max_size=9), st.binary(max_size=9)),
)
key_lists = st.lists(
    st.builds(
        Key,
        name=st.one_of(
            st.binary(max_size=40),
            st.builds(bytes.__add__, st.sampled_from([b"{a}", b"{b}"]), st.binary(max_size=3)),
        ),
        ttl=st.sampled_from([-1, -1, 0, 1, 1_900_000_000_000, 2**62]),
        payload=st.one_of(
            st.none(),
            st.builds(reference.payload, values, st.sampled_from([9, 11, 80])),
            st.binary(min_size=11, max_size=40),
        ),
        access=st.one_of(st.none(), st.integers(0, 2**31)),
    ),
    max_size=12,
    unique_by=lambda key: key.name,
)


@settings(max_examples=200)
@given(
    keys=key_lists,
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5),
    page=st.integers(1, 5),
    access=st.sampled_from([None, "idletime", "freq"]),
    how=st.sampled_from(["fail", "replace", "mset", "mset of one slot"]),
    stream_above=st.sampled_from([12, 40, 1 << 20]),
    batch_bytes=st.sampled_from([1, 100, 1 << 20]),
    bounds=st.sampled_from([(0xFFFF, 1, 0), (9, 1, 0), (11, 1, 0), (80, 12, 79)]),
)
def test_requests_and_restores_agree_with_the_reference(
    keys, sizes, page, access, how, stream_above, batch_bytes, bounds
):
    _pipeline, items = run_scan(
        keys,
        page=page,
        sizes=sizes,
        access=access,
        stream_above=stream_above,
        batch_bytes=batch_bytes,
    )
    encoder = RestoreEncoder(
        replace=how != "fail",
        mset=how.startswith("mset"),
        of_one_slot=how == "mset of one slot",
        highest_version=bounds[0],
        refused_low=bounds[1],
        refused_high=bounds[2],
    )
    word = {"idletime": "IDLETIME", "freq": "FREQ", None: None}[access]
    carried = [key for key in keys if key.payload is not None]
    expected = b""
    for item in items:
        if isinstance(item, bytes):
            continue
        mine, carried = carried[: len(item)], carried[len(item) :]
        restores = [
            reference.restore(
                key,
                replace=how != "fail",
                access=word,
                data=reference.restamped(key.payload, *bounds),
            )
            for key in mine
        ]
        if encoder.mset and not item.streamed:
            one = how == "mset of one slot"
            expected += reference.with_mset(mine, access, restores, of_one_slot=one)[0]
        else:
            expected += b"".join(restores)
    assert sent(encoder, items) == expected
    assert not carried
    batches = [item for item in items if isinstance(item, RecordBatch)]
    assert sum(batch.vanished for batch in batches) == sum(key.payload is None for key in keys)
    assert sum(map(len, batches)) == sum(key.payload is not None for key in keys)
    assert [batch.last for batch in batches] == [False] * (len(batches) - 1) + [True]
    assert {batch.db for batch in batches} == {7}


def test_a_page_is_passed_only_when_all_its_keys_are_answered():
    pipeline = ScanPipeline(0, batch_bytes=1)
    names = [b"a", b"b", b"c"]
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(42, names))
    assert pipeline.safe_cursor is None
    pipeline.request_values(10)
    for name in names[:2]:
        push(pipeline, reference.value_replies(Key(name, -1, reference.payload(b"\0\1x"))))
    pipeline.flush()
    assert [batch.cursor for batch in pipeline.take()] == [None, None]
    assert pipeline.safe_cursor is None
    push(pipeline, reference.value_replies(Key(b"c", -1, None)))
    assert pipeline.safe_cursor == 42
    pipeline.flush()
    assert [batch.cursor for batch in pipeline.take()] == [42]


def test_an_empty_page_waits_for_the_pages_before_it():
    pipeline = ScanPipeline(0)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(5, [b"a"]))
    pipeline.request_values(1)
    pipeline.request_scan(10)
    push(pipeline, reference.value_replies(Key(b"a", -1, reference.payload(b"\0\1x"))))
    assert pipeline.safe_cursor == 5
    push(pipeline, reference.scan_reply(9, []))
    assert pipeline.safe_cursor == 9


def test_scan_and_values_interleave():
    pipeline = ScanPipeline(0)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(5, [b"a", b"b"]))
    pipeline.request_values(1)
    pipeline.request_scan(10)
    pipeline.request_values(1)
    with pytest.raises(ValueError, match="under way"):
        pipeline.request_scan(10)
    one = Key(b"a", -1, reference.payload(b"\0\1x"))
    two = Key(b"b", 5, reference.payload(b"\0\1y"))
    push(
        pipeline,
        reference.value_replies(one) + reference.scan_reply(0, []) + reference.value_replies(two),
        [1],
    )
    assert pipeline.finished
    pipeline.flush(last=True)
    (batch,) = pipeline.take()
    assert [batch.key(i) for i in range(2)] == [b"a", b"b"]
    assert [batch.expire_at(i) for i in range(2)] == [None, 5]


def test_a_key_made_anew_between_ttl_and_dump_is_asked_for_again():
    pipeline = ScanPipeline(0)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"a"]))
    pipeline.request_values(10)
    payload = reference.payload(b"\0\1x")
    push(pipeline, reference.value_replies(Key(b"a", -2, payload)))
    assert not pipeline.finished
    assert pipeline.safe_cursor is None, "its page must not be passed"
    assert pipeline.queued == 1
    assert pipeline.request_values(10).count(b"DUMP") == 1
    push(pipeline, reference.value_replies(Key(b"a", 77, payload)))
    pipeline.flush(last=True)
    (batch,) = pipeline.take()
    assert len(batch) == 1
    assert batch.expire_at(0) == 77
    assert batch.vanished == 0


@pytest.mark.parametrize("size", [1, 5, 10_000])
@pytest.mark.parametrize("slices", [[100], [1] * 100, [15, 1, 16, 17, 51]])
def test_pttl_is_anchored_to_the_source_s_clock(size: int, slices: list[int]) -> None:
    """A TIME goes before the PTTLs of every 16 keys of a request."""
    pipeline = ScanPipeline(0, ttl="pttl")
    pipeline.request_scan(10)
    names = [b"k%d" % i for i in range(100)]
    push(pipeline, reference.scan_reply(0, names), [size])
    payload = reference.payload(b"\0\1x")
    number = 0
    deadlines = []
    for count in slices:
        expected = replies = b""
        for first in range(0, count, 16):
            group = names[number : number + min(16, count - first)]
            now = 1_900_000_000 + number
            expected += reference.command(b"TIME")
            expected += b"".join(reference.command(b"PTTL", name) for name in group)
            expected += b"".join(reference.command(b"DUMP", name) for name in group)
            replies += b"*2\r\n" + reference.bulk(b"%d" % now) + reference.bulk(b"7999")
            for i in range(len(group)):
                replies += b":%d\r\n" % (number + i)
                deadlines.append(now * 1000 + 7 + number + i)
            replies += reference.bulk(payload) * len(group)
            number += len(group)
        assert pipeline.request_values(count) == expected
        push(pipeline, replies, [size])
    pipeline.flush(last=True)
    (batch,) = pipeline.take()
    assert [batch.expire_at(i) for i in range(100)] == deadlines


@pytest.mark.parametrize(
    "refusal",
    [
        b"-NOPERM this user has no permissions to run the 'time' command\r\n",
        b"-ERR unknown command `TIME`, with args beginning with: \r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 10_000])
def test_without_time_pttl_is_anchored_to_our_clock(size: int, refusal: bytes) -> None:
    pipeline = ScanPipeline(0, ttl="pttl")
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"a", b"b", b"c"]), [size])
    pipeline.request_values(3)
    before = time.time_ns() // 1_000_000
    payload = reference.bulk(reference.payload(b"\0\1x"))
    push(pipeline, refusal + b":5000\r\n:-1\r\n:7\r\n" + payload * 3, [size])
    after = time.time_ns() // 1_000_000
    pipeline.flush(last=True)
    (batch,) = pipeline.take()
    first, second, third = (batch.expire_at(i) for i in range(3))
    assert first is not None
    assert third is not None
    assert before <= first - 5000 == third - 7 <= after
    assert second is None


@pytest.mark.parametrize("reply", [b"-LOADING x\r\n", b"-ERR\r\n", b"-NOPERM\r\n"])
def test_another_error_to_time_ends_the_scan(reply: bytes) -> None:
    pipeline = ScanPipeline(0, ttl="pttl")
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"a"]))
    pipeline.request_values(1)
    with pytest.raises(ReplyError):
        push(pipeline, reply, [1])


@pytest.mark.parametrize(
    "reply", [b"*1\r\n", b"*2\r\n:1\r\n", b"*2\r\n$1\r\nx\r\n", b"*2\r\n$2\r\n1\r\n", b"+OK\r\n"]
)
def test_a_reply_that_is_none_to_time(reply: bytes) -> None:
    pipeline = ScanPipeline(0, ttl="pttl")
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"a"]))
    pipeline.request_values(1)
    with pytest.raises(ProtocolError):
        push(pipeline, reply, [1])


def test_a_value_over_the_limit_is_named_and_read_to_nothing():
    pipeline = ScanPipeline(0, value_limit=100)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"long", b"short"]))
    pipeline.request_values(10)
    short = reference.payload(b"\0\1x")
    replies = reference.value_replies(Key(b"long", -1, reference.payload(b"\0" * 101)))
    push(pipeline, replies + reference.value_replies(Key(b"short", -1, short)), [7])
    pipeline.flush(last=True)
    (batch,) = pipeline.take()
    assert [batch.key(i) for i in range(len(batch))] == [b"short"]
    ((key, reason),) = batch.errors
    assert key == b"long"
    assert "longer than the target takes" in reason


def test_a_refused_key_is_named_and_a_refused_user_ends_the_scan():
    pipeline = ScanPipeline(0)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"a", b"b"]))
    pipeline.request_values(10)
    push(pipeline, b":-1\r\n-ERR no dump for this type\r\n")
    with pytest.raises(ReplyError, match="NOPERM"):
        push(pipeline, b":-1\r\n-NOPERM not yours\r\n")
    pipeline.flush()
    (batch,) = pipeline.take()
    assert batch.errors == [(b"a", "ERR no dump for this type")]


@pytest.mark.parametrize(
    ("asked", "bytes_", "expected"),
    [
        ("scan", b"+OK\r\n", "a number"),
        ("scan", b"*3\r\n", "an array of two"),
        ("scan", b"*2\r\n$21\r\n", "the cursor"),
        ("scan", b"*2\r\n$1\r\nx\r\n", "a cursor"),
        ("scan", b"*2\r\n$1\r\n0\r\n*-1\r\n", "the keys"),
        ("scan", b"*2\r\n$1\r\n0\r\n*99999999999\r\n", "the keys"),
        ("scan", b"*2\r\n$1\r\n0\r\n*1\r\n$-1\r\n", "a key"),
        ("scan", b"*2\r\n$1\r\n0\r\n*1\r\n$4294967296\r\n", "a key"),
        ("scan", b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\naXY", "CRLF"),
        ("scan", b"*2\r\n$20\r\n99999999999999999999\r\n*0\r\n", "a cursor"),
        ("values", b"$1\r\nx\r\n", "an integer"),
        ("values", b":x\r\n", "a number"),
        ("values", b":99999999999999999999\r\n", "a number"),
        ("values", b":-1\r\n:5\r\n", "a bulk, the reply to DUMP"),
        ("values", b":-1\r\n$-2\r\n", "a bulk, the reply to DUMP"),
        ("values", b":-1\r\n$3\r\nabc\r\n", "more than ten bytes"),
        ("values", b":-1\r\n$12\r\nabcdefghijklXX", "CRLF"),
        ("values", b":-1\n", "CRLF"),
        ("nothing", b":1\r\n", "no reply is owed"),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_bytes_that_are_no_reply(asked, bytes_, expected, size):
    pipeline = ScanPipeline(0)
    if asked != "nothing":
        pipeline.request_scan(10)
    if asked == "values":
        push(pipeline, reference.scan_reply(0, [b"a"]))
        pipeline.request_values(10)
    with pytest.raises(ProtocolError, match=expected):
        push(pipeline, bytes_, [size])


def test_an_endless_line_is_refused():
    pipeline = ScanPipeline(0)
    pipeline.request_scan(10)
    with pytest.raises(ProtocolError, match="CRLF"):
        push(pipeline, b"*" + b"1" * 200_000)


@settings(max_examples=300)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_hostile_replies_never_crash(data, seed):
    """Real replies, mutated: an error or a result, nothing else; and requests still work."""
    rng = random.Random(seed)
    keys = [
        Key(b"key%d" % i, rng.choice([-2, -1, 10]), reference.payload(rng.randbytes(30)))
        for i in range(5)
    ]
    replies = reference.scan_reply(rng.randrange(2**64), [key.name for key in keys])
    tail = b"".join(reference.value_replies(key) for key in keys)
    stream = bytearray(replies + tail)
    for _ in range(data.draw(st.integers(1, 4))):
        at = rng.randrange(len(stream))
        match rng.randrange(3):
            case 0:
                stream[at] = rng.randrange(256)
            case 1:
                del stream[at : at + rng.randrange(1, 6)]
            case 2:
                stream[at:at] = rng.choice([b"*", b"$", b"-1", b"\r\n", b"9" * 18, b":"])
    pipeline = ScanPipeline(0, stream_above=64, batch_bytes=128, value_limit=4096)
    encoder = RestoreEncoder(highest_version=9)
    pipeline.request_scan(10)
    try:
        for at in range(0, len(stream), 9):
            push(pipeline, bytes(stream[at : at + 9]))
            pipeline.request_values(2)
    except (ProtocolError, ReplyError):
        pass
    with contextlib.suppress(ValueError):  # in the middle of a value
        pipeline.flush()
    sent(encoder, pipeline.take())


@settings(max_examples=200)
@given(
    answers=st.lists(
        st.one_of(
            st.lists(
                st.sampled_from([b"+OK", b"-BUSYKEY Target key name already exists.", b"-OOM x"])
            ),
            st.integers(0, 200).map(lambda count: [b"+OK"] * count),
        ),
        max_size=6,
    ),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    count_busy=st.booleans(),
)
def test_replies_are_counted_by_batch(answers, sizes, count_busy):
    counter = ReplyCounter(count_busy=count_busy)
    for batch in answers:
        counter.expect(len(batch))
    push(counter, b"".join(line + b"\r\n" for batch in answers for line in batch), sizes)
    expected = []
    for batch in answers:
        busy = [i for i, line in enumerate(batch) if line.startswith(b"-BUSYKEY")]
        errors = [
            (i, line[1:].decode())
            for i, line in enumerate(batch)
            if line.startswith(b"-") and not (count_busy and i in busy)
        ]
        expected.append((batch.count(b"+OK"), len(busy) if count_busy else 0, errors))
    assert counter.take() == expected
    assert counter.waiting == 0


def strings(count: int, size: int = 3) -> RecordBatch:
    """A batch of plain strings."""
    keys = [
        Key(b"k%d" % i, -1, reference.payload(reference.string_value(b"v" * size)))
        for i in range(count)
    ]
    _, (batch,) = run_scan(keys, page=count)
    return batch


@pytest.mark.parametrize(
    ("count", "size", "runs"),
    [(1, 3, 1), (64, 3, 1), (65, 3, 2), (150, 3, 3), (3, 30_000, 2), (2, 65_536, 2)],
)
def test_one_mset_is_bounded_by_keys_and_by_bytes(count: int, size: int, runs: int) -> None:
    output = RestoreEncoder(mset=True).encode(strings(count, size))
    assert bytes(output).count(b"MSET") == runs
    assert output.runs is not None
    assert len(output.runs) == runs


def test_mset_is_used_where_it_replaces_and_can_be_given_up() -> None:
    with pytest.raises(ValueError, match="replaces"):
        RestoreEncoder(replace=False, mset=True)
    encoder = RestoreEncoder(mset=True)
    batch = strings(3)
    encoder.use_restore_alone()
    assert not encoder.mset
    output = encoder.encode(batch)
    assert output.runs is None
    assert bytes(output).count(b"RESTORE") == 3


@pytest.mark.parametrize("at", range(18))
def test_damaged_bytes_are_left_to_the_target(at: int) -> None:
    """A bit flipped anywhere: the payload goes on as it is, its CRC with it."""
    damaged = bytearray(reference.payload(reference.string_value(b"abcdef")))
    damaged[at] ^= 1
    _, (batch,) = run_scan([Key(b"k", -1, bytes(damaged))])
    written = bytes(RestoreEncoder(mset=True).encode(batch))
    assert b"MSET" not in written
    assert bytes(damaged) in written


@settings(max_examples=100)
@given(
    answers=st.lists(st.sampled_from([b"+OK", b"-OOM x", b"-ERR y"]), min_size=5, max_size=5),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_a_reply_to_mset_stands_for_each_of_its_records(answers, sizes) -> None:
    encoder = RestoreEncoder(mset=True)
    batch, other = strings(150), strings(7)
    counter = ReplyCounter()
    counter.expect(len(batch), encoder.encode(batch).runs)
    counter.expect(2)
    counter.expect(len(other), encoder.encode(other).runs)
    answers.append(b"+OK")
    push(counter, b"".join(line + b"\r\n" for line in answers), sizes)
    bounds = (range(64), range(64, 128), range(128, 150), range(1), range(1, 2), range(7))
    records = [list(each) for each in bounds]
    expected = []
    for first, last in ((0, 3), (3, 5), (5, 6)):
        pairs = list(zip(answers[first:last], records[first:last], strict=True))
        ok = sum(len(run) for line, run in pairs if line == b"+OK")
        errors = [(i, line[1:].decode()) for line, run in pairs if line != b"+OK" for i in run]
        expected.append((ok, 0, errors))
    assert counter.take() == expected


def test_runs_of_another_batch() -> None:
    runs = RestoreEncoder(mset=True).encode(strings(3)).runs
    with pytest.raises(ValueError, match="another batch"):
        ReplyCounter().expect(2, runs)


@pytest.mark.parametrize(
    "bytes_", [b":1\r\n", b"+QUEUED\r\n", b"+OK\n", b"$2\r\nOK\r\n", b"+OX\r\n"]
)
@pytest.mark.parametrize("size", [1, 100])
def test_a_reply_that_is_none_to_restore(bytes_, size):
    counter = ReplyCounter()
    counter.expect(3)
    with pytest.raises(ProtocolError):
        push(counter, b"+OK\r\n" + bytes_ + b"+OK\r\n", [size])


def test_a_reply_to_nothing():
    counter = ReplyCounter()
    counter.expect(1)
    with pytest.raises(ProtocolError, match="no reply is owed"):
        push(counter, b"+OK\r\n+OK\r\n")


def test_more_received_than_there_was_room_for():
    with pytest.raises(ValueError, match="more bytes"):
        ReplyCounter().received(1 << 30)


def test_records_are_bounded():
    _, (batch,) = run_scan([Key(b"a", -1, reference.payload(b"\0\1x"))])
    for index in (-1, 1, 1 << 40):
        with pytest.raises(IndexError):
            batch.key(index)


def test_requests_under_way_are_bounded_and_scan_finds_a_place() -> None:
    pipeline = ScanPipeline(0)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(9, [b"k%d" % i for i in range(100)]))
    runs = 0
    while pipeline.request_values(1):
        runs += 1
    assert runs == 63
    pipeline.request_scan(10)
    payload = reference.payload(b"\0\1x")
    for i in range(runs):
        push(pipeline, reference.value_replies(Key(b"k%d" % i, -1, payload)))
    push(pipeline, reference.scan_reply(0, []))
    assert pipeline.request_values(100).count(b"DUMP") == 100 - runs


def test_a_key_that_is_never_at_rest_is_named_in_the_end() -> None:
    pipeline = ScanPipeline(0)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"a"]))
    replies = reference.value_replies(Key(b"a", -2, reference.payload(b"\0\1x")))
    for _ in range(20_000):
        if not pipeline.request_values(10):
            break
        push(pipeline, replies)
    assert pipeline.finished
    pipeline.flush(last=True)
    (batch,) = pipeline.take()
    assert [key for key, _ in batch.errors] == [b"a"]


def test_requests_are_bounded_by_bytes() -> None:
    pipeline = ScanPipeline(0)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"%d" % i * 300_000 for i in range(9)]))
    assert len(pipeline.request_values(9)) < 2 << 20
    assert 0 < pipeline.queued < 9


def test_no_flush_in_the_middle_of_a_value() -> None:
    pipeline = ScanPipeline(0)
    pipeline.request_scan(10)
    push(pipeline, reference.scan_reply(0, [b"a"]))
    pipeline.request_values(1)
    replies = reference.value_replies(Key(b"a", -1, reference.payload(b"\0\1x" * 9)))
    push(pipeline, replies[:-9])
    assert not pipeline.may_flush
    with pytest.raises(ValueError, match="being read"):
        pipeline.flush()
    push(pipeline, replies[-9:])
    pipeline.flush(last=True)
    assert len(pipeline.take()[0]) == 1


@given(st.data())
def test_a_batch_in_parts_is_what_the_batch_was(data: st.DataObject) -> None:
    """`take` and `leave_out`: each record once, in order; figures and bytes fit."""
    values = data.draw(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=12))
    keys = [
        Key(b"key:%d" % n, -1, reference.payload(b"\4" + value)) for n, value in enumerate(values)
    ]
    _, items = run_scan(keys, page=len(keys))
    (batch,) = [item for item in items if isinstance(item, RecordBatch) and len(item)]
    cursor, last, total = batch.cursor, batch.last, batch.value_bytes
    out = data.draw(st.integers(0, len(batch) - 1))
    size, name = batch.value_size(out), batch.key(out)
    batch.leave_out(out, "why")
    kept = [batch.key(i) for i in range(len(batch))]
    parts = []
    while len(batch) > 1 and data.draw(st.booleans()):
        parts.append(batch.take(data.draw(st.integers(1, len(batch) - 1))))
    parts.append(batch)
    assert [part.key(i) for part in parts for i in range(len(part))] == kept
    assert name not in kept
    assert batch.withheld == [(name, "why")]
    assert sum(part.value_bytes for part in parts) == total - size
    assert (batch.cursor, batch.last) == (cursor, last)
    assert all((part.cursor, part.last, part.errors) == (None, False, []) for part in parts[:-1])
    encoder = RestoreEncoder()
    sent_parts = [bytes(encoder.encode(part)) for part in parts if len(part)]
    assert b"".join(sent_parts).count(b"RESTORE") == len(kept)
    for refused in (0, len(batch), -1):
        with pytest.raises(ValueError, match="cannot be taken"):
            batch.take(refused)
