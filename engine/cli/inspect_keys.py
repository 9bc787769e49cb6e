"""inspect: what a file or a server holds, key by key."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.common_options import OutputOption, endpoint
from engine.cli.error_output import show
from engine.cli.output_format import clean, table, volume
from engine.cli.verb_runner import fail
from engine.errors import EngineError, UsageError

if TYPE_CHECKING:
    from engine.inspect.key_reader import KeyReader, Seen
    from engine.inspect.key_report import Report

_BIGGEST = 10
# Elements of a value, and characters of one, that are shown as text.
_ELEMENTS, _CHARACTERS = 50, 200


def inspect(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="What is to be looked at: rdb:PATH, a file of SAVE (rdb:- is standard input), "
            "aof:PATH, the base of an append-only file, or a server's URL. Of a cluster it is one "
            "node. It is never written to.",
        ),
    ],
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", show_default=False, help="Only this key."),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            "--match",
            metavar="GLOB",
            show_default=False,
            help="Keys that match, one after another.",
        ),
    ] = None,
    big: Annotated[
        int | None,
        typer.Option(
            "--big",
            metavar="N",
            min=0,
            show_default=False,
            help="How many of the biggest keys are named in the report on all of them; without "
            f"--key and --match  [default: {_BIGGEST}]",
        ),
    ] = None,
    db: Annotated[
        int | None,
        typer.Option(
            "--db",
            metavar="N",
            min=0,
            show_default=False,
            help="Only keys of this database. Without it --key asks a server for its database 0, "
            "and all else looks at every database.",
        ),
    ] = None,
    output: OutputOption = "text",
) -> None:
    """Show what a file or a server holds.

    Type, encoding, size, TTL and value of a key or of those that match; or how many keys there
    are of each type, with their sizes, and the biggest of them. With --output json a line a key.
    """
    from engine.fleet import run
    from engine.inspect.key_reader import KeyReader
    from engine.model.credentials import Credentials

    here = endpoint("SOURCE", source)
    try:
        if key is not None and match is not None:
            raise UsageError("--key names one key, and --match chooses some")
        if big is not None and (key is not None or match is not None):
            raise UsageError("--big reports on all keys, and --key and --match choose some")
        reader = KeyReader(
            here if here.file_path is not None else Credentials.load().apply(here),
            key=None if key is None else key.encode("utf-8", "surrogateescape"),
            match=None if match is None else match.encode("utf-8", "surrogateescape"),
            db=db,
        )
        if key is not None and reader.behind_base:
            count, commands = run(_named_in_base(reader, output))
            if not count:
                raise _no_key(clean(key), reader, db, _behind_words(commands))
        elif key is not None or match is not None:
            if not run(_each(reader, output)) and key is not None:
                raise _no_key(clean(key), reader, db)
        else:
            run(_report(reader, _BIGGEST if big is None else big, output))
    except Exception as error:
        fail(error, output, indent=None)


async def _each(reader: KeyReader, output: str) -> int:
    """Print the keys as they come; how many there were."""
    from engine.inspect.key_reader import COMMANDS

    count = 0
    _say_unshown(reader.behind_base, output)
    async for seen in reader.keys():
        count += 1
        _show_key(seen, reader, output)
    if COMMANDS in reader.left_out:
        _say_unshown(COMMANDS, "json")
    return count


async def _named_in_base(reader: KeyReader, output: str) -> tuple[int, int | None]:
    """The same of the key that was asked for; and how many commands behind the base name it, None:
    they may change it without that."""
    found = [seen async for seen in reader.keys()]  # noqa: SIM118
    _say_unshown(reader.behind_base, output)
    commands = await reader.named_behind_base()
    for seen in found:
        _show_key(seen, reader, output, {"commands_behind": commands})
    if found and output == "text":
        show(f"  {_behind_words(commands)}")
    return len(found), commands


def _behind_words(commands: int | None) -> str:
    if commands is None:
        return "Commands after the base may change it without naming it."
    return f"Commands after the base that name it: {commands:,}."


def _show_key(
    seen: Seen, reader: KeyReader, output: str, more: dict[str, Any] | None = None
) -> None:
    if output == "json":
        found = _as_object(seen, reader, seen.encoding, value=True) | (more or {})
        show(json.dumps(found))
    else:
        show("\n".join(_as_text(seen, reader)))


def _say_unshown(what: str, output: str) -> None:
    if what and output == "json":
        # Each line of the answer is a key, or the totals.
        print(f"Not shown: {what}", file=sys.stderr)
    elif what:
        show(f"Not shown: {what}")


def _no_key(name: str, reader: KeyReader, db: int | None, behind: str = "") -> EngineError:
    where = "" if reader.searched is None else f" in database {reader.searched}"
    where += " of the base" if where and behind else " in the base" if behind else ""
    remedy = "--db N looks in another database." if where and db is None else ""
    return EngineError(f"there is no key {name}{where}", remedy=behind or remedy, fault="user")


async def _report(reader: KeyReader, most: int, output: str) -> None:
    from engine.inspect.key_report import Report

    report = Report(most)
    await report.read(reader)
    _say_unshown(reader.behind_base, output)
    if output == "json":
        for seen, encoding in report.biggest:
            show(json.dumps(_as_object(seen, reader, encoding, value=False)))
        left_out = [each for each in (reader.behind_base, *reader.left_out) if each]
        show(json.dumps({"totals": _totals(report), "left_out": left_out}))
    else:
        show("\n".join(_report_text(report, reader)))


def _as_object(seen: Seen, reader: KeyReader, encoding: str, *, value: bool) -> dict[str, Any]:
    from engine.inspect.shown_value import text

    found: dict[str, Any] = {
        "db": seen.db,
        "key": text(seen.key),
        "type": None if seen.kind == "?" else seen.kind,
        "encoding": encoding or None,
        "elements": None if seen.objection else seen.elements,
        "bytes": seen.size,
        "memory": seen.memory,
        "longest_element": None if seen.objection else seen.longest,
        "expire_at": seen.expire_at,
        "fields_with_ttl": None if seen.objection else seen.field_ttls,
    }
    if seen.objection:
        return found | {"not_decoded": seen.objection}
    if value:
        found["digest"] = [each.hex() for each in reader.decoder.digest(seen.payload)]
        found["value"], objection = reader.value(seen)
        if objection:
            found["not_shown"] = objection
    return found


def _totals(report: Report) -> dict[str, Any]:
    kinds = {**report.types, "all": report.total}
    return {
        kind: {
            "keys": each.keys,
            "elements": each.elements,
            "bytes": each.size,
            "memory": each.memory,
            "with_ttl": each.with_ttl,
        }
        for kind, each in kinds.items()
    } | {"not_decoded": report.not_decoded}


# --- For people ---


def _as_text(seen: Seen, reader: KeyReader) -> Iterator[str]:
    from engine.inspect.shown_value import text

    name = text(seen.key) + (f" (database {seen.db})" if seen.db else "")
    if seen.size is None or seen.memory is None:
        yield f"{clean(name)}: not decoded: {clean(seen.objection)}"
        return
    facts = ["type not known" if seen.kind == "?" else seen.kind]
    if seen.encoding and seen.encoding != seen.kind:
        facts.append(seen.encoding)
    if not seen.objection and seen.kind != "string":
        facts.append(f"{seen.elements:,} elements")
    facts += [
        f"{seen.size:,} bytes",
        f"about {volume(seen.memory)} in memory",
        _ttl(seen.expire_at),
    ]
    if seen.field_ttls:
        facts.append(f"{seen.field_ttls:,} fields with TTLs")
    yield f"{clean(name)}: {', '.join(facts)}"
    if seen.objection:
        yield f"  not decoded: {clean(seen.objection)}"
        return
    value, objection = reader.value(seen)
    if objection:
        yield f"  not shown: {objection}"
        return
    # A long value's other lines are counted, and not made.
    for line in islice(_value_lines(value), _ELEMENTS):
        yield f"  {line}"
    if (more := _count_lines(value) - _ELEMENTS) > 0:
        yield f"  … and {more:,} more (--output json shows all)"


def _value_lines(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in value.items():
            if isinstance(part, list):
                yield f"{name}:"
                yield from (f"  {line}" for line in _value_lines(part))
            else:
                yield f"{name}: {_short(part)}"
    elif isinstance(value, list):
        yield from map(_short, value)
    else:
        yield _short(value)


def _count_lines(value: Any) -> int:
    """How many `_value_lines` are there."""
    if isinstance(value, dict):
        return len(value) + sum(len(part) for part in value.values() if isinstance(part, list))
    return len(value) if isinstance(value, list) else 1


def _short(part: Any) -> str:
    if isinstance(part, list) and not any(isinstance(each, (list, dict)) for each in part):
        shown = "  ".join(_short(each) for each in part)
    else:
        shown = part if isinstance(part, str) else json.dumps(part, ensure_ascii=False)
    shown = clean(shown)
    if len(shown) <= _CHARACTERS:
        return shown
    return f"{shown[:_CHARACTERS]}… ({len(shown):,} characters)"


def _ttl(expire_at: int | None) -> str:
    if expire_at is None:
        return "no TTL"
    try:
        moment = datetime.fromtimestamp(expire_at / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        moment = f"{expire_at} ms"
    return f"expires {moment}"


def _report_text(report: Report, reader: KeyReader) -> Iterator[str]:
    from engine.inspect.shown_value import text

    kinds = sorted(report.types.items(), key=lambda each: -each[1].memory)
    rows = [(kind, totals) for kind, totals in kinds] + [("all", report.total)]
    yield table(
        ["type", "keys", "with TTL", "elements", "bytes", "memory, about"],
        [
            (
                kind, f"{each.keys:,}", f"{each.with_ttl:,}",
                # Where not one value was decoded, and where nothing but names is known.
                "-" if kind == "?" else f"{each.elements:,}",
                "-" if kind == "?" and not each.size else volume(each.size),
                "-" if kind == "?" and not each.size else volume(each.memory),
            )
            for kind, each in rows
        ],
        right=(1, 2, 3, 4, 5),
    )  # fmt: skip
    if report.biggest:
        yield ""
        yield table(
            ["biggest keys", "db", "type", "encoding", "elements", "bytes", "memory, about"],
            [
                (
                    _short(text(seen.key)), str(seen.db), seen.kind, encoding,
                    "-" if seen.objection else f"{seen.elements:,}",
                    volume(seen.size or 0), volume(seen.memory or 0),
                )
                for seen, encoding in report.biggest
            ],
            right=(4, 5, 6),
        )  # fmt: skip
    if report.not_decoded:
        many = "key" if report.not_decoded == 1 else "keys"
        yield f"Not decoded: {report.not_decoded:,} {many}; --key KEY says why"
    for line in reader.left_out:
        yield f"Not shown: {line}"
