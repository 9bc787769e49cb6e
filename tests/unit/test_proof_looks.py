"""What two servers say of the same keys: read from replies that are cut anywhere, and compared."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benches.support import encoded_values as encoded
from engine import _native
from engine._native import (
    KeyNames,
    KeyPage,
    LookComparer,
    LookReader,
    Looks,
    ProtocolError,
    key_slot,
)
from tests.support.feeding import push

KEY = bytes(range(16))
OWN = b"own:"
FAR = 2_000_000_000_000


def bulk(text: bytes | None) -> bytes:
    return b"$-1\r\n" if text is None else b"$%d\r\n%s\r\n" % (len(text), text)


def page(cursor: int, names: Sequence[bytes]) -> bytes:
    return b"*2\r\n%s*%d\r\n%s" % (
        bulk(b"%d" % cursor),
        len(names),
        b"".join(map(bulk, names)),
    )


def looked(
    values: Sequence[bytes | None],
    ttls: Sequence[int] | None = None,
    *,
    sizes: Sequence[int] | None = None,
    **bounds: int,
) -> Looks:
    """Looks at keys with these payloads and expire times (-1: none)."""
    reader = LookReader(KEY, **bounds)
    reader.expect_looks(b"Td", len(values))
    told = ttls or [-1] * len(values)
    data = b"".join(
        b":%d\r\n%s" % (-2 if value is None else ttl, bulk(value))
        for value, ttl in zip(values, told, strict=True)
    )
    push(reader, data, sizes)
    (found,) = reader.take()
    assert isinstance(found, Looks)
    return found


def compared(
    ours: Sequence[bytes | None],
    theirs: Sequence[bytes | None],
    ttls: tuple[Sequence[int], Sequence[int]] | None = None,
    **options: int,
) -> tuple[dict[int, int], LookComparer]:
    """In what the keys differ, by their numbers."""
    comparer = LookComparer(KEY, **options)
    names = KeyNames([b"key:%d" % n for n in range(len(ours))])
    one = looked(ours, ttls and ttls[0])
    other = looked(theirs, ttls and ttls[1])
    return dict(comparer.compare(names, 0, one, other)), comparer


# --- Names ---


@given(st.lists(st.binary(max_size=40), max_size=30), st.lists(st.integers(1, 60), min_size=1))
def test_pages_cut_anywhere(names: list[bytes], sizes: list[int]) -> None:
    reader = LookReader(KEY, OWN)
    reader.expect_page()
    reader.expect_page()
    told = [OWN + b"position", *names]
    push(reader, page(17, told) + b"-ERR no\r\n", sizes)
    first, second = reader.take()
    assert isinstance(first, KeyPage)
    assert (first.cursor, first.named, second) == (17, len(told), "ERR no")
    kept = [each for each in names if not each.startswith(OWN)]
    assert first.left_out == len(told) - len(kept)
    (found,) = first.names
    assert [found.name(n) for n in range(len(found))] == kept


def test_names_go_to_the_part_that_has_their_slot() -> None:
    table = b"".join((slot % 3).to_bytes(2, "little") for slot in range(16384))
    reader = LookReader(KEY, parts=table, count=3)
    reader.expect_page()
    names = [b"key:%d" % n for n in range(200)]
    push(reader, page(0, names))
    (found,) = reader.take()
    assert isinstance(found, KeyPage)
    for part, each in enumerate(found.names):
        told = [each.name(n) for n in range(len(each))]
        assert told == [name for name in names if key_slot(name) % 3 == part]


def test_a_share_of_the_names_is_the_same_one_each_time() -> None:
    names = [b"key:%d" % n for n in range(4000)]
    chosen = []
    for key in (KEY, KEY, bytes(16)):
        reader = LookReader(key, share=(1 << 64) // 10)
        reader.expect_page()
        push(reader, page(0, names))
        (found,) = reader.take()
        assert isinstance(found, KeyPage)
        chosen.append([found.names[0].name(n) for n in range(len(found.names[0]))])
    assert chosen[0] == chosen[1] != chosen[2]
    assert 300 < len(chosen[0]) < 500


def test_requests() -> None:
    names = KeyNames([b"a", b"", b"c c"])
    asked = bytes(names.request((b"PTTL", b"DUMP"), 1, 3, clock=True))
    assert asked == (
        b"*1\r\n$4\r\nTIME\r\n"
        b"*2\r\n$4\r\nPTTL\r\n$0\r\n\r\n*2\r\n$4\r\nDUMP\r\n$0\r\n\r\n"
        b"*2\r\n$4\r\nPTTL\r\n$3\r\nc c\r\n*2\r\n$4\r\nDUMP\r\n$3\r\nc c\r\n"
    )
    asked = bytes(names.request((b"PTTL",), 0, 2, clock=True, together=b"MGET", around=b"+"))
    assert asked == (
        b"+*1\r\n$4\r\nTIME\r\n*2\r\n$4\r\nPTTL\r\n$1\r\na\r\n*2\r\n$4\r\nPTTL\r\n$0\r\n\r\n"
        b"*3\r\n$4\r\nMGET\r\n$1\r\na\r\n$0\r\n\r\n+"
    )
    many = KeyNames([b"%d" % n for n in range(200)])
    for count, heads in ((64, [64]), (65, [64, 1]), (199, [64, 64, 64, 7])):
        asked = bytes(many.request((), 1, 1 + count, together=b"MGET"))
        told = [int(each.split(b"\r\n")[0]) - 1 for each in asked.split(b"*")[1:]]
        assert told == heads
    assert [many.some(3, 5).name(n) for n in range(2)] == [b"3", b"4"]
    assert len(many.some(200, 200)) == 0
    with pytest.raises(IndexError):
        names.request((b"DUMP",), 2, 4)
    with pytest.raises(IndexError):
        names.some(2, 4)
    with pytest.raises(ValueError, match="too many"):
        names.request((b"A",) * 5, 0, 1)


# --- Looks ---


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(20, 200))
def test_looks_cut_anywhere(sizes: list[int], held: int) -> None:
    values = [None, *(encoded.payload(0, encoded.string(b"v" * n)) for n in (0, 30, 300)), None]
    reader = LookReader(KEY, held=held)
    reader.expect_looks(b"td", 5)
    data = b"*2\r\n$10\r\n1700000000\r\n$6\r\n250000\r\n"
    data += b"".join(b":%d\r\n%s" % (n, bulk(value)) for n, value in enumerate(values))
    push(reader, data, sizes)
    (found,) = reader.take()
    assert isinstance(found, Looks)
    assert found.absent == [0, 4]
    assert [found.size(n) for n in range(5)] == [len(each or b"") for each in values]
    short = [each if each is not None and len(each) <= held else None for each in values]
    assert [found.value(n) for n in range(5)] == short
    assert found.expire_at(1) == 1_700_000_000_251
    assert found.nbytes == len(data)


def got(
    values: Sequence[bytes | None],
    ttls: Sequence[int] | None = None,
    *,
    together: bool = True,
    sizes: Sequence[int] | None = None,
    texts: int = 0,
    **bounds: int,
) -> Looks:
    """Looks at keys of which strings alone are told (None: it is none, or not there)."""
    reader = LookReader(KEY, **bounds)
    told = ttls or [-1] * len(values)
    reader.expect_looks(b"Tm" if together else b"Ts", len(values), texts=texts)
    data = b"".join(map(bulk, [b"before %d" % n for n in range(texts)]))
    if together:
        data += b"".join(b":%d\r\n" % each for each in told)
        for first in range(0, len(values), 64):
            some = values[first : first + 64]
            data += b"*%d\r\n%s" % (len(some), b"".join(map(bulk, some)))
    else:
        for value, ttl in zip(values, told, strict=True):
            wrong = b"-WRONGTYPE of a list\r\n" if len(data) % 2 else bulk(None)
            data += b":%d\r\n%s" % (ttl, wrong if value is None else bulk(value))
    data += b"".join(map(bulk, [b"behind", None, b""][:texts]))
    push(reader, data, sizes)
    (found,) = reader.take()
    assert isinstance(found, Looks)
    assert found.nbytes == len(data)
    return found


@given(
    st.lists(st.one_of(st.none(), st.binary(max_size=70)), min_size=1, max_size=140),
    st.lists(st.integers(1, 200), min_size=1),
    st.booleans(),
    st.integers(0, 3),
)
def test_strings_cut_anywhere(
    values: list[bytes | None], sizes: list[int], together: bool, texts: int
) -> None:
    ttls = [FAR + n if n % 3 else -1 for n in range(len(values))]
    found = got(values, ttls, together=together, sizes=sizes, texts=texts, held=60)
    assert found.texts == [
        *(b"before %d" % n for n in range(texts)), *[b"behind", None, b""][:texts]
    ]  # fmt: skip
    held = [each if each is not None and len(each) <= 60 else None for each in values]
    decoder = _native.ValueDecoder(KEY)
    told = [found.value(n) for n in range(len(values))]
    assert [each and decoder.value(each) for each in told] == [
        each if each is None else ("string", [each]) for each in held
    ]
    assert found.strings == len(values) - held.count(None)
    assert [found.expire_at(n) or -1 for n in range(len(values))] == ttls
    assert (found.refused, found.error) == (0, None)


def test_strings_that_are_refused() -> None:
    reader = LookReader(KEY)
    reader.expect_looks(b"m", 66, texts=2)
    reader.expect_looks(b"s", 2)
    push(
        reader, b"-NOPERM info\r\n$-1\r\n-NOPERM mget\r\n*2\r\n$-1\r\n$1\r\nx\r\n+a\r\n+b\r\n", [1]
    )
    push(reader, b"-MOVED 1 h:1\r\n-WRONGTYPE x\r\n")
    together, each = reader.take()
    assert isinstance(together, Looks)
    assert isinstance(each, Looks)
    assert together.texts == [None, None, b"a", b"b"]
    assert (together.refused, together.error, together.strings) == (64, "NOPERM mget", 1)
    assert (each.refused, each.error, each.strings) == (1, "MOVED 1 h:1", 0)


FORMS = st.one_of(
    st.none(),
    st.tuples(st.sampled_from(["string", "list"]), st.sampled_from([b"", b"12", b"-7", b"a" * 50])),
    st.tuples(st.just("string"), st.binary(max_size=40)),
)


@given(st.lists(st.tuples(FORMS, FORMS, st.integers(0, 5), st.integers(0, 3)), min_size=1))
def test_strings_first_come_to_the_same(
    keys: list[tuple[Any, Any, int, int]],
) -> None:
    """What is asked for as strings, and by payloads where that leaves it, counts and differs as
    what is asked for by payloads alone."""
    ends: list[list[Any]] = [[], []]
    for ours, theirs, same, _ in keys:
        for end, value in zip(ends, (ours, theirs if same == 0 else ours), strict=True):
            end.append(value)
    ttls = [[FAR] * len(keys), [FAR + (2000 if each[3] == 3 else 0) for each in keys]]

    def form(value: Any, n: int) -> bytes | None:
        if value is None:
            return None
        forms = (encoded.strings if value[0] == "string" else _one_item)(value[1])
        return forms[n % len(forms)]

    names = KeyNames([b"key:%d" % n for n in range(len(keys))])
    plain, first = LookComparer(KEY), LookComparer(KEY)
    payloads = [
        [form(value, n + 2 * n * side) for n, value in enumerate(end)]
        for side, end in enumerate(ends)
    ]
    one, other = (looked(*each) for each in zip(payloads, ttls, strict=True))
    expected = dict(plain.compare(names, 0, one, other))
    strings = [
        [None if each is None or each[0] != "string" else each[1] for each in end] for end in ends
    ]
    looks = [got(each, ttls[n], together=bool(n), held=30) for n, each in enumerate(strings)]
    left = first.sift(names, 0, *looks)
    found = {}
    if left is not None:
        numbers = [int(left.name(n)[4:]) for n in range(len(left))]
        again = [
            looked([payloads[side][n] for n in numbers], [ttls[side][n] for n in numbers])
            for side in (0, 1)
        ]
        found = {numbers[index]: bits for index, bits in first.compare(left, 0, *again)}
    assert found == expected
    assert (first.equal, first.digests) == (plain.equal, plain.digests)


def _one_item(item: bytes) -> list[bytes]:
    return encoded.lists([item])


def test_types_and_errors() -> None:
    reader = LookReader(KEY)
    reader.expect_looks(b"yT", 4)
    reader.expect_looks(b"e", 3)
    push(reader, b"+string\r\n:-1\r\n+none\r\n:-2\r\n-NOPERM no\r\n:5\r\n+hash\r\n-ERR x\r\n")
    push(reader, b":1\r\n:0\r\n-MOVED 1 h:1\r\n")
    types, exist = reader.take()
    assert isinstance(types, Looks)
    assert isinstance(exist, Looks)
    assert (types.absent, types.refused, types.error) == ([1, 2, 3], 2, "NOPERM no")
    assert types.value(0) == b"string"
    assert (exist.absent, exist.error) == ([1, 2], "MOVED 1 h:1")


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        (b"Td", b":1\r\n:1\r\n"),
        (b"Td", b"+OK\r\n"),
        (b"Td", b":1\r\n$10\r\n0123456789\r\n"),
        (b"Td", b":1\r\n$12\r\n012345678901xx"),
        (b"Td", b":1\r\n$-2\r\n"),
        (b"td", b"+OK\r\n"),
        (b"td", b"*2\r\n$1\r\nx\r\n$1\r\n0\r\n"),
        (b"td", b"*2\r\n$1\r\n0\r\n$20\r\n-9223372036854775807\r\n"),
        (b"td", b"*2\r\n$1\r\n1\r\n$1\r\n0\r\n:9223372036854775807\r\n"),
        (b"yT", b"+a type that is too long\r\n"),
        (b"e", b"?\r\n"),
        (b"s", b":1\r\n"),
        (b"s", b"$-2\r\n"),
        (b"s", b"$1\r\nxyz"),
        (b"m", b"$1\r\n"),
        (b"m", b"*2\r\n"),
        (b"m", b"*-1\r\n"),
        (b"m", b"*1\r\n:1\r\n"),
        (b"Tm", b":1\r\n:1\r\n"),
    ],
)
def test_what_is_no_such_reply(shape: bytes, data: bytes) -> None:
    for sizes in (None, [1]):
        reader = LookReader(KEY)
        reader.expect_looks(shape, 1)
        with pytest.raises(ProtocolError):
            push(reader, data, sizes)
        with pytest.raises(ProtocolError):
            push(reader, b":1\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b":1\r\n",
        b"*1\r\n$1\r\n0\r\n",
        b"*2\r\n$1\r\nx\r\n*0\r\n",
        b"*2\r\n$20\r\n18446744073709551616\r\n*0\r\n",
        b"!\r\n",
    ],
)
def test_what_is_no_page(data: bytes) -> None:
    reader = LookReader(KEY)
    reader.expect_page()
    with pytest.raises(ProtocolError):
        push(reader, data)


def test_the_longest_length_of_a_payload() -> None:
    """It is digested as it comes: all of it is waited for."""
    reader = LookReader(KEY)
    reader.expect_looks(b"Td", 1)
    push(reader, b":1\r\n$9223372036854775807\r\n" + bytes(100))
    assert reader.take() == []


@pytest.mark.parametrize(
    ("shape", "before"), [(b"yT", b""), (b"yT", b"+set\r\n"), (b"e", b""), (b"tm", b"")]
)
@pytest.mark.parametrize("begin", [b"$9223372036854775807\r\n", b"*2\r\n$1000000\r\n"])
def test_what_is_short_is_not_waited_for(shape: bytes, before: bytes, begin: bytes) -> None:
    """A type, a number, a time: what would be longer than a line is not kept until it is there."""
    reader = LookReader(KEY)
    reader.expect_looks(shape, 1)
    with pytest.raises(ProtocolError):
        push(reader, before + begin + bytes(70_000))


def test_a_reply_to_nothing() -> None:
    with pytest.raises(ProtocolError, match="no reply is owed"):
        push(LookReader(KEY), b":1\r\n")


@given(
    st.binary(max_size=300), st.sampled_from([b"Td", b"td", b"yT", b"e", b"tm", b"s", b"m", b""])
)
def test_any_bytes(data: bytes, shape: bytes) -> None:
    """They are taken in, or refused: no more."""
    reader = LookReader(KEY, held=30, held_together=60)
    if shape:
        reader.expect_looks(shape, 3, texts=len(data) % 2)
    reader.expect_page()
    try:
        push(reader, data, [7])
    except ProtocolError:
        return
    reader.take()


# --- Compared ---

FIELDS = [(b"f%d" % n, b"%d" % n, -1) for n in range(5)]
VALUES = {
    "string": encoded.strings(b"1234"),
    "list": encoded.lists([b"a", b"12", b"c"]),
    "set": encoded.sets([b"1", b"22", b"333"]),
    "zset": encoded.zsets([(b"a", 1.0), (b"b", -2.5)]),
    "hash": encoded.hashes(FIELDS),
}


@pytest.mark.parametrize("kind", VALUES)
def test_every_encoding_of_a_value_is_equal_to_every_other(kind: str) -> None:
    pairs = list(itertools.product(VALUES[kind], repeat=2))
    found, comparer = compared([one for one, _ in pairs], [other for _, other in pairs])
    assert found == {}
    assert comparer.equal == len(pairs)
    assert comparer.digests[0] == comparer.digests[1]
    # The digest does not hang on the encoding.
    again = compared([VALUES[kind][0]] * len(pairs), [VALUES[kind][-1]] * len(pairs))[1]
    assert again.digests == comparer.digests


@pytest.mark.parametrize(
    ("ours", "theirs", "bits"),
    [
        (None, VALUES["string"][0], _native.DIFFERS_EXTRA),
        (VALUES["string"][0], None, _native.DIFFERS_MISSING),
        (VALUES["string"][0], VALUES["list"][0], _native.DIFFERS_TYPE),
        (VALUES["string"][0], encoded.strings(b"1235")[0], _native.DIFFERS_VALUE),
        (VALUES["list"][0], encoded.lists([b"12", b"a", b"c"])[2], _native.DIFFERS_VALUE),
        (VALUES["zset"][0], encoded.zsets([(b"a", 1.0), (b"b", -2.4999999999999996)])[1],
         _native.DIFFERS_VALUE),
        (VALUES["hash"][0], encoded.hashes([*FIELDS[:4], (b"f4", b"4", FAR)])[0],
         _native.DIFFERS_FIELD_TTLS),
        (b"\x3f" + bytes(20), b"\x3f" + bytes(21), _native.DIFFERS_NOT_DECODED),
    ],
)  # fmt: skip
def test_what_differs(ours: bytes | None, theirs: bytes | None, bits: int) -> None:
    same = VALUES["string"][0]
    found, comparer = compared([same, ours, same], [same, theirs, same])
    assert found == {1: bits}
    assert comparer.equal == 2


def test_what_is_at_neither_end_counts_for_nothing() -> None:
    found, comparer = compared([None], [None])
    assert (found, comparer.equal) == ({}, 0)


def test_expire_times() -> None:
    value = VALUES["string"][0]
    ours, theirs = [FAR, FAR, FAR, -1, FAR, -1], [FAR + 999, FAR - 1001, -1, FAR, FAR, -1]
    found, _ = compared([value] * 6, [value] * 6, (ours, theirs))
    assert found == dict.fromkeys((1, 2, 3), _native.DIFFERS_TTL)
    extended = 100 * 365 * 86_400_000
    found, _ = compared(
        [value] * 3,
        [value] * 3,
        ([FAR] * 3, [FAR + extended, FAR + extended + 1001, FAR]),
        extended=extended,
    )
    assert found == {1: _native.DIFFERS_TTL}


def test_values_that_are_not_held() -> None:
    long, other = (encoded.payload(0, encoded.string(b"v" * 500 + end)) for end in (b"a", b"b"))
    # Another footer is no other value.
    again = long[:-10] + b"\x0b" + bytes(9)
    comparer, names = LookComparer(KEY), KeyNames([b"a", b"b", b"c"])
    one = looked([long, long, long], sizes=[13], held=100)
    theirs = looked([again, other, long[:-10]], held=100)
    assert comparer.compare(names, 0, one, theirs) == [
        (1, _native.DIFFERS_NOT_HELD),
        (2, _native.DIFFERS_NOT_HELD),
    ]
    # One end held it, the other did not.
    whole = looked([again, again, again])
    assert comparer.compare(names, 0, one, whole) == []
    assert one.state(0, KEY) == whole.state(0, KEY) != theirs.state(1, KEY)


def test_what_a_run_may_hold() -> None:
    value = encoded.payload(0, encoded.string(b"v" * 50))
    looks = looked([value] * 5, held=1000, held_together=3 * len(value))
    assert [looks.value(n) is not None for n in range(5)] == [True] * 3 + [False] * 2
