"""From FT.INFO's replies to commands; what a real server makes of them is tested with one."""

from __future__ import annotations

from typing import Any

import pytest

from engine._native import SnapshotReader, module_items
from engine.errors import ServerError
from engine.wire.search_indexes import Index, InSnapshot, differing, in_snapshot, index_of

FIELD: list[Any] = [b"identifier", b"f", b"attribute", b"f", b"type", b"TEXT", b"WEIGHT", b"1"]


def info(**changed: Any) -> list[Any]:
    """A reply to FT.INFO, as RESP2 has it."""
    members: dict[str, Any] = {
        "index_name": b"i",
        "index_options": [],
        "index_definition": [b"key_type", b"HASH", b"prefixes", [b""], b"default_score", b"1"],
        "attributes": [FIELD],
        "num_docs": b"7",
    }
    return [part for name, value in (members | changed).items() for part in (name.encode(), value)]


def test_a_plain_index() -> None:
    found = index_of("i", info(), [])
    words = b"FT.CREATE i ON HASH SCORE 1 SCHEMA f AS f TEXT WEIGHT 1"
    assert found == Index((tuple(words.split()),))


def test_synonyms_by_group() -> None:
    found = index_of("i", info(), [b"hi", [b"g", b"h"], b"hello", [b"g"]])
    assert found.commands[1:] == (
        (b"FT.SYNUPDATE", b"i", b"g", b"hello", b"hi"),
        (b"FT.SYNUPDATE", b"i", b"h", b"hi"),
    )


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"attributes": [[*FIELD, b"NOVEL"]]}, "NOVEL"),
        ({"attributes": [[b"identifier", b"f"]]}, "a field without a name or type"),
        ({"attributes": b"x"}, "in the place of a list"),
        ({"index_options": [b"NOVEL"]}, "NOVEL"),
        ({"index_definition": [b"novel", b"x"]}, "novel"),
        ({"index_definition": [b"key_type"]}, "of an odd length"),
        ({"index_definition": [b"key_type", None]}, "in the place of a word"),
    ],
)
def test_what_is_not_known_is_said(changed: dict[str, Any], what: str) -> None:
    """An index without a part of its definition would be another one."""
    found = index_of("i", info(**changed), [])
    assert found.commands == ()
    assert what in found.why


def test_an_error() -> None:
    found = index_of("i", ServerError("no such index", code="ERR"), [])
    assert found == Index((), "the source does not give its definition: no such index")


def test_which_differ() -> None:
    one, other = index_of("i", info(), []), index_of("i", info(index_options=[b"NOHL"]), [])
    assert differing({"i": one, "only": one}, {"i": other}) == ["i"]
    assert differing({"i": one}, {"i": one}) == []


# What a snapshot has of the search module: as Redis Stack 7.4 writes it, without the keys.
HEAD = b"REDIS0012"
NOTHING = bytes.fromhex("f781b1c76dca97b4d00102010200") + b"\x00"
DICTIONARIES = (
    b"\xf7\x81\xb1\xc7m\xca\x97\xb4\xd0\x01\x02\x02"
    b"\x02\x02"
    b"\x05\x03d2\x00\x02\x01\x05\x02x\x00\x04\x00\x00\x00\x00\x00\x00\xf0?"
    b"\x05\x03d1\x00\x02\x02\x05\x02a\x00\x04\x00\x00\x00\x00\x00\x00\xf0?"
    b"\x05\x02b\x00\x04\x00\x00\x00\x00\x00\x00\xf0?\x00"
)
INDEXES = (
    b"\xf7\x81~\xdf\xe2\x9d\xd7\xb1\xd0\x17\x02\x01"
    b"\x02\x01\x05\x04idx\x00\x02\x80\x00\x08\x00S\x02\x01\x05\x02a\x00"
    b"\x04\x00\x00\x00\x00\x00\x00\xf0?\x05\x05HASH\x00"
    b"\x02\x02\x05\x03al\x00\x05\x04al2\x00\x00"
)


def module_data(*parts: bytes) -> list[tuple[str, bytes | None]]:
    reader = SnapshotReader()
    reader.feed(HEAD + b"".join(parts) + b"\xff" + bytes(8))
    assert reader.finished
    assert reader.left_out == []
    return reader.module_data


def test_what_a_snapshot_tells_of_the_search_module() -> None:
    found = in_snapshot(module_data(NOTHING, INDEXES, DICTIONARIES))
    assert found == InSnapshot(
        1,
        "idx",
        frozenset({b"idx", b"a", b"HASH", b"al", b"al2", b"d1", b"d2"}),
        {"d1": frozenset({b"a", b"b"}), "d2": frozenset({b"x"})},
    )
    (line,) = found.words
    assert line == (
        "search indexes: 1 in the file (the first is idx), with their aliases: a file does not "
        "bring their definitions; load it into a server with the module and migrate from that one, "
        "or create them on the target by hand"
    )
    assert module_data(NOTHING) == [("scdtype00", b"")]
    assert not in_snapshot(module_data(NOTHING)).there
    assert in_snapshot([("other", b"x")]) == InSnapshot()


def test_what_cannot_be_read_of_it_is_said() -> None:
    for kind, data in module_data(INDEXES, DICTIONARIES):
        assert data is not None
        assert len(module_items(data)) > 5
        for end in range(1, len(data)):
            found = in_snapshot([(kind, data[:end])])
            assert found.there
            (line,) = found.unread
            assert "of the snapshot, which could not be read" in line
    for data in (DICTIONARIES[1:-1] + b"\x02\x07\x00", None):
        (line,) = in_snapshot([("scdtype00", data)]).unread
        assert line.startswith("search dictionaries of the snapshot")
