"""Module types: their names in payloads, the verdict on each, and what is taken out of batches."""

from __future__ import annotations

import pytest

from engine._native import ModuleGuard, SnapshotReader, is_telemetry, module_type
from engine.model.modules import COMMANDS, TYPES, ModuleTypes, commands_known
from engine.model.server import ServerInfo

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def payload(name: str, version: int = 3) -> bytes:
    """The beginning of a value of the module type `name`, as DUMP gives it."""
    number = 0
    for character in name:
        number = number << 6 | ALPHABET.index(character)
    return b"\x07\x81" + (number << 10 | version).to_bytes(8, "big") + b"rest"


@pytest.mark.parametrize("name", sorted(TYPES))
def test_the_name_of_a_type(name: str) -> None:
    assert module_type(payload(name)) == name
    assert module_type(payload(name, 1023)[:10]) == name


def test_what_is_no_value_of_a_module() -> None:
    assert module_type(b"") is None
    assert module_type(b"\x00\x03abc") is None
    # Cut off, of the pre-releases of 4.0, or no length at all.
    assert module_type(b"\x07") == module_type(b"\x06\x81") == module_type(b"\x07\xff") == ""
    assert module_type(payload("TSDB-TYPE")[:9]) == ""


def test_each_type_is_asked_about_once() -> None:
    asked = []

    def judge(name: str) -> tuple[str, bool]:
        asked.append(name)
        return ("no" if name == "TSDB-TYPE" else "", name == "graphdata")

    guard = ModuleGuard(judge)
    for version in (1, 2):
        assert guard.refusal(payload("TSDB-TYPE", version)) == "no"
        assert guard.refusal(payload("graphdata", version)) == ""
        assert guard.adds(payload("graphdata", version))
        assert not guard.adds(payload("ReJSON-RL", version))
        assert guard.refusal(b"\x00\x01a") == ""
        assert not guard.adds(b"\x00\x01a")
    assert asked == ["TSDB-TYPE", "graphdata", "ReJSON-RL"]


def test_more_types_than_are_kept() -> None:
    guard = ModuleGuard(lambda name: (name, False))
    names = [f"type-{number:04d}" for number in range(200)]
    assert [guard.refusal(payload(name)) for name in names * 2] == names * 2


def test_which_target_has_a_type() -> None:
    info = ServerInfo("redis", (7, 4, 0), modules=("bf",))
    by_name = ModuleTypes(info)
    assert by_name.refusal("MBbloom--") == ""
    assert by_name.refusal("TSDB-TYPE") == (
        "a value of module TSDB-TYPE, which the target does not have"
    )
    # Another module of the same name, and one that INFO does not show.
    by_command = ModuleTypes(info, frozenset({"BF.LOAD", "JSON.SET"}))
    assert by_command.refusal("MBbloom--") != ""
    assert by_command.refusal("bloomfltr") == by_command.refusal("ReJSON-RL") == ""
    assert by_command.refusal("") == "a value of a module whose type cannot be read"


def test_a_type_that_is_not_in_the_table() -> None:
    """A module that is not in the table either may bring it."""
    without = ModuleTypes(ServerInfo("redis", (7, 4, 0), modules=("bf", "lua")))
    assert "module tairhash-, which the target does not have" in without.refusal("tairhash-")
    having = ModuleTypes(ServerInfo("redis", (7, 4, 0), modules=("bf", "tairhash")))
    assert having.judge("tairhash-") == ("", True)
    assert having.judge("MBbloom--") == ("", False)


def test_an_old_target_is_sent_none() -> None:
    old = ModuleTypes(ServerInfo("redis", (6, 0, 16), modules=("bf",)), frozenset(COMMANDS))
    assert "and Redis 6.0.16 is not sent it" in old.refusal("MBbloom--")


def test_which_commands_are_known() -> None:
    told = commands_known(("A", "b", "C"), [[b"a", 1], None, [b"c", 2]])
    assert told == {"A", "C"}
    assert commands_known(("A",), None) is None
    assert commands_known(("A",), [[b"a"], [b"b"]]) is None


def listpack(first_field: bytes) -> bytes:
    """The beginning of a stream as 7.2 dumps it: one listpack, whose entries' first field is so
    called."""
    head = b"\x00\x00\x00\x00\x1c\x00\x01\x01\x00\x01\n\x01"
    pack = head + bytes([0x80 + len(first_field)]) + first_field + bytes([len(first_field) + 1])
    pack += b"\x85Query\x06" * 20
    return b"\x15\x01\x10" + bytes(16) + bytes([0x40, len(pack)]) + pack


NOTES = listpack(b"Received at")


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        (b"telemetry{g}", NOTES, True),
        (b"telemetry{}", NOTES, True),
        (b"telemetry{g}", NOTES[:96], True),
        (b"telemetry{g}", b"\x15\x00", True),
        (b"telemetry{g", NOTES, False),
        (b"telemetryg}", NOTES, False),
        (b"}telemetry{", NOTES, False),
        (b"", NOTES, False),
        (b"telemetry{g}", listpack(b"Received_at"), False),
        (b"telemetry{g}", b"\x00\x0bReceived at", False),
        (b"telemetry{g}", b"\x15", False),
        (b"telemetry{g}", b"", False),
    ],
)
def test_what_falkordb_notes_for_itself(key: bytes, value: bytes, found: bool) -> None:
    assert is_telemetry(key, value) is found
    for end in range(len(value)):
        assert is_telemetry(key, value[:end]) in (False, found)


def snapshot(*records: tuple[bytes, bytes]) -> list[object]:
    """What a reader makes of a snapshot with strings of these names and bodies."""
    body = b"".join(b"\x00" + bytes([len(k)]) + k + bytes([len(v)]) + v for k, v in records)
    reader = SnapshotReader()
    reader.feed(b"REDIS0011" + body + b"\xff" + bytes(8))
    return reader.take()


def test_a_batch_without_streams_is_left_as_it_is() -> None:
    (batch,) = snapshot((b"telemetry{g}", b"Received at"), (b"b", b"c"))
    ModuleGuard(lambda name: (name, False), telemetry=True).withhold(batch)  # type: ignore[arg-type]
    assert len(batch) == 2  # type: ignore[arg-type]
    assert batch.telemetry == batch.withheld == []  # type: ignore[attr-defined]
