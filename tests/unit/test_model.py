"""The frozen values: what they accept, what they refuse, that they survive JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import EngineError, UsageError
from engine.model.backoff import Backoff
from engine.model.checkpoint import Checkpoint
from engine.model.endpoint import Endpoint, Tls
from engine.model.position import ScanPosition, StreamPosition
from engine.model.progress import Phase, Progress
from engine.model.report import EngineUse, NotCarried, Report, Step, printable_key
from engine.model.settings import TransferSettings
from engine.transfer.phases import MOVES, move


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
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(UsageError):
        Endpoint.parse(url)


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
        Progress(Phase.COPIED, keys=3, eta_seconds=1.5, reason="x"),
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


@pytest.mark.parametrize(
    "wrong",
    [{"source_type": "magic"}, {"if_exists": "maybe"}, {"databases": (-1,)}, {"spool_bytes": -1}],
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


def test_phases_move_by_the_table() -> None:
    assert set(MOVES) == set(Phase)
    for old in Phase:
        for new in Phase:
            if new in MOVES[old]:
                assert move(old, new) is new
            else:
                with pytest.raises(EngineError):
                    move(old, new)


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
