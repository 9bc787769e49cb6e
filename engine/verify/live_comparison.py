"""Both ends of a migration that goes on, compared: before the fence, and behind it.

Before the fence the source is written to, and the target is a moment behind. A comparison is exact
all the same where it can be: the source watches the keys (WATCH) and tells its offset, the target
is waited for up to that offset, both are read, and an empty EXEC tells whether a key was written to
meanwhile. What differs then, differs (`Compared.differ`); where one was, it is read again, and in
the end it is not known (`Compared.unsure`).

Behind the fence nothing changes, and every moment is one in which writers wait: so what is read
there is chosen before, within a budget of bytes, and one pipeline an end asks for all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from engine._native import SlotFilter
from engine.errors import AuthError, EngineError, ProtocolFault, ServerError
from engine.model import silent_commands
from engine.model.calls_despite_write_block import ASK_COUNTS
from engine.model.db_key import DbKey
from engine.model.endpoint import Endpoint
from engine.model.lane_keys import KeysOfLane
from engine.model.lane_route import ONLY, Route
from engine.model.modules import GRAPH_MODULE
from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.server import ServerInfo, parse_info
from engine.model.settings import TransferSettings
from engine.model.slots import ALL_SLOTS
from engine.model.verification import LENGTH_UNKNOWN, AtFence, Besides, Compared, Counts
from engine.verify.graph_telemetry import Telemetry, telemetry_among
from engine.verify.key_comparison import (
    EXTRA,
    KEYS_AT_ONCE,
    MISSING,
    Look,
    Side,
    compare_once,
    judge_looks,
    judge_values,
    portions,
)
from engine.verify.key_counts import Stray, judge
from engine.verify.key_sampling import every_key, some_keys
from engine.verify.keys_of_unowned_slots import NONE, StrayKeys, find
from engine.verify.lane_counts import Explained, LaneCounts, Told, unexplained
from engine.verify.name_lookup import absent_names
from engine.verify.value_readers import WHOLE_BYTES, Changed, Command, Parts, Reading, reading
from engine.wire import functions_and_indexes
from engine.wire.control_connection import Admin, Arg, admin, all_of
from engine.wire.functions_and_indexes import FunctionsAndIndexes
from engine.wire.info_command import replication_in

Reach = Callable[[int], Awaitable[None]]

# Keys of each database that are compared before the fence, and of all together behind it. Lanes of
# one migration have the first of them together, but each so many at least.
_SAMPLE = 200
_SAMPLE_OF_LANE = 40
_AT_FENCE = 400
# A key that is written to is compared so often, before it is left to the comparison at the fence.
_TRIES = 3
# Hashes with field TTLs that are kept by name, to be looked at where the counts differ.
_NAMED_MOST = 10_000
_SCAN_COUNT = 2000
# Looks at so many keys are kept, and are good for so many seconds to choose what is compared behind
# the fence: what has become of a key since is compared all the same.
_SEEN_MOST = 4_000
_SEEN_SECONDS = 3.0
_EVERYTHING = TransferSettings(source_type="scan")
# Encodings of hashes that cannot hold a field's TTL.
_NO_FIELD_TTLS = frozenset({b"listpack", b"ziplist", b"zipmap"})


@dataclass(slots=True)
class _Answers:
    """What one end has answered behind the fence."""

    info: ServerInfo
    own: int
    stray: Counter[int]
    functions: FunctionsAndIndexes | None
    looks: list[Look]
    values: list[Parts | None]
    calls: silent_commands.Calls | None


class Screen(Protocol):
    """Tells which of some keys may differ: `engine.proof.key_screen.KeyScreen`."""

    read: int
    """Bytes that were read so far, of both ends."""

    async def open(self, extend_ms: int, primary: Endpoint | None = None) -> None:
        """Dial both ends; `primary` in the source's place."""
        ...

    async def close(self) -> None:
        """Hang up."""
        ...

    async def doubtful(self, db: int, keys: Sequence[bytes]) -> list[bytes]:
        """Those of `keys` that may differ."""
        ...


Screens = Callable[[Endpoint, Endpoint, float], Screen]
"""Makes one for two ends, with the time that an answer may take."""


class LiveComparison:
    """Compares both ends of one migration. Not for two tasks at once.

    `held_before` tells whether the target had keys of its own: then counts say nothing, and neither
    do names that it alone has.
    """

    def __init__(
        self,
        source: Endpoint,
        target: Endpoint,
        settings: TransferSettings,
        held_before: Callable[[], bool],
        route: Route = ONLY,
        together: LaneCounts | None = None,
        lanes: int = 1,
        screens: Screens | None = None,
    ) -> None:
        """`route`: which of the keys are compared, and what kind of servers the ends are;
        `together`: the lanes whose ends are counted as one; `lanes`: how many the migration has;
        `screens`: for one that is `apart`, which has many keys to compare."""
        self._endpoints = source, target
        self._lanes = lanes
        self._screens = screens
        self._screen: Screen | None = None
        self._route, self._keys = route, KeysOfLane(route.slots, settings.key_rules)
        # What names are looked for with.
        self._walking = replace(_EVERYTHING, include=settings.include, exclude=settings.exclude)
        self._together = together or LaneCounts()
        self._lane = self._together.join(source, target, route.slots)
        self._sample = max(_SAMPLE // lanes, _SAMPLE_OF_LANE)
        # What both ends have told when they were looked at last.
        self._told: Told | None = None
        self._settings = settings
        self._held_before = held_before
        self._stack = contextlib.AsyncExitStack()
        self._pair: tuple[Side, Side] | None = None
        # Two connections more: for what is asked beside a comparison of keys.
        self._beside: tuple[Admin, Admin]
        # The replies of both ends to `functions_and_indexes.COMMANDS` when it was opened, until
        # they are asked for.
        self._besides_replies: tuple[list[Any], list[Any]] | None = None
        self._infos: tuple[ServerInfo, ServerInfo]
        # What they told before every name was looked up; what had expired by then is gone.
        self._since: tuple[ServerInfo, ServerInfo] | None = None
        self._names_since: tuple[ServerInfo, ServerInfo] | None = None
        self._db: int | None = None
        self._extend_ms = 0
        self._watching = True
        self._own_keys: tuple[bytes, ...] = ()
        # Hashes with field TTLs, None: too many to be named.
        self._timed: list[DbKey] | None = []
        self._walked = False
        # Of both ends: keys of slots that they do not own, as they were looked for last.
        self._stray: tuple[StrayKeys, StrayKeys] = NONE, NONE
        self._ended = 0
        # The reply to `ASK_COUNTS` when it was opened, until it is asked for.
        self._calls: object = None
        self._plan: list[tuple[int, bytes, Look]] = []
        # When both ends of a key were looked at last, and what was seen.
        self._seen: dict[DbKey, tuple[float, Look, Look]] = {}
        self._code_at_fence = True
        # Of the source and of the target, where the source has FalkorDB.
        self._telemetry: tuple[Telemetry, ...] = ()
        self._telemetry_beside: tuple[Telemetry, ...] = ()
        self.search_names: Sequence[bytes] = ()
        """Names of the source's search aliases and dictionaries, which are compared by name."""
        self.over_budget: dict[DbKey, str] = {}
        """Keys that were to be compared behind the fence, and are too long for it."""

    async def open(
        self, own_keys: Sequence[bytes] = (), *, extend_ms: int = 0, primary: Endpoint | None = None
    ) -> None:
        """Dial both ends. `own_keys` are the engine's, in the target's database 0; `extend_ms`: by
        so much the target's expire times may be later for now. `primary`: the server that takes the
        writes, where the source is a replica of it: it is compared then, and not the replica.

        Raises `LinkError`, `AuthError`, `ServerError`.
        """
        await self.close()
        # A server that stands still refuses a cut-over no later than it would behind the fence.
        limit = min(self._settings.io_timeout, self._settings.cut_over_timeout)
        one, other = self._endpoints
        straight = primary is not None

        dialling: list[AbstractAsyncContextManager[Admin]] = []
        for _ in range(2):
            dialling += [
                admin(primary or one, timeout=limit, fault="source", straight=straight),
                admin(other, timeout=limit, fault="target"),
            ]
        *ends, source, target = await all_of(self._stack, dialling)
        self._beside = source, target
        beside = functions_and_indexes.COMMANDS
        (info, self._calls, *ours), (info_there, *theirs) = await asyncio.gather(
            # What has been called by now belongs to the comparison (`silent_calls`).
            ends[0].pipeline([("INFO",), ASK_COUNTS, *beside]),
            ends[1].pipeline([("INFO",), *beside]),
        )
        self._besides_replies = ours, theirs
        self._infos = self._parsed(ends[0], info), self._parsed(ends[1], info_there)
        self._pair = await asyncio.gather(
            Side.open(ends[0], self._infos[0], followed=True),
            Side.open(ends[1], self._infos[1], followed=True),
        )
        if self._screen is not None:
            await self._screen.open(extend_ms, primary)
        self._db, self._extend_ms, self._watching = None, extend_ms, True
        self._own_keys = tuple(own_keys)
        self._timed, self._plan, self._code_at_fence = [], [], True
        self._told, self._stray = None, (NONE, NONE)
        self._together.attend(self._lane)
        self._walked, self._since, self._names_since = False, None, None
        self._seen.clear()
        self._telemetry = tuple(map(Telemetry, ends)) if self._has_graphs else ()
        self._telemetry_beside = tuple(map(Telemetry, self._beside)) if self._has_graphs else ()
        self.over_budget = {}

    async def read_replica(self) -> None:
        """See `Comparison.read_replica`."""
        # A server that stands still refuses a cut-over no later than it would behind the fence.
        limit = min(self._settings.io_timeout, self._settings.cut_over_timeout)
        end = await self._stack.enter_async_context(
            admin(self._endpoints[0], timeout=limit, fault="source")
        )
        self._infos, self._since = (await end.info(), self._infos[1]), None
        self._pair = await Side.open(end, self._infos[0], followed=True), self._theirs
        self._db = None
        if self._telemetry:
            self._telemetry = Telemetry(end), self._telemetry[1]
            await self._telemetry[0].find()

    async def close(self) -> None:
        """Hang up. A second call does nothing."""
        self._together.leave(self._lane)
        self._pair = None
        if self._screen is not None:
            await self._screen.close()
        await self._stack.aclose()

    def apart(self) -> LiveComparison:
        """See `Comparison.apart`."""
        source, target = self._endpoints
        found = LiveComparison(
            source, target, self._settings, self._held_before, self._route, lanes=self._lanes
        )
        if self._screens is not None:
            found._screen = self._screens(source, target, self._settings.io_timeout)
        return found

    @property
    def processes(self) -> tuple[str, str]:
        """See `Comparison.processes`."""
        source, target = self._infos
        return source.process, target.process

    @property
    def read(self) -> int:
        """See `Comparison.read`."""
        return self._screen.read if self._screen is not None else 0

    @property
    def counts_are_known(self) -> bool:
        """Whether counts mean anything: no end has others than are brought."""
        return self.names_are_known and not self._settings.rules

    @property
    def names_are_known(self) -> bool:
        """Whether names that the target alone has mean anything."""
        return not self._held_before()

    @property
    def doubted(self) -> bool:
        """See `Comparison.doubted`."""
        return self._lane in self._together.doubted

    # --- Which keys ---

    @property
    def _has_graphs(self) -> bool:
        return GRAPH_MODULE in self._infos[0].modules

    async def _shared(self, end: Admin, db: int, keys: list[bytes]) -> list[bytes]:
        """Those of the keys, in the database `db`, which is chosen, that are this lane's, and that
        no server makes for itself."""
        keys = self._keys.among(db, keys)
        if not self._telemetry:
            return keys
        left = await telemetry_among(end, keys)
        return [key for key in keys if key not in left] if left else keys

    async def doubtful(self, kinds: Iterable[str]) -> AsyncIterator[tuple[int, list[bytes]]]:
        """(database, keys): all the source's keys of these kinds, in portions.

        "groups": streams with consumer groups; "fields": hashes with field TTLs; "strings": those
        whose length is another one at the target; "all": every key.
        """
        asked = set(kinds)
        for entry in self._infos[0].keyspace:
            if "all" in asked:
                async for keys in self._pages(entry.db, None):
                    yield entry.db, keys
                continue
            if "groups" in asked:
                async for keys in self._pages(entry.db, b"stream"):
                    replies = await self._source.pipeline(("XINFO", "GROUPS", key) for key in keys)
                    grouped = [key for key, reply in zip(keys, replies, strict=True) if reply]
                    if grouped:
                        yield entry.db, grouped
            if "strings" in asked and self.lengthens:
                async for keys in self._pages(entry.db, b"string"):
                    if others := await self._of_other_length(keys):
                        yield entry.db, others
            if "fields" in asked and self._ours.able.field_ttls:
                async for keys in self._pages(entry.db, b"hash"):
                    timed = await self._with_field_ttls(keys)
                    self._name(entry.db, timed)
                    if timed:
                        yield entry.db, timed

    async def every_key(self) -> AsyncGenerator[tuple[int, list[bytes]], None]:
        """See `Comparison.every_key`."""
        # Databases may have come since it was opened.
        for entry in (await self._source.info()).keyspace:
            async for keys in self._pages(entry.db, None):
                yield entry.db, keys

    async def _pages(self, db: int, kind: bytes | None) -> AsyncIterator[list[bytes]]:
        """The source's keys of one TYPE, in portions; of every one where it is None.

        Of a rare type a page has a few keys: a portion is filled from several, for each one that is
        compared takes some ten questions.
        """
        if not self._keys.takes_db(db):
            return
        await self._select(db)
        if kind is None:
            async for page in every_key(self._source, self._walking):
                for portion in portions(await self._shared(self._source, db, page)):
                    yield portion
            return
        served = self._infos[0].capabilities.scan_type and not self._infos[0].fork
        cursor: Any = 0
        waiting: list[bytes] = []
        while cursor != b"0":
            filters = ("TYPE", kind) if served else ()
            cursor, keys = await self._source.call("SCAN", cursor, "COUNT", _SCAN_COUNT, *filters)
            keys = self._keys.among(db, keys)
            if not served:
                kinds = await self._source.pipeline([("TYPE", key) for key in keys])
                keys = [key for key, found in zip(keys, kinds, strict=True) if found == kind]
            if kind == b"stream":
                keys = await self._shared(self._source, db, keys)
            waiting += keys
            if len(waiting) >= KEYS_AT_ONCE:
                *full, waiting = portions(waiting)
                for portion in full:
                    yield portion
        for portion in portions(waiting):
            yield portion

    async def _with_field_ttls(self, keys: list[bytes]) -> list[bytes]:
        replies = await self._source.pipeline([("OBJECT", "ENCODING", key) for key in keys])
        return [
            key for key, reply in zip(keys, replies, strict=True) if reply not in _NO_FIELD_TTLS
        ]

    @property
    def lengthens(self) -> bool:
        """See `Comparison.lengthens`."""
        return self._infos[0].capabilities.silent_bitfield

    async def _of_other_length(self, keys: list[bytes]) -> list[bytes]:
        asked = [("STRLEN", key) for key in keys]
        ours, theirs = await asyncio.gather(
            self._source.pipeline(asked), self._target.pipeline(asked)
        )
        return [key for key, one, two in zip(keys, ours, theirs, strict=True) if one != two]

    def _name(self, db: int, keys: list[bytes]) -> None:
        if self._timed is not None:
            self._timed += [(db, key) for key in keys]
            if len(self._timed) > _NAMED_MOST:
                self._timed = None

    async def sample(self, seed: int = 0) -> AsyncIterator[tuple[int, list[bytes]]]:
        """(database, some of the source's keys), database by database; where an end has keys of
        other lanes as well, also some of the target's. May go on beside all else but `counts`."""
        shared = self._route.shared_source or self._route.shared_target
        both = shared and not self._keys.all and self.counts_are_known
        for end, info in list(zip(self._beside, self._infos, strict=True))[: 2 if both else 1]:
            for entry in info.keyspace:
                if not self._keys.takes_db(entry.db):
                    continue
                # From random places, unless the sample is all that there is.
                spread = not info.fork and entry.keys > self._sample
                end.choose(entry.db)
                among = None if self._keys.all else partial(self._keys.among, entry.db)
                keys = await some_keys(
                    end,
                    self._walking,
                    self._sample,
                    seed + entry.db,
                    spread,
                    among=among,
                    keys=entry.keys,
                )
                keys = [key for key in keys if not key.startswith(OWN_PREFIX)]
                keys = await self._shared(end, entry.db, keys)
                if keys:
                    yield entry.db, keys

    async def one_sided_names(self) -> AsyncGenerator[tuple[int, list[bytes], int], None]:
        """(database, names that one end alone has, how many were looked up), a page at a time.

        That is every name of either end, the engine's own left out; those of the target are not
        looked up where they say nothing. May go on beside all else.
        """
        async with contextlib.AsyncExitStack() as stack:
            limit = self._settings.io_timeout
            one, other = await all_of(
                stack,
                (
                    admin(end.endpoint, timeout=limit, fault=end.fault, straight=True)
                    for end in (self._source, self._target)
                ),
            )
            ends = one, other
            infos = await asyncio.gather(one.info(), other.info())
            ours, theirs = ({entry.db for entry in info.keyspace} for info in infos)
            databases = ours | theirs if self.names_are_known else ours
            ranges = self._route.slots.ranges
            for db in sorted(filter(self._keys.takes_db, databases)):
                if self._settings.rules and db not in ours and not await one.has_database(db):
                    # What is in there is others': it cannot have come from the source.
                    continue
                for end in ends:
                    end.choose(db)
                looked_up = absent_names(
                    ends,
                    infos,
                    self._walking,
                    db,
                    extra=self.names_are_known,
                    slots=None if self._keys.of_every_slot else SlotFilter(ranges, keyless=False),
                )
                async with contextlib.aclosing(looked_up) as pages:
                    async for here, absent, count in pages:
                        yield db, await self._shared(ends[here], db, absent), count
        self._names_since = infos

    def names_looked_up(self) -> None:
        """See `Comparison.names_looked_up`."""
        self._walked = True
        self._together.doubted.discard(self._lane)
        if self._names_since is not None and not self._names_since[0].is_replica:
            # Both were purged of what had expired: a primary deletes what SCAN comes upon.
            self._since = self._names_since

    # --- Before the fence ---

    async def stray_keys(self) -> list[str]:
        """See `Comparison.stray_keys`."""
        is_node = self._route.from_cluster, self._route.to_cluster
        known = self._together.slots_of(self._lane)
        one, other = await asyncio.gather(
            *(
                find(end, info, slots if node else ALL_SLOTS)
                for end, info, slots, node in zip(
                    self._beside, self._infos, known, is_node, strict=True
                )
            )
        )
        self._stray = one, other
        told = [stray.words(end) for stray, end in zip((one, other), self._beside, strict=True)]
        return [words for words in told if words and self._together.names(words)]

    @property
    def _known_stray(self) -> Stray:
        """What is left out of the counts; nothing before every name was looked up: they might be
        in the place of others."""
        one, other = self._stray
        return (one.by_db, other.by_db) if self._walked else ({}, {})

    async def compare(self, db: int, keys: Sequence[bytes], reach: Reach) -> Compared:
        """Compare some keys of a source that is written to; `reach(offset)` waits for the target.

        Raises `LinkError`, `AuthError`, `ServerError`, and what `reach` raises.
        """
        unknown_keys: dict[DbKey, str] = {}
        left, wrong = list(dict.fromkeys(keys)), dict[DbKey, str]()
        count = len(left)
        if self._screen is not None and not (left := await self._screen.doubtful(db, left)):
            return Compared(count)
        await self._select(db)
        for _ in range(_TRIES):
            watch: list[Command] = []
            if self._watching:
                # What was watched before, if nothing differed then. A cluster's node takes keys of
                # one slot in a command.
                watch = [("WATCH", key) for key in left] if self._route.from_cluster else []
                watch = [("UNWATCH",), *(watch or [("WATCH", *left)])]
            *watched, calls = await self._source.pipeline([*watch, ("INFO", "replication")])
            refused = any(isinstance(each, EngineError) for each in watched[1:])
            self._watching = self._watching and not refused
            await reach(self._offset_in(calls))
            seen: dict[bytes, tuple[Look, Look]] = {}
            looked_at = asyncio.get_running_loop().time()
            findings = await compare_once(self._both, left, self._extend_ms, seen)
            if len(self._seen) < _SEEN_MOST:
                self._seen |= {(db, key): (looked_at, *looks) for key, looks in seen.items()}
            unknown_keys |= {(db, each.key): each.kind for each in findings if each.unknown}
            wrong = {(db, each.key): each.what for each in findings if not each.unknown}
            if not wrong or await self._untouched():
                return Compared(count, wrong, {}, Counter(unknown_keys.values()), unknown_keys)
            left = [key for _, key in wrong]
        return Compared(count, {}, wrong, Counter(unknown_keys.values()), unknown_keys)

    async def at_rest(self, db: int, keys: Sequence[bytes]) -> Compared:
        """See `Comparison.at_rest`."""
        await self._select(db)
        left = keys if self._screen is None else await self._screen.doubtful(db, keys)
        findings = [
            each
            for portion in portions(left)
            for each in await compare_once(self._both, portion, self._extend_ms)
        ]
        unknown = {(db, each.key): each.kind for each in findings if each.unknown}
        wrong = {(db, each.key): each.what for each in findings if not each.unknown}
        return Compared(len(keys), wrong, {}, Counter(unknown.values()), unknown)

    async def _untouched(self) -> bool:
        """Whether no key that is watched was written to; it ends the watch."""
        if not self._watching:
            return False
        began, ended = await self._source.pipeline([("MULTI",), ("EXEC",)])
        if isinstance(began, EngineError) or isinstance(ended, EngineError):
            await self._source.pipeline([("UNWATCH",)])
            return False
        return isinstance(ended, list)

    async def counts(self, reach: Reach) -> Counts | None:
        """Both ends' counts, if the source is still for as long as it takes to ask; else None, and
        where ends are shared: the other lanes are not as far. May go on beside all else but
        `sample`."""
        if self._together.several:
            return None
        one, other = self._beside
        first = await one.pipeline([("INFO",), ("INFO", "replication")])
        offset = self._offset_in(first[1])
        await reach(offset)
        graphs = self._telemetry_beside
        for each in graphs:
            await each.find()
        source = await graphs[0].info() if graphs else self._parsed(one, first[0])
        target, own = await self._counted(other, graphs)
        again = await graphs[0].info() if graphs else None
        last = await one.pipeline([("INFO",), ("INFO", "replication")])
        again = again or self._parsed(one, last[0])
        # What expires at the source meanwhile comes with an offset of its own.
        if self._offset_in(last[1]) != offset or source.keyspace != again.keyspace:
            return None
        return self._judged(source, target, own)

    def _judged(
        self, source: ServerInfo, target: ServerInfo, own: int, stray: Stray | None = None
    ) -> Counts:
        """`stray`: what both ends have just told; None: they were not asked again."""
        if stray is None or not self._walked:
            stray = self._known_stray
        expired = self._expired(source, target)
        return judge(source, target, own=own, expired=expired, stray=stray)

    async def silent_calls(self) -> silent_commands.Calls | None:
        """See `Comparison.silent_calls`."""
        calls, self._calls = self._calls, None
        try:
            if calls is None:
                calls = await self._source.call(*ASK_COUNTS)
            return None if isinstance(calls, EngineError) else silent_commands.calls_in(calls)
        except (AuthError, ServerError):
            return None

    async def counts_of(
        self, source: ServerInfo, settle: Callable[[], Awaitable[int]]
    ) -> Counts | None:
        """See `Comparison.counts_of`."""
        if not self.counts_are_known:
            return None
        self._db = None
        if self._together.several:
            self._ended = await settle()
            target, own = await self._counted(self._target, self._telemetry)
            self._told = self._tell(source, target, own, self._known_stray)
            return await self.counts_together()
        target, own = await self._counted(self._target, self._telemetry)
        counts = self._judged(source, target, own)
        if counts.wrong:
            self._ended = await settle()
            target, own = await self._counted(self._target, self._telemetry)
            counts = self._judged(source, target, own)
        return counts

    async def _counted(self, target: Admin, graphs: Sequence[Telemetry]) -> tuple[ServerInfo, int]:
        """What the target tells over this connection, and how many of its keys are the engine's.
        `graphs`: as `_telemetry`, over the connections of the one to the target."""
        own_keys: list[tuple[Arg, ...]] = [("EXISTS", *self._own_keys)] if self._own_keys else []
        reply, *own = await target.ask_in(0, ("INFO",), *own_keys)
        info = await graphs[1].info() if graphs else self._parsed(target, reply)
        return info, own[0] if own else 0

    async def _info_of(self, end: Admin, reply: Any) -> ServerInfo:
        """What an end has told by its reply to INFO; asked again where there may be streams that
        each server makes for itself, which do not count then."""
        if not self._telemetry:
            return self._parsed(end, reply)
        self._db = None
        return await self._telemetry[end is self._target].info()

    def _expired(self, source: ServerInfo, target: ServerInfo) -> tuple[int, int]:
        """Keys that each end has let expire since every name was looked up, or since `open`; with
        those that the target ended when their expire times were set back, in each cut-over that was
        tried."""
        told = self._tell(source, target, 0, ({}, {}))
        return told.expired[0], told.expired[1] + told.ended

    def _tell(self, source: ServerInfo, target: ServerInfo, own: int, stray: Stray) -> Told:
        """What both ends have told, for `LaneCounts`."""
        now, before = (source, target), self._since or self._infos
        one, other = (
            max(late.expired_keys - early.expired_keys, 0)
            for late, early in zip(now, before, strict=True)
        )
        ended = 0 if target.capabilities.counts_past_ttls else self._ended
        return Told(source, target, own, (one, other), ended, stray, self._walked)

    async def counts_together(self) -> Counts | None:
        """See `Comparison.counts_together`."""
        told, self._told = self._told, None
        if told is None or not self._together.complete:
            return None
        counts = await self._together.judge(self._lane, told)
        if not counts.fields or counts.wrong:
            return counts
        over = await self._over(counts.fields)
        expired = self._expired_fields(told.source, told.target)
        return await self._together.explained(
            self._lane, counts, Explained(over, self._walked, expired)
        )

    def _expired_fields(self, source: ServerInfo, target: ServerInfo) -> tuple[int, int]:
        """The same of fields of hashes."""
        now, before = (source, target), self._infos
        one, other = (
            max(late.expired_fields - early.expired_fields, 0)
            for late, early in zip(now, before, strict=True)
        )
        return one, other

    async def besides(self) -> Besides:
        """What the source holds beside keys, and what of that the target lacks."""
        if self._settings.rules:
            # They stay behind.
            self._code_at_fence = False
            return Besides(0, {}, {})
        names = self.search_names
        (one, other), self._besides_replies = self._besides_replies or (None, None), None
        ours, theirs = await asyncio.gather(
            functions_and_indexes.ask(self._source, names, one),
            functions_and_indexes.ask(self._target, names, other),
        )
        self._code_at_fence = ours.nbytes + theirs.nbytes <= self._settings.check_bytes
        lost = functions_and_indexes.lacking(ours, theirs, extra=self.counts_are_known)
        denied = [f"{name} on the source" for name in ours.denied]
        denied += [f"{name} on the target" for name in theirs.denied]
        return Besides(ours.count, dict(ours.libraries or {}), lost, tuple(denied))

    # --- The fence ---

    async def choose(self, first: Iterable[DbKey], then: Iterable[DbKey]) -> None:
        """What is compared behind the fence: `first`, then some of `then`, within the budget.

        Keys that are too long for it are in `over_budget`.
        """
        chosen = list(dict.fromkeys(first))
        places = set(chosen)
        chosen += [key for key in then if key not in places][: max(_AT_FENCE - len(chosen), 0)]
        by_db: dict[int, list[bytes]] = {}
        for db, key in chosen:
            by_db.setdefault(db, []).append(key)
        left = self._settings.check_bytes
        self._plan.clear()
        for db, keys in by_db.items():
            await self._select(db)
            for portion in portions(keys):
                for key, (one, two) in zip(portion, await self._looks(db, portion), strict=True):
                    there = [each for each in (one, two) if each.kind != b"none"]
                    # Before 4.0 there is no MEMORY USAGE. Both were equal a moment ago: the other
                    # end's figure does as well.
                    sizes = [each.size for each in there if each.size is not None]
                    cost = sum(max(size, 64) for size in sizes) // max(len(sizes), 1) + len(key)
                    unknown = bool(there) and not sizes
                    if unknown or cost > min(left, WHOLE_BYTES):
                        calls = LENGTH_UNKNOWN if unknown else f"{cost:,} bytes"
                        self.over_budget[db, key] = f"{calls} ({one.kind.decode()})"
                        continue
                    left -= cost
                    self._plan.append((db, key, one))

    async def _looks(self, db: int, keys: Sequence[bytes]) -> list[tuple[Look, Look]]:
        """A look at each key at both ends, in the database that is chosen: that of the comparison,
        where it was a moment ago."""
        since = asyncio.get_running_loop().time() - _SEEN_SECONDS
        known = [self._seen.get((db, key)) for key in keys]
        fresh = [each[1:] for each in known if each is not None and each[0] >= since]
        if len(fresh) == len(keys):
            return fresh
        looks = await asyncio.gather(self._ours.look(keys), self._theirs.look(keys))
        return list(zip(*looks, strict=True))

    async def at_fence(self, settle: Callable[[], Awaitable[int]]) -> AtFence:
        """The look behind the fence, by one pipeline an end and a second one for field TTLs.

        `settle` waits until the target's expire times are the source's, which may be under way. It
        is awaited before a second look at keys that seem to differ. It returns how many keys of the
        target ended by it: counts that differ are judged again with that number.
        """
        answers = await asyncio.gather(
            self._answers(self._ours, (), self._stray[0]),
            self._answers(self._theirs, self._own_keys, self._stray[1]),
        )
        self._db = None
        ours, theirs = answers
        counts = None
        stray = ours.stray, theirs.stray
        if self.counts_are_known and self._together.several:
            self._ended = await settle()
            self._told = self._tell(ours.info, theirs.info, theirs.own, stray)
        elif self.counts_are_known:
            counts = self._judged(ours.info, theirs.info, theirs.own, stray)
            if counts.wrong:
                self._ended = await settle()
                counts = self._judged(ours.info, theirs.info, theirs.own, stray)
            if counts.fields:
                fields = self._expired_fields(ours.info, theirs.info)
                counts = await self._explained(counts, fields)
        lost: dict[str, str] = {}
        if ours.functions is not None and theirs.functions is not None:
            lost = functions_and_indexes.lacking(
                ours.functions, theirs.functions, extra=self.counts_are_known
            )
        unknown: Counter[str] = Counter()
        doubtful: list[DbKey] = []
        lifted: list[tuple[int, bytes, Look]] = []
        for (db, key, planned), one, two, value, other in zip(
            self._plan, ours.looks, theirs.looks, ours.values, theirs.values, strict=True
        ):
            if judge_looks(one, two, self._extend_ms) or planned.kind != one.kind:
                doubtful.append((db, key))
                continue
            if judge_looks(one, two):
                lifted.append((db, key, one))
            if one.kind != b"none":
                finding = judge_values(key, one.kind, value, other)
                if finding is not None and finding.unknown:
                    unknown[finding.kind] += 1
                elif finding is not None:
                    doubtful.append((db, key))
        if doubtful or lifted:
            await settle()
        differ = await self._differing(doubtful) | await self._still_extended(lifted)
        return AtFence(counts, differ, lost, len(self._plan), unknown, ours.calls)

    async def _still_extended(self, keys: Iterable[tuple[int, bytes, Look]]) -> dict[DbKey, str]:
        """Those of which the target's expire time is not the source's yet."""
        by_db: dict[int, list[tuple[bytes, Look]]] = {}
        for db, key, ours in keys:
            by_db.setdefault(db, []).append((key, ours))
        found: dict[DbKey, str] = {}
        for db, looked in by_db.items():
            await self._select(db)
            looks = await self._theirs.look([key for key, _ in looked])
            for (key, ours), theirs in zip(looked, looks, strict=True):
                if what := judge_looks(ours, theirs):
                    found[db, key] = what
        return found

    async def _differing(self, keys: Iterable[DbKey]) -> dict[DbKey, str]:
        """What differs among these, while nothing changes."""
        by_db: dict[int, list[bytes]] = {}
        for db, key in keys:
            by_db.setdefault(db, []).append(key)
        found: dict[DbKey, str] = {}
        for db, names in by_db.items():
            await self._select(db)
            for portion in portions(names):
                findings = await compare_once(self._both, portion)
                found |= {(db, each.key): each.what for each in findings if not each.unknown}
        return found

    async def _explained(self, counts: Counts, expired: tuple[int, int]) -> Counts:
        """Whether hashes of which every field has expired are all that the counts differ by.

        `expired`: so many fields each end has let expire since `open`. Their number alone says
        enough where every name was looked up meanwhile, and found at both ends.
        """
        over = await self._over(counts.fields)
        for db, more in counts.fields.items():
            left = more - over[db]
            by_number = self._walked and -expired[0] <= left <= expired[1]
            if left and not by_number:
                return replace(counts, wrong=unexplained(db, more))
        return counts

    async def _over(self, databases: Iterable[int]) -> Counter[int]:
        """By database: how many more hashes of which every field has expired the source has than
        the target, of those that are known by name."""
        over: Counter[int] = Counter()
        if self._timed is None:
            return over
        by_db: dict[int, list[bytes]] = {}
        for db, key in dict.fromkeys(self._timed):
            by_db.setdefault(db, []).append(key)
        for db in databases:
            await self._select(db)
            for portion in portions(by_db.get(db, [])):
                looks = await asyncio.gather(self._ours.look(portion), self._theirs.look(portion))
                for key, one, two in zip(portion, *looks, strict=True):
                    what = judge_looks(one, two)
                    if what == MISSING and await self._ours.is_over(key, one):
                        over[db] += 1
                    elif what == EXTRA and await self._theirs.is_over(key, two):
                        over[db] -= 1
        return over

    async def _answers(self, side: Side, own_keys: Sequence[bytes], stray: StrayKeys) -> _Answers:
        ttl = "PEXPIRETIME" if side.able.expire_times else "PTTL"
        # 1. All that is known to be asked.
        commands: list[Command] = [("TIME",), ("INFO",), ASK_COUNTS]
        if own_keys:
            commands += [("SELECT", 0), ("EXISTS", *own_keys)]
        if self._code_at_fence:
            commands += functions_and_indexes.COMMANDS
        head = len(commands)
        commands += stray.questions
        behind_stray = len(commands)
        waiting: list[tuple[int, int, Reading, list[Command]]] = []
        places: list[tuple[int, list[Command]]] = []
        values: list[Parts | None] = [None] * len(self._plan)
        steps: list[tuple[int, int, Reading, int]] = []
        now = None
        for index, (db, key, look) in enumerate(self._plan):
            if db != now:
                commands.append(("SELECT", db))
                now = db
            places.append((len(commands), []))
            commands += [("TYPE", key), (ttl, key)]
            if look.kind == b"none":
                continue
            read = reading(look.kind, key, 0 if look.size is None else look.size, side.able)
            first = next(read)
            steps.append((index, len(commands), read, len(first)))
            commands += first
        replies = await side.end.pipeline(commands)
        looks = []
        clock = replies[0]
        for at, _ in places:
            looks.append(side.look_of(replies[at], replies[at + 1], clock))
        # 2. What follows from the answers.
        for index, at, read, count in steps:
            try:
                waiting.append(
                    (index, self._plan[index][0], read, read.send(replies[at : at + count]))
                )
            except StopIteration as stop:
                values[index] = stop.value
            except Changed:
                pass
        while waiting:
            waiting = await self._next_step(side, waiting, values)
        info = await self._info_of(side.end, replies[1])
        own = replies[4] if own_keys else 0
        code = None
        if self._code_at_fence:
            code = functions_and_indexes.read(
                replies[head - len(functions_and_indexes.COMMANDS) : head]
            )
        calls = silent_commands.calls_in(replies[2])
        own = own if isinstance(own, int) else 0
        left_out = stray.answered(replies[head:behind_stray])
        return _Answers(info, own, left_out, code, looks, values, calls)

    async def _next_step(
        self,
        side: Side,
        waiting: list[tuple[int, int, Reading, list[Command]]],
        values: list[Parts | None],
    ) -> list[tuple[int, int, Reading, list[Command]]]:
        asked: list[Command] = []
        for _, db, _, commands in waiting:
            asked += [("SELECT", db), *commands]
        replies = await side.end.pipeline(asked)
        at = 0
        going_on = []
        for index, db, read, commands in waiting:
            answers = replies[at + 1 : at + 1 + len(commands)]
            at += 1 + len(commands)
            try:
                going_on.append((index, db, read, read.send(answers)))
            except StopIteration as stop:
                values[index] = stop.value
            except Changed:
                pass
        return going_on

    # --- The ends ---

    @property
    def _both(self) -> tuple[Side, Side]:
        assert self._pair is not None, "open it first"
        return self._pair

    @property
    def _ours(self) -> Side:
        return self._both[0]

    @property
    def _theirs(self) -> Side:
        return self._both[1]

    @property
    def _source(self) -> Admin:
        return self._ours.end

    @property
    def _target(self) -> Admin:
        return self._theirs.end

    async def _select(self, db: int) -> None:
        if self._db != db:
            self._source.choose(db)
            self._target.choose(db)
            self._db = db

    def _parsed(self, end: Admin, reply: Any) -> ServerInfo:
        if isinstance(reply, EngineError):
            raise reply
        if not isinstance(reply, bytes):
            raise ProtocolFault(f"{end.name} answered INFO with no text", fault=end.fault)
        return parse_info(reply.decode("utf-8", "replace"))

    def _offset_in(self, reply: Any) -> int:
        if isinstance(reply, EngineError):
            raise reply
        return replication_in(self._source, reply).offset
