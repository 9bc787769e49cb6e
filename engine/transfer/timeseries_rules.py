"""Compaction rules of time series: what DUMP leaves out, made again on the target.

A rule has samples of one series summed up in another. DUMP and RESTORE lose it on both sides, and
what the rule has summed up so far in the bucket that is not over. The rule is made again by
TS.CREATERULE; then the last sample is taken away and added once more, upon which the module sums up
the open bucket from the samples that the series has (seen with RedisTimeSeries 1.12).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engine._native import encode_command, module_type
from engine.errors import EngineError
from engine.model.modules import HEAD_BYTES, TIME_SERIES_MODULE
from engine.wire.control_connection import Admin

Words = tuple[bytes, ...]

MODULE = TIME_SERIES_MODULE
TYPE = "TSDB-TYPE"
_SCAN_COUNT = 1000


def is_series(payload: bytes) -> bool:
    """Whether a DUMP payload is a time series."""
    return module_type(payload[:HEAD_BYTES]) == TYPE


def related(info: Any) -> set[bytes]:
    """The series that rules tie to one, by its reply to TS.INFO."""
    members = _members(info)
    found = {rule[0] for rule in members.get(b"rules") or ()}
    if isinstance(source := members.get(b"sourceKey"), bytes):
        found.add(source)
    return found


def rules_of(info: Any) -> list[tuple[bytes, ...]]:
    """The rules of a series, sorted: (destination, bucket's milliseconds, aggregation, align)."""
    rules = _members(info).get(b"rules") or ()
    return sorted(tuple(_word(each) for each in rule) for rule in rules)


def latest(key: bytes) -> Words:
    """What tells the last two samples, the last one first."""
    return (b"TS.REVRANGE", key, b"-", b"+", b"COUNT", b"2")


def rules_again(key: bytes, info: Any, last: Any) -> list[bytes]:
    """The commands that make a series' rules on a target which has none of them, by its replies to
    TS.INFO and to `latest`; to be run once all the series are stored there."""
    return [encode_command(*words) for words in _made(key, rules_of(info), last)]


def _created(key: bytes, rule: tuple[bytes, ...]) -> Words:
    destination, bucket, aggregation, *align = rule
    return (b"TS.CREATERULE", key, destination, b"AGGREGATION", aggregation, bucket, *align)


def _made(key: bytes, rules: Sequence[tuple[bytes, ...]], last: Any) -> list[Words]:
    """Make these rules, and have their open buckets summed up by the last sample's going and coming
    again.

    In this order, because RedisTimeSeries 1.12 was seen to end its process in another one. The
    time-weighted average (TWA) of a bucket that holds that sample alone may come out otherwise than
    at the source: it looks at the sample before, which the rule never saw.
    """
    if not rules or not isinstance(last, list) or not last:
        return [_created(key, rule) for rule in rules]
    at, value = (_word(each) for each in last[0])
    alone = [
        rule for rule in rules if len(last) < 2 or _bucket(rule, last[1]) != _bucket(rule, last[0])
    ]
    return [
        *(_created(key, rule) for rule in rules if rule not in alone),
        (b"TS.DEL", key, at, at),
        *(_created(key, rule) for rule in alone),
        # Where the sample could not be taken away it stays what it is.
        (b"TS.ADD", key, at, value, b"ON_DUPLICATE", b"LAST"),
    ]


def _bucket(rule: tuple[bytes, ...], sample: Sequence[Any]) -> int:
    """Which of the rule's buckets a sample is in."""
    _, size, _, *align = rule
    return (int(sample[0]) - int(align[0] if align else 0)) // max(int(size), 1)


def _members(info: Any) -> dict[bytes, Any]:
    if isinstance(info, EngineError) or not isinstance(info, list):
        return {}
    return dict(zip(info[::2], info[1::2], strict=False))


def _word(reply: Any) -> bytes:
    return reply if isinstance(reply, bytes) else b"%d" % int(reply)


async def carry_rules(source: Admin, target: Admin, databases: Iterable[int]) -> dict[str, str]:
    """Make the rules of the source's series that the target lacks, behind a scan.

    Gives what could not be made: {`compaction rules of KEY (database N)`: why}. Raises `LinkError`,
    `ServerError`.
    """
    failed: dict[str, str] = {}
    for db in databases:
        await source.select(db)
        await target.select(db)
        cursor: Any = 0
        while cursor != b"0":
            cursor, keys = await source.call("SCAN", cursor, "COUNT", _SCAN_COUNT, "TYPE", TYPE)
            ours = await source.pipeline([("TS.INFO", key) for key in keys])
            ruled = [(key, info) for key, info in zip(keys, ours, strict=True) if _rules(info)]
            theirs = await target.pipeline([("TS.INFO", key) for key, _ in ruled])
            for (key, info), there in zip(ruled, theirs, strict=True):
                if why := await _make(target, key, info, there):
                    shown = key.decode("utf-8", "backslashreplace")
                    failed[f"compaction rules of {shown} (database {db})"] = why
    return failed


def _rules(info: Any) -> bool:
    return isinstance(info, EngineError) or bool(rules_of(info))


async def _make(target: Admin, key: bytes, info: Any, there: Any) -> str:
    for reply in (info, there):
        if isinstance(reply, EngineError):
            return reply.message
    if rules_of(info) == rules_of(there):
        return ""
    absent = [rule for rule in rules_of(info) if rule not in rules_of(there)]
    replies = await target.pipeline(_made(key, absent, await target.call(*latest(key))))
    return next((each.message for each in replies if isinstance(each, EngineError)), "")
