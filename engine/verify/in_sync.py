"""The quick comparison of two ends that are in sync, while the source's writers are held off.

That everything is there follows from the offset; this is the second opinion. It must not take
longer than writers can be kept waiting, so it counts, and looks at a sample of values.
"""

from __future__ import annotations

from collections.abc import Collection

from engine.model.endpoint import Endpoint
from engine.model.server import Keyspace, ServerInfo
from engine.model.settings import TransferSettings
from engine.verify.compare import Side, compare, portions
from engine.verify.sample import some_keys
from engine.wire.admin import Admin, admin

_SAMPLE = 200
# Where the counts differ by no more than hashes of expired fields may: missing keys would, too.
_SAMPLE_UNSURE = 5000


async def verify_in_sync(
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    *,
    own_key: bytes,
    held_before: bool = False,
    seed: int = 0,
) -> tuple[bool, str]:
    """Whether both ends agree, and one sentence that says so or why not.

    Keys without a deadline are counted exactly; those with one may be gone at one end already (a
    paused source removes none), so their numbers prove nothing. The same is true of hashes whose
    fields have deadlines: the last field's end is the key's. `own_key` is the engine's, in the
    target's database 0; `held_before`: the target's own keys make counts say nothing. Raises
    `LinkError`, `AuthError`, `ServerError`.
    """
    limit = settings.io_timeout
    async with (
        admin(source, timeout=limit, fault="source") as one,
        admin(target, timeout=limit, fault="target") as other,
    ):
        infos = await one.info(), await other.info()
        counted = "not counted (the target had keys of its own)"
        unsure: Collection[int] = ()
        if not held_before:
            own = await _has(other, own_key)
            wrong, unsure = _counts(infos, own)
            if wrong:
                return False, wrong
            arrived = infos[1].keys - own
            counted = f"{infos[0].keys:,} keys on the source, {arrived:,} on the target"
        compared = 0
        pair = await Side.open(one, followed=True), await Side.open(other, followed=True)
        for entry in infos[0].keyspace:
            await one.select(entry.db)
            await other.select(entry.db)
            most = _SAMPLE_UNSURE if entry.db in unsure else _SAMPLE
            keys = await some_keys(one, settings, most, seed + entry.db, not infos[0].fork)
            for portion in portions(keys):
                compared += len(portion)
                for finding in await compare(pair, portion):
                    if not finding.unknown:
                        name = finding.key[:100]
                        return False, f"database {entry.db}, key {name!r}: {finding.what}"
    return True, f"in sync; {counted}; {compared:,} keys compared, 0 differ."


async def _has(target: Admin, key: bytes) -> bool:
    await target.select(0)
    return bool(await target.call("EXISTS", key))


def _counts(infos: tuple[ServerInfo, ServerInfo], own: bool) -> tuple[str, Collection[int]]:
    """What is wrong with the counts (empty if nothing), and the databases whose counts differ in a
    way that hashes may explain, and missing keys as well."""
    unsure = set()
    here, there = ({entry.db: entry for entry in info.keyspace} for info in infos)
    for db in sorted(here.keys() | there.keys()):
        at_source, at_target = _lasting(here.get(db)), _lasting(there.get(db))
        if db == 0 and own:
            at_target -= 1
        more = at_source - at_target
        # Each end may have kept so many of those hashes that the other has removed.
        if not -_field_expires(there.get(db)) <= more <= _field_expires(here.get(db)):
            return (
                f"database {db} has {at_source:,} keys without a deadline on the source and "
                f"{at_target:,} on the target"
            ), ()
        if more:
            unsure.add(db)
    return "", unsure


def _lasting(entry: Keyspace | None) -> int:
    return entry.keys - entry.expires if entry else 0


def _field_expires(entry: Keyspace | None) -> int:
    return entry.field_expires if entry else 0
