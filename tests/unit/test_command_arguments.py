"""Each command of the table with too few arguments, or senseless ones: what is no command of a
server's stream is a `ProtocolError`, and all else passes every look at it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine._native import (
    CommandBatch,
    ExtendedNames,
    ProtocolError,
    StreamReader,
    TransactionEncoder,
    early_field_ttls,
    encode_command,
    stuck_hashes,
)
from engine.model.server import ServerInfo
from engine.transfer.unfaithful_commands import UnfaithfulCommands
from engine.verify.aof_comparison import values_of_command
from tests.reference.stream import ROWS

# Their arguments are checked where they are read, whatever their number.
CHECKED = {"select", "swapdb"}
NOW = 1_700_000_000_000
HORIZON = NOW + 3_600_000
SERVERS = [
    ServerInfo("redis", (5, 0, 6)),
    ServerInfo("redis", (6, 2, 14)),
    ServerInfo("redis", (7, 0, 15)),
    ServerInfo("redis", (8, 2, 3)),
    ServerInfo("valkey", (9, 1, 2)),
]
WORDS = (
    b"key",
    b"1",
    b"0",
    b"2",
    b"-1",
    b"px",
    b"EXAT",
    b"fields",
    b"0-1",
    b"streams",
    b"1.5",
    b"",
)


def test_the_table_is_read() -> None:
    assert len(ROWS) > 200
    assert (ROWS["expire"], ROWS["flushall"]) == ("w1", "")


def readers() -> list[StreamReader]:
    """One of each kind: following a source of 7.0 on, an older one, and a file."""
    plain, older, file = (
        StreamReader(0),
        StreamReader(0, anchor=True, names=[(b"odd", b"EXPIRE", b"EXPIRE")]),
        StreamReader(0, append_only=True, extend_fields=True),
    )
    older.now_ms = NOW
    for each in (older, file):
        each.extend_before, each.extend_by = HORIZON, HORIZON
    return [plain, older, file]


def look(batch: CommandBatch) -> None:
    """Everything that is asked about the commands of a stream before and behind their way."""
    every = 0xFFFFFFFF
    batch.holds(every), batch.doubtful(every), batch.unknown, batch.rewritten, batch.swaps
    changed, _ = batch.changed()
    batch.derived([(0, b"key"), *changed], True)
    batch.mentioning({b"key"}), batch.naming(b"k"), batch.longer(1)
    for index in range(len(batch)):
        batch.keys(index), batch.key_positions(index), batch.changes(index)
        values_of_command(batch.command(index))
    early_field_ttls(batch, NOW), stuck_hashes(batch)
    ExtendedNames().add_commands(batch, members=True)
    for source in SERVERS:
        for target in SERVERS:
            UnfaithfulCommands(source, target).doubts(batch)
    TransactionEncoder(b"position").encode(batch, b"here", db=0)
    batch.split(batch.start_offset)


def passes(words: list[bytes]) -> bool:
    """Whether the readers take a command; they agree on it."""
    found = set()
    for reader in readers():
        try:
            reader.feed(encode_command(*words))
        except ProtocolError:
            found.add(False)
        else:
            if (batch := reader.next(True)) is not None:
                look(batch)
            found.add(True)
    (taken,) = found
    return taken


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_name_alone_is_no_command_that_has_keys(name: str) -> None:
    words = [word.encode() for word in name.split("|")]
    if len(words) == 1 and name not in CHECKED:
        assert passes(words) == (not ROWS[name])


def test_a_name_of_its_own_alone_is_none_either() -> None:
    _, older, _ = readers()
    with pytest.raises(ProtocolError, match="arguments, behind the name"):
        older.feed(encode_command(b"odd"))


@given(name=st.sampled_from(sorted(ROWS)), words=st.lists(st.sampled_from(WORDS), max_size=7))
def test_any_arguments_are_looked_at_or_refused(name: str, words: list[bytes]) -> None:
    sent = [*(word.encode() for word in name.split("|")), *words]
    taken = passes(sent)
    assert taken or name in CHECKED or len(sent) == 1
