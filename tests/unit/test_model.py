"""The frozen values: what they accept, what they refuse, that they survive JSON."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.model.backoff import Backoff
from engine.model.checkpoint import Checkpoint
from engine.model.endpoint import Endpoint, Tls
from engine.model.joined_sentences import tidied
from engine.model.position import ScanPosition, StreamPosition
from engine.model.progress import Phase, Progress, total
from engine.model.report import EngineUse, NotCarried, Report, Step, printable_key
from engine.model.setting_conflicts import file_objection, following_objection
from engine.model.settings import TransferSettings
from engine.wire import command_renames


@pytest.mark.parametrize(
    ("url", "address", "again"),
    [
        ("10.0.0.1", "10.0.0.1:6379", "redis://10.0.0.1:6379"),
        ("cache.example.com:7000", "cache.example.com:7000", "redis://cache.example.com:7000"),
        ("redis://h", "h:6379", "redis://h:6379"),
        ("valkey://u:p@h:1/", "h:1", "redis://u@h:1"),
        ("redis://[::1]:6380", "[::1]:6380", "redis://[::1]:6380"),
        ("unix:///run/r%20s.sock", "unix:/run/r s.sock", "unix:///run/r%20s.sock"),
        (
            "redis+sentinel://u:p@h,[::1]:2/main?sentinel_username=s&sentinel_password=t",
            "h:26379,[::1]:2/main",
            "redis+sentinel://u@h:26379,[::1]:2/main?sentinel_username=s",
        ),
        (
            "valkeys+sentinel://h:1/a.b-c_1?ca_file=/a/b&verify=no",
            "h:1/a.b-c_1",
            "rediss+sentinel://h:1/a.b-c_1?ca_file=/a/b&verify=no",
        ),
        (
            "valkeys://h:1?ca_file=/a/b&verify=no",
            "h:1",
            "rediss://h:1?ca_file=/a/b&verify=no",
        ),
    ],
)
def test_urls(url: str, address: str, again: str) -> None:
    endpoint = Endpoint.parse(url)
    assert endpoint.address == address
    assert endpoint.url == again
    assert Endpoint.parse(again).address == address


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "redis://",
        "redis://h:0",
        "redis://h:65536",
        "redis://h:x",
        "redis://h/3",
        "redis://h?ca_file=x",
        "rediss://h?nonsense=x",
        "rediss://h?verify=maybe",
        "redis://h#x",
        "unix://relative",
        "redis://bad_host-.x",
        "redis://1.2.3",
        "redis://" + "a" * 300,
        "redis+sentinel://h",
        "redis+sentinel://h/",
        "redis+sentinel:///main",
        "redis+sentinel://h,/main",
        "redis+sentinel://h:1,h:1/main",
        "redis+sentinel://h:0/main",
        "redis+sentinel://h:1/main/2",
        "redis+sentinel://h:1/main?ca_file=x",
        "redis+sentinel://h:1/main#0",
        "http+sentinel://h:1/main",
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(UsageError):
        Endpoint.parse(url)


def test_sentinels() -> None:
    """Their password and the data's are two, and neither is shown."""
    endpoint = Endpoint.parse(
        "rediss+sentinel://u:p%40w@h,i:7/main?sentinel_username=s&sentinel_password=t%26t"
    )
    assert (endpoint.username, endpoint.password, endpoint.port) == ("u", "p@w", 26379)
    assert endpoint.sentinel is not None
    assert (endpoint.sentinel.username, endpoint.sentinel.password) == ("s", "t&t")
    assert [(each.address, each.password) for each in endpoint.sentinels] == [
        ("h:26379", "t&t"),
        ("i:7", "t&t"),
    ]
    there = endpoint.at("10.0.0.1", 1)
    assert (there.url, there.password, there.sentinel) == ("rediss://u@10.0.0.1:1", "p@w", None)
    for text in (repr(endpoint), str(endpoint), endpoint.url, endpoint.address):
        assert "p@w" not in text
        assert "t&t" not in text
        assert "t%26t" not in text


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, path in (
        ("rdb:/a/dump.rdb", "/a/dump.rdb"),
        ("rdb:///a/dump.rdb", "/a/dump.rdb"),
        ("rdb:dump.rdb", f"{tmp_path}/dump.rdb"),
        ("rdb:../x", f"{tmp_path.parent}/x"),
        ("rdb:/with space/100%25?#@:6379", "/with space/100%25?#@:6379"),
    ):
        endpoint = Endpoint.parse(url)
        assert endpoint.rdb_path == path
        assert endpoint.address == endpoint.url == f"rdb:{path}"
        assert Endpoint.parse(endpoint.url) == endpoint
    standard_input = Endpoint.parse("rdb:-")
    assert (standard_input.rdb_path, standard_input.url) == ("/dev/stdin", "rdb:-")
    for url in ("rdb:", "rdb://host/dump.rdb", "rdb:/a\0b", "rdb:/\udcff"):
        with pytest.raises(UsageError):
            Endpoint.parse(url)
    with pytest.raises(UsageError, match="absolute"):
        Endpoint(rdb_path="dump.rdb")
    # A host of that name is still to be had.
    assert Endpoint.parse("redis://rdb:1").address == "rdb:1"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("/var/lib/redis/dump.rdb", "Write rdb:/var/lib/redis/dump.rdb for a file of SAVE"),
        ("./dump.rdb", "Write rdb:./dump.rdb"),
        ("dump.rdb", "Write rdb:dump.rdb"),
        ("dump.rdb.gz", "Write rdb:dump.rdb.gz"),
        ("RDB:/x", "A file is rdb:PATH, in lower case"),
        ("file:///x", "A file is rdb:PATH"),
        ("file:///x/dump.rdb", "Write rdb:/x/dump.rdb."),
        ("file://localhost/x/dump.rdb", "Write rdb:/x/dump.rdb."),
        ("file:/x/dump.rdb", "Write rdb:/x/dump.rdb."),
        ("FILE:dump.rdb", "Write rdb:dump.rdb."),
        ("file:/var/appendonlydir/", "Write aof:/var/appendonlydir/."),
        ("file:", "Write rdb:PATH."),
        ("file://host/x", "Write rdb:PATH."),
        ("-", "The snapshot on standard input is rdb:-"),
        ("s3://bucket/dump.rdb", "fetch it and give rdb:PATH, or send it into the command"),
        ("rdb:s3://bucket/dump.rdb", "takes a file of this machine, and s3:// is elsewhere"),
        ("rdb:https://user:pw@host/x?X-Amz-Signature=secret", "and https:// is elsewhere"),
        ("rdb:redis://user:pw@host", "Write redis://… for the server"),
    ],
)
def test_what_means_a_file_and_does_not_say_so(url: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint.parse(url)
    assert words in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("pw", "secret"))


def test_what_a_file_cannot_be_asked_for() -> None:
    assert file_objection(TransferSettings()) is None
    assert file_objection(TransferSettings(databases=(0, 3), if_exists="skip")) is None
    for asked, word in (
        ({"source_type": "scan"}, "--source-type scan"),
        ({"source_type": "replica"}, "--source-type replica"),
        ({"match": "a*"}, "--match"),
        ({"key_type": "hash"}, "--type"),
        ({"if_exists": "fail"}, "--if-exists fail"),
        ({"fence": "hook", "fence_hook": "stop"}, "--fence hook"),
        ({"tune_source": True}, "--tune-source"),
    ):
        assert word in (file_objection(TransferSettings(**asked)) or "")


def test_a_password_is_never_shown() -> None:
    endpoint = Endpoint.parse("rediss://user:s3cr%40t@h:1")
    assert endpoint.password == "s3cr@t"
    for text in (repr(endpoint), str(endpoint), endpoint.url, endpoint.address):
        assert "s3cr" not in text
    with pytest.raises(UsageError) as caught:
        Endpoint.parse("redis://user:s3cret@h:x")
    assert "s3cret" not in str(caught.value)


def test_own_credentials_come_first() -> None:
    bare = Endpoint("h").with_credentials("u", "p", Tls())
    assert (bare.username, bare.password, bare.tls) == ("u", "p", Tls())
    own = Endpoint("h", username="me", password="mine").with_credentials("u", "p")
    assert (own.username, own.password) == ("me", "mine")


def test_json_and_back() -> None:
    for value in (
        TransferSettings(match="a*", databases=(1, 2), if_exists="skip"),
        ScanPosition("r" * 40, 3, 2**64 - 1, (0, 1)),
        StreamPosition("r" * 40, 2**62, 3, True),
        Checkpoint(
            ScanPosition("r", 0, 0),
            "t",
            keys=1,
            not_carried=(NotCarried(0, "k", "why"),),
            beyond=(("why", 3),),
        ),
        TransferSettings(source_type="auto", until="in-sync", fence="hook", fence_hook="stop all"),
        Progress(Phase.COPIED, keys=3, eta_seconds=1.5, reason="x"),
        Progress(
            Phase.FOLLOW, source_type="replica", applied_offset=2**63, commands=3, held_keys=1
        ),
        Report("done", source_type="replica", fence_seconds=0.25, left_out=("module aux x",)),
        Report(
            "failed",
            keys=1,
            not_carried=(NotCarried(0, "k", "why"),),
            errors=("e",),
            steps=(Step("connect", 0.1),),
            engine=EngineUse(1.0, 2),
        ),
    ):
        assert type(value).from_dict(json.loads(json.dumps(value.to_dict()))) == value


# As version 0.1.0 wrote them.
OLD_SETTINGS = """{"source_type": "scan", "match": "a*", "key_type": null, "databases": [0, 3],
    "if_exists": "skip", "batch_bytes": 4096, "window_bytes": 8192, "stream_above": 4194304,
    "connect_timeout": 10.0, "io_timeout": 60.0, "retry_seconds": 5.0}"""
OLD_PROGRESS = """{"phase": "COPIED", "source_type": "scan", "keys": 5, "bytes": 7, "total_keys": 9,
    "skipped": 0, "vanished": 0, "not_carried": 0, "retries": 0, "reconnects": 1,
    "keys_per_second": 0.0, "seconds": 2.5, "eta_seconds": 0.0, "lag_bytes": null,
    "lag_seconds": null, "can_complete": true, "reason": "copied"}"""
OLD_REPORT = """{"status": "done", "keys": 5, "bytes": 7, "seconds": 2.5, "keys_per_second": 2.0,
    "skipped": 0, "vanished": 0, "retries": 0, "reconnects": 1, "not_carried": [],
    "not_carried_total": 0, "errors": [], "steps": [], "engine": {"cpu_seconds": 0.5,
    "peak_rss_bytes": 1}}"""


def test_what_the_first_version_wrote() -> None:
    settings = TransferSettings.from_dict(json.loads(OLD_SETTINGS))
    assert settings == TransferSettings(
        source_type="scan",
        match="a*",
        databases=(0, 3),
        if_exists="skip",
        batch_bytes=4096,
        window_bytes=8192,
        retry_for=5.0,
    )
    progress = Progress.from_dict(json.loads(OLD_PROGRESS))
    assert (progress.phase, progress.source_type) == (Phase.COPIED, "scan")
    assert (progress.can_complete, progress.applied_offset, progress.commands) == (True, None, 0)
    report = Report.from_dict(json.loads(OLD_REPORT))
    assert (report.source_type, report.fence_seconds, report.left_out) == ("scan", None, ())
    assert report.engine == EngineUse(0.5, 1)


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({"match": "a*"}, "--match"),
        ({"key_type": "hash"}, "--type"),
        ({"databases": (0,)}, "--db"),
        ({"if_exists": "skip"}, "--if-exists skip"),
        ({"if_exists": "fail"}, "--if-exists fail"),
    ],
)
def test_what_a_replica_cannot_do(choice: dict, why: str) -> None:
    with pytest.raises(UsageError, match=f"replica does not do: {why}") as caught:
        TransferSettings(source_type="replica", **choice)
    assert "--source-type scan" in caught.value.remedy
    for source_type in ("auto", "scan"):
        objection = following_objection(TransferSettings(source_type=source_type, **choice))
        assert objection is not None
        assert objection.startswith(why)
    assert following_objection(TransferSettings()) is None
    once = following_objection(TransferSettings(source_type="scan"))
    assert once == "--source-type scan reads keys once"
    assert following_objection(TransferSettings(source_type="replica")) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"source_type": "magic"},
        {"if_exists": "maybe"},
        {"databases": (-1,)},
        {"until": "later"},
        {"fence": "wall"},
        {"source_after": "explode"},
        {"publish": "perish"},
        {"fence": "hook"},
        {"fence": "hook", "fence_hook": " "},
        {"fence_hook": "true"},
        {"fence": "none", "fence_hook": "true"},
        {"cut_over_timeout": 0.0},
        {"cut_over_timeout": float("inf")},
        {"cut_over_timeout": float("nan")},
        {"extend_horizon": 59.0},
        {"extend_horizon": float("nan")},
        {"max_lag_bytes": -1},
        {"spool_bytes": 0},
        {"spool_bytes": 1 << 63},
        {"spool_directory": "relative"},
        {"spool_directory": ""},
    ],
)
def test_settings_that_make_no_sense(wrong: dict) -> None:
    with pytest.raises(UsageError):
        TransferSettings(**wrong)
    with pytest.raises(UsageError, match="another version"):
        TransferSettings.from_dict({"a_later_setting": 1})


@given(st.binary(max_size=50))
def test_names_are_printable_and_distinct(name: bytes) -> None:
    text = printable_key(name)
    assert (text.isascii() and text.isprintable()) or not text
    assert text.encode().decode("unicode_escape").encode("latin-1") == name


def test_backoff_grows_and_starts_anew() -> None:
    backoff = Backoff(10.0)
    assert backoff.failed(100.0)
    assert not backoff.failed(101.0)
    delays = [backoff.delay() for _ in range(12)]
    assert delays[0] < 0.1
    assert all(delay <= 6.0 for delay in delays)
    assert delays[-1] > 3.0
    assert not backoff.exhausted(109.9)
    assert backoff.exhausted(110.0)
    backoff.progress()
    assert not backoff.exhausted(1e9)
    assert backoff.delay() < 0.1


# --- Other names of commands ---


def test_other_names_of_commands() -> None:
    given = TransferSettings(
        command_names=("config=XYZ", "source:PSYNC=abc", "target:FLUSHALL=boom", "CONFIG=XYZ")
    )
    assert given.named("source", Endpoint()).command_names == (("CONFIG", "XYZ"), ("PSYNC", "abc"))
    assert dict(given.named("target", Endpoint()).command_names) == {
        "CONFIG": "XYZ",
        "FLUSHALL": "boom",
    }
    assert (b"FLUSHALL", b"FLUSHALL", b"boom") in given.stream_names
    assert (b"abc", b"PSYNC", b"PSYNC") in given.stream_names
    assert TransferSettings.from_dict(given.to_dict()) == given
    assert TransferSettings().stream_names == []
    # They are no part of what an endpoint is.
    assert given.named("source", Endpoint()) == Endpoint()
    assert "XYZ" not in given.named("source", Endpoint()).url


@pytest.mark.parametrize(
    "entries",
    [
        ("CONFIG",),
        ("CONFIG=",),
        ("=XYZ",),
        ("CON FIG=XYZ",),
        ("CONFIG=X Z",),
        ("there:CONFIG=XYZ",),
        ("SET=XYZ",),
        ("multi=x",),
        ("CONFIG=a", "CONFIG=b"),
        ("CONFIG=a", "source:CONFIG=b"),
        ("CONFIG=a", "CLIENT=A"),
        ("CONFIG=" + "x" * 65,),
        tuple(f"A{n}=B{n}" for n in range(65)),
    ],
)
def test_names_that_make_no_sense(entries: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        TransferSettings(command_names=entries)


def test_commands_as_a_server_knows_them() -> None:
    names = command_renames.table((("CONFIG", "XYZ"),))
    assert command_renames.sent(("config", "GET", "a"), names) == (b"XYZ", "GET", "a")
    assert command_renames.sent((b"CONFIG",), names) == (b"XYZ",)
    assert command_renames.sent(("GET", "config"), names) == ("GET", "config")
    asked = ("ACL", "DRYRUN", b"joe", "CONFIG", "GET", "a")
    assert command_renames.sent(asked, names) == ("ACL", "DRYRUN", b"joe", b"XYZ", "GET", "a")
    assert command_renames.sent(("CONFIG",), {}) == ("CONFIG",)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("connection refused.: trying again for 6 h", "connection refused: trying again for 6 h"),
        ("a: refused.; b: refused. → Is it there?", "a: refused; b: refused → Is it there?"),
        ("stopped: it is full.. Then resume", "stopped: it is full. Then resume"),
        ("not equal (a filter, or others).", "not equal (a filter, or others)."),
        ("not equal (keys that it had.).", "not equal (keys that it had)."),
        ("a;; b", "a; b"),
        # What is right, and what is a name, stays.
        ("10.0.0.1:6379: it took 1.5 s, and more …", "10.0.0.1:6379: it took 1.5 s, and more …"),
        ("the source's key 'a.; b..' and 'c.: '", "the source's key 'a.; b..' and 'c.: '"),
        ("wait ... then", "wait ... then"),
        ("host.example.com.:6379", "host.example.com.:6379"),
    ],
)
def test_marks_that_stand_twice(text: str, told: str) -> None:
    assert tidied(text) == told
    assert tidied(told) == told


MEMBERS = {
    name: of
    for of, names in (
        (
            st.integers(0, 1 << 60),
            "keys bytes skipped vanished not_carried retries reconnects commands",
        ),
        (
            st.integers(0, 1 << 60),
            "spool_bytes partial_syncs full_syncs repaired_keys rebuilt_keys held_keys",
        ),
        (
            st.none() | st.integers(0, 1 << 60),
            "total_keys evicted_keys lag_bytes applied_offset source_offset",
        ),
        (st.none() | st.integers(0, 1 << 60), "proven_keys keys_to_prove max_rate max_key_rate"),
        (st.floats(0, 1e9), "keys_per_second seconds"),
        (
            st.none() | st.floats(0, 1e9),
            "eta_seconds lag_seconds source_heard_seconds target_heard_seconds",
        ),
        (st.booleans(), "can_complete uncomparable trying_again lets_scripts"),
        (st.sampled_from(["", "up", "down", "silent"]), "link"),
        (st.sampled_from(Phase), "phase"),
        (st.just("replica"), "source_type"),
        (st.sampled_from(["", "lag 5 MB > 1 MB", "in sync"]), "reason paused throttled"),
    )
    for name in names.split()
}


def test_every_figure_of_the_progress_is_in_the_totals() -> None:
    # What drives each lane is said of each.
    assert {each.name for each in fields(Progress)} - {"worker_pid"} == MEMBERS.keys()
    lanes = [Progress(), Progress()]
    assert total(lanes, Phase.CONNECT) == Progress()


def test_a_lane_is_named_once() -> None:
    """All lanes of a cut-over that one of them has refused give its reason, which names it."""
    refused = "lane a: the deadline of 1 s passed while writers were paused"
    lanes = [Progress(reason="in sync", can_complete=True)] + [Progress(reason=refused)] * 2
    assert total(lanes, Phase.FOLLOW, "abc").reason == refused


@given(st.lists(st.builds(Progress, **MEMBERS), min_size=1, max_size=4))
def test_the_progress_of_several_lanes(lanes: list[Progress]) -> None:
    """What all know adds up, or is that of the lane that has most; what one does not know is not
    known of all; and a gate is open where all are."""
    whole = total(lanes, Phase.FOLLOW)
    if len(lanes) == 1:
        assert whole is lanes[0]
        return
    assert whole.phase is Phase.FOLLOW
    assert whole.keys == sum(lane.keys for lane in lanes)
    lags = [lane.lag_bytes for lane in lanes]
    assert whole.lag_bytes == (None if None in lags else sum(lag or 0 for lag in lags))
    ages = [lane.lag_seconds for lane in lanes]
    assert whole.lag_seconds == (None if None in ages else max(age or 0 for age in ages))
    assert whole.applied_offset is whole.source_offset is None
    assert whole.can_complete is all(lane.can_complete for lane in lanes)
    if "down" in [lane.link for lane in lanes]:
        assert whole.link == "down"
    if not whole.can_complete:
        shut = next(lane for lane in lanes if not lane.can_complete)
        assert whole.reason == shut.reason
        said = total(lanes, Phase.FOLLOW, "abcd"[: len(lanes)]).reason
        alike = not shut.reason or all(lane.reason == shut.reason for lane in lanes)
        at = next(at for at, lane in enumerate(lanes) if lane is shut)
        assert said == (shut.reason if alike else f"lane {'abcd'[at]}: {shut.reason}")
    # The order of the lanes changes no figure.
    turned = total(lanes[::-1], Phase.FOLLOW)
    assert replace(turned, reason="", keys_per_second=0.0) == replace(
        whole, reason="", keys_per_second=0.0
    )
