"""The command line without servers: what it understands, what it refuses, and how it says so."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from benches.support.waiting import wait_for
from engine import errors
from engine.cli import (
    app,
    check_table,
    durations,
    error_output,
    node_list_option,
    output_format,
    paging,
    program_name,
    report_summary,
    sizes,
    transfer_options,
    verb_runner,
    verify,
)
from engine.cli.progress_display import Lines, describe
from engine.front.faults_with_details import CompletionRefused
from engine.model.endpoint import Endpoint
from engine.model.progress import Phase, Progress
from engine.model.proof import ProofProgress
from engine.model.report import EngineUse, NotCarried, Report, Step
from engine.model.settings import TransferSettings

Capture = pytest.CaptureFixture[str]
OPTION = node_list_option.OPTION


def run(*arguments: str) -> int:
    return app.run(arguments)


# The shorthand.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([OPTION, "a", "b", "--wait"], [OPTION, "a", OPTION, "b", "--wait"]),
        ([OPTION, "a", OPTION, "b"], [OPTION, "a", OPTION, "b"]),
        ([f"{OPTION}=a", "b", "--state=x"], [OPTION, "a", OPTION, "b", "--state=x"]),
        (["--db", "1", "verb", OPTION, "a"], ["--db", "1", "verb", OPTION, "a"]),
        ([OPTION, "--wait"], ["--wait"]),
        ([], []),
    ],
)
def test_values_after_one_option_get_one_each(arguments: list[str], expected: list[str]) -> None:
    assert node_list_option.spread(arguments) == expected


@pytest.mark.parametrize(
    "values",
    [
        ["Address=10.0.0.1,Port=6379", "Address=::1,Port=6380"],
        ["Address=10.0.0.1,Port=6379 Address=::1,Port=6380"],
        ["Address=10.0.0.1 , Port=6379", "Address = ::1 ,Port= 6380"],
        ["Address=10.0.0.1,", "Port=6379", "Port=6380", ",Address=::1"],
        ["""Address="10.0.0.1",Port='6379'""", "address=::1,port=6380"],
        ['[{"Address": "10.0.0.1", "Port": 6379},', '{"Address": "::1", "Port": 6380}]'],
    ],
)
def test_the_shorthand_in_its_spellings(values: list[str]) -> None:
    assert node_list_option.parse(values) == [
        {"Address": "10.0.0.1", "Port": 6379},
        {"Address": "::1", "Port": 6380},
    ]


def test_one_json_object_is_a_list_of_one() -> None:
    assert node_list_option.parse(['{"Address": "h", "Port": 1}']) == [{"Address": "h", "Port": 1}]


def test_what_a_port_may_be_is_not_the_shorthands_business() -> None:
    assert node_list_option.parse(["Address=-,Port=-1"]) == [{"Address": "-", "Port": -1}]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no endpoint"),
        ("127.0.0.1:6379", "is not NAME=VALUE"),
        ("Address=h", "has no Port"),
        ("Port=1", "has no Address"),
        ("Address=,Port=1", "has no Address"),
        ("Address=h,Port=", "not a number"),
        ("Address=h,Port=x", "not a number"),
        ("Address=h,Port=٣", "not a number"),
        ("Address=h,Port=99999999999", "not a number"),
        ("Address=h,Port=1,Port=2", "twice"),
        ("Address=h,Host=x,Port=1", "not a member"),
        ("Address=h,Port=1,", "is not NAME=VALUE"),
        ("Address=h;Port=1", "follows a value"),
        ('Address="h,Port=1', "follows a value"),
        ("[", "not JSON"),
        ("[1]", "not an object"),
        ('[{"Address": "h"}]', "has no Port"),
        ('[{"Address": "h", "Port": "1"}]', "Port is not a number"),
        ('[{"Address": "h", "Port": true}]', "Port is not a number"),
        ('[{"Address": 1, "Port": 1}]', "Address is not a string"),
        ('[{"Address": "h", "Port": 1, "Tls": true}]', "not a member"),
    ],
)
def test_bad_shorthand_is_refused_with_what_was_expected(text: str, complaint: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        node_list_option.parse([text])
    assert complaint in caught.value.message
    assert "Address=HOST,Port=PORT" in caught.value.remedy


NODES = st.lists(
    st.tuples(
        st.from_regex(r"[a-zA-Z0-9.:_-]{1,40}", fullmatch=True),
        st.integers(min_value=-(10**9), max_value=10**9),
    ),
    min_size=1,
    max_size=5,
)
GAPS = st.sampled_from(["", " ", "  "])


@given(NODES, GAPS, GAPS)
def test_every_spelling_of_a_list_is_read_the_same(
    nodes: list[tuple[str, int]], before: str, after: str
) -> None:
    wanted = [{"Address": address, "Port": port} for address, port in nodes]
    texts = [f"Address={address}{before},{after}Port={port}" for address, port in nodes]
    assert node_list_option.parse(texts) == wanted
    assert node_list_option.parse([" ".join(texts)]) == wanted
    assert node_list_option.parse([json.dumps(wanted)]) == wanted


@given(st.lists(st.text(max_size=30), max_size=4))
def test_no_text_raises_anything_but_a_usage_error(values: list[str]) -> None:
    try:
        found = node_list_option.parse(values)
    except errors.UsageError:
        return
    assert all(set(item) == {"Address", "Port"} for item in found)


# Usage: exit code 2, and nothing of it needs the engine.


@pytest.mark.parametrize("verb", app.VERBS)
def test_every_verb_has_help_and_the_common_options(verb: str, capsys: Capture) -> None:
    assert run(verb, "--help") == 0
    shown = capsys.readouterr().out
    # The server prints nothing at its end, and keys have nothing to do with the state.
    without = ("create-access-key", "inspect", "test-rules", "verify")
    assert ("--state" in shown) == (verb not in without)
    assert ("--output" in shown) == (verb != "serve")


def test_the_list_of_verbs_is_not_cut_off(capsys: Capture) -> None:
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert "..." not in shown.split("Commands:")[1]
    assert all(verb in shown for verb in app.VERBS)


@pytest.mark.parametrize(("before", "now"), app.ALIASES.items())
def test_a_verb_has_its_former_name_too(before: str, now: str, capsys: Capture) -> None:
    assert run(before, "--help") == 0
    of_former = capsys.readouterr().out
    assert run(now, "--help") == 0
    assert of_former.replace(before, now) == capsys.readouterr().out
    assert run("--help") == 0
    assert before not in capsys.readouterr().out


def test_version(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"1.2.3 of {name}")
    assert run("--version") == 0
    assert capsys.readouterr().out == "startmigration 1.2.3 of startmigration\n"


def test_version_of_what_is_not_installed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert run("--version") == 0
    assert "not installed" in capsys.readouterr().out


START = ("start-migration", "--replication-group-id", "g")
PAIR = ("migrate", "--source", "a", "--target", "b")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Usage:"),
        (("migrat",), "Did you mean 'migrate'"),
        (("migrate", "--source", "a"), "--target"),
        (("migrate", "--source", "http://a", "--target", "b"), "--source"),
        (("migrate", "--source", "a:99999", "--target", "b"), "--source"),
        (("migrate", "--source", "a", "--target", "redis://b/3"), "names a database. Every"),
        (("migrate", "--source", "a", "--target", "b", "--db", "-1"), "--db"),
        (("migrate", "--source", "a", "--target", "b", "--db", "x"), "--db"),
        (("migrate", "--source", "a", "--target", "b", "--if-exists", "ask"), "--if-exists"),
        (("migrate", "--source", "a", "--target", "b", "--source-type", "psync"), "--source-type"),
        (("migrate", "--source", "a", "--target", "b", "--output", "xml"), "--output"),
        ((*PAIR, "--source-type", "replica", "--match", "a*"), "does not do: --match chooses keys"),
        ((*PAIR, "--source-type", "replica", "--if-exists", "skip"), "Use --source-type scan"),
        ((*PAIR, "--until", "later"), "--until"),
        ((*PAIR, "--fence", "wall"), "--fence"),
        ((*PAIR, "--fence", "hook"), "Give it with --fence-hook"),
        ((*PAIR, "--fence-hook", "true"), "Use --fence hook"),
        ((*PAIR, "--cut-over-timeout", "0"), "--cut-over-timeout"),
        ((*PAIR, "--cut-over-timeout", "soon"), "--cut-over-timeout"),
        ((*PAIR, "--spool-bytes", "plenty"), "Expected one like 512mb"),
        ((*PAIR, "--spool-bytes", "0"), "--spool-bytes"),
        ((*START, OPTION, "Address=h,Port=1", "--spool-bytes", "-1"), "--spool-bytes"),
        ((*START,), OPTION),
        ((*START, OPTION), OPTION),
        ((*START, OPTION, "10.0.0.1:6379"), "Address=HOST,Port=PORT"),
        ((*START, OPTION, "Address=h,Port=1", "Address=h"), "has no Port"),
        (("start-migration", OPTION, "Address=h,Port=1"), "--replication-group-id"),
        (("register-replication-group", "--replication-group-id", "g"), "--primary-endpoint"),
        (("describe-replication-groups", "--max-items", "0"), "--max-items"),
        (("describe-replication-groups", "--max-items", "1", "--marker", "x"), "--max-items"),
        (("complete-migration", "--replication-group-id", "g", "extra"), "extra"),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: tuple[str, ...], complaint: str, capsys: Capture
) -> None:
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert shown.out == ""
    assert "Traceback" not in shown.err


def test_a_refused_url_does_not_repeat_its_password(capsys: Capture) -> None:
    for url in ("redis://u:hunter2@h/3", "http://u:hunter2@h", "redis://u:hunter2@h:x"):
        assert run("migrate", "--source", url, "--target", "h") == 2
        shown = capsys.readouterr()
        assert "hunter2" not in shown.err + shown.out


# Failures: a line on stderr, an object on stdout, exit code 1.


class Broken(errors.StateError):
    """A layer's own subclass."""


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (errors.ReplicationGroupNotFoundFault("x"), "ReplicationGroupNotFoundFault", "Sender"),
        (errors.InvalidParameterValueException("x"), "InvalidParameterValue", "Sender"),
        (errors.LinkError("x"), "LinkError", "Receiver"),
        (errors.LinkError("x", fault="user"), "LinkError", "Sender"),
        (errors.ServerError("x", code="OOM"), "ServerError", "Receiver"),
        (Broken("x"), "StateError", "Receiver"),
        (errors.Interrupted("x"), "Interrupted", "Sender"),
        (KeyError("x"), "InternalError", "Receiver"),
    ],
)
def test_codes_and_whose_fault(error: Exception, code: str, kind: str) -> None:
    told = error_output.error_object(error)
    assert (told["Code"], told["Type"]) == (code, kind)


def test_a_remedy_is_a_sentence_of_its_own() -> None:
    assert error_output.sentences(errors.StateError("it broke", remedy="Mend it.")) == (
        "it broke. Mend it."
    )
    assert error_output.sentences(errors.StateError("It broke.", remedy="Mend it.")) == (
        "It broke. Mend it."
    )


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def perform(_state: str | None, _work: object) -> None:
        raise error

    monkeypatch.setattr(verb_runner, "perform", perform)


DELETE = ("delete-replication-group", "--replication-group-id", "g")


def test_a_fault_in_text(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(errors.ReplicationGroupNotFoundFault("group g\nis\x1b[2J not here"), monkeypatch)
    assert run(*DELETE) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "ReplicationGroupNotFoundFault: group g\\x0ais\\x1b[2J not here\n"


def test_a_fault_in_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_with(errors.ReplicationGroupNotFoundFault("group g is not here"), monkeypatch)
    assert run(*DELETE, "--output", "json") == 1
    shown = capsys.readouterr()
    assert shown.err == "ReplicationGroupNotFoundFault: group g is not here\n"
    assert json.loads(shown.out) == {
        "Error": {
            "Code": "ReplicationGroupNotFoundFault",
            "Message": "group g is not here",
            "Type": "Sender",
        }
    }


def test_a_fault_with_a_reason_in_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    why = "lag 18 MB > 1 MB"
    fails_with(CompletionRefused(f"cannot complete the migration of g: {why}", why), monkeypatch)
    assert run("complete-migration", "--replication-group-id", "g", "--output", "json") == 1
    assert json.loads(capsys.readouterr().out)["Error"] == {
        "Code": "InvalidReplicationGroupState",
        "Message": "cannot complete the migration of g: lag 18 MB > 1 MB",
        "Type": "Sender",
        "Reason": "lag 18 MB > 1 MB",
    }


def test_a_bug_is_one_line_without_its_text(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(error_output.DEBUG_VARIABLE, raising=False)
    fails_with(RuntimeError("redis://:hunter2@h"), monkeypatch)
    assert run(*DELETE) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("InternalError: RuntimeError in engine/cli/")
    assert shown.err.count("\n") == 1
    assert error_output.DEBUG_VARIABLE in shown.err
    assert "hunter2" not in shown.err


def test_a_bugs_trace_for_who_asks(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(error_output.DEBUG_VARIABLE, "1")
    fails_with(RuntimeError("boom"), monkeypatch)
    assert run(*DELETE) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_configuration_that_cannot_be_understood_is_wrong_usage(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(errors.UsageError("the state's URL cannot be understood"), monkeypatch)
    assert run(*DELETE) == 2
    assert capsys.readouterr().err.startswith("UsageError: ")


def test_an_interrupted_wait_says_how_to_go_on(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with(errors.Interrupted("interrupted"), monkeypatch)
    assert run("resume-migration", "--replication-group-id", "a b", "--state", "s", "--wait") == 130
    shown = capsys.readouterr().err
    assert shown.startswith("Interrupted: ")
    assert "describe-replication-groups --replication-group-id 'a b' --state s" in shown


def test_an_interrupted_migrate_says_how_to_go_on_without_the_password(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(_state: str | None, _work: object) -> None:
        raise errors.Interrupted("interrupted")

    monkeypatch.setattr("engine.cli.migrate.perform", perform)
    options = ["--match", "a*", "--db", "1", "--db", "5", "--if-exists", "skip", "--output", "json"]
    code = run("migrate", "--source", "redis://me:hunter2@h:1", "--target", "h:2", *options)
    shown = capsys.readouterr()
    assert code == 130
    assert (
        "migrate --source redis://me@h:1 --target redis://h:2 --match 'a*' --db 1 --db 5 "
        "--if-exists skip\n" in shown.err
    )
    assert "passwords" in shown.err
    assert "hunter2" not in shown.err + shown.out
    told = json.loads(shown.out)
    assert told["status"] == "stopped"
    assert told["Error"]["Code"] == "Interrupted"


def interrupted(arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> str:
    """The line with which an interrupted migrate can be taken up."""

    def perform(_state: str | None, _work: object) -> None:
        raise errors.Interrupted("interrupted")

    monkeypatch.setattr("engine.cli.migrate.perform", perform)
    assert run("migrate", "--source", "h:1", "--target", "h:2", *arguments) == 130
    shown = capsys.readouterr().err
    return shown.partition(" migrate ")[2].strip()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--source-type", "replica"],
        ["--source-type", "auto", "--until", "in-sync", "--tune-source"],
        ["--fence", "hook", "--fence-hook", "stop 'all' of them", "--cut-over-timeout", "2.5"],
        ["--cut-over-timeout", "2.5", "--source-after", "resume", "--publish", "drop"],
        ["--skip-checks", "memory,source-role"],
        ["--fence", "none", "--spool-directory", "/var/spool/a b", "--spool-bytes", "512mb"],
    ],
)
def test_every_option_is_in_the_line_that_goes_on(
    arguments: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = ["--source", "redis://h:1", "--target", "redis://h:2"]
    default = ["--source-type", TransferSettings().source_type]
    given = arguments[2:] if arguments[:2] == default else arguments
    assert shlex.split(interrupted(arguments, capsys, monkeypatch)) == ends + given


def test_what_is_the_default_need_not_be_said(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--source-type", TransferSettings().source_type, "--if-exists", "replace"]
    arguments += ["--until", "cut-over", "--fence", "pause", "--cut-over-timeout", "10"]
    arguments += ["--source-after", "refuse", "--publish", "pass"]
    arguments += ["--spool-bytes", "10gb", "--no-tune-source"]
    line = interrupted(arguments, capsys, monkeypatch)
    assert line == interrupted([], capsys, monkeypatch)


@pytest.mark.parametrize("verb", ["migrate", "test-migration", "start-migration"])
def test_the_verbs_of_a_transfer_take_its_options(verb: str, capsys: Capture) -> None:
    assert run(verb, "--help") == 0
    shown = capsys.readouterr().out
    options = transfer_options.PARAMETERS.values()
    # Typer reads an option's first name as its default, and puts it right later.
    found = [each.annotation.__metadata__[0] for each in options]
    names = [(each.default, *each.param_decls)[0].partition("/")[0] for each in found]
    assert "--source-type" in names
    assert [name for name in names if f"{name} " not in shown] == []
    assert "wanted" not in shown


def test_what_is_understood_reaches_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    @transfer_options.with_transfer_options
    def verb(*, own: int = 0, wanted: TransferSettings, last: str = "x") -> None:
        """What it does."""
        found.append((own, wanted, last))

    assert verb.__doc__ == "What it does."
    typer_app = typer.Typer()
    typer_app.command()(verb)
    arguments = ["--own", "1", "--db", "3", "--db", "3", "--db", "5", "--last", "y"]
    typer_app(arguments, standalone_mode=False)
    assert found == [(1, TransferSettings(databases=(3, 5)), "y")]


def test_options_become_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = transfer_options.settings(
        source_type="auto",
        match=None,
        key_type=None,
        databases=None,
        if_exists="replace",
        until="in-sync",
        fence="hook",
        fence_hook="stop",
        cut_over_timeout=2.5,
        source_after="resume",
        publish="drop",
        spool_directory="spool",
        spool_bytes="512mb",
        tune_source=True,
    )
    assert found == TransferSettings(
        source_type="auto",
        until="in-sync",
        fence="hook",
        fence_hook="stop",
        cut_over_timeout=2.5,
        source_after="resume",
        publish="drop",
        spool_directory=str(tmp_path / "spool"),
        spool_bytes=512 << 20,
        tune_source=True,
    )


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("7", 7),
        ("7b", 7),
        ("1k", 1_000),
        ("1kb", 1 << 10),
        ("512mb", 512 << 20),
        ("3M", 3_000_000),
        (" 10 GB ", 10 << 30),
        ("2tb", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert sizes.parse(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5gb", "gb", "1xb", "1kbb", "٣", "1" * 19])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(errors.UsageError, match="is not a size"):
        sizes.parse(text)


@given(st.integers(min_value=0, max_value=10**17))
def test_sizes_can_be_read_again(size: int) -> None:
    assert sizes.parse(sizes.write(size)) == size
    assert sizes.parse(sizes.write(size << 20)) == size << 20


# What migrate prints.

REPORT = Report(
    status="done",
    keys=2_000,
    bytes=1_500_000,
    seconds=1.25,
    keys_per_second=1_600.0,
    skipped=3,
    not_carried=tuple(NotCarried(0, f"k{n}", "ERR bad\r\ndata") for n in range(30)),
    not_carried_total=30,
    steps=(Step("connect", 0.05), Step("snapshot", 1.2, 2_000, 1_500_000, "2 of 3 databases")),
    engine=EngineUse(0.4, 60_000_000),
)


def migrates_to(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.cli.migrate.perform", lambda _state, _work: report)


MIGRATE = ("migrate", "--source", "h:1", "--target", "h:2")


def test_the_report_as_text(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    migrates_to(REPORT, monkeypatch)
    assert run(*MIGRATE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["Step", "Time", "Keys", "Volume", "Note"]
    assert " ".join(lines[3].split()) == "snapshot 1.20 s 2,000 1.5 MB 2 of 3 databases"
    assert "Done: 2,000 keys, 1.5 MB in 1.25 s: 1,600 keys/s." in lines
    assert "Not migrated: 30 keys." in lines
    assert '  db0 "k19": ERR bad\\x0d\\x0adata' in lines
    assert not any('"k20"' in line for line in lines)
    assert any("and 10 more" in line for line in lines)


def test_the_report_as_one_line_of_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    migrates_to(REPORT, monkeypatch)
    assert run(*MIGRATE, "--output", "json") == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    told = json.loads(shown)
    assert told["engine"] == {"cpu_seconds": 0.4, "peak_rss_bytes": 60_000_000}
    assert len(told["not_carried"]) == 30
    assert Report.from_dict(told) == REPORT


FOLLOWED = replace(
    REPORT,
    source_type="replica",
    commands=12_345,
    applied_offset=987_654,
    full_syncs=1,
    partial_syncs=2,
    repaired_keys=3,
    held_keys=4,
    spool_bytes=6_000_000,
    fence_seconds=0.125,
    left_out=("module aux: \x1bjson", "2 scripts"),
)


def test_the_report_of_a_followed_source(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    migrates_to(FOLLOWED, monkeypatch)
    assert run(*MIGRATE) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        "Read as a replica: 12,345 commands applied, up to offset 987654; 1 full syncs; 2 partial "
        "syncs; 3 keys repaired; 4 keys waiting to be copied again; at most 6.0 MB spooled; writes "
        "blocked for 0.12 s." in lines
    )
    at = lines.index("Left out:")
    assert lines[at + 1 : at + 3] == ["  module aux: \\x1bjson", "  2 scripts"]
    assert run(*MIGRATE, "--output", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["source_type"], told["commands"], told["fence_seconds"]) == (
        "replica",
        12_345,
        0.125,
    )
    assert told["left_out"] == list(FOLLOWED.left_out)
    assert Report.from_dict(told) == FOLLOWED


def test_a_report_that_failed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = replace(REPORT, status="failed", errors=("the target is full",))
    migrates_to(failed, monkeypatch)
    assert run(*MIGRATE, "--output", "json") == 1
    shown = capsys.readouterr()
    assert shown.err == "TransferFailed: the target is full\n"
    told = json.loads(shown.out)
    assert (told["status"], told["errors"]) == ("failed", ["the target is full"])
    assert run(*MIGRATE) == 1
    shown = capsys.readouterr()
    assert "Failed: 2,000 keys" in shown.out


def test_a_failure_before_there_is_a_report(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(_state: str | None, _work: object) -> None:
        raise errors.AuthError("h:1 refused the password", remedy="Check it.")

    monkeypatch.setattr("engine.cli.migrate.perform", perform)
    assert run(*MIGRATE, "--output", "json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["status"] == "failed"
    assert told["errors"] == ["AuthError: h:1 refused the password. Check it."]
    assert told["Error"]["Code"] == "AuthError"
    assert told["not_carried"] == []


# Progress.


def test_lines_come_at_each_phase_and_seldom_in_between(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("engine.cli.progress_display.time.monotonic", lambda: now)
    with Lines() as lines:
        for step in range(41):
            now = 100 + step / 10
            phase = Phase.CONNECT if step < 5 else Phase.SNAPSHOT
            lines.update(Progress(phase=phase, keys=step, total_keys=40))
    shown = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in shown] == [
        ["CONNECT", "0"],
        ["SNAPSHOT", "5"],
        ["SNAPSHOT", "25"],
    ]


def test_a_line_tells_what_matters() -> None:
    progress = Progress(
        phase=Phase.SNAPSHOT,
        keys=1_500,
        total_keys=1_000,
        bytes=2_500_000,
        keys_per_second=750,
        eta_seconds=65,
        reconnects=2,
        reason="waiting for the target",
    )
    assert describe(progress) == (
        "1,500 of 1,000 keys (100.0%), 2.5 MB, 750 keys/s, ETA 1:05, 2 reconnects "
        "(waiting for the target)"
    )
    assert describe(Progress()) == "0 keys, 0 B"
    done = replace(progress, phase=Phase.DONE, reason="", reconnects=0)
    assert describe(done) == "1,500 keys, 2.5 MB, 750 keys/s"
    # By then all keys that a filter fits may have been moved.
    assert describe(replace(done, phase=Phase.STOPPED)) == describe(done)


def test_a_line_tells_how_far_a_followed_source_is_ahead() -> None:
    progress = Progress(
        phase=Phase.FOLLOW,
        source_type="replica",
        keys=1_000,
        total_keys=4_000,
        bytes=2_500_000,
        commands=12_345,
        lag_bytes=18_000_000,
        lag_seconds=2.25,
        spool_bytes=6_000_000,
        full_syncs=1,
        held_keys=4,
        reason="lag 18 MB > 1 MB",
    )
    assert describe(progress) == (
        "1,000 keys, 2.5 MB, 12,345 commands, lag 18.0 MB, 2.25 s, 6.0 MB spooled, 4 keys waiting "
        "to be copied again, cannot complete (lag 18 MB > 1 MB)"
    )
    in_sync = replace(
        progress, lag_bytes=0, lag_seconds=0.0, spool_bytes=0, held_keys=0, can_complete=True,
        reason="in sync", partial_syncs=2, full_syncs=2, repaired_keys=1,
    )  # fmt: skip
    assert describe(in_sync) == (
        "1,000 keys, 2.5 MB, 12,345 commands, lag 0 B, 0.00 s, 2 partial syncs, 2 full syncs, "
        "1 keys repaired, can complete (in sync)"
    )
    catching_up = replace(in_sync, phase=Phase.CATCH_UP, can_complete=False, reason="")
    assert "complete" not in describe(catching_up)


def test_the_bar_draws_at_most_four_times_a_second(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.cli.progress_bar import Live

    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    now, drawn = 100.0, 0
    with Live() as live:

        def count() -> None:
            nonlocal drawn
            drawn += 1

        monkeypatch.setattr("engine.cli.progress_bar.time.monotonic", lambda: now)
        monkeypatch.setattr(live._bar, "refresh", count)
        for step in range(101):
            now = 100 + step / 100
            live.update(Progress(phase=Phase.SNAPSHOT, keys=step, total_keys=100))
        live.note("a [bold]note[/bold]")
    assert drawn <= 6  # one more at the beginning, and one at the end
    assert "a [bold]note[/bold]" in capsys.readouterr().err


# Rendering.


def test_a_response_as_text_and_as_json() -> None:
    response = {
        "ReplicationGroup": {
            "ReplicationGroupId": "g",
            "Status": "available",
            "ClusterEnabled": False,
            "NodeGroups": [{"NodeGroupId": "0001", "PrimaryEndpoint": {"Port": 1}}, {"A": []}],
            "MemberClusters": ["a", "b"],
            "CreateTime": datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
        }
    }
    text = output_format.as_text(response).splitlines()
    assert text[0] == "ReplicationGroup"
    assert "  ReplicationGroupId  g" in text
    assert "  ClusterEnabled      no" in text
    assert "    - NodeGroupId      0001" in text
    assert "      PrimaryEndpoint" in text
    assert "        Port  1" in text
    assert "    - a" in text
    assert "  CreateTime          2024-01-02T03:04:05+00:00" in text
    told = json.loads(output_format.as_json(response))
    assert told["ReplicationGroup"]["CreateTime"] == "2024-01-02T03:04:05+00:00"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (99_949, "99.9 kB"), (99_960, "100 kB"),
     (999_600, "1.0 MB"), (2_500_000_000_000_000, "2,500 TB")],
)  # fmt: skip
def test_volumes(size: int, text: str) -> None:
    assert output_format.volume(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.00 s"), (9.99, "9.99 s"), (9.999, "10.0 s"), (59.96, "1:00"), (3_725.2, "1:02:05")],
)
def test_durations(seconds: float, text: str) -> None:
    assert output_format.duration(seconds) == text


def test_checks_that_did_not_pass_say_what_to_do() -> None:
    found = [
        {"name": "memory", "outcome": "pass", "figure": "1 MB of 2 MB", "remedy": ""},
        {"name": "keys", "outcome": "warn", "figure": "12 keys", "remedy": "Empty it."},
    ]
    assert check_table.warnings(found) == ["warning: keys: 12 keys → Empty it."]
    assert check_table.checks_table(found).splitlines()[2:] == [
        "memory  pass     1 MB of 2 MB",
        "keys    warn     12 keys",
        "warn: keys: Empty it.",
    ]


def test_a_report_without_anything_is_two_lines_at_most() -> None:
    assert report_summary.as_text(Report(status="done")).count("\n") == 0


# Paging as the AWS CLI does it.


def ask_for(pages_: dict[str | None, tuple[list[int], str | None]]) -> Callable[..., Any]:
    async def ask(marker: str | None) -> dict[str, Any]:
        items, following = pages_[marker]
        return {"G": items, **({"Marker": following} if following else {})}

    return ask


PAGES: dict[str | None, tuple[list[int], str | None]] = {
    None: ([1, 2, 3], "m1"),
    "m1": ([4, 5, 6], "m2"),
    "m2": ([7], None),
}


def test_every_page_is_read() -> None:
    answer = asyncio.run(paging.collect(ask_for(PAGES), "G"))
    assert answer == {"G": [1, 2, 3, 4, 5, 6, 7]}


@pytest.mark.parametrize("step", range(1, 9))
def test_token_by_token_gives_every_item_once(step: int) -> None:
    seen: list[int] = []
    token: str | None = None
    while True:
        answer = asyncio.run(paging.collect(ask_for(PAGES), "G", max_items=step, token=token))
        seen += answer["G"]
        assert len(answer["G"]) <= step
        token = answer.get("NextToken")
        if token is None:
            break
    assert seen == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("token", ["", "x", "e30=", "bnVsbA==", "ключ"])
def test_a_token_of_somebody_elses(token: str) -> None:
    with pytest.raises(errors.UsageError, match="starting token"):
        asyncio.run(paging.collect(ask_for(PAGES), "G", token=token))


# The process.


def test_a_command_line_can_be_pasted_into_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/startmigration"])
    line = program_name.command(
        "migrate", ("--source", Endpoint.parse("h").url), ("--match", "a b*")
    )
    assert line == "startmigration migrate --source redis://h:6379 --match 'a b*'"
    monkeypatch.setattr(sys, "argv", ["/x/engine/__main__.py"])
    assert program_name.program() == "python -m engine"


def imported_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after `code`."""
    script = f"import sys\n{code}\nprint('modules', *{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_help_imports_neither_rich_nor_what_verbs_work_with() -> None:
    found = imported_by("from engine.cli.app import run\nrun(['migrate', '--help'])")
    assert found.isdisjoint({"rich", "pygments", "sqlalchemy", "redis", "uvloop", "structlog"})


def test_a_reader_that_leaves_is_no_error() -> None:
    script = "import sys; from engine.__main__ import main; sys.exit(main())"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode in (0, 1)


@pytest.mark.parametrize(
    ("unbuffered", "waits"), [("1", True), ("1", False), ("", True), ("", False)]
)
def test_all_is_printed_where_a_part_goes_at_once(unbuffered: str, waits: bool) -> None:
    """Into a pipe that has room for little, by a process that is stopped in the middle of it, or
    that does not wait for room: whatever Python's own streams do."""
    script = "import sys; from engine.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "migrate", "--help"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    whole = subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)
    reading, writing = os.pipe()
    room = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    assert len(whole.stdout) > 2 * room
    os.set_blocking(writing, waits)
    process = subprocess.Popen(command, env=environment, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    with process, open(reading, "rb") as pipe:
        wait_for(lambda: _in_pipe(reading) == room, "a full pipe")
        if waits:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            process.send_signal(signal.SIGCONT)
        assert pipe.read() == whole.stdout
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def _in_pipe(descriptor: int) -> int:
    return int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_exit_is_typers_own() -> None:
    # `fail` must leave through Typer, or its clean-up would be skipped.
    with pytest.raises(typer.Exit) as caught:
        verb_runner.fail(errors.LinkError("x"), "text")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0.0), ("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1.5H", 5400.0), ("2 d", 172800.0)],
)
def test_time_spans(text: str, seconds: float) -> None:
    assert durations.parse(text) == seconds
    assert durations.parse(durations.write(seconds)) == seconds


@pytest.mark.parametrize("text", ["", "-1s", "ten", "1w", "1h30m", "inf", "nan", "1e3"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(errors.UsageError, match="not a time span"):
        durations.parse(text)


@pytest.mark.parametrize("verb", ["describe-replication-groups", "describe-events"])
def test_whoever_only_asks_makes_no_state(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    missing = tmp_path / "no" / "state.db"
    assert run(verb, "--state", str(missing)) == 1
    assert f"there is no state {missing}" in capsys.readouterr().err
    # The user's own place need not be there.
    monkeypatch.delenv("STARTMIGRATION_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "home"))
    assert run(verb, "--output", "json") == 0
    assert list(json.loads(capsys.readouterr().out).values()) == [[]]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[[credentials]]\nhost = 'a'\npasword = 'secret-word'\n", "credentials entry 1"),
        ("[[credentials]]\nhost = a\n", "line 2"),
    ],
)
def test_serve_ends_at_its_start_where_the_credentials_are_unusable(
    text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    path.chmod(0o600)
    monkeypatch.setenv("STARTMIGRATION_CONFIG", str(path))
    monkeypatch.delenv("STARTMIGRATION_CREDENTIALS", raising=False)
    state = tmp_path / "state.db"
    assert run("serve", "--no-auth", "--listen", "127.0.0.1:0", "--state", str(state)) == 2
    told = capsys.readouterr().err
    assert str(path) in told
    assert place in told
    assert "secret-word" not in told
    assert not state.exists()


def test_the_progress_of_a_comparison() -> None:
    line = verify._line(ProofProgress("comparing", 500, 2_000, 3_000_000, 4, 5, seconds=10.0))
    assert line == (
        "comparing  25% (500 of about 2,000 keys)  3.0 MB  30.0 s left  4 to be looked at again  "
        "5 differ"
    )
    assert verify._line(ProofProgress()) == "connecting"
