"""What messages and remedies name exists: options, the verbs that take them, and other names of
commands, for the end that is meant."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from engine.cli.app import app
from engine.model.endpoint import Endpoint
from engine.model.renamed_commands import read
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.targets.target_refusals import refused_all
from engine.transfer.checks import required_commands
from engine.transfer.checks.check_result import Side
from engine.transfer.checks.permissions import Denial, Rights, Why
from engine.transfer.checks.required_commands import Needed, Way

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
# A verb, and what is given to it.
VERB = re.compile(
    r"\b([a-z]+(?:-[a-z]+)+|migrate|serve)((?: (?:--[a-z][a-z-]*[a-z]|[A-Z]+|rdb:-))+)"
)
# Of every program, and of other ones.
FURTHER = {"--help", "--version", "--long"}
SERVERS = (
    ServerInfo("redis", (2, 8, 17)),
    ServerInfo("redis", (7, 0, 0)),
    ServerInfo("valkey", (9, 0, 0)),
)
WAYS: tuple[Way, ...] = ("scan", "replica")


@cache
def verbs() -> dict[str, set[str]]:
    """Every verb, with its options."""
    group = typer.main.get_command(app)
    return {
        name: {option for each in verb.params for option in (*each.opts, *each.secondary_opts)}
        for name, verb in group.commands.items()  # type: ignore[attr-defined]
    }


@cache
def texts() -> list[tuple[str, str]]:
    """Every text of the program, with its module; X stands for what is put in."""
    found = []
    for path in sorted((ROOT / "engine").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
                found.append((path.name, "".join(parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((path.name, node.value))
    return found


def test_options_that_are_named_exist() -> None:
    known = set().union(*verbs().values()) | FURTHER
    named = {(name, each) for name, text in texts() for each in OPTION.findall(text)}
    assert not {each for each in named if each[1] not in known}
    assert {"--command-name", "--source-type", "--skip-verification"} <= {each for _, each in named}


def test_options_that_are_named_with_a_verb_are_that_verbs() -> None:
    named = {
        (name, verb, option)
        for name, text in texts()
        for verb, behind in VERB.findall(text)
        for option in OPTION.findall(behind)
    }
    assert not {each for each in named if each[2] not in verbs().get(each[1], ())}
    assert {verb for _, verb, _ in named} >= {"migrate", "complete-migration"}


def needed(side: Side) -> Iterator[Needed]:
    """What may be missing at one end."""
    for info in SERVERS:
        for way in WAYS:
            if side == "source":
                yield from required_commands.of_source(info, TransferSettings(), way)
            else:
                yield from required_commands.of_target(info, way)
                yield from (
                    *required_commands.import_mode(info),
                    *required_commands.extended_ttls(info),
                )
            yield from required_commands.whole_comparison(info, way)
    yield from (
        required_commands.WRITES
        if side == "target"
        else (*required_commands.PAUSE, *required_commands.WRITE_BLOCK, *required_commands.TUNING)
    )


@pytest.mark.parametrize("side", ["source", "target"])
def test_another_name_is_given_for_the_end_that_is_meant(side: Side) -> None:
    options = set()
    for each in needed(side):
        remedy = Rights("default", 1, (Denial(each, Why.MISSING),), "").remedy(side)
        name = str(each.args[0])
        given = re.fullmatch("Where rename-command gave it another name: (--.*) (.*)[.]", remedy)
        if given is None:
            assert remedy == f"Give {name} back under its own name, in the {side}'s configuration."
            continue
        assert given[1] in verbs()["migrate"]
        if given[1] == "--psync-command":
            assert (side, name) == ("source", "PSYNC")
            continue
        names = read([given[2]])
        assert {end: names[end] for end in names if names[end]} == {side: ((name, "NAME"),)}
        options.add(name)
    assert len(options) > 3


def test_several_that_are_missing_are_all_named() -> None:
    several = (*required_commands.WRITE_BLOCK, *required_commands.PAUSE, Needed(("DUMP", "k")))
    denied = tuple(Denial(each, Why.MISSING) for each in several)
    assert Rights("default", 1, denied, "").remedy("source") == (
        "Where rename-command gave them other names: --command-name source:CONFIG=NAME "
        "--command-name source:CLIENT=NAME. Give DUMP back under its own name, in the source's "
        "configuration."
    )


@pytest.mark.parametrize(
    ("reply", "rule"),
    [
        ("User joe has no permissions to run the 'function|delete' command", "+function|delete"),
        ("this user has no permissions to run the 'restore' command or its subcommand", "+restore"),
        ("No permissions to access a key", "~PATTERN (one that the key fits)"),
        ("No permissions to access a channel", "&PATTERN (one that the channel fits)"),
    ],
)
def test_a_refusal_of_the_target_names_its_rule(reply: str, rule: str) -> None:
    error = refused_all(f"NOPERM {reply}", Endpoint.parse("redis://joe:secret@127.0.0.1"))
    assert error is not None
    assert error.remedy == f"On the target: ACL SETUSER joe {rule}."
    assert reply in error.message


def test_other_replies_of_the_target_are_no_refusal() -> None:
    target = Endpoint.parse("redis://127.0.0.1")
    assert refused_all("BUSYKEY Target key name already exists.", target) is None
    error = refused_all("NOAUTH Authentication required.", target)
    assert error is not None
    assert error.remedy == "Give the target's user and password."
