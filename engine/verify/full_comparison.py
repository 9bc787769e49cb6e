"""The whole comparison: counts, then keys, database by database."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice

from engine.model.endpoint import Endpoint
from engine.model.modules import GRAPH_MODULE
from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.report import printable_key
from engine.model.rules import type_number
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.model.verification import NAMED_LIMIT, STOP_AT, Difference, Verification
from engine.verify.graph_telemetry import Telemetry, telemetry_among
from engine.verify.key_comparison import MISSING, Side, compare, portions
from engine.verify.key_sampling import every_key, some_keys
from engine.verify.name_lookup import absent_names
from engine.wire import functions_and_indexes
from engine.wire.control_connection import Admin, admin
from engine.wire.engine_key_count import OWN_DB, count_own
from engine.wire.search_indexes import raw_name


async def verify(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    *,
    sample: int | None = 1000,
    seed: int = 0,
    held_before: bool = False,
) -> Verification:
    """Compare both ends; nothing is written to either.

    `sample` keys of each database are compared (None: every key), chosen by `seed`. The counts of
    keys are compared too, unless a filter (`match`, `key_type`, rules) or `held_before`
    (the target had keys of its own) makes them say nothing. Every name is looked up at the other
    end, for counts that agree may hide a key too many behind one that is missing; expired keys that
    a server still counts are no difference. Values are read
    through each server's own commands, never more than a few MB at a time. Raises `LinkError`,
    `AuthError`, `ServerError`.
    """
    limit = settings.io_timeout
    async with (
        admin(source, timeout=limit, fault="source") as one,
        admin(target, timeout=limit, fault="target") as other,
    ):
        # 1. What is there.
        infos = await one.info(), await other.info()
        work = _Work((await Side.open(one), await Side.open(other)), settings, held_before)
        work.graphs = GRAPH_MODULE in infos[0].modules
        known = {each.db for each in infos[0].keyspace} | set(settings.databases or ())
        sizes: dict[int, tuple[int, int]] = {}
        for db in _databases(*infos, settings, work.known):
            if settings.rules and not (db in known or await one.has_database(db)):
                # What is in there is others': it cannot have come from the source.
                continue
            sizes[db] = await _select(one, db), await _select(other, db)
        if work.graphs and work.counted:
            sizes = await _without_telemetry(sizes, one, other)
        for db, (here, _) in sizes.items():
            await _select(one, db)
            await _select(other, db)
            # 2. The keys themselves.
            whole = sample is None or (settings.scan_match is None and here <= sample)
            if whole:
                async for page in every_key(one, settings):
                    await work.compare(db, page)
                    if work.hopeless:
                        break
            elif sample is not None:
                spread = not infos[0].fork
                among = partial(work.named, db)
                some = await some_keys(one, settings, sample, seed + db, spread, among)
                await work.compare(db, some)
            # 3. Names that a sample can miss, or that the source never had.
            await work.look_for_absent(db, infos, lacking=not whole)
        # 4. What is no key's.
        if not settings.chooses_keys:
            names = [raw_name(name) for name in settings.search_names]
            ours, theirs = (
                await functions_and_indexes.ask(one, names),
                await functions_and_indexes.ask(other, names),
            )
            lost = functions_and_indexes.lacking(ours, theirs, extra=not held_before)
            work.beside(ours.count, lost)
        return work.result(tuple(sizes.values()))


async def _select(end: Admin, db: int) -> int:
    """Choose a database; return how many keys the server counts there, ours left out."""
    await end.select(db)
    count = int(await end.call("DBSIZE"))
    return count - await count_own(end) if count and db == OWN_DB else count


async def _without_telemetry(
    sizes: dict[int, tuple[int, int]], source: Admin, target: Admin
) -> dict[int, tuple[int, int]]:
    """The same counts without the streams in which FalkorDB notes queries."""
    left: list[dict[int, int]] = []
    for end in (source, target):
        notes = Telemetry(end)
        await notes.find()
        left.append(await notes.counts())
    return {
        db: (here - left[0].get(db, 0), there - left[1].get(db, 0))
        for db, (here, there) in sizes.items()
    }


class _Work:
    """What has been found so far. Both connections are in the database that is named."""

    def __init__(
        self, pair: tuple[Side, Side], settings: TransferSettings, held_before: bool
    ) -> None:
        self._pair = pair
        # With `skip` the target's own keys stay as they were: another value there is no fault.
        self._spares_values = settings.if_exists == "skip" and held_before
        self.known = not (held_before or settings.match or settings.key_type)
        """Whether a key of the target that the source does not have is a difference."""
        self.counted = self.known and not settings.rules
        self._rules = settings.key_rules
        self._settings = settings
        self._compared = 0
        self._found: dict[tuple[int, bytes], str] = {}
        self._unknown: dict[tuple[int, bytes], str] = {}
        self._kinds: Counter[str] = Counter()
        self._libraries = 0
        self._lost: dict[str, str] = {}
        self.graphs = False
        """The source has FalkorDB: streams that each server makes for itself are left out."""

    @property
    def hopeless(self) -> bool:
        """So much differs that more of it says nothing new."""
        return len(self._found) >= STOP_AT

    async def compare(self, db: int, keys: list[bytes]) -> None:
        """Compare these keys of the source, and keep what differs."""
        # What an engine has left at either end is no data.
        for portion in portions(await self._shared(self._pair[0].end, db, keys)):
            self._compared += len(portion)
            await self._keep(db, portion)
            if self.hopeless:
                return

    def named(self, db: int, keys: list[bytes]) -> list[bytes]:
        """Those of the keys that may be the migration's, by their names."""
        rules = self._rules
        return keys if rules is None else [key for key in keys if rules.takes(db, key) is not False]

    async def _shared(self, end: Admin, db: int, keys: list[bytes]) -> list[bytes]:
        """Those of the keys that are the migration's: neither ours nor each server's own, and
        taken by the rules."""
        left = await telemetry_among(end, keys) if self.graphs else set()
        keys = [key for key in self.named(db, keys) if not key.startswith(OWN_PREFIX)]
        return [key for key in await self._typed(end, db, keys) if key not in left]

    async def _typed(self, end: Admin, db: int, keys: list[bytes]) -> list[bytes]:
        """The same by their types, where rules look at these."""
        rules = self._rules
        if rules is None or not rules.by_type:
            return keys
        kinds = await end.pipeline([("TYPE", key) for key in keys], raise_on_error=True)
        return [
            key
            for key, kind in zip(keys, kinds, strict=True)
            if kind != b"none" and rules.takes(db, key, type_number(kind.decode()))
        ]

    async def look_for_absent(
        self, db: int, infos: tuple[ServerInfo, ServerInfo], *, lacking: bool
    ) -> None:
        """Look up every name of each end at the other; what is not there is compared. `lacking`:
        those of the source too; the target's mean nothing where it had keys of its own, or the
        source was asked for some of its keys alone."""
        ends = self._pair[0].end, self._pair[1].end
        extra = self.known
        looked_up = absent_names(ends, infos, self._settings, db, lacking=lacking, extra=extra)
        async with contextlib.aclosing(looked_up) as pages:
            async for here, absent, _ in pages:
                if self.hopeless:
                    return
                await self._keep(db, await self._shared(ends[here], db, absent))

    def result(self, sizes: tuple[tuple[int, int], ...]) -> Verification:
        """Everything that was found, in one value; `sizes` are the databases' counts."""
        different = len(self._found)
        result = Verification(
            ok=different == 0 and not self._lost,
            reason="",
            keys_source=sum(here for here, _ in sizes),
            keys_target=sum(there for _, there in sizes),
            compared=self._compared - len(self._unknown),
            different=different,
            differences=_named(self._found),
            unknown=_named(self._unknown),
            counted=self.counted,
            not_compared=tuple(sorted(self._kinds.items())),
            libraries=self._libraries,
            lost=tuple(f"{what}: {why}" for what, why in self._lost.items()),
        )
        return replace(result, reason=_reason(result))

    def beside(self, count: int, lost: dict[str, str]) -> None:
        """`count` libraries and search indexes were compared; `lost` ones differ, and why."""
        self._libraries = count
        spared = self._spares_values
        self._lost = {
            what: why
            for what, why in lost.items()
            if not (spared and what.startswith("library ") and why != MISSING)
        }

    async def _keep(self, db: int, keys: list[bytes]) -> None:
        for finding in await compare(self._pair, keys):
            if self._spares_values and finding.what != MISSING:
                continue
            where = self._unknown if finding.unknown else self._found
            if finding.unknown and (db, finding.key) not in where:
                self._kinds[finding.kind] += 1
            where[db, finding.key] = finding.what


def _databases(
    source: ServerInfo, target: ServerInfo, settings: TransferSettings, known: bool
) -> list[int]:
    if settings.databases is not None:
        used = set(settings.databases)
    else:
        used = {each.db for each in source.keyspace}
        if known:  # a database that the target alone has is a difference
            used |= {each.db for each in target.keyspace}
    return sorted(filter(settings.rules.takes_db, used))


def _named(found: dict[tuple[int, bytes], str]) -> tuple[Difference, ...]:
    some = islice(found.items(), NAMED_LIMIT)
    return tuple(Difference(db, printable_key(key), what) for (db, key), what in some)


def _reason(result: Verification) -> str:
    counts = f"{result.keys_source:,} keys on the source, {result.keys_target:,} on the target"
    if not result.counted:
        counts += " (not comparable: a filter, or keys that the target had before)"
    stopped = " (stopped there)" if result.different >= STOP_AT else ""
    what = f"{result.compared:,} keys compared, {result.different:,} differ{stopped}"
    if result.unknown:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in result.not_compared)
        what += f", {len(result.unknown):,} are of types that cannot be compared ({kinds})"
    text = f"{what}; {counts}"
    if result.lost:
        text += f"; {'; '.join(result.lost)}"
    if result.differences:
        first = result.differences[0]
        text += f"; the first: database {first.db}, key {first.key[:100]}: {first.what}"
    return text + "."
