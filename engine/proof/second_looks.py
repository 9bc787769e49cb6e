"""Keys that seemed to differ, looked at again until that is known.

Both ends are written to while they are compared: what the source has and the target has not yet, or
what has expired at one end only, is no difference. So a key differs once it did in three looks in a
row, over growing pauses, between which the source's key stayed as it was; in five, which take five
seconds, where anything was written at either end meanwhile, for what brings it may be late. One
that never stood still is told of as that, and so is one that cannot be decoded.

Where a migration follows the source, a look at the target counts once its position has passed the
offset that the source had at the look before; where it never does the key is told of as that.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from engine import _native
from engine._native import KeyNames, Looks, ValueDecoder, module_type
from engine.model.db_key import DbKey
from engine.model.hyperloglog import registers
from engine.model.modules import made_by
from engine.model.pace import Pace
from engine.model.proof import ProofSettings
from engine.model.server import ServerInfo
from engine.proof.asked_server import AskedServer, question
from engine.proof.deployment import Deployment
from engine.proof.relinking import until_linked
from engine.proof.track import Track

PAUSES = (0.1, 0.3, 0.6, 1.5, 3.0, 5.0)
"""Seconds before each look; the last ones are for keys that change meanwhile."""
LOOKS, LOOKS_WHILE_WRITTEN = 3, 5
"""So often a key has to differ, while the source's stays as it was."""
# An expire time that is told as the time left is never quite the same.
_SAME_MS = 100
_KEYS_AT_ONCE = 128
# A server holds what it has answered until that was read: so many bytes of values are asked for at
# once. Of a value that was not read yet the length is not known.
_BYTES_AT_ONCE, _UNREAD_BYTES = 4 << 20, 256 << 10
_KEYS_MOST, _BYTES_MOST = 10_000, 16 << 20
_BITS: tuple[tuple[int, str], ...] = (
    (_native.DIFFERS_MISSING, "missing"),
    (_native.DIFFERS_EXTRA, "extra"),
    (_native.DIFFERS_TYPE, "type"),
    (_native.DIFFERS_VALUE, "value"),
    (_native.DIFFERS_FIELD_TTLS, "field TTLs"),
    (_native.DIFFERS_GROUPS, "groups"),
    (_native.DIFFERS_TTL, "TTL"),
)
RESTLESS = "it changed whenever it was looked at"
BEHIND = "the migration's position on the target has not passed the source's offset"
UNDECODED = "its value cannot be decoded, and its bytes are not the same"


@dataclass(frozen=True, slots=True)
class Side:
    """A key at one end, as it was in the last look. `value` is its payload (in mode ttl its type),
    None where there is none or it was not held; `size` is that of the payload."""

    there: bool
    size: int
    expire_at: int | None
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A key that differs, or of which that cannot be told (`reason`)."""

    db: int
    key: bytes
    kinds: tuple[str, ...]
    source: Side
    target: Side
    reason: str = ""


@dataclass(slots=True, eq=False)
class _Doubt:
    """`track` is the walk that the key counts for, `others` came by it as well: each keeps it, for
    what one of them comes by again the others have behind them."""

    track: Track
    steady: int = 0
    state: bytes = b""
    expire_at: int | None = None
    last: Found | None = None
    behind: bool = False
    size: int = _UNREAD_BYTES
    others: set[Track] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at a key at both ends has come to: `bits` as the core tells them; its looks are
    those of the number `index`."""

    doubt: _Doubt
    bits: int
    state: bytes
    found: Found
    names: KeyNames
    looks: tuple[Looks, Looks]
    index: int

    @property
    def with_values(self) -> Found:
        """What was found, with the values as far as they were held."""
        ours, theirs = self.looks
        return replace(
            self.found,
            source=replace(self.found.source, value=ours.value(self.index)),
            target=replace(self.found.target, value=theirs.value(self.index)),
        )


@dataclass(slots=True)
class Servers:
    """Both ends' servers for second looks, by their parts; and what they say of themselves."""

    source: list[AskedServer]
    target: list[AskedServer]
    ends: tuple[Deployment, Deployment]
    key: bytes
    settings: ProofSettings
    db: int = field(default=-1)

    async def choose(self, db: int) -> None:
        """Choose a database at all of them, dialled again where a link was lost."""
        anew = [await each.alive() for each in (*self.source, *self.target)]
        if self.db != db or any(anew):
            await asyncio.gather(*(each.select(db) for each in (*self.source, *self.target)))
            self.db = db

    def infos(self, key: bytes) -> tuple[ServerInfo, ServerInfo]:
        """What the servers say of themselves that have a key."""
        return (
            self.source[self.ends[0].part_of(key)].info,
            self.target[self.ends[1].part_of(key)].info,
        )


Passed = Callable[[], Awaitable[bool]]
"""Waits until the target has what the source had when this was called; False: it has not."""
Written = Callable[[], Awaitable[object]]
"""What changes with every write at either end; None: that is not told."""
LongValues = Callable[[int, bytes], Awaitable[tuple[int, bytes]]]
"""Compares a key whose values are not held: in what it differs, and the source's state."""


class SecondLooks:
    """The keys in doubt. Those that are equal after all count where they were walked over."""

    def __init__(
        self,
        servers: Servers,
        passed: Passed,
        written: Written,
        long_values: LongValues,
        on_found: Callable[[Found, Track], None],
        pace: Pace,
    ) -> None:
        self._servers = servers
        self._passed = passed
        self._pace = pace
        # Whether the target had passed the source's offset behind the look before.
        self._counts = True
        self._written = written
        self._needed = LOOKS
        self._long_values = long_values
        self._on_found = on_found
        self._doubts: dict[DbKey, _Doubt] = {}
        self._decoder = ValueDecoder(servers.key)
        self._busy = asyncio.Lock()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._doubts)

    @property
    def full(self) -> bool:
        """There are so many that they are to be settled before others come."""
        return len(self._doubts) >= _KEYS_MOST or self._bytes >= _BYTES_MOST

    def add(self, db: int, key: bytes, track: Track, size: int = _UNREAD_BYTES) -> None:
        """A key of this walk seems to differ; `size`: bytes of its value, at the end where it is
        longer."""
        track.doubted = True
        doubt = self._doubts.get((db, key))
        if doubt is None:
            self._doubts[db, key] = _Doubt(track, size=size)
            self._bytes += len(key)
        elif doubt.track is not track:
            doubt.others.add(track)

    def doubts_of(self, track: Track) -> Iterator[tuple[bytes, int]]:
        """Those of a walk, with the size of their values."""
        for (_, key), doubt in self._doubts.items():
            if doubt.track is track or track in doubt.others:
                yield key, doubt.size

    def drop(self, track: Track) -> None:
        """Forget those of a walk: it comes by them again."""
        for name, doubt in list(self._doubts.items()):
            doubt.others.discard(track)
            if doubt.track is not track:
                continue
            if doubt.others:
                # What is under way counts for this walk, and is no look of the next one.
                first, *others = doubt.others
                self._doubts[name] = _Doubt(first, size=doubt.size, others=set(others))
            else:
                del self._doubts[name]
        self._bytes = sum(len(key) for _, key in self._doubts)

    async def settle(self) -> None:
        """Look at all of them until it is known. Raises `EngineError`."""
        async with self._busy:
            # Others come meanwhile.
            names = list(self._doubts)
            first = await self._written() if names else None
            self._counts = True
            for pause in PAUSES:
                names = [each for each in names if each in self._doubts]
                if not names:
                    break
                await asyncio.sleep(pause)
                still = first is not None and await self._written() == first
                self._needed = LOOKS if still else LOOKS_WHILE_WRITTEN
                await until_linked(partial(self._round, names))
                self._counts = await self._passed()
            for name in names:
                doubt = self._doubts.get(name)
                # (One that has not been looked at is in doubt again since then.)
                if doubt is not None and (last := doubt.last) is not None:
                    del self._doubts[name]
                    why = BEHIND if doubt.behind else RESTLESS
                    self._told(doubt, replace(last, kinds=(), reason=last.reason or why))
            self._bytes = sum(len(key) for _, key in self._doubts)

    async def _round(self, names: Iterable[DbKey]) -> None:
        by_db: dict[int, list[bytes]] = defaultdict(list)
        for db, key in names:
            # (Not those that were judged before the link was lost.)
            if (db, key) in self._doubts:
                by_db[db].append(key)
        for db, keys in by_db.items():
            await self._servers.choose(db)
            async for looks in self._look(db, keys):
                for look in looks:
                    self._judge(look)

    def _judge(self, look: _Look) -> None:
        found, doubt = look.found, look.doubt
        name = found.db, found.key
        if self._doubts.get(name) is not doubt:
            # The walk that came by it has begun anew.
            return
        if found.reason.startswith("NOPERM"):
            # No look says another thing.
            del self._doubts[name]
            self._told(doubt, found)
            return
        same = doubt.last is not None and doubt.state == look.state
        if same and _moved(doubt.expire_at, found.source.expire_at):
            same = False
        doubt.size = max(found.source.size, found.target.size)
        doubt.behind = doubt.behind or not self._counts
        if not same:
            doubt.steady = 1
        elif self._counts:
            doubt.steady += 1
        doubt.state, doubt.expire_at, doubt.last = look.state, found.source.expire_at, found
        if doubt.steady >= self._needed:
            del self._doubts[name]
            for target, looks in enumerate(look.looks):
                doubt.track.comparer.add(
                    look.names, look.index, looks, look.index, target=bool(target)
                )
            self._told(doubt, look.with_values)

    def _told(self, doubt: _Doubt, found: Found) -> None:
        for track in (doubt.track, *doubt.others):
            self._on_found(found, track)

    def _equal(self, name: DbKey, track: Track) -> None:
        """A key does not differ; counted, and in doubt no more, at one moment: a walk may be marked
        at the next one."""
        del self._doubts[name]
        track.resolved += 1

    async def _look(self, db: int, keys: Iterable[bytes]) -> AsyncIterator[list[_Look]]:
        """One look at each of the keys, in the database that is chosen."""
        ends = self._servers.ends
        by_part: dict[tuple[Track, int, int], list[bytes]] = defaultdict(list)
        for key in keys:
            if (doubt := self._doubts.get((db, key))) is not None:
                by_part[doubt.track, ends[0].part_of(key), ends[1].part_of(key)].append(key)
        for (track, one, other), of_parts in by_part.items():
            for portion in self._portions(db, of_parts):
                yield await self._look_at(db, portion, track, one, other)

    def _portions(self, db: int, keys: Iterable[bytes]) -> Iterator[list[bytes]]:
        """So many of them as are asked for at once."""
        portion: list[bytes] = []
        together = 0
        for key in keys:
            doubt = self._doubts.get((db, key))
            size = _UNREAD_BYTES if doubt is None else doubt.size
            if portion and (len(portion) >= _KEYS_AT_ONCE or together + size > _BYTES_AT_ONCE):
                yield portion
                portion, together = [], 0
            portion.append(key)
            together += size
        if portion:
            yield portion

    async def _look_at(
        self, db: int, keys: list[bytes], track: Track, one: int, other: int
    ) -> list[_Look]:
        """Of those that differ; the others are counted."""
        servers = self._servers
        doubts = {key: each for key in keys if (each := self._doubts.get((db, key))) is not None}
        keys = [key for key, each in doubts.items() if each.track is track]
        if not keys:
            return []
        source, target = servers.source[one], servers.target[other]
        names = KeyNames(keys)
        mode = servers.settings.mode
        ours, theirs = await asyncio.gather(
            *(
                each.looks(names, 0, len(keys), question(mode, each.info))
                for each in (source, target)
            )
        )
        await self._pace.read(ours.nbytes + theirs.nbytes)
        await source.serves(ours)
        await target.serves(theirs)
        if any(self._doubts.get((db, key)) is not doubts[key] for key in keys):
            # The walk has begun anew meanwhile, and counts anew.
            return []
        bits = dict(track.comparer.compare(names, 0, ours, theirs))
        for index, key in enumerate(keys):
            if index not in bits:
                self._equal((db, key), track)
        looks = []
        for index, differs in bits.items():
            key = keys[index]
            if differs & _native.DIFFERS_REFUSED and len(keys) > 1:
                # What a run tells is why the first of its keys was refused.
                looks += await self._look_at(db, [key], track, one, other)
                continue
            state = ours.state(index, servers.key)
            if differs & _native.DIFFERS_NOT_HELD:
                more, state = await self._long_values(db, key)
                differs = differs & ~_native.DIFFERS_NOT_HELD | more
            elif differs == _native.DIFFERS_VALUE and self._same_registers(ours, theirs, index):
                differs = 0
            elif differs & _native.DIFFERS_NOT_DECODED and self._says_all(key, ours, theirs, index):
                differs = differs & ~_native.DIFFERS_NOT_DECODED | _native.DIFFERS_VALUE
            if not differs:
                if self._doubts.get((db, key)) is doubts[key]:
                    track.comparer.count_equal(names, index, ours, index)
                    self._equal((db, key), track)
                continue
            reason = ""
            if differs & _native.DIFFERS_NOT_DECODED:
                reason = UNDECODED
            elif differs & _native.DIFFERS_REFUSED:
                reason = ours.error or theirs.error or "a server answered an error"
            kinds = tuple(name for bit, name in _BITS if differs & bit)
            sides = (_side(ours, index), _side(theirs, index))
            found = Found(db, key, kinds, *sides, reason)
            looks.append(_Look(doubts[key], differs, state, found, names, (ours, theirs), index))
        return looks

    def _same_registers(self, ours: Looks, theirs: Looks, index: int) -> bool:
        """Whether both are one HyperLogLog in other bytes."""
        values = [looks.value(index) for looks in (ours, theirs)]
        found: list[bytes | None] = []
        for each in values:
            if each is None:
                return False
            kind, elements = self._decoder.value(each)
            if kind != "string":
                return False
            found.append(registers(elements[0]))
        return found[0] is not None and found[0] == found[1]

    def _says_all(self, key: bytes, ours: Looks, theirs: Looks, index: int) -> bool:
        """Whether the bytes of both values are known to say all of them, so that others are other
        values."""
        made = []
        for looks, info in zip((ours, theirs), self._servers.infos(key), strict=True):
            value = looks.value(index)
            if value is None:
                return False
            made.append(made_by((module_type(value) or "").encode("latin-1"), info))
        return bool(made[0]) and made[0] == made[1]


def _side(looks: Looks, index: int) -> Side:
    return Side(looks.there(index), looks.size(index), looks.expire_at(index))


def _moved(before: int | None, now: int | None) -> bool:
    """Whether the source's expire time is another one by now."""
    if before is None or now is None:
        return before is not now
    return abs(now - before) > _SAME_MS
