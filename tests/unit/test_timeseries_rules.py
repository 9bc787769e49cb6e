"""From TS.INFO's and TS.REVRANGE's replies to commands; a real module gets them in test_modules."""

from __future__ import annotations

from typing import Any

from engine.errors import ServerError
from engine.transfer.timeseries_rules import is_series, related, rules_again, rules_of
from tests.unit.test_modules import payload

INFO: list[Any] = [
    b"totalSamples", 3, b"rules", [[b"b", 20, b"SUM", 5], [b"a", 10, b"AVG", 0]],
    b"sourceKey", None,
]  # fmt: skip


def test_series_are_told_by_their_payload() -> None:
    assert is_series(payload("TSDB-TYPE"))
    assert not is_series(payload("ReJSON-RL"))
    assert not is_series(b"\x00\x01a")


def test_rules_and_what_they_tie() -> None:
    assert related(INFO) == {b"a", b"b"}
    assert related([b"rules", [], b"sourceKey", b"raw"]) == {b"raw"}
    assert rules_of(INFO) == [(b"a", b"10", b"AVG", b"0"), (b"b", b"20", b"SUM", b"5")]
    error = ServerError("the key does not exist", code="ERR")
    assert related(error) == set()
    assert rules_of(error) == []


def test_the_commands_that_make_them_again() -> None:
    words = [
        command.split(b"\r\n")[2::2]
        for command in rules_again(b"raw", INFO, [[7, b"0.5"], [6, b"1"]])
    ]
    assert words == [
        [b"TS.CREATERULE", b"raw", b"a", b"AGGREGATION", b"AVG", b"10", b"0"],
        [b"TS.CREATERULE", b"raw", b"b", b"AGGREGATION", b"SUM", b"20", b"5"],
        [b"TS.DEL", b"raw", b"7", b"7"],
        [b"TS.ADD", b"raw", b"7", b"0.5", b"ON_DUPLICATE", b"LAST"],
    ]
    assert len(rules_again(b"raw", INFO, [])) == 2
    assert rules_again(b"raw", [b"rules", []], [[7, b"0.5"], [6, b"1"]]) == []
