"""Replies as bytes: cut anywhere they are whole again; what one says of a stream, against a slow
reference."""

from __future__ import annotations

import contextlib
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._native import OrderedDigest, ReplySplitter, stream_digests

KEY = bytes(range(16))
WORDS = st.binary(max_size=12)
IDS = st.builds(lambda one, two: b"%d-%d" % (one, two), st.integers(0, 99), st.integers(0, 9))
REPLIES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.integers(-(1 << 62), 1 << 62), WORDS, st.just(True), st.binary(max_size=3000)
    ),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)
CONSUMERS = st.dictionaries(WORDS, st.integers(0, 2), max_size=4)
GROUPS = st.dictionaries(
    WORDS,
    st.tuples(IDS, CONSUMERS, st.lists(st.tuples(IDS, WORDS, st.integers(1, 9)), max_size=4)),
    max_size=4,
)
ENTRIES = st.lists(st.tuples(IDS, st.none() | st.lists(st.binary(max_size=2100), max_size=6)))


def encoded(reply: Any) -> bytes:
    """RESP2; True is a line."""
    if reply is None:
        return b"$-1\r\n"
    if reply is True:
        return b"+OK\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"*%d\r\n" % len(reply) + b"".join(encoded(each) for each in reply)


def flat(told: dict[bytes, Any]) -> list[Any]:
    """A map as RESP2 has it."""
    return [each for pair in told.items() for each in pair]


def xinfo(entries: Any, groups: Any, seed: Any, newer: bool) -> bytes:
    """A reply to XINFO STREAM … FULL COUNT 0, its maps in an order of `seed`."""

    def group(name: bytes, last_id: bytes, consumers: dict[bytes, int], pending: Any) -> Any:
        told: dict[bytes, Any] = {
            b"name": name,
            b"last-delivered-id": last_id,
            b"lag": None,
            b"pel-count": len(pending),
            b"pending": [[each, owner, 12345, times] for each, owner, times in pending],
            b"consumers": [
                flat({b"name": owner, b"seen-time": 7, b"pel-count": n, b"pending": [[b"1-1", 2]]})
                for owner, n in seed.permutation(list(consumers.items()))
            ],
        }
        return flat(dict(seed.permutation(list(told.items()))))

    about: dict[bytes, Any] = {
        b"length": len(entries),
        b"last-generated-id": b"9-9",
        b"entries": [[each, fields] for each, fields in entries],
        b"groups": [group(name, *rest) for name, rest in seed.permutation(list(groups.items()))],
    }
    if newer:
        about |= {b"max-deleted-entry-id": b"3-3", b"entries-added": 12}
    return encoded(flat(dict(seed.permutation(list(about.items())))))


class Order:
    """Orders that Hypothesis chooses."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def permutation(self, items: list[Any]) -> list[Any]:
        return self._data.draw(st.permutations(items))


@given(st.lists(REPLIES, max_size=4), st.data())
def test_replies_cut_anywhere_are_whole(replies: list[Any], data: st.DataObject) -> None:
    raw = [encoded(each) for each in replies]
    joined = b"".join(raw)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joined)), max_size=6)))
    splitter, found = ReplySplitter(), []
    for start, end in zip([0, *cuts], [*cuts, len(joined)], strict=True):
        splitter.feed(joined[start:end])
        while (reply := splitter.next()) is not None:
            found.append(reply)
    assert found == raw
    splitter.feed(b":1")
    assert splitter.next() is None


@pytest.mark.parametrize(
    "no_reply",
    [b"?1\r\n", b"$x\r\n", b"$-2\r\n", b"*-3\r\n", b"$1\r\nab\r\n", b"\r\n", b"+a\n",
     b"*99999999999999\r\n", b"x" * 70_000],
)  # fmt: skip
def test_what_is_no_reply(no_reply: bytes) -> None:
    splitter = ReplySplitter()
    splitter.feed(b"+OK\r\n" + no_reply)
    assert splitter.next() == b"+OK\r\n"
    with pytest.raises(ValueError, match="no reply"):
        splitter.next()


@given(ENTRIES, GROUPS, st.booleans(), st.booleans(), st.data())
def test_a_stream_is_digested_as_by_its_objects(
    entries: Any, groups: Any, newer: bool, idle: bool, data: st.DataObject
) -> None:
    """In whatever order the server tells groups, consumers and the members of each."""
    value, told = OrderedDigest(KEY), OrderedDigest(KEY)
    value.add_entries([[each, fields] for each, fields in entries])
    for name, (last_id, consumers, pending) in sorted(groups.items()):
        told.add(name, last_id, len(pending))
        for consumer, n in sorted(consumers.items()):
            if n or idle:
                told.add(consumer, n)
        for identifier, owner, times in pending:
            told.add(identifier, owner, times)
    reply = xinfo(entries, groups, Order(data), newer)
    wanted = (value.digest(), told.digest(), b"9-9", *((b"3-3", 12) if newer else (None, None)))
    assert stream_digests(reply, KEY, idle_consumers=idle) == wanted


@given(ENTRIES, GROUPS, st.data())
def test_no_damage_leads_beyond_the_reply(entries: Any, groups: Any, data: st.DataObject) -> None:
    """What is cut off, or has other bytes in it, is refused or read; it ends nothing."""
    reply = bytearray(xinfo(entries, groups, Order(data), True))
    for at in data.draw(st.lists(st.integers(0, len(reply) - 1), max_size=3)):
        reply[at] = data.draw(st.sampled_from(b"*$:+-0129\r\n"))
    damaged = bytes(reply[: data.draw(st.integers(0, len(reply)))])
    with contextlib.suppress(ValueError):
        stream_digests(damaged, KEY, idle_consumers=True)
    splitter = ReplySplitter()
    splitter.feed(damaged)
    # (hiredis holds lengths to limits of its own.)
    with contextlib.suppress(ValueError, hiredis.ProtocolError):
        whole = splitter.next()
        if whole is not None:
            # What it takes for whole is a reply.
            reader = hiredis.Reader()
            reader.feed(whole)
            assert reader.gets() is not False


def test_no_array_is_no_stream() -> None:
    assert stream_digests(b"-WRONGTYPE no\r\n", KEY, idle_consumers=True) is None
    assert stream_digests(b"$-1\r\n", KEY, idle_consumers=True) is None
    with pytest.raises(ValueError, match="16 bytes"):
        stream_digests(b"*0\r\n", b"", idle_consumers=True)
    with pytest.raises(ValueError, match="not as expected"):
        stream_digests(b"*0\r\n", KEY, idle_consumers=True)
