"""Which commands of a file name a stream that FalkorDB writes for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from engine.model.db_key import DbKey
from engine.transfer.graph_telemetry import GraphTelemetry
from tests.support.raw_replica import batch_of

G, MINE, ARCHIVE = b"telemetry{g}", b"telemetry{mine}", b"archive"
Words = tuple[str | bytes | int, ...]


def left_out(*commands: Words, there: dict[DbKey, bool] | None = None) -> dict[int, list[DbKey]]:
    """Indices, and the keys that are lost with them."""
    asked: list[DbKey] = []

    async def look(keys: Sequence[DbKey]) -> dict[DbKey, bool]:
        asked.extend(keys)
        return {key: is_one for key, is_one in (there or {}).items() if key in keys}

    found = asyncio.run(GraphTelemetry(look).left_out(batch_of(*commands)))
    assert len(asked) == len(set(asked))
    assert all(own for own, _ in found.values())
    return {index: beside for index, (_, beside) in found.items()}


@pytest.mark.parametrize(
    "command",
    [
        ("XADD", G, "1-1", "Received at", "1", "Query", "RETURN 1"),
        ("xadd", G, "NOMKSTREAM", "MAXLEN", "~", "9", "LIMIT", "3", "*", "Received at", "1"),
        ("XADD", G, "MINID", "=", "9", "*", "Received at", "1"),
        ("XADD", G, "MAXLEN", "9", "*", "Received at", "1"),
        ("XGROUP", "CREATE", G, "readers", "0"),
        ("XSETID", G, "1-1"),
        ("XTRIM", G, "MAXLEN", "5"),
        ("PEXPIREAT", G, "99999999999999"),
        ("DEL", G),
    ],
)
def test_commands_of_one_alone_are_left_out(command: Words) -> None:
    assert left_out(("SET", "a", "1"), command, ("SET", "b", "1")) == {1: []}


@pytest.mark.parametrize(
    "command",
    [
        ("XADD", MINE, "*", "Received", "at"),
        ("XADD", MINE, "MAXLEN", "~", "9", "*", "Received", "at"),
        ("SET", MINE, "Received at"),
        ("HSET", MINE, "Received at", "1"),
        ("RENAME", "plain", MINE),
    ],
)
def test_keys_of_such_names_are_keys_as_others(command: Words) -> None:
    assert left_out(command, ("XGROUP", "CREATE", MINE, "readers", "0"), ("DEL", MINE)) == {}


@pytest.mark.parametrize(
    "command",
    [("SET", "plain", MINE), ("XADD", b"telemetry{open", "*", "Received at", "1"), ("XADD", G)],
)
def test_other_commands_are_let_be(command: Words) -> None:
    assert left_out(command) == {}


def test_what_the_target_has_tells_which_it_is() -> None:
    commands = [("XGROUP", "CREATE", MINE, "r", "0"), ("XADD", G, "*", "Received", "no")]
    assert left_out(*commands, there={(0, MINE): False, (0, G): True}) == {1: []}


def test_what_is_made_of_one_is_lost() -> None:
    commands = [("COPY", G, ARCHIVE), ("RENAME", G, "other"), ("DEL", G, "plain")]
    found = left_out(*commands)
    # What a DEL has beside it is to go.
    assert found == {0: [(0, ARCHIVE)], 1: [(0, b"other")]}
