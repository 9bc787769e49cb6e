"""Some keys of a source held against rules: which would go over, and by which rule.

Nothing is written, and of a server no value is read: names and types are asked for.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from engine._native import KeyRules, RecordBatch, SnapshotReader, value_kind
from engine.errors import EngineError, UsageError
from engine.model.endpoint import Endpoint
from engine.model.key_sample import Sampler
from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.rules import Rule, Rules, type_number
from engine.model.server import Keyspace
from engine.sources.rdb_file import RdbFile, now_ms
from engine.wire.control_connection import Admin, admin

# Of a database that is larger keys are taken at random places, so many at each.
_AT_A_PLACE = 20
_PLACES_AT_ONCE = 25
# Rounds of places, of which many may be empty.
_TRIES = 4
_PAGE = 1000
# A longer value is read past.
_HELD_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Judged:
    """A key of the sample: whether it goes over, and the rule that says so, as an option; empty:
    there is none that includes."""

    db: int
    key: bytes
    kind: str
    goes: bool
    by: str


@dataclass(slots=True)
class Trial:
    """What was found. `keys` are the sample; `there` counts all keys of the source. `matched`: how
    many of the sample each rule matches, by the rule as an option."""

    keys: list[Judged] = field(default_factory=list)
    there: int = 0
    matched: dict[str, int] = field(default_factory=dict)

    @property
    def going(self) -> int:
        """How many of the sample go over."""
        return sum(each.goes for each in self.keys)


class RulesTrial:
    """Holds up to `sample` keys of `source` against `rules`.

    Raises `UsageError` for an append-only file, whose keys are not known from its bytes.
    """

    def __init__(
        self, source: Endpoint, rules: Rules, *, sample: int, seed: int, timeout: float = 10.0
    ) -> None:
        if source.aof_path is not None:
            raise UsageError(
                "rules do not hold for an append-only file",
                remedy="Name a file of SAVE (rdb:PATH), or a server.",
            )
        self._source = source
        self._rules = rules
        self._sample = sample
        self._seed = seed
        self._timeout = timeout

    async def run(self) -> Trial:
        """Look at the source. Raises `EngineError`."""
        found = Trial()
        path = self._source.rdb_path
        keys = await (self._of_server(found) if path is None else self._of_file(path, found))
        self._judge(sorted(keys), found)
        return found

    def _judge(self, keys: list[tuple[int, bytes, str]], found: Trial) -> None:
        whole = self._rules.compiled()
        one = [(f"--include {each.text}", _alone(each)) for each in self._rules.include]
        no = [(f"--exclude {each.text}", _alone(each)) for each in self._rules.exclude]
        found.matched = dict.fromkeys((option for option, _ in (*one, *no)), 0)
        for db, key, kind in keys:
            number = type_number(kind)
            goes = bool(whole.takes(db, key, number))
            included = [option for option, rule in one if rule.takes(db, key, number)]
            excluded = [option for option, rule in no if rule.takes(db, key, number)]
            for option in (*included, *excluded):
                found.matched[option] += 1
            by = "" if one and not included else (excluded or included or [""])[0]
            found.keys.append(Judged(db, key, kind, goes, by))

    async def _of_file(self, path: str, found: Trial) -> list[tuple[int, bytes, str]]:
        reader = SnapshotReader(
            stream_above=_HELD_BYTES, drop_before=now_ms(), drop_imports=True, footers=False
        )
        file = RdbFile(path, reader)
        sampler = Sampler(self._seed, self._sample)
        keys: list[tuple[int, bytes, str]] = []
        long: tuple[RecordBatch, int] | None = None

        def keep(at: int, db: int, key: bytes, number: int | None) -> None:
            kind = None if number is None else value_kind(number, reader.flavour)
            keys[at : at + 1] = [(db, key, kind or "?")]

        try:
            await file.open()
            more = True
            while more:
                for item in reader.take():
                    if isinstance(item, RecordBatch):
                        found.there += len(item)
                        for index, place in sampler.chosen(len(item)):
                            if item.streamed and not item.spilled:
                                # Its type is the first byte of its value, which comes behind it.
                                long = item, place
                            keep(place, item.db, item.key(index), item.value_type(index))
                    elif long is not None:
                        batch, place = long
                        keep(place, batch.db, batch.key(0), item[0])
                        long = None
                more = await file.read_on()
        finally:
            file.close()
        return keys

    async def _of_server(self, found: Trial) -> list[tuple[int, bytes, str]]:
        keys: list[tuple[int, bytes, str]] = []
        chance = random.Random(self._seed)
        async with admin(self._source, timeout=self._timeout, fault="source") as end:
            info = await end.info()
            found.there = info.keys
            for entry in info.keyspace:
                share = max(round(self._sample * entry.keys / max(info.keys, 1)), 1)
                await end.select(entry.db)
                spread = None if info.fork or entry.keys <= share else chance
                names = await _some(end, entry, share, spread)
                kinds = await end.pipeline([("TYPE", name) for name in names])
                for name, kind in zip(names, kinds, strict=True):
                    if isinstance(kind, EngineError):
                        raise kind
                    if kind != b"none":
                        keys.append((entry.db, name, kind.decode()))
        return keys


def _alone(rule: Rule) -> KeyRules:
    """The core's rules that take what this one matches."""
    return Rules((rule,)).compiled()


async def _some(
    end: Admin, entry: Keyspace, wanted: int, chance: random.Random | None
) -> list[bytes]:
    """Up to `wanted` keys of the database that is chosen: SCAN's first ones, or by `chance`."""
    found: dict[bytes, None] = {}
    rounds = _TRIES * -(-wanted // (_AT_A_PLACE * _PLACES_AT_ONCE))
    for _ in range(rounds if chance is not None else 0):
        assert chance is not None
        places = [chance.getrandbits(48) for _ in range(_PLACES_AT_ONCE)]
        asked = [("SCAN", place, "COUNT", _AT_A_PLACE) for place in places]
        for reply in await end.pipeline(asked):
            if isinstance(reply, EngineError):
                raise reply
            _keep(found, reply[1][:_AT_A_PLACE])
        if len(found) >= wanted:
            return list(found)[:wanted]
    cursor: int | bytes = 0
    while len(found) < wanted:
        cursor, page = await end.call("SCAN", cursor, "COUNT", _PAGE)
        _keep(found, page)
        if cursor == b"0":
            break
    return list(found)[:wanted]


def _keep(found: dict[bytes, None], names: list[bytes]) -> None:
    """The engine's own keys go nowhere."""
    found.update((name, None) for name in names if not name.startswith(OWN_PREFIX))
