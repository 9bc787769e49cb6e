"""From FT.INFO's replies to commands; what a real server makes of them is tested with one."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ServerError
from engine.wire.search import Index, differing, index_of

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
    assert found == Index((), "the source does not tell its definition: no such index")


def test_which_differ() -> None:
    one, other = index_of("i", info(), []), index_of("i", info(index_options=[b"NOHL"]), [])
    assert differing({"i": one, "only": one}, {"i": other}) == ["i"]
    assert differing({"i": one}, {"i": one}) == []
