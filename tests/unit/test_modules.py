"""Module types: their names in payloads, the verdict on each, and what is taken out of batches."""

from __future__ import annotations

import pytest

from engine._native import ModuleGuard, module_type
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
    assert "and Redis 6.0.16 is sent none" in old.refusal("MBbloom--")


def test_which_commands_are_known() -> None:
    told = commands_known(("A", "b", "C"), [[b"a", 1], None, [b"c", 2]])
    assert told == {"A", "C"}
    assert commands_known(("A",), None) is None
    assert commands_known(("A",), [[b"a"], [b"b"]]) is None
