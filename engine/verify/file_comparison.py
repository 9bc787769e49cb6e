"""The comparison of a target with the file that it was filled from.

A file cannot be asked for a value through a server's own commands, so less can be said than of two
servers: keys without a TTL are counted against each other, and of a sample of keys the target
is asked for type and expire time. Its DUMP of a value that is the file's byte for byte proves the
value as well; one that is not proves nothing, because servers choose encodings of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine._native import ModuleGuard, RecordBatch, SnapshotReader
from engine.model.endpoint import Endpoint
from engine.model.key_sample import Sampler
from engine.model.modules import GRAPH_MODULE, HEAD_BYTES, has_graphs
from engine.model.report import printable_key
from engine.model.settings import TransferSettings
from engine.model.verification import Difference, Verification
from engine.sources.base import unpacked_names
from engine.sources.rdb_file import RdbFile, now_ms
from engine.verify.graph_telemetry import Telemetry
from engine.verify.key_comparison import MISSING, NEAR_MS, TTL_BOUND_MS, Look, Side, portions
from engine.wire.control_connection import admin
from engine.wire.engine_key_count import OWN_DB, count_own

# Longer values are not asked for: what is compared must not take long.
VALUE_BYTES = 16 << 10
# Types of hashes that may have TTLs of fields.
WITH_FIELD_TTLS = (22, 24, 25)
# Behind a value in a payload: the RDB version and a CRC64.
FOOTER_BYTES = 10
# What TYPE says of the value types (RDB_TYPE_*) that mean the same to every server.
KINDS = {
    0: b"string",
    **dict.fromkeys((1, 10, 14, 18), b"list"),
    **dict.fromkeys((2, 11, 20), b"set"),
    **dict.fromkeys((3, 5, 12, 17), b"zset"),
    **dict.fromkeys((4, 9, 13, 16, 22, 24, 25), b"hash"),
    **dict.fromkeys((15, 19, 21, 26, 27), b"stream"),
}


@dataclass(frozen=True, slots=True)
class Sampled:
    """A key of the file; `value` is its payload without the footer, None: too long to be kept.
    `may_end`: its fields may have TTLs, and a hash ends with the last of them."""

    key: bytes
    kind: bytes | None
    expire_at: int | None
    value: bytes | None
    may_end: bool = False


@dataclass(slots=True)
class _Database:
    """What the file has in one database: how many keys without a TTL, how many hashes whose
    fields may have TTLs, and some keys."""

    lasting: int = 0
    may_end: int = 0
    sample: list[Sampled] = field(default_factory=list)


async def verify_file(
    path: str,
    target: Endpoint,
    settings: TransferSettings,
    *,
    seed: int = 0,
    held_before: bool = False,
) -> Verification:
    """Compare the target with the file at `path`, which is read once more; nothing is written.

    Counted are keys without a TTL, for those with one may be gone by now; not at all if
    `held_before` (the target had keys of its own). In the result `compared` are the keys that were
    looked up, `unknown` those whose values prove nothing, and `not_compared` counts those of them
    that are on the target, by type. Raises `LinkError`, `AuthError`,
    `ServerError`, and what `RdbFile` raises.
    """
    # 1. What the file has.
    file = await _read(path, settings, seed)
    # 2. What the target has of it.
    spared = held_before and settings.if_exists == "skip"
    wrong: list[Difference] = []
    unproven: list[Difference] = []
    kinds: Counter[str] = Counter()
    async with admin(target, timeout=settings.io_timeout, fault="target") as end:
        info = await end.info()
        if GRAPH_MODULE in info.modules:
            notes = Telemetry(end)
            await notes.find()
            info = await notes.info()
        has = {entry.db: entry.keys - entry.expires for entry in info.keyspace}
        if OWN_DB in has:
            has[OWN_DB] -= await count_own(end)
        side = await Side.open(end)
        for db, found in file.items():
            await end.select(db)
            async for key, what, unknown, kind in _compare(side, found.sample):
                if what and not (spared and what != MISSING):
                    wrong.append(Difference(db, printable_key(key), what))
                elif what or unknown:
                    why = unknown or "the target's own, which was kept"
                    unproven.append(Difference(db, printable_key(key), why))
                    kinds.update(kind)
    # 3. Both counts.
    result = Verification(
        ok=True,
        reason="",
        keys_source=sum(found.lasting for found in file.values()),
        keys_target=sum(has.get(db, 0) for db in file),
        compared=sum(len(found.sample) for found in file.values()),
        different=len(wrong),
        differences=tuple(wrong),
        unknown=tuple(unproven),
        counted=not held_before,
        not_compared=tuple(sorted(kinds.items())),
    )
    counts = {db: (found.lasting, has.get(db, 0), found.may_end) for db, found in file.items()}
    return _judged(result, counts)


async def _read(path: str, settings: TransferSettings, seed: int) -> dict[int, _Database]:
    # No TTL is extended by this, but hashes with TTLs of fields are named.
    reader = SnapshotReader(
        stream_above=VALUE_BYTES,
        drop_before=now_ms(),
        drop_imports=True,
        footers=False,
        extend_before=1,
        rules=settings.key_rules,
    )
    file = RdbFile(path, reader)
    chosen = settings.databases
    found: dict[int, _Database] = {}
    samplers: dict[int, Sampler] = {}
    guard = ModuleGuard(lambda _: ("", False), telemetry=True)
    head = b""
    try:
        await file.open()
        more = True
        while more:
            for item in reader.take():
                if isinstance(item, bytes):
                    head += item[: HEAD_BYTES - len(head)]
                    continue
                if has_graphs(reader.module_data):
                    guard.withhold(item, head)
                head = b""
                if not (chosen is None or item.db in chosen):
                    continue
                database = found.setdefault(item.db, _Database())
                database.lasting += item.lasting
                if item.timed:
                    database.may_end += sum(1 for _ in unpacked_names(item.timed))
                sampler = samplers.setdefault(item.db, Sampler(seed + item.db))
                for index, place in sampler.chosen(len(item)):
                    sampled = sampled_of(item, index)
                    if place == len(database.sample):
                        database.sample.append(sampled)
                    else:
                        database.sample[place] = sampled
            more = await file.read_on()
    finally:
        file.close()
    return found


def sampled_of(batch: RecordBatch, index: int) -> Sampled:
    kind = batch.value_type(index)
    value = None if batch.streamed else batch.value(index)[:-FOOTER_BYTES]
    return Sampled(
        batch.key(index),
        None if kind is None else KINDS.get(kind),
        batch.expire_at(index),
        value,
        kind in WITH_FIELD_TTLS,
    )


async def _compare(
    side: Side, sample: Sequence[Sampled]
) -> AsyncIterator[tuple[bytes, str, str, list[str]]]:
    """(key, what differs, else why its value could not be compared, its type as `kind_there` gives
    it): what agrees is not named."""
    at = 0
    for keys in portions([each.key for each in sample]):
        portion = sample[at : at + len(keys)]
        at += len(keys)
        looks = await side.look(keys)
        kept = [each.key for each in portion if each.value is not None]
        dumps = await side.end.pipeline([("DUMP", key) for key in kept])
        dumped = dict(zip(kept, dumps, strict=True))
        for each, look in zip(portion, looks, strict=True):
            what = judge_look(each, look)
            payload = dumped.get(each.key)
            kind = kind_there(look)
            if what:
                yield each.key, what, "", kind
            elif look.kind == b"none":
                yield each.key, "", "it had expired", kind
            elif each.value is None:
                yield each.key, "", "too long to be compared", kind
            elif not isinstance(payload, bytes) or payload[:-FOOTER_BYTES] != each.value:
                yield each.key, "", "stored in another encoding", kind


def kind_there(look: Look) -> list[str]:
    """The key's type on the target, as TYPE says it; empty if the key is not there."""
    return [] if look.kind == b"none" else [look.kind.decode(errors="replace")]


def kinds_words(not_compared: Sequence[tuple[str, int]]) -> str:
    """`: 3 hash, 1 vectorset`, which follows the reasons; empty if none is on the target."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in not_compared)
    return f": {kinds}" if kinds else ""


def judge_look(each: Sampled, look: Look) -> str:
    """What differs; empty if nothing does, or the key's time is over."""
    if look.kind == b"none":
        near = each.expire_at is not None and each.expire_at <= now_ms() + NEAR_MS
        return "" if near or each.may_end else MISSING
    if each.kind is not None and look.kind != each.kind:
        return f"type: {each.kind.decode()} in the file, {look.kind.decode()} on the target"
    if (each.expire_at is None) != (look.expire_at is None):
        return f"TTL: none {'in the file' if each.expire_at is None else 'on the target'}"
    if each.expire_at is not None and look.expire_at is not None:
        apart = look.expire_at - each.expire_at
        if abs(apart) > TTL_BOUND_MS:
            return f"TTL: {abs(apart)} ms {'longer' if apart > 0 else 'shorter'} on the target"
    return ""


def _judged(result: Verification, counts: Mapping[int, tuple[int, int, int]]) -> Verification:
    """The same with its verdict: one sentence that says what was compared."""
    ok = not result.differences
    if not result.counted:
        counted = "not counted (the target had keys of its own)"
    else:
        # A hash ends with the last of its fields, and has no expire time of its own.
        ended = {db: ours - theirs for db, (ours, theirs, _) in counts.items()}
        uneven = [db for db, (*_, may_end) in counts.items() if not 0 <= ended[db] <= may_end]
        ok = ok and not uneven
        counted = (
            f"{result.keys_source:,} keys without a TTL in the file, "
            f"{result.keys_target:,} on the target"
        )
        if uneven:
            ours, theirs, _ = counts[uneven[0]]
            counted += f" (database {uneven[0]}: {ours:,} and {theirs:,})"
        elif any(ended.values()):
            may_end = sum(may_end for *_, may_end in counts.values())
            counted += (
                f" ({may_end:,} hashes of the file have, or had, TTLs of fields: a hash ends with "
                "its last field)"
            )
    same = result.compared - len(result.unknown) - result.different
    looked = (
        f"{result.compared:,} keys looked up, {result.different:,} differ; {same:,} of their "
        "values are the file's byte for byte"
    )
    if result.unknown:
        looked += f", {len(result.unknown):,} could not be compared (another encoding, too long"
        looked += f"{kinds_words(result.not_compared)})"
    text = f"{counted}; {looked}"
    if result.differences:
        first = result.differences[0]
        text += f"; the first: database {first.db}, key {first.key[:100]}: {first.what}"
    return replace(result, ok=ok, reason=text + ".")
