"""The handshake's lines, however they are cut, and the table that they lead through."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._native import NEED_DATA, ProtocolError
from engine.errors import ProtocolFault
from engine.model.position import StreamPosition, TargetPosition
from engine.model.server import ServerInfo
from engine.wire.line_mode import LINE_BYTES, LineReader
from engine.wire.psync import SENT, TABLE, Line, State, classify

MARK = b"0123456789abcdef0123456789abcdef01234567"
SPOKEN = (
    b"+OK\r\n\n\n+FULLRESYNC " + b"a" * 40 + b" 17\r\n\n$EOF:" + MARK + b"\r\nREDIS0011\n\r\n$5"
)


def feed(reader: LineReader, data: bytes) -> int:
    with memoryview(reader.input) as room:
        room[: len(data)] = data
    return reader.received(len(data))


def lines_of(reader: LineReader, most: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < most:
        line = reader.line()
        if line is NEED_DATA:
            break
        assert isinstance(line, bytes)
        found.append(line)
    return found


@given(st.lists(st.integers(1, len(SPOKEN)), max_size=20))
def test_lines_come_out_whole_however_they_are_cut(cuts: list[int]) -> None:
    reader = LineReader()
    found: list[bytes] = []
    edges = sorted({0, *cuts, len(SPOKEN)})
    for start, end in itertools.pairwise(edges):
        whole = feed(reader, SPOKEN[start:end])
        before = len(found)
        found += lines_of(reader, 6 - len(found))
        assert bool(whole) == (len(found) > before) or before == 6
    assert found == [b"+OK", b"", b"", b"+FULLRESYNC " + b"a" * 40 + b" 17", b"", b"$EOF:" + MARK]
    assert reader.rest() == b"REDIS0011\n\r\n$5"
    assert reader.rest() == b""


def test_a_line_has_a_bound() -> None:
    reader = LineReader()
    feed(reader, b"\n" + b"x" * LINE_BYTES)
    assert reader.line() == b""
    with pytest.raises(ProtocolError, match="at most") as caught:
        feed(reader, b"x")
    assert caught.value.offset == 1


def test_the_room_never_ends_while_lines_are_taken() -> None:
    reader = LineReader()
    for _ in range(200):
        feed(reader, b"y" * (LINE_BYTES - 1) + b"\n")
        assert reader.line() == b"y" * (LINE_BYTES - 1)


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (b"", Line.ALIVE),
        (b"+OK", Line.OK),
        (b"+FULLRESYNC abc 12", Line.FULLRESYNC),
        (b"+FULLRESYNC abc -1", Line.OTHER),
        (b"+FULLRESYNC abc", Line.OTHER),
        (b"+FULLRESYNC abc 99999999999999999999", Line.OTHER),
        (b"+CONTINUE", Line.CONTINUE),
        (b"+CONTINUE abc", Line.CONTINUE),
        (b"+CONTINUE abc 12", Line.OTHER),
        (b"+DUALCHANNELSYNC", Line.OTHER),
        (b"$12", Line.LENGTH),
        (b"$-1", Line.OTHER),
        (b"$EOF:" + MARK, Line.LENGTH),
        (b"$EOF:" + MARK[:-1], Line.OTHER),
        (b"-LOADING Redis is loading the dataset in memory", Line.NOT_NOW),
        (b"-NOMASTERLINK Can't SYNC while not connected with my master", Line.NOT_NOW),
        (b"-ERR BGSAVE failed, replication can't continue", Line.FAILED),
        (b"-ERR unknown command `PSYNC`, with args beginning with: `?`, `-1`, ", Line.FORBIDDEN),
        (b"-NOPERM this user has no permissions to run the 'psync' command", Line.FORBIDDEN),
        (b"-ERR Unrecognized REPLCONF option: version", Line.ERROR),
        (b"HTTP/1.1 400 Bad Request", Line.OTHER),
    ],
)
def test_what_a_line_means(line: bytes, meaning: Line) -> None:
    assert classify(line)[0] is meaning


def test_the_table_is_whole() -> None:
    final = set(State) - set(TABLE)
    assert final == {State.FULL, State.PARTIAL, State.REFUSED, State.LATER, State.BROKEN}
    assert set(SENT) == set(TABLE) - {State.PREAMBLE}
    for answers in TABLE.values():
        assert Line.OTHER not in answers
        # Every error has a way out, and a sign of life changes nothing.
        assert {Line.NOT_NOW, Line.FAILED, Line.FORBIDDEN, Line.ERROR} <= set(answers)
        assert answers[Line.ALIVE] is None


def test_the_version_is_told_to_a_valkey_only() -> None:
    tell = SENT[State.VERSION]
    assert tell(ServerInfo("redis", (8, 0, 0)), None) is None
    assert tell(ServerInfo("valkey", (7, 2, 5)), None) is None
    assert tell(ServerInfo("valkey", (9, 1, 2)), None) == ("REPLCONF", "version", "9.1.2")
    assert tell(ServerInfo("valkey", (12, 0, 0)), None) == ("REPLCONF", "version", "9.1.0")


def test_the_next_byte_is_asked_for() -> None:
    ask = SENT[State.PSYNC]
    info = ServerInfo("redis", (8, 0, 0))
    assert ask(info, None) == ("PSYNC", "?", -1)
    assert ask(info, StreamPosition("r", 41, 3, True)) == ("PSYNC", "r", 42)


WORDS = st.text("abcdef0123456789", min_size=1, max_size=40)
PLACES = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**31), st.booleans())


@given(WORDS, st.one_of(st.just(""), WORDS), st.lists(PLACES, max_size=2))
def test_a_position_survives_the_target(
    name: str, engine: str, places: list[tuple[int, int, bool]]
) -> None:
    since, at = None, None
    if places:
        *earlier, last = (StreamPosition("a" * 40, *place) for place in sorted(places))
        at, since = last, earlier[0] if earlier and earlier[0] != last else None
    position = TargetPosition(name, at, engine, since)
    assert TargetPosition.decode(position.encode()) == position
    doubtful = since if since is not None and at is not None and since.offset < at.offset else None
    assert position.doubtful == doubtful


def test_a_position_of_an_older_release_is_read() -> None:
    found = TargetPosition.decode(b"v1 token replid 42 3 1")
    assert found == TargetPosition("token", StreamPosition("replid", 42, 3, True))
    assert found.engine == ""
    assert found.doubtful is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"v1",
        b"v2 t e r 1 0 0",
        b"v2 t e r 1 0 0 2 0 0",
        b"v2 t",
        b"v3 t e r 1 0 0 1 0 0",
        b"v1 t r 1 0 0 0",
        b"v1 t r -1 0 0",
        b"v1 t r 1 0 2",
        b"v1 t r 01 0 0",
        b"v1 t r 1 0 0\n",
        b"v1  t r 1 0 0",
        b"v1 t  1 0 0",
        b"\xff\xfe",
        "v1 t r ٣ 0 0".encode(),
    ],
)
def test_a_foreign_position_key_is_seen(value: bytes) -> None:
    with pytest.raises(ProtocolFault, match="position key") as caught:
        TargetPosition.decode(value)
    assert caught.value.fault == "target"
