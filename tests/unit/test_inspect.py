"""What `inspect` makes of a file: names by globs, the report, and what it cannot decode."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benches.support import encoded_values as encoded
from benches.support.encoded_values import length, string
from engine._native import ValueDecoder
from engine.cli import app
from engine.inspect import key_reader
from engine.inspect.key_pattern import compiled
from engine.inspect.key_reader import KeyReader, Seen
from engine.inspect.key_report import Report
from engine.inspect.shown_value import shown
from engine.model.endpoint import Endpoint
from tests.unit.test_rdb import key, whole
from tests.unit.test_value_decoder import BY_HAND, stream

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("glob", "matches", "others"),
    [
        (b"a*c", [b"ac", b"abc", b"a\n\xffc"], [b"abcd", b"xac"]),
        (b"?", [b"a", b"\n", b"\xff"], [b"", b"ab"]),
        (b"[abc]x", [b"ax", b"cx"], [b"dx", b"x"]),
        (b"[^a-c]", [b"d", b"]"], [b"a", b"b"]),
        (b"[c-a]", [b"a", b"b", b"c"], [b"d"]),
        (b"[\\]-]", [b"]", b"-"], [b"\\"]),
        (b"[a", [b"a"], [b"[", b"b"]),
        (b"[]", [], [b"", b"a"]),
        (b"a\\*b", [b"a*b"], [b"ab", b"axb"]),
        (b"a.b(", [b"a.b("], [b"axb("]),
        (b"***", [b"", b"anything"], []),
        (b"", [b""], [b"a"]),
    ],
)
def test_globs(glob: bytes, matches: list[bytes], others: list[bytes]) -> None:
    pattern = compiled(glob)
    assert [each for each in (*matches, *others) if pattern.fullmatch(each)] == matches


def test_many_stars_take_no_long_time() -> None:
    assert not compiled(b"*" * 1_000 + b"b").fullmatch(b"a" * 10_000)


def file_of(folder: Path, body: bytes) -> str:
    """A file with these keys, as a source."""
    path = folder / "dump.rdb"
    path.write_bytes(whole(body, b"REDIS0015", crc=False))
    return f"rdb:{path}"


def seen(source: str, **options: Any) -> list[Seen]:
    """All keys of it."""

    async def read() -> list[Seen]:
        return [each async for each in KeyReader(Endpoint.parse(source), **options).keys()]  # noqa: SIM118

    return asyncio.run(read())


def in_file(name: bytes, payload: bytes) -> bytes:
    """A DUMP payload as a key of a file."""
    return key(payload[0], name, payload[1:-10])


def test_what_is_not_decoded_is_named_and_the_others_go_on(tmp_path: Path, capsys: Capture) -> None:
    source = file_of(
        tmp_path,
        key(0, b"first", string(b"1"))
        + key(16, b"damaged", string(b"no listpack"))
        + b"\xf2" + length(7) + length(1) + string(b"f")
        + key(32, b"of a template", length(7) + string(b"v"))
        + key(0, b"last", string(b"2")),
    )  # fmt: skip
    found = {each.key: each for each in seen(source)}
    assert [*found] == [b"first", b"damaged", b"last", b"of a template"]
    assert found[b"damaged"].kind == "hash"
    assert "a listpack that ends where it says" in found[b"damaged"].objection
    assert "template" in found[b"of a template"].objection
    assert app.run(["inspect", source]) == 0
    assert "2 keys were not decoded" in capsys.readouterr().out
    assert app.run(["inspect", source, "--key", "damaged"]) == 0
    assert "not decoded: expected a listpack" in capsys.readouterr().out
    assert app.run(["inspect", source, "--match", "d*", "--output", "json"]) == 0
    assert "a listpack" in json.loads(capsys.readouterr().out)["not_decoded"]


def test_long_values_are_counted_and_shown_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_reader, "HELD_BYTES", 400_000)
    items = [b"x" * 100_000] * 12
    body = key(0, b"string", string(b"s" * 1_000_000)) + in_file(b"list", encoded.lists(items)[0])
    body += key(0, b"short", string(b"1"))
    found = {each.key: each for each in seen(file_of(tmp_path, body))}
    assert {name: each.kind for name, each in found.items()} == {
        b"string": "string", b"list": "list", b"short": "string"
    }  # fmt: skip
    assert found[b"list"].size == len(encoded.lists(items)[0]) - 10
    assert found[b"string"].size == 1_000_000 + 6
    assert "name it by --key" in found[b"string"].objection
    assert found[b"short"].objection == ""
    (whole_list,) = seen(file_of(tmp_path, body), key=b"list")
    assert (whole_list.elements, whole_list.longest) == (12, 100_000)


def test_a_value_that_is_too_long_to_be_shown_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(key_reader, "ValueDecoder", partial(ValueDecoder, most=1000))
    source = file_of(tmp_path, in_file(b"key", encoded.lists([b"x" * 90] * 20)[0]))
    assert app.run(["inspect", source, "--match", "*"]) == 0
    assert "not shown: the value is longer than the 1,000 bytes" in capsys.readouterr().out
    assert app.run(["inspect", source, "--key", "key", "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["value"], found["elements"]) == (None, 20)
    assert "longer than" in found["not_shown"]


def test_a_report_keeps_the_biggest(tmp_path: Path) -> None:
    body = b"".join(key(0, b"key %d" % n, string(b"v" * n)) for n in range(0, 3000, 7))
    report = Report(3)
    asyncio.run(report.read(KeyReader(Endpoint.parse(file_of(tmp_path, body)))))
    assert [each.key for each, _ in report.biggest] == [b"key 2996", b"key 2989", b"key 2982"]
    assert all(encoding == "string" for _, encoding in report.biggest)
    assert (report.total.keys, report.total.with_ttl) == (429, 0)
    assert report.types["string"].elements == 429


@pytest.mark.parametrize("name", BY_HAND)
def test_every_type_is_shown(name: str, tmp_path: Path, capsys: Capture) -> None:
    source = file_of(tmp_path, in_file(b"key", BY_HAND[name]))
    assert app.run(["inspect", source, "--key", "key"]) == 0
    assert "not decoded" not in capsys.readouterr().out
    assert app.run(["inspect", source, "--key", "key", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == name.split()[0]


def test_parts_of_a_stream_have_names(tmp_path: Path, capsys: Capture) -> None:
    source = file_of(tmp_path, in_file(b"key", stream(26)))
    assert app.run(["inspect", source, "--key", "key", "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["value"]
    assert found["entries"][1] == ["7-2", [["g", "17"], ["f", "x"]]]
    assert found["groups"][0]["pending"] == [
        {"id": "5-0", "consumer": "anna", "delivered_at": 1_700_000_000_000, "deliveries": 4}
    ]
    assert found["producers"]["sent"] == [["producer", [["iid", "5-0"]]]]


def test_what_json_cannot_say_is_text() -> None:
    assert shown("zset", [[b"a", float("inf")], [b"\xff", 1.5]], b"") == [
        ["a", "inf"],
        ["\\xff", 1.5],
    ]
    assert shown("hash", [[b"a", b"b", -1], [b"c", b"d", 7]], b"") == [["a", "b"], ["c", "d", 7]]


def test_a_long_value_is_cut_as_text(tmp_path: Path, capsys: Capture) -> None:
    items = [b"item %d" % n for n in range(80)] + [b"\x1b[31m" + b"z" * 500]
    source = file_of(tmp_path, in_file(b"key", encoded.lists(list(reversed(items)))[0]))
    assert app.run(["inspect", source, "--key", "key"]) == 0
    out = capsys.readouterr().out
    assert "… and 31 more" in out
    assert "(508 characters)" in out
    assert "\x1b" not in out
