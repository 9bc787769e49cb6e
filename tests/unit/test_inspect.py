"""What `inspect` makes of a file: names by globs, the report, and what it cannot decode."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benches.support import encoded_values as encoded
from benches.support.encoded_values import length, string
from engine._native import ValueDecoder, key_slot, value_flavour, value_kind
from engine.cli import app
from engine.inspect import key_reader
from engine.inspect.key_pattern import compiled
from engine.inspect.key_reader import KeyReader, Seen
from engine.inspect.key_report import Report
from engine.inspect.shown_value import shown
from engine.model.endpoint import Endpoint
from tests.reference.stream import command
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
    assert not compiled(b"*a" * 50 + b"*b").fullmatch(b"a" * 100_000)
    assert compiled(b"*a" * 50 + b"*b*").fullmatch(b"a" * 100_000 + b"b")


@given(
    glob=st.text("ab*?[^]-\\", max_size=12).map(str.encode),
    name=st.text("ab-", max_size=9).map(str.encode),
)
@settings(max_examples=1500)
def test_globs_match_as_the_slow_way_does(glob: bytes, name: bytes) -> None:
    def matches(parts: list[bytes], name: bytes) -> bool:
        if not parts:
            return not name
        if parts[0] == b"*":
            return any(matches(parts[1:], name[n:]) for n in range(len(name) + 1))
        one = compiled(parts[0]).fullmatch(name[:1]) is not None
        return bool(name) and one and matches(parts[1:], name[1:])

    # A star, and what stands for one byte: an escape, a class (its end may be missing).
    parts = re.findall(rb"\\.|\[\^?(?:\\.|[^\]]-.|[^\]])*\]?|\*+|.", glob)
    parts = [b"*" if part.startswith(b"*") else part for part in parts]
    assert (compiled(glob).fullmatch(name) is not None) == matches(parts, name)


def file_of(folder: Path, body: bytes, magic: bytes = b"REDIS0015") -> str:
    """A file with these keys, as a source."""
    path = folder / "dump.rdb"
    path.write_bytes(whole(body, magic, crc=False))
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
        + key(30, b"of a template", string(b"no listpack"))
        + key(0, b"last", string(b"2")),
    )  # fmt: skip
    found = {each.key: each for each in seen(source)}
    assert [*found] == [b"first", b"damaged", b"last", b"of a template"]
    assert found[b"damaged"].kind == "hash"
    assert "a listpack that ends where it says" in found[b"damaged"].objection
    assert "template" in found[b"of a template"].objection
    assert app.run(["inspect", source]) == 0
    out = capsys.readouterr().out
    assert "Not decoded: 2 keys; --key KEY says why" in out
    # Of one that is named alone nothing is known: it is none of the biggest, and has no size.
    assert "of a template" not in out
    assert next(line for line in out.splitlines() if line.startswith("?")).split()[3:] == ["-"] * 3
    assert app.run(["inspect", source, "--key", "of a template"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("of a template: not decoded: ")
    assert app.run(["inspect", source, "--key", "of a template", "--output", "json"]) == 0
    of_template = json.loads(capsys.readouterr().out)
    assert "template" in of_template.pop("not_decoded")
    assert {*of_template.values()} == {"of a template", 0, None}
    assert app.run(["inspect", source, "--key", "damaged"]) == 0
    assert "not decoded: expected a listpack" in capsys.readouterr().out
    assert app.run(["inspect", source, "--match", "d*", "--output", "json"]) == 0
    damaged = json.loads(capsys.readouterr().out)
    assert "a listpack" in damaged["not_decoded"]
    assert (damaged["fields_with_ttl"], damaged["type"], damaged["bytes"]) == (None, "hash", 13)


def test_what_later_versions_brought_is_shown(tmp_path: Path) -> None:
    source = file_of(
        tmp_path,
        b"\xf2" + length(7) + length(2) + string(b"f") + string(b"g")
        + key(32, b"array", length(7) + string(b"v") + string(b"w"))
        + key(30, b"packed", string(encoded.listpack([7, b"v", 5]))),
    )  # fmt: skip
    reader = KeyReader(Endpoint.parse(source))
    for found, last in zip(seen(source), ("w", "5"), strict=True):
        assert reader.value(found)[0] == [["f", "v"], ["g", last]]
    paths = BY_HAND["path hash"]
    (found,) = seen(file_of(tmp_path, in_file(b"paths", paths), b"VALKEY081"))
    assert (found.kind, found.encoding, found.elements) == ("path hash", "radix tree", 2)
    assert reader.value(found)[0] == [
        ["", [["field", "17"]]], ["a/b", [["f", "v"], ["g", ""]]]
    ]  # fmt: skip


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


def test_other_keys_are_not_held_beside_the_named_one(tmp_path: Path) -> None:
    other = next(b"%d" % n for n in range(9) if key_slot(b"%d" % n) != key_slot(b"named"))
    body = key(0, other, string(b"o" * 100_000)) + key(0, b"named", string(b"1"))

    async def batches(**options: Any) -> list[bytes]:
        reader = KeyReader(Endpoint.parse(file_of(tmp_path, body)), **options)
        found = [each async for each in reader.batches()]
        return [
            each.key(n) for each in found if not isinstance(each, Seen) for n in range(len(each))
        ]

    assert asyncio.run(batches(key=b"named")) == [b"named"]
    assert asyncio.run(batches()) == [other, b"named"]


@pytest.mark.parametrize("promised", [1 << 20, 15 << 30, 1 << 40])
def test_a_damaged_length_ends_in_words(promised: int, tmp_path: Path, capsys: Capture) -> None:
    source = file_of(tmp_path, key(0, b"key", length(promised) + b"short"))
    for options in (["--key", "key"], ["--match", "*"], []):
        assert app.run(["inspect", source, *options]) == 1
        said = capsys.readouterr().err
        assert "in the middle of its snapshot" in said or "not enough memory" in said


def test_the_base_of_an_append_only_file_is_read(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "base.rdb"
    base = b"\xfa" + string(b"aof-base") + string(b"1") + key(0, b"key", string(b"value"))
    preamble = b"\xfa" + string(b"aof-preamble") + string(b"1") + key(0, b"key", string(b"value"))
    command = b"*2\r\n$3\r\nDEL\r\n$3\r\nkey\r\n"
    for data in (whole(base), whole(preamble) + command):
        path.write_bytes(data)
        assert app.run(["inspect", f"rdb:{path}", "--output", "json"]) == 0
        *_, last = map(json.loads, capsys.readouterr().out.splitlines())
        assert last["totals"]["all"]["keys"] == 1
        assert last["left_out"] == ["the commands after this base of an append-only file"]
        assert app.run(["inspect", f"rdb:{path}", "--key", "key"]) == 0
        said = capsys.readouterr()
        assert "value" in said.out
        assert "the commands after this base" in said.err


def test_the_base_of_an_append_only_folder_is_shown(tmp_path: Path, capsys: Capture) -> None:
    """What is behind it is said first; and of a key how many commands name it."""
    base = whole(b"\xfa" + string(b"aof-base") + string(b"1") + key(0, b"key", string(b"old")))
    (tmp_path / "a.base.rdb").write_bytes(base)
    (tmp_path / "a.incr.1").write_bytes(
        command(b"SET", b"key", b"new") + command(b"SET", b"other", b"1")
    )
    last = tmp_path / "a.incr.2"
    last.write_bytes(command(b"MULTI") + command(b"APPEND", b"key", b"er") + command(b"EXEC"))
    (tmp_path / "a.manifest").write_text(
        "file a.base.rdb seq 1 type b\nfile a.incr.1 seq 1 type i\nfile a.incr.2 seq 2 type i\n"
    )
    source = f"aof:{tmp_path}"
    size = sum((tmp_path / f"a.incr.{n}").stat().st_size for n in (1, 2))
    first = f"Not shown: what the commands after the base change, {size} bytes in 2 files: "
    for options in ([], ["--match", "*"], ["--key", "key"]):
        assert app.run(["inspect", source, *options]) == 0
        assert capsys.readouterr().out.startswith(first)
        assert app.run(["inspect", source, *options, "--output", "json"]) == 0
        assert capsys.readouterr().err.startswith(first)
    assert app.run(["inspect", source, "--key", "key", "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["value"], found["commands_behind"]) == ("old", 2)
    assert app.run(["inspect", source, "--key", "other"]) == 1
    said = "no key other in the base. Commands after the base that name it: 1."
    assert said in capsys.readouterr().err
    last.write_bytes(last.read_bytes() + command(b"FLUSHALL"))
    assert app.run(["inspect", source, "--key", "key"]) == 0
    assert "may change it without naming it" in capsys.readouterr().out
    last.write_bytes(b"*1\r\n$x")
    assert app.run(["inspect", source, "--key", "key"]) == 1
    assert "a.incr.2 is not a valid append-only file" in capsys.readouterr().err


def test_one_append_only_file_is_shown_as_far_as_its_snapshot(
    tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "appendonly.aof"
    snapshot = whole(
        b"\xfa" + string(b"aof-preamble") + string(b"1") + key(0, b"key", string(b"old"))
    )
    incr = command(b"INCR", b"counter")
    for behind in (b"", incr, incr * 100_000):
        path.write_bytes(snapshot + behind)
        assert app.run(["inspect", f"aof:{path}", "--output", "json"]) == 0
        *_, last = map(json.loads, capsys.readouterr().out.splitlines())
        assert last["totals"]["all"]["keys"] == 1
        assert [f" {len(behind):,} bytes:" in line for line in last["left_out"]] == (
            [True] if behind else []
        )
        assert app.run(["inspect", f"aof:{path}", "--key", "key"]) == 0
        assert "name it: 0." in capsys.readouterr().out
    path.write_bytes(incr)
    assert app.run(["inspect", f"aof:{path}"]) == 1
    assert "holds only commands" in capsys.readouterr().err


def test_types_are_named_by_their_flavour() -> None:
    assert [value_kind(number, "redis") for number in (22, 24, 26, 30)] == [
        "hash", "hash", "stream", None
    ]  # fmt: skip
    assert [value_kind(number, "valkey") for number in (22, 24, 26, 0)] == [
        "hash", None, None, "string"
    ]  # fmt: skip
    assert value_flavour(BY_HAND[next(iter(BY_HAND))]) in ("redis", "valkey")


def test_a_key_that_is_not_there_is_named(tmp_path: Path, capsys: Capture) -> None:
    source = file_of(tmp_path, key(0, b"key", string(b"1")))
    assert app.run(["inspect", source, "--key", "none"]) == 1
    assert "there is no key none\n" in capsys.readouterr().err
    assert app.run(["inspect", source, "--key", "key", "--db", "3"]) == 1
    assert "there is no key key in database 3\n" in capsys.readouterr().err


def test_a_full_disk_behind_standard_output_is_said(tmp_path: Path) -> None:
    items = [b"x" * 1000] * 200
    source = file_of(tmp_path, in_file(b"key", encoded.lists(items)[0]))
    for arguments in (["inspect", source], ["inspect", source, "--key", "key", "--output", "json"],
                      ["--version"]):  # fmt: skip
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "engine", *arguments],
                stdout=full, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        said = f"standard output cannot be written: {os.strerror(errno.ENOSPC)}. What was printed"
        assert done.returncode == 1
        assert done.stderr == f"EngineError: {said} is not complete.\n"


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
    magic = b"VALKEY081" if name == "path hash" else b"REDIS0015"
    source = file_of(tmp_path, in_file(b"key", BY_HAND[name]), magic)
    assert app.run(["inspect", source, "--key", "key"]) == 0
    assert "not decoded" not in capsys.readouterr().out
    assert app.run(["inspect", source, "--key", "key", "--output", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["type"] == name.rstrip(" 0123456789")


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
