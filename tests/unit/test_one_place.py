"""What is declared in one place, and looked for in all others."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from engine.cli import options_page, report_summary, status_line, transfer_options
from engine.cli.app import app
from engine.errors import UsageError
from engine.front.blocking_engine import BlockingEngine
from engine.front.engine import Engine
from engine.front.http import actions, botocore_model, metrics
from engine.front.http.botocore_model import model
from engine.front.page_details import counters
from engine.front.verbs import INTEGER, NAME, VERBS, Verb, parameter
from engine.model import progress, report
from engine.model.figure import Figure, added, counted, figure, only
from engine.model.figure import declared as declared_figures
from engine.model.progress import Phase, Progress, total
from engine.model.report import Report
from engine.model.setting import Member, Setting, declared, members_of, setting
from engine.model.settings import CHANGEABLE, SETTINGS, Changes, TransferSettings, changed

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = "engine/model/server_capabilities.py"


def python_files(*words: str) -> Iterator[tuple[str, ast.Module]]:
    """Each file of the engine that has one of these words, as (path in the project, its tree)."""
    for path in sorted((ROOT / "engine").rglob("*.py")):
        text = path.read_text()
        if any(word in text for word in words):
            yield path.relative_to(ROOT).as_posix(), ast.parse(text)


@cache
def verbs() -> Any:
    """The commands of the command line, by their names."""
    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


# --- Versions of servers ---


def _is_release(node: ast.AST) -> bool:
    """Whether it is a release as it is written: (7, 0, 0)."""
    return isinstance(node, ast.Tuple) and (
        len(node.elts) == 3
        and all(isinstance(each, ast.Constant) and type(each.value) is int for each in node.elts)
    )


def compared_versions(tree: ast.AST) -> Iterator[int]:
    """The lines on which a server's version is held against another, or its flavour asked for."""
    releases = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple | ast.IfExp)
        and any(map(_is_release, ast.walk(node.value)))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        orders = any(isinstance(each, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for each in node.ops)
        for operand in (node.left, *node.comparators):
            named = isinstance(operand, ast.Name) and operand.id in releases
            attribute = operand.attr if isinstance(operand, ast.Attribute) else ""
            if attribute == "flavour" or (
                # `version` of an IP address is compared for equality alone.
                orders and (named or attribute == "version" or _is_release(operand))
            ):
                yield node.lineno


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("if info.version >= (7, 0, 0): ...", True),
        ("if (7, 0, 0) > info.version: ...", True),
        ("old = self._source.info.version < since", True),
        ("if info.flavour != 'redis': ...", True),
        ("_SINCE = (6, 2, 0)\nold = told < _SINCE", True),
        ("since = (9, 0, 0) if valkey else (7, 4, 0)\nnew = told >= since", True),
        ("if info.capabilities.streams: ...", False),
        ("if address.version == 4: ...", False),
        ("right = (1, 2, 3)\nfew = left < 3", False),
    ],
)
def test_a_comparison_is_known(text: str, found: bool) -> None:
    assert bool(list(compared_versions(ast.parse(text)))) is found


def test_versions_are_compared_in_one_place() -> None:
    """Whoever wants to know what a server can do asks its `capabilities`."""
    # A file of RDB versions, not of servers.
    elsewhere = {"engine/model/rdb_newer_than_engine.py"}
    found = [
        f"{path}:{line}"
        for path, tree in python_files("version", "flavour", ", 0)")
        if path != CAPABILITIES and path not in elsewhere
        for line in compared_versions(tree)
    ]
    assert not found
    assert list(compared_versions(ast.parse((ROOT / CAPABILITIES).read_text())))


# --- Trying again ---

ERRORS = {"LinkError", "ServerError", "EngineError", "OSError", "ConnectionError", "Exception"}
# These loops are no retries: they go on whether or not the last round failed.
PERIODIC = {
    "engine/front/http/feed.py": "looks at the state each second, for as long as somebody watches",
    "engine/front/http/tls_handshake_limits.py": "accepts one connection after another",
    "engine/front/migration_keeper.py": "looks at every migration each second",
    "engine/sources/source_monitor.py": "asks the source twice a second",
    "engine/transfer/sentinel_monitor.py": "listens to one Sentinel after another",
    "engine/transfer/slot_reread.py": "looks at slots as they are named, until all are read",
    "engine/transfer/server_protection.py": "asks an end ten times a second how it fares",
    "engine/transfer/full_proof.py": "compares what changed, for as long as the source is followed",
}


def retries(tree: ast.AST) -> Iterator[int]:
    """The loops that catch a failure, and wait."""
    for loop in ast.walk(tree):
        if not isinstance(loop, ast.While | ast.For | ast.AsyncFor):
            continue
        inside = [each for part in loop.body for each in ast.walk(part)]
        catches = any(
            isinstance(name, ast.Name)
            and (name.id in ERRORS or name.id.endswith(("Error", "Fault")))
            for each in inside
            if isinstance(each, ast.ExceptHandler) and each.type is not None
            for name in ast.walk(each.type)
        )
        waits = any(
            isinstance(each, ast.Call)
            and isinstance(each.func, ast.Attribute)
            and each.func.attr == "sleep"
            for each in inside
        )
        if catches and waits:
            yield loop.lineno


def test_a_retry_is_known() -> None:
    body = "    try:\n        dial()\n    except LinkError:\n        pass\n"
    assert list(retries(ast.parse(f"while True:\n{body}    time.sleep(1)"))) == [1]
    assert list(retries(ast.parse(f"for _ in range(3):\n{body}    await asyncio.sleep(1)"))) == [1]
    assert not list(retries(ast.parse(f"while True:\n{body}")))
    assert not list(retries(ast.parse("while look():\n    time.sleep(1)")))


def test_what_failed_is_tried_again_in_one_place() -> None:
    """`model.retry` is that place."""
    found = {path: list(retries(tree)) for path, tree in python_files("sleep")}
    with_loops = {path for path, lines in found.items() if lines}
    assert with_loops == set(PERIODIC)


def test_what_waits_between_tries_is_asked_in_one_place() -> None:
    """`Patience.failed` is called by `Attempts`, and where a try is a step of another machine."""
    machines = {
        # A transaction, and a window of records, are looked at before and behind the pause.
        "engine/targets/applier_link.py",
        "engine/targets/restore_writer.py",
    }
    found = {
        path
        for path, tree in python_files(".failed(")
        for each in ast.walk(tree)
        if isinstance(each, ast.Call)
        and isinstance(each.func, ast.Attribute)
        and each.func.attr == "failed"
        and "patience" in ast.unparse(each.func.value)
    }
    assert found == machines


# --- Settings ---

SAMPLES: dict[str, list[Any]] = {
    "text": ["a word", "--x"],
    "number": [0.5, 90.0],
    "count": [2],
    "count-or-auto": [2, 0],
    "numbers": [(3,), (3, 5)],
    "names": [("one",), ("one", "two")],
    "list": [("memory",), ("memory", "role")],
    "path": ["/var/tmp/x"],
    "duration": [90.0, 7200.0],
    "size": [1 << 20, 5_000_001],
    "moment": [1_764_361_200],
    "flag": [True],
    "yes-no": [False],
}
"""Values of each kind that are no default. What a kind holds beside others is below."""
SPECIAL: dict[str, list[Any]] = {
    "fence": ["none"],  # "hook" wants a command
    "fence_hook": [],
    "source_nodes": [("10.0.0.7:6379", "[::1]:6380=detached")],
    "address_map": [("10.0.0.7:6379=127.0.0.1:16379", "10.0.0.8=127.0.0.1")],
    "durability": ["replicas=2"],
    "window": ["22:00-05:00 Europe/Berlin", "00:00-24:00"],
    "protect_source": ["latency=5ms,cow=512mb,output-buffer=4mb", "cow=1gb"],
    "protect_target": ["latency=1.5s"],
    "include": [("prefix:a,b",), ("db:3,type:hash", "regex:^a")],
    "exclude": [("glob:a*",)],
    "command_names": [("source:PSYNC=XYZ", "CONFIG=ABC")],
    "connect_commands": [("ssh -W %h:%p 'a b'",), ("source:nc %h %p", "target:nc %h %p")],
    "skip_checks": [("memory",), ("memory", "probe")],
}


def samples(each: Setting) -> list[Any]:
    if each.words:
        return SPECIAL.get(each.name, [word for word in each.words if word != each.default])
    return SPECIAL.get(each.name, SAMPLES[each.kind])


def typed(verb: str, *arguments: str) -> Any:
    """What a verb is called with for a command line, as Typer reads it."""
    command = verbs()[verb]
    context = command.make_context(verb, list(arguments), resilient_parsing=False)
    names = transfer_options.PARAMETERS
    return {name: value for name, value in context.params.items() if name in names}


@pytest.mark.parametrize("name", [each.name for each in SETTINGS if each.option])
def test_a_setting_goes_the_way_of_the_command_line_and_back(name: str) -> None:
    (each,) = (one for one in SETTINGS if one.name == name)
    group = ("--replication-group-id", "x", "--customer-node-endpoint-list", "Address=h,Port=1")
    for value in samples(each):
        wanted = TransferSettings(**{name: value})
        spelled = transfer_options.spelled(wanted)
        assert {option for option, _ in spelled} == {each.flag}
        line = [
            part
            for option, text in spelled
            for part in ([option] if text is True else [f"{option}={text}"])
        ]
        for verb in ("start-migration", "test-migration"):
            found = transfer_options.settings(**typed(verb, *group, *line))
            assert found == wanted
        assert TransferSettings.from_dict(json.loads(json.dumps(wanted.to_dict()))) == wanted
    assert transfer_options.spelled(TransferSettings()) == []


@pytest.mark.parametrize("each", [one for one in SETTINGS if one.member], ids=lambda one: one.name)
def test_a_setting_is_a_member_of_the_api(each: Setting) -> None:
    assert each.member is not None
    member, page = each.member, (ROOT / "docs/api.md").read_text()
    for action in member.actions:
        assert member.name in actions.ACTIONS[action].honoured
        assert member.name in model().shape(model().operations[action].takes).members
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{action}`"))
        assert f"`{member.name}`" in row
    for action in set(actions.ACTIONS) - set(member.actions):
        assert member.name not in actions.ACTIONS[action].honoured


def test_what_a_resume_may_change_is_one_list() -> None:
    changeable = [each for each in SETTINGS if each.resumed]
    assert {each.name for each in changeable} == set(CHANGEABLE) == set(Changes.__annotations__)
    params = verbs()["resume-migration"].params
    assert {each.flag for each in changeable} <= {option for each in params for option in each.opts}
    assert changed(source_nodes=["a:1", "a:1"], retry_for=None) == {"source_nodes": ("a:1",)}
    with pytest.raises(UsageError, match="fence cannot be changed by a resume"):
        changed(fence="none")  # type: ignore[call-arg]


def test_an_example_is_one_declaration() -> None:
    """A field with its declaration is all that a setting takes."""

    @dataclass(frozen=True, slots=True)
    class Settings:
        pauses: float = setting(
            90.0,
            option="--pauses",
            kind="duration",
            metavar="DURATION",
            help="How long it pauses.",
            row="How long it pauses",
            resumed="From now on: how long it pauses.",
            member=Member("Pauses", ("StartMigration", "ResumeMigration")),
        )

    (each,) = declared(Settings)
    assert (each.name, each.default, Settings().pauses) == ("pauses", 90.0, 90.0)
    parameter = transfer_options.parameter(each)
    assert (parameter.name, parameter.default) == ("pauses", "90s")
    assert options_page.row(each) == (
        "`--pauses DURATION`", "`90s`", "How long it pauses", ""
    )  # fmt: skip
    assert list(members_of([each], "ResumeMigration")) == ["Pauses"]
    assert not members_of([each], "TestMigration")
    assert botocore_model.shapes_of_settings("StartMigration", [each]) == {
        "Pauses": "IntegerOptional"
    }


# --- Figures ---

COUNTERS = [each for each in progress.FIGURES if each.words or each.member or each.label]


@pytest.mark.parametrize("each", COUNTERS, ids=lambda one: one.name)
def test_a_counter_reaches_every_face(each: Figure) -> None:
    stands = Progress(Phase.FOLLOW, **{each.name: 7_000})
    if each.words:
        assert f"7,000 {each.words}" in status_line.describe(stands)
        usual = Progress(Phase.FOLLOW, **{each.name: each.usual})
        assert each.words not in status_line.describe(usual)
    if each.metric:
        assert (each.metric, each.meaning) in [(name, told) for name, told, _ in metrics.SHOWN]
        (read,) = (read for name, _, read in metrics.SHOWN if name == each.metric)
        assert read(stands) == 7_000
    if each.label:
        (row,) = (one for one in counters(stands) if one["Name"] == each.label)
        assert row["Value"] == 7_000
        assert row["Worry"] is (each.worry is not None)
        assert row["Form"] == each.form
    assert each.total is not None
    both = total([stands, stands], Phase.FOLLOW)
    assert getattr(both, each.name) == (None if each.total is only else 14_000)


@pytest.mark.parametrize("each", report.FIGURES, ids=lambda one: one.name)
def test_a_counter_reaches_the_report(each: Figure) -> None:
    made = Report(
        "done", **({"source_type": "replica"} | {each.name: 7_000} if each.report else {})
    )
    assert Report.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    if each.report:
        assert f"7,000 {each.report}" in report_summary.as_text(made)


def test_what_is_not_known_is_shown_as_unknown() -> None:
    """None stays None: never 0."""
    unknown = Progress(Phase.FOLLOW, evicted_keys=None)
    (row,) = (one for one in counters(unknown) if one["Name"] == "Evicted by the target")
    assert (row["Value"], row["Worry"]) == (None, False)
    assert "evicted" not in status_line.describe(unknown)


def test_the_page_has_no_counter_of_its_own() -> None:
    page = (ROOT / "engine/front/page/figures.js").read_text()
    assert [each.label for each in COUNTERS if each.label and f'"{each.label}"' in page] in (
        [],
        ["Not migrated"],  # the head of the list of a migration that is over
    )


# --- Verbs ---


@pytest.mark.parametrize("verb", VERBS, ids=lambda one: one.name)
def test_a_verb_is_in_every_face(verb: Verb) -> None:
    commands = verbs()
    assert not commands[verb.name].hidden
    if verb.former:
        assert commands[verb.former].hidden
    for name in (verb.method, verb.former and verb.former.replace("-", "_")):
        if name:
            assert inspect.iscoroutinefunction(getattr(Engine, name))
            assert callable(getattr(BlockingEngine, name))
    if not verb.action:
        return
    action = actions.ACTIONS[verb.action]
    takes = model().shape(model().operations[verb.action].takes)
    assert set(action.honoured) | set(action.only) <= set(takes.members)
    assert set(takes.required) <= set(action.honoured)
    page = (ROOT / "docs/api.md").read_text()
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{verb.action}`"))
    _, _, role, honoured, only, _ = row.split("|")
    assert role.strip() == verb.role
    named, bounded = (set(re.findall(r"`(\w+)`", cell)) for cell in (honoured, only))
    assert named | bounded == {*action.honoured, *action.only}
    assert set(action.honoured) <= named
    if verb.former:
        assert actions.ACTIONS[verb.former_action] is action


async def test_an_example_is_one_row() -> None:
    """A row is all that a verb takes beside what it does."""
    row = Verb(
        name="pause-migration",
        former="halt-migration",
        method="pause_migration",
        action="PauseMigration",
        members={"ReplicationGroupId": NAME, "Seconds": INTEGER},
        ours=True,
        operation="STOP",
    )
    assert (row.file, row.former_action) == ("pause_migration", "HaltMigration")

    class Library:
        async def pause_migration(self, replication_group_id: str, seconds: int = 0) -> Any:
            return {"Group": replication_group_id, "Seconds": seconds}

    action = actions.action_of(row)
    assert (action.role, tuple(action.honoured)) == ("migrate", ("ReplicationGroupId", "Seconds"))
    assert action.refused is not None
    asked = {"ReplicationGroupId": "cache", "Seconds": 7}
    assert await action.run(Library(), asked) == {"Group": "cache", "Seconds": 7}  # type: ignore[arg-type]


def test_an_example_counter_is_one_declaration() -> None:
    @dataclass(frozen=True, slots=True)
    class Figures:
        pauses: int = figure(0, added, label="Pauses", worry=2, words="pauses", report="pauses")

    (each,) = declared_figures(Figures)
    assert (each.name, Figures().pauses) == ("pauses", 0)
    assert counted([(each, each.words)], Figures(pauses=1_234)) == ["1,234 pauses"]
    assert counted([(each, each.words)], Figures()) == []


@pytest.mark.parametrize("verb", [one for one in VERBS if one.operation], ids=lambda one: one.name)
def test_a_member_is_a_parameter_of_the_library(verb: Verb) -> None:
    if verb.action == "StartMigration":
        return  # its members are of the ends, and settings
    known = inspect.signature(getattr(Engine, verb.method)).parameters
    assert {parameter(member) for member in verb.members} <= set(known)


# --- Names ---


def names() -> Iterator[str]:
    """Every name by which somebody outside speaks to the engine, or reads of it."""
    for verb, command in verbs().items():
        yield f"verb {verb}"
        for each in command.params:
            yield from (f"option {verb} {name}" for name in (*each.opts, *each.secondary_opts))
    for name, action in actions.ACTIONS.items():
        yield f"action {name}"
        yield from (f"member {name} {each}" for each in (*action.honoured, *action.only))
    for name, _, _ in metrics.SHOWN:
        yield f"metric startmigration_migration_{name}"
    for kind in (Progress, Report):
        yield from (f"key {kind.__name__} {each.name}" for each in fields(kind))
    yield from (f"counter {each.member}" for each in COUNTERS if each.member)
    yield from (f"label {each['Name']}" for each in counters(Progress()))


def test_no_name_goes_away() -> None:
    """New ones may come; one that is here is what somebody's scripts are written with."""
    kept = (ROOT / "tests/unit/public_names.txt").read_text().splitlines()
    assert len(kept) > 200
    assert set(kept) - set(names()) == set()


def test_an_action_that_changes_something_is_known_as_one() -> None:
    """Else its answer is another's a moment later, and a request listened to runs again."""
    changes = {name for name, each in actions.ACTIONS.items() if each.refused is not None}
    # (TestMigration leaves nothing behind.)
    assert changes | {"TestMigration"} == {
        name for name, each in actions.ACTIONS.items() if each.role != "read"
    }
