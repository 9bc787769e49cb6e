"""The traffic's sequence without a server: reproducible, well-formed, and over all commands."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from tests.support.traffic import Sequence, Unit
from tests.support.traffic.sequence import BLOCKING, RARE
from tests.support.traffic.specs import Arg, Spec, Specs, Version, table_specs
from tests.support.traffic.words import POOL

VERSIONS: tuple[Version, ...] = ((6, 0, 16), (6, 2, 14), (7, 0, 15))
PAYLOADS = {"s": b"payload", "h": b"payload", "functions": b"payload"}
NOW = 1_700_000_000.0


def sequence(version: Version = (7, 0, 15), seed: int | str = 1, **settings: object) -> Sequence:
    return Sequence(
        table_specs(version),
        seed,
        payloads=PAYLOADS,
        clock=lambda: NOW,
        **settings,  # type: ignore[arg-type]
    )


def units(count: int, made: Sequence) -> list[Unit]:
    return list(islice(made, count))


@pytest.mark.parametrize("version", VERSIONS)
def test_the_same_seed_gives_the_same_sequence(version: Version) -> None:
    first = units(3000, sequence(version))
    assert first == units(3000, sequence(version))
    assert first != units(3000, sequence(version, 2))


def test_versions_differ_in_what_they_are_sent() -> None:
    names = {version: sequence(version).names for version in VERSIONS}
    assert "getex" not in names[(6, 0, 16)]
    assert "getex" in names[(6, 2, 14)]
    assert "function|load" not in names[(6, 2, 14)]
    assert "function|load" in names[(7, 0, 15)]
    assert "xgroup|create" in names[(6, 0, 16)]
    # Options that came later are not in the tree of an earlier version.
    expire = {version: table_specs(version).write["expire"] for version in VERSIONS}
    assert [len(expire[version].parts) for version in VERSIONS] == [2, 2, 3]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_command_is_drawn(version: Version) -> None:
    made = sequence(version, rare=0.002)
    drawn = Counter(name for unit in units(15_000, made) for name, _ in unit.commands)
    assert {name for name in made.names if drawn[name] < 5} == set()


def test_every_database_and_most_names_are_used() -> None:
    seen: dict[int, set[bytes]] = {0: set(), 1: set(), 2: set()}
    for unit in units(8000, sequence()):
        for _, words in unit.commands:
            seen[unit.db].update(word for word in words if len(word) < 8 and word[1:2] == b":")
    assert sum(POOL.values()) == 200
    assert all(len(names) >= 190 for names in seen.values())


def test_transactions_are_whole() -> None:
    blocks = selects = 0
    made = units(10_000, sequence())
    for unit in made:
        names = [name for name, _ in unit.commands]
        assert names.count("multi") == names.count("exec") + names.count("discard") <= 1
        if "multi" in names:
            assert unit.lane == 0
            assert names[-1] in ("exec", "discard")
            blocks += 1
            selects += "select" in names[names.index("multi") :]
    assert 0.07 < blocks / len(made) < 0.13
    assert selects > blocks / 10


def test_a_lane_is_in_the_database_that_its_unit_names() -> None:
    """Followed as a server does, whether a transaction with SELECT went through or not."""
    for accepted in (True, False):
        at: list[int | None] = [0, 0]
        for unit in units(10_000, sequence()):
            names = [name for name, _ in unit.commands]
            inside = False
            for position, (name, words) in enumerate(unit.commands):
                if name == "select" and (not inside or (accepted and names[-1] == "exec")):
                    at[unit.lane] = int(words[1])
                inside = inside or name == "multi"
                if position == names.index("multi") if "multi" in names else position == 0:
                    started = at[unit.lane]
                    assert started == unit.db


def test_what_may_wait_follows_a_push_or_has_its_own_lane() -> None:
    lanes = Counter[int]()
    for unit in units(20_000, sequence()):
        names = [name for name, _ in unit.commands]
        if "multi" in names:
            continue
        for at, (name, words) in enumerate(unit.commands):
            if name in BLOCKING:
                lanes[unit.lane] += 1
                if unit.lane == 0:
                    assert names[at - 1] in ("rpush", "zadd")
                    assert unit.commands[at - 1][1][1] in words
    assert lanes[0] > 100
    assert lanes[1] > 30


def test_rare_commands_are_as_rare_as_asked_for_and_others_can_be_left_out() -> None:
    def count(**settings: object) -> Counter[str]:
        made = units(20_000, sequence(**settings))
        return Counter(name for unit in made for name, _ in unit.commands)

    assert not any(count(rare=0.0)[name] for name in RARE)
    often = count(rare=0.01)
    assert all(100 < often[name] < 500 for name in RARE)
    without = count(without=("flushall", "del", "eval"))
    assert not any(without[name] for name in ("flushall", "del", "eval"))
    assert without["unlink"]


def test_one_database_is_enough() -> None:
    for unit in units(5000, sequence(databases=(0,))):
        assert unit.db == 0
        for name, words in unit.commands:
            assert name != "select" or words[1] == b"0"
            assert b"'SELECT'" not in b" ".join(words)


def test_arguments_follow_the_tree() -> None:
    """A command without a hint: counts fit what is counted, tokens stand where they must."""
    pair = (Arg("field", "string"), Arg("value", "string"))
    spec = Spec(
        "later",
        "hash",
        (
            Arg("key", "key"),
            Arg("count", "integer", token="COUNT"),
            Arg(
                "fields",
                "block",
                token="FIELDS",
                parts=(
                    Arg("numfields", "integer"),
                    Arg("data", "block", None, False, True, parts=pair),
                ),
            ),
        ),
    )
    made = Sequence(Specs((9, 9), {"later": spec}, {}, {}), 1, payloads=PAYLOADS, clock=lambda: NOW)
    seen = set()
    for unit in units(300, made):
        for name, words in unit.commands:
            if name == "later":
                assert words[2] == b"COUNT"
                assert words[4] == b"FIELDS"
                assert len(words) == 6 + 2 * int(words[5])
                seen.add(int(words[5]))
    assert len(seen) > 2


def test_an_unknown_type_of_argument_is_said() -> None:
    spec = Spec("later", "string", (Arg("what", "matrix"),))
    made = Sequence(Specs((9, 9), {"later": spec}, {}, {}), 1, payloads=PAYLOADS)
    with pytest.raises(LookupError, match="matrix"):
        units(100, made)
