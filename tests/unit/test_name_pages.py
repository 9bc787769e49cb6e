"""Pages of names, read from replies that are cut anywhere, and turned into commands."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._native import (
    NEED_DATA,
    NamePage,
    NamePageReader,
    ProtocolError,
    RespReader,
    SlotFilter,
    encode_command,
    key_slot,
)

PREFIX = b"own:"
NAMES = st.lists(
    st.one_of(st.binary(max_size=30), st.binary(max_size=9).map(lambda rest: PREFIX + rest)),
    max_size=20,
)
PAGE = st.tuples(st.just("page"), st.integers(0, (1 << 64) - 1), NAMES)
COUNTS = st.one_of(
    st.lists(st.integers(0, 1 << 40), min_size=1, max_size=4),
    st.builds(
        lambda before, other, behind: [1] * before + other + [1] * behind,
        st.integers(1, 200),
        st.lists(st.integers(0, 12), max_size=2),
        st.integers(0, 70),
    ),
)
COUNT = st.tuples(st.just("count"), COUNTS)
ERROR = st.tuples(st.just("error"), st.sampled_from(["ERR no", "NOPERM this user", "LOADING"]))


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def page_reply(cursor: int, names: list[bytes]) -> bytes:
    return b"*2\r\n%s*%d\r\n%s" % (
        bulk(b"%d" % cursor),
        len(names),
        b"".join(map(bulk, names)),
    )


def feed(reader: NamePageReader, data: bytes, cuts: list[int]) -> list[NamePage | int | str]:
    """Everything that is read of `data`, which comes in pieces."""
    found: list[NamePage | int | str] = []
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        piece = data[start:end]
        while piece:
            with memoryview(reader.input) as room:
                size = min(len(room), len(piece))
                room[:size] = piece[:size]
            reader.received(size)
            piece = piece[size:]
            found += reader.take()
    return found


@given(
    st.lists(st.one_of(PAGE, COUNT, ERROR), max_size=12),
    st.lists(st.integers(0, 1 << 20)),
    st.booleans(),
)
def test_replies_cut_anywhere(
    replies: list[tuple],  # type: ignore[type-arg]
    cuts: list[int],
    together: bool,
) -> None:
    reader = NamePageReader(PREFIX, command=b"LOOK", together=together)
    data = b""
    for kind, *told in replies:
        if kind == "page":
            reader.expect_page()
            data += page_reply(*told)
        elif kind == "count":
            reader.expect_count(len(told[0]))
            data += b"".join(b":%d\r\n" % each for each in told[0])
        else:
            reader.expect_page()
            data += f"-{told[0]}\r\n".encode()
    found = feed(reader, data, cuts)
    assert len(found) == len(replies)
    for item, (kind, *told) in zip(found, replies, strict=True):
        if kind == "page":
            assert isinstance(item, NamePage)
            cursor, names = told
            kept = [name for name in names if not name.startswith(PREFIX)]
            assert (item.cursor, item.named, item.nbytes) == (
                cursor,
                len(names),
                sum(map(len, names)),
            )
            assert item.names() == kept
            assert len(item) == len(kept)
            if together:
                assert item.lookup() == encode_command(b"LOOK", *kept)
                assert item.replies == 1
            else:
                assert item.lookup() == b"".join(encode_command(b"LOOK", name) for name in kept)
                assert item.replies == len(kept)
        else:
            assert item == (sum(told[0]) if kind == "count" else told[0])


def test_an_error_among_counts() -> None:
    """All of them are read, and the first error is what is told."""
    reader = NamePageReader(PREFIX)
    reader.expect_count(3)
    reader.expect_count()
    assert feed(reader, b":1\r\n-ERR one\r\n-ERR two\r\n:7\r\n", []) == ["ERR one", 7]


@pytest.mark.parametrize(
    "data",
    [
        b"*3\r\n",
        b":1\r\n",
        b"*2\r\n*1\r\n",
        b"*2\r\n$2\r\nab\r\n",
        b"*2\r\n$1\r\n00\r\n",
        b"*2\r\n$21\r\n",
        b"*2\r\n$1\r\n0\r\n*-1\r\n",
        b"*2\r\n$1\r\n0\r\n*99999999999\r\n",
        b"*2\r\n$1\r\n0\r\n*1\r\n$-1\r\n",
        b"*2\r\n$1\r\n0\r\n*1\r\n$9999999999999\r\n",
        b"*2\r\n$1\r\n0\r\n*1\r\n$1\r\nabc",
        b"\n",
        b"*2\n",
    ],
)
def test_what_is_no_page(data: bytes) -> None:
    reader = NamePageReader(PREFIX)
    reader.expect_page()
    with pytest.raises(ProtocolError):
        feed(reader, data, list(range(len(data))))
    with pytest.raises(ProtocolError):
        feed(reader, b"*2\r\n", [])


@given(st.lists(st.binary(max_size=20), max_size=30), st.integers(0, 16000))
def test_names_of_other_slots_are_left_out(names: list[bytes], first: int) -> None:
    slots = SlotFilter([(first, first + 383), (0, 4000)], keyless=False)
    reader = NamePageReader(PREFIX, slots, together=False)
    reader.expect_page()
    (page,) = feed(reader, page_reply(0, names), [1, 7, 30])
    assert isinstance(page, NamePage)
    kept = [name for name in names if slots.takes(name) and not name.startswith(PREFIX)]
    assert page.names() == kept
    assert (len(page), page.named) == (len(kept), len(names))
    assert page.lookup() == b"".join(encode_command(b"EXISTS", name) for name in kept)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=40),
    st.lists(st.integers(0, 1 << 20)),
    st.booleans(),
)
def test_names_of_one_slot_go_together(
    parts: list[tuple[str, int]], cuts: list[int], by_slot: bool
) -> None:
    """A command never has names of two slots; what comes whole is in as few as there can be."""
    names = [b"{%s}%d" % (tag.encode(), number) for tag, number in parts]
    slots = SlotFilter([(key_slot(tag), key_slot(tag)) for tag in (b"a", b"b")], keyless=False)
    reader = NamePageReader(PREFIX, slots, command=b"LOOK", together=False, by_slot=by_slot)
    reader.expect_page()
    (page,) = feed(reader, page_reply(0, names), cuts)
    assert isinstance(page, NamePage)
    kept = [name for name in names if slots.takes(name)]
    assert page.names() == kept
    commands = RespReader()
    commands.feed(page.lookup())
    found = []
    while (command := commands.gets()) is not NEED_DATA:
        assert command[0] == b"LOOK"
        assert len({key_slot(name) for name in command[1:]}) == 1
        assert by_slot or len(command) == 2
        found.append(command[1:])
    assert list(itertools.chain.from_iterable(found)) == kept
    assert page.replies == len(found)
    runs = [tag for tag, _ in itertools.groupby(names, key=lambda name: name[:3])]
    if by_slot and not cuts:
        assert len(found) == len([tag for tag in runs if slots.takes(tag)])


def test_what_is_not_owed() -> None:
    with pytest.raises(ProtocolError, match="no reply is owed"):
        feed(NamePageReader(PREFIX), b":1\r\n", [])
    reader = NamePageReader(PREFIX)
    for _ in range(256):
        reader.expect_page()
    with pytest.raises(ValueError, match="too many"):
        reader.expect_page()
    with pytest.raises(ValueError, match="at least one"):
        NamePageReader(PREFIX).expect_count(0)
    with pytest.raises(ValueError, match="prefix"):
        NamePageReader(b"")
