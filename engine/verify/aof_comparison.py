"""The comparison of a target with the append-only file that it was filled from.

What commands come to is known to a server that runs them alone. Of some keys the file itself says
what they hold in the end:

- one of the snapshot that no command names: its type, expire time and payload;
- one whose last command is SET, MSET or RESTORE: its value, and its expire time where that is told;
- one whose last command is DEL or UNLINK: that it is not there.

So keys are sampled from the snapshot and from the commands, and followed to the file's end. All
else that a command does makes a key's value unknown. The keys are not counted, for it is unknown
how many there are to be.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from engine._native import (
    CMD_FLUSHES,
    CMD_SCRIPT,
    CMD_SWAPS,
    CMD_UNKNOWN,
    CommandBatch,
    ModuleGuard,
    RecordBatch,
    SnapshotReader,
)
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.key_sample import Sampler
from engine.model.modules import HEAD_BYTES, has_graphs, is_telemetry_name
from engine.model.report import printable_key
from engine.model.settings import TransferSettings
from engine.model.verification import Difference, Verification
from engine.sources.aof_files import AofFiles
from engine.sources.aof_findings import AofSurvey
from engine.sources.aof_source import AofCommands
from engine.sources.on_thread import go_on, on_thread
from engine.verify.file_comparison import (
    FOOTER_BYTES,
    KINDS,
    VALUE_BYTES,
    WITH_FIELD_TTLS,
    Sampled,
    judge_look,
    kind_there,
    kinds_words,
    sampled_of,
)
from engine.verify.key_comparison import EXTRA, MISSING, NEAR_MS, Look, Side, portions
from engine.wire.control_connection import admin
from engine.wire.engine_key_count import count_own

# An expire time that the file does not tell.
_UNKNOWN_EXPIRY = -1
# Commands of a batch that are looked at one by one; of more the last ones are.
_LOOKED_AT_MOST = 1000
# Behind one of these nothing is known of any key.
_ANY_KEY = CMD_FLUSHES | CMD_SWAPS | CMD_SCRIPT | CMD_UNKNOWN
_TOO_LONG = "too long to be compared"
_BY_COMMANDS = "its value comes of commands that change what they find"


@dataclass(slots=True)
class FileValue:
    """What the file says of a key in the end.

    `kind`: what TYPE says, None: not known; b"none": it is not there. `payload`: its payload
    without the footer; `text`: a string; neither: its value is not known. `expire_at`: ms since the
    epoch; None: it has none; `_UNKNOWN_EXPIRY`. `why`: why the value is not known.
    """

    kind: bytes | None = None
    payload: bytes | None = None
    text: bytes | None = None
    expire_at: int | None = _UNKNOWN_EXPIRY
    why: str = _BY_COMMANDS


async def values_of_files(
    files: AofFiles, survey: AofSurvey, settings: TransferSettings, *, seed: int = 0
) -> dict[DbKey, FileValue]:
    """Read the files once more, as far as `survey` says that they are applied; what they say of a
    sample of keys in the end. Raises what `AofFiles.read` raises."""

    def read(stop: threading.Event) -> dict[DbKey, FileValue]:
        return _Reading(files, survey, settings, seed, stop).run()

    return await on_thread(read)


async def verify_aof(
    values: dict[DbKey, FileValue], target: Endpoint, settings: TransferSettings
) -> Verification:
    """Compare the target with what `values_of_files` says; nothing is written.

    Expire times run on the target by now. In the result `compared` are the keys that were looked
    up, `unknown` those whose values the files do not tell, or that prove nothing, and
    `not_compared` counts those of them that are on the target, by type; the keys of both are not
    counted. Raises `LinkError`, `AuthError`, `ServerError`.
    """
    wrong: list[Difference] = []
    unproven: list[Difference] = []
    kinds: Counter[str] = Counter()
    gone = 0
    async with admin(target, timeout=settings.io_timeout, fault="target") as end:
        keys = (await end.info()).keys - await count_own(end)
        side = await Side.open(end)
        for db in sorted({db for db, _ in values}):
            await end.select(db)
            names = [key for at, key in values if at == db]
            for portion in portions(names):
                found = {key: values[db, key] for key in portion}
                for key, what, unknown, kind in await _compare(side, found):
                    if what:
                        wrong.append(Difference(db, printable_key(key), what))
                    elif unknown:
                        unproven.append(Difference(db, printable_key(key), unknown))
                        kinds.update(kind)
                    else:
                        gone += found[key].kind == b"none"
    found_kinds = tuple(sorted(kinds.items()))
    return _judged(wrong, unproven, len(values), gone, keys, found_kinds)


class _Reading:
    """Reads the files once more."""

    def __init__(
        self,
        files: AofFiles,
        survey: AofSurvey,
        settings: TransferSettings,
        seed: int,
        stop: threading.Event,
    ) -> None:
        self._files = files
        self._survey = survey
        self._settings = settings
        self._seed = seed
        self._stop = stop
        self._values: dict[DbKey, FileValue] = {}
        # How many places of the samples each of them has.
        self._places: Counter[DbKey] = Counter()

    def run(self) -> dict[DbKey, FileValue]:
        """What is told of the sampled keys."""
        if self._survey.snapshot:
            self._read_snapshot()
        self._read_commands()
        return self._values

    def _read_snapshot(self) -> None:
        reader = SnapshotReader(stream_above=VALUE_BYTES, footers=False)
        guard = ModuleGuard(lambda _: ("", False), telemetry=True)
        part, at, end = self._files.parts[0], 0, self._survey.begins[0].offset
        sampler = Sampler(self._seed)
        sample: list[tuple[int, Sampled, bool]] = []
        head = b""
        while portion := self._files.read(part, at, end):
            go_on(self._stop)
            at += len(portion)
            reader.feed(portion)
            for item in reader.take():
                if not isinstance(item, RecordBatch):
                    head += item[: HEAD_BYTES - len(head)]
                    continue
                if has_graphs(reader.module_data):
                    guard.withhold(item, head)
                head = b""
                for index, place in sampler.chosen(len(item)):
                    one = item.db, sampled_of(item, index), item.streamed
                    sample[place : place + 1] = [one]
        for db, each, streamed in sample:
            values = FileValue(each.kind, each.value, None, each.expire_at)
            if streamed:
                values = FileValue(expire_at=each.expire_at, why=_TOO_LONG)
            elif each.may_end:
                # It may be gone, or have lost fields, by itself.
                values = FileValue(why="its fields may have TTLs")
            self._places[db, each.key] += 1
            self._values[db, each.key] = values

    def _read_commands(self) -> None:
        survey = self._survey
        commands = AofCommands(
            self._files,
            survey,
            survey.begins[0].offset,
            0,
            False,
            extend_by=0,
            names=self._settings.stream_names,
            directory=self._settings.spool_directory,
        )
        sampler = Sampler(self._seed + 1)
        sample: list[DbKey | None] = []
        while (batch := commands.next()) is not None:
            go_on(self._stop)
            if batch.holds(_ANY_KEY):
                self._values.clear()
                self._places.clear()
                sampler, sample = Sampler(self._seed + 1), []
                continue
            for index, place in sampler.chosen(len(batch)):
                key = next(iter(batch.changes(index) or ()), None)
                if key is not None and survey.graphs is not False and is_telemetry_name(key[1]):
                    # It may be what FalkorDB notes, which each server does for itself.
                    key = None
                if place < len(sample) and (before := sample[place]) is not None:
                    self._places[before] -= 1
                    if not self._places[before]:
                        del self._places[before], self._values[before]
                sample[place : place + 1] = [key]
                if key is not None:
                    self._places[key] += 1
                    self._values.setdefault(key, FileValue())
            self._learn(batch)

    def _learn(self, batch: CommandBatch) -> None:
        """What the commands of a batch say of the keys that we look at."""
        names: dict[bytes, list[DbKey]] = {}
        for db, name in self._values:
            names.setdefault(name, []).append((db, name))
        found = batch.mentioning(set(names))
        if len(found) > _LOOKED_AT_MOST:
            # Some are written to all the time: of these the last command tells.
            for key in self._learn_backwards(batch, found[-_LOOKED_AT_MOST:], names):
                names[key[1]].remove(key)
            names = {name: keys for name, keys in names.items() if keys}
            found = batch.mentioning(set(names))
        if len(found) > 10 * _LOOKED_AT_MOST:
            for keys in names.values():
                self._values.update((key, FileValue()) for key in keys)
            return
        for index in found:
            for key, says in _says(batch, index, names):
                self._values[key] = _after(self._values[key], says)

    def _learn_backwards(
        self, batch: CommandBatch, indices: list[int], names: dict[bytes, list[DbKey]]
    ) -> set[DbKey]:
        """From the last command on; the keys of which all is told by then."""
        known: set[DbKey] = set()
        later: dict[DbKey, FileValue] = {}
        for index in reversed(indices):
            for key, says in _says(batch, index, names):
                if key in known:
                    continue
                if not says.why:
                    later.setdefault(key, says)
                    continue
                known.add(key)
                self._values[key] = _after(says, later[key]) if key in later else says
        return known


def _says(
    batch: CommandBatch, index: int, names: dict[bytes, list[DbKey]]
) -> Iterator[tuple[DbKey, FileValue]]:
    """What a command says of some keys."""
    # Longer ones are none of these names, and no value that is compared.
    most = max(VALUE_BYTES, *map(len, names)) + 1
    words, db = batch.command(index, most), batch.db(index)
    values = values_of_command(words)
    for name in set(words[1:]) & names.keys():
        for key in names[name]:
            if values is None:
                yield key, FileValue()
            elif key[0] == db and name in values:
                yield key, values[name]


def values_of_command(words: Sequence[bytes]) -> dict[bytes, FileValue] | None:
    """What the keys of a command hold behind it; None: it is not told of any that it names.

    Where it is about the expire time alone `why` is empty.
    """
    name = words[0].upper()
    if name in (b"DEL", b"UNLINK"):
        return {key: FileValue(b"none", expire_at=None) for key in words[1:]}
    if name == b"SET" and len(words) >= 3:
        return _by_set(words)
    if name == b"MSET" and len(words) % 2:
        pairs = zip(words[1::2], words[2::2], strict=True)
        return {key: _string(value, None) for key, value in pairs}
    if name in (b"SETEX", b"PSETEX") and len(words) == 4:
        return {words[1]: _string(words[3], _UNKNOWN_EXPIRY)}
    if name in (b"PEXPIREAT", b"EXPIREAT") and len(words) == 3 and words[2].isdigit():
        unit = 1 if name == b"PEXPIREAT" else 1000
        return {words[1]: FileValue(expire_at=int(words[2]) * unit, why="")}
    if name == b"PERSIST" and len(words) == 2:
        return {words[1]: FileValue(expire_at=None, why="")}
    if name == b"RESTORE" and len(words) >= 4 and len(words[3]) > FOOTER_BYTES:
        return _by_restore(words)
    return None


def _string(value: bytes, expire_at: int | None) -> FileValue:
    if len(value) > VALUE_BYTES:
        return FileValue(b"string", expire_at=expire_at, why=_TOO_LONG)
    return FileValue(b"string", None, value, expire_at)


def _by_set(words: Sequence[bytes]) -> dict[bytes, FileValue] | None:
    options = [word.upper() for word in words[3:]]
    if not options:
        return {words[1]: _string(words[2], None)}
    if len(options) == 2 and options[0] in (b"PXAT", b"EXAT") and options[1].isdigit():
        unit = 1 if options[0] == b"PXAT" else 1000
        return {words[1]: _string(words[2], int(options[1]) * unit)}
    if options == [b"KEEPTTL"] or (len(options) == 2 and options[0] in (b"PX", b"EX")):
        return {words[1]: _string(words[2], _UNKNOWN_EXPIRY)}
    return None


def _by_restore(words: Sequence[bytes]) -> dict[bytes, FileValue] | None:
    payload, options = words[3], {word.upper() for word in words[4:]}
    if not words[2].isdigit() or payload[0] in WITH_FIELD_TTLS:
        return None
    expire_at: int | None = _UNKNOWN_EXPIRY
    if words[2] == b"0":
        expire_at = None
    elif b"ABSTTL" in options:
        expire_at = int(words[2])
    kind = KINDS.get(payload[0])
    if len(payload) > VALUE_BYTES:
        return {words[1]: FileValue(kind, expire_at=expire_at, why=_TOO_LONG)}
    return {words[1]: FileValue(kind, payload[:-FOOTER_BYTES], None, expire_at)}


def _after(before: FileValue, says: FileValue) -> FileValue:
    """What is known of a key behind a command that says this of it."""
    if says.why:
        return says
    # Only its expire time; a key that is not there gets none.
    return before if before.kind == b"none" else replace(before, expire_at=says.expire_at)


async def _compare(
    side: Side, values: dict[bytes, FileValue]
) -> list[tuple[bytes, str, str, list[str]]]:
    """(key, what differs, else why its value could not be compared, its type as `kind_there` gives
    it). Both texts are empty if it is the same."""
    looks = await side.look(list(values))
    texts = [key for key, each in values.items() if each.text is not None]
    payloads = [key for key, each in values.items() if each.payload is not None]
    asked = [("GET", key) for key in texts] + [("DUMP", key) for key in payloads]
    answers = await side.end.pipeline(asked) if asked else []
    replies = dict(zip([*texts, *payloads], answers, strict=True))
    return [
        (key, *_found(each, look, replies.get(key)), kind_there(look))
        for (key, each), look in zip(values.items(), looks, strict=True)
    ]


def _found(each: FileValue, look: Look, reply: object) -> tuple[str, str]:
    now = time.time_ns() // 1_000_000
    if each.kind == b"none":
        return (EXTRA, "") if look.kind != b"none" else ("", "")
    if look.kind == b"none":
        values = each.kind is not None or each.payload is not None
        near = each.expire_at is not None and each.expire_at <= now + NEAR_MS
        return (MISSING, "") if values and not near else ("", "it is not there, and may have ended")
    expire_at = each.expire_at if each.expire_at != _UNKNOWN_EXPIRY else look.expire_at
    what = judge_look(Sampled(b"", each.kind, expire_at, None), look)
    if what:
        return (what, "")
    if each.text is not None:
        return ("", "") if reply == each.text else ("value", "")
    if each.payload is None:
        return ("", each.why)
    same = isinstance(reply, bytes) and reply[:-FOOTER_BYTES] == each.payload
    return ("", "" if same else "stored in another encoding")


def _words(count: int, one: str, several: str) -> Iterator[str]:
    if count:
        yield f"1 {one}" if count == 1 else f"{count:,} {several}"


def _judged(
    wrong: list[Difference],
    unproven: list[Difference],
    looked: int,
    gone: int,
    keys: int,
    not_compared: tuple[tuple[str, int], ...],
) -> Verification:
    """The result, with one sentence that says what was compared."""
    same = looked - len(wrong) - len(unproven) - gone
    why = f"commands that change what they find, another encoding{kinds_words(not_compared)}"
    parts = [
        *_words(same, "has the value that the file gives it", "have the values that it gives them"),
        *_words(gone, "that it deletes is gone", "that it deletes are gone"),
        *_words(len(unproven), *[f"could not be compared ({why})"] * 2),
    ]
    text = f"of {looked:,} keys of the file that were looked up {len(wrong):,} differ"
    text = "; ".join([text, *parts, "keys are not counted against commands"])
    if wrong:
        first = wrong[0]
        text += f"; the first: database {first.db}, key {first.key[:100]}: {first.what}"
    return Verification(
        ok=not wrong,
        reason=text + ".",
        keys_target=keys,
        compared=looked,
        different=len(wrong),
        differences=tuple(wrong),
        unknown=tuple(unproven),
        counted=False,
        not_compared=not_compared,
    )
