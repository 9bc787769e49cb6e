"""The scan source: SCAN names the keys, PTTL/PEXPIRETIME and DUMP or MGET fetch them.

For sources that refuse PSYNC. SCAN promises every key that is there from its start to its end; a
key that comes or goes meanwhile may be missed, or named and gone, and later writes are not
followed. The source is only read.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncGenerator
from typing import cast

from engine import logs
from engine._native import RecordBatch, ScanPipeline
from engine.errors import EngineError, LinkError, ServerError
from engine.model.endpoint import Endpoint
from engine.model.modules import GRAPH_MODULE
from engine.model.position import ScanPosition
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.model.throttle import Flow
from engine.sources.base import Item
from engine.sources.fetch_depth import Pace
from engine.sources.mget_or_dump import FetchPolicy
from engine.sources.scan_ranges import in_table_order, ranges
from engine.wire.bulk_limit import DEFAULT_BULK_LIMIT
from engine.wire.connection import Connection, answered, unless_refused
from engine.wire.dial import dial_and_ask
from engine.wire.info_command import info_in

_log = logs.logger(__name__)
# With this many bytes or fewer a read was hardly worth its wake-up: let more come together. While
# more than half of the depth is under way nothing waits for us.
_REST_BELOW = 64 << 10
_REST_SECONDS = 0.002
# Bytes of names that wait for their values; above it no further page is asked for.
_QUEUED_BYTES = 8 << 20
# Between two SCANs, where several are under way: the source's other clients are served meanwhile.
_SCAN_SECONDS = 0.0015
# What a reply has of a name beside the name itself, at the least: `$1`, and the ends of two lines.
_NAME_FRAME = 6
# Keys of one SCAN while a throttle bounds what is asked for.
_COUNT_SLOW = 256
# A batch that fills slowly (a distant source, few keys that match) is handed on after so long.
_LINGER_SECONDS = 0.5
# Finished batches that wait to be taken; above it nothing more is read from the source.
_READY_LIMIT = 4


class ScanSource:
    """`Source` by SCAN."""

    paces = True

    def __init__(self, endpoint: Endpoint, settings: TransferSettings, throttle: Flow) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._throttle = throttle
        self.bulk_limit = DEFAULT_BULK_LIMIT
        """Bytes of the longest value that the target takes in one argument."""
        self._connection: Connection | None = None
        # The database that is chosen there.
        self._db = 0
        self._start: ScanPosition | None = None
        self._done: list[int] = []
        self._databases: list[int] = []
        self._ttl = "pexpiretime"
        self._access: str | None = None
        self._mget = False
        self._in_order = True
        self.excluded = 0
        """Keys that SCAN has named and the rules leave; SCAN may name one twice."""
        self.info: ServerInfo = cast(ServerInfo, None)

    @property
    def telemetry(self) -> bool:
        """Whether the server has FalkorDB."""
        return GRAPH_MODULE in self.info.modules

    @property
    def total_keys(self) -> int:
        """Keys in the chosen databases when the source was opened, but for those that were left by
        the rules since."""
        takes_db = self._settings.takes_db
        keys = sum(entry.keys for entry in self.info.keyspace if takes_db(entry.db))
        return max(keys - self.excluded, 0)

    async def open(self, position: ScanPosition | None) -> None:
        """Dial, learn what the server can do, and choose the databases behind `position`."""
        connection, (info, _, no_touch, expire_time) = await dial_and_ask(
            self._endpoint,
            [
                ("INFO",),
                # Not to be evicted as a large client; not to touch the keys' idle time and
                # counters.
                ("CLIENT", "NO-EVICT", "on"),
                ("CLIENT", "NO-TOUCH", "on"),
                ("PEXPIRETIME", "startmigration:no-such-key"),
            ],
            fault="source",
            timeout=self._settings.connect_timeout,
        )
        self._connection, self._db = connection, 0
        self.info = info_in(connection, answered(info))
        if self.info.loading:
            connection.close()
            raise ServerError(
                f"{connection.name} is loading its data", code="LOADING", fault="source"
            )
        extra = {"end": "source", "server": self.info.name, "run_id": self.info.run_id}
        _log.info("Connected to the source, to scan it", extra=extra)
        untouched = unless_refused(no_touch) is not None
        # PEXPIRETIME (7.0) gives the expire time itself; PTTL is anchored to TIME.
        self._ttl = "pttl" if isinstance(expire_time, EngineError) else "pexpiretime"
        policy = self.info.maxmemory_policy
        self._access = (
            "idletime" if policy.endswith("-lru") else "freq" if policy.endswith("-lfu") else None
        )
        self._mget = self._access is None or untouched
        if position is not None and not self.continues(position):
            position = None
        self._start = position
        self._done = list(position.done) if position else []
        chosen = self._settings.databases
        numbers = [entry.db for entry in self.info.keyspace] if chosen is None else list(chosen)
        wanted = [db for db in sorted(set(numbers)) if self._settings.takes_db(db)]
        self._databases = [db for db in wanted if db not in self._done]
        if position is not None and position.db in self._databases:
            self._databases.remove(position.db)
            self._databases.insert(0, position.db)

    def continues(self, position: ScanPosition) -> bool:
        """Whether the position's cursor means anything to the process that answers now."""
        ordered = self._in_order or not position.ranges
        return ordered and bool(position.run_id) and position.run_id == self.info.run_id

    async def items(self) -> AsyncGenerator[Item, None]:
        """Every database in turn; each ends with a batch whose `last` is set."""
        assert self._connection is not None
        for db in self._databases:
            if db != self._db:
                await self._connection.call("SELECT", db)
                self._db = db
            parts = self._ranges(db)
            scan = _DatabaseScan(
                self._connection,
                self._pipeline(db, parts),
                self._settings,
                self._fetch_policy(db),
                self._throttle,
                parts=len(parts),
            )
            try:
                while True:
                    before = scan.excluded
                    items = await self._next(scan)
                    self.excluded += scan.excluded - before
                    if not items:
                        break
                    for item in items:
                        yield item
            finally:
                scan.end()
            if self._connection.lost is not None:
                raise self._connection.lost

    async def _next(self, scan: _DatabaseScan) -> list[Item]:
        """The scan's next items. Raises `LinkError` where it has to begin anew, in one range."""
        try:
            return await scan.next_items()
        except ServerError:
            if not scan.disordered:
                raise
        self._in_order = False
        assert self._connection is not None
        raise LinkError(
            f"{self._connection.name}: the cursors of SCAN are not those of one table. The scan "
            "begins anew, with one page at a time.",
            fault="source",
        )

    def _ranges(self, db: int) -> list[tuple[int, int]]:
        """What of the database is to be scanned: from where to where (0: its end)."""
        start = self._start if self._start is not None and self._start.db == db else None
        if start is not None and start.ranges:
            return list(start.ranges)
        cursor = start.cursor if start is not None else 0
        if not (self._in_order and in_table_order(self.info)):
            return [(cursor, 0)]
        assert self._connection is not None
        return ranges(cursor, self._keys(db), self._connection.round_trip)

    def _keys(self, db: int) -> int:
        return sum(entry.keys for entry in self.info.keyspace if entry.db == db)

    def _pipeline(self, db: int, parts: list[tuple[int, int]]) -> ScanPipeline:
        return ScanPipeline(
            db,
            ranges=parts,
            keys=self._keys(db),
            ttl=self._ttl,
            access=self._access,
            batch_bytes=self._settings.batch_bytes,
            stream_above=min(self._settings.stream_above, self.bulk_limit),
            value_limit=self.bulk_limit,
            made_limit=self._settings.spool_bytes,
            rules=self._settings.key_rules,
            flavour=self.info.flavour,
        )

    def _fetch_policy(self, db: int) -> FetchPolicy:
        # A fork's counts and their order are not those of the servers that the proof is about.
        return FetchPolicy(
            mget=self._mget,
            strings=self._settings.key_type == "string",
            unexpiring=not self.info.fork
            and any(entry.db == db and not entry.expires for entry in self.info.keyspace),
            batch_bytes=self._settings.batch_bytes,
        )

    def position_after(self, batch: RecordBatch) -> ScanPosition | None:
        """SCAN's cursor, or the start of what comes behind a finished database."""
        if batch.last:
            self._done.append(batch.db)
            return ScanPosition(self.info.run_id, batch.db, 0, tuple(self._done))
        if batch.ranges:
            return ScanPosition(self.info.run_id, batch.db, 0, tuple(self._done), batch.ranges)
        if not batch.cursor:
            return None
        return ScanPosition(self.info.run_id, batch.db, batch.cursor, tuple(self._done))

    async def close(self) -> None:
        """Let go of the connection."""
        if self._connection is not None:
            self._connection.close()


class _DatabaseScan:
    """One pipeline over one connection, kept full."""

    def __init__(
        self,
        connection: Connection,
        pipeline: ScanPipeline,
        settings: TransferSettings,
        fetch_policy: FetchPolicy,
        throttle: Flow,
        *,
        parts: int,
    ) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._fetch_policy = fetch_policy
        self._chooses = settings.chooses_keys
        self._throttle = throttle
        throttle.on_change = self._ask_again
        # When more may be asked for, and what was received until it was last counted.
        self._due_timer: asyncio.TimerHandle | None = None
        self._counted = 0
        self._match = settings.scan_match
        self._key_type = settings.key_type
        self._clock = asyncio.get_running_loop().time
        self._ranged = parts > 1
        self._pace = Pace(connection.round_trip, self._ranged)
        # Of how many ranges the first page is asked for, and was.
        self._parts = parts
        self._first_pages = 0
        # Names that the rules left, and their bytes, as of the last look at how long names are.
        self._excluded = (0, 0)
        self._scan_timer: asyncio.TimerHandle | None = None
        # When the next page is due.
        self._scan_at = 0.0
        self._ready: deque[Item] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._flushed = False
        self._handed_on = self._clock()
        # The sample under way: answered when this many keys are.
        self._sample_at = 0
        self._sample_began = 0.0
        self._sample_depth = 0
        self._sample_from = (0, 0)
        connection.take_over(pipeline, self._on_ready, self._on_lost)
        connection.watch(self._owed, settings.io_timeout)
        self._top_up()

    async def next_items(self) -> list[Item]:
        """Finished batches and pieces, at least one; an empty list at the database's end."""
        while True:
            items = self._pipeline.take()
            if items:
                self._handed_on = self._clock()
                self._connection.resume_reading()
                return items
            if self._connection.lost is not None:
                raise self._connection.lost
            if self._pipeline.finished:
                if self._flushed:
                    return []
                self._flushed = True
                self._pipeline.flush(last=True)
                continue
            if self._pipeline.may_flush and self._clock() - self._handed_on > _LINGER_SECONDS:
                self._pipeline.flush()
                continue
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(_LINGER_SECONDS, self._wake)
            await self._waiter
            timer.cancel()

    @property
    def excluded(self) -> int:
        """Keys that the rules left."""
        return self._pipeline.excluded

    @property
    def disordered(self) -> bool:
        """Whether the source's cursors are not in the order that ranges need."""
        return self._pipeline.disordered

    def end(self) -> None:
        """Give the connection back; unless the database was read to its end, it is closed."""
        self._throttle.on_change = lambda: None
        for timer in (self._scan_timer, self._due_timer):
            if timer is not None:
                timer.cancel()
        if self._flushed:
            self._connection.release()
        else:
            self._connection.close()

    def _owed(self) -> bool:
        return self._pipeline.owed

    def _on_ready(self, ready: int) -> None:
        self._top_up()
        if self._connection.last_read < _REST_BELOW:
            pipeline = self._pipeline
            if pipeline.outstanding > self._pace.low and not self._connection.lost:
                self._connection.rest(_REST_SECONDS)
        if ready:
            if ready >= _READY_LIMIT:
                self._connection.pause_reading()
            self._wake()
        elif self._pipeline.finished:
            self._wake()

    def _on_lost(self, _: EngineError) -> None:
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _top_up(self) -> None:
        """Keep SCAN ahead of the values, and the values ahead of the source."""
        pipeline, pace = self._pipeline, self._pace
        if pipeline.answered >= self._sample_at > 0:
            self._end_sample()
        self._count()
        if not self._throttle.free:
            self._top_up_slowly()
            return
        if self._ranged:
            self._scan_ranges()
        elif self._roomy() and pipeline.may_scan:
            self._scan(dry=not pipeline.outstanding and not pipeline.queued)
        if pipeline.queued and pipeline.outstanding <= pace.low:
            self._fetch_policy.look(pipeline)
            before = pipeline.queued
            while pipeline.queued and self._ask(pace.depth - pipeline.outstanding):
                pass
            self._throttle.passed(before - pipeline.queued, 0)
            if not self._sample_at:
                self._begin_sample()

    def _top_up_slowly(self) -> None:
        """The same as the throttle lets it: a few keys, and the next ones when they are due."""
        pipeline, throttle = self._pipeline, self._throttle
        if self._connection.lost or throttle.paused:
            return
        # (Pages are short: the source serves nobody else while it makes one.)
        wants_page = not pipeline.scanning and self._roomy() and pipeline.may_scan
        if wants_page and not (self._chooses and throttle.due):
            count = min(self._pace.count(False), _COUNT_SLOW)
            self._connection.write(pipeline.request_scan(count, self._match, self._key_type))
            if self._chooses:
                # Few of the keys that it goes by may be named.
                throttle.passed(count, 0)
                wants_page = False
        if pipeline.queued:
            self._fetch_policy.look(pipeline)
        while pipeline.queued:
            key_bytes = pipeline.bytes_received / pipeline.answered if pipeline.answered else 0.0
            most = min(self._pace.depth - pipeline.outstanding, pipeline.queued)
            some = throttle.keys_now(most, key_bytes) if most > 0 else 0
            before = pipeline.queued
            if not self._ask(some):
                break
            throttle.passed(before - pipeline.queued, 0)
        due = throttle.due
        waits = pipeline.queued or (wants_page and self._chooses)
        # (No answer is going to wake it where nothing was asked for. It may be due by now, and was
        # not when it was looked above.)
        silent = not (pipeline.outstanding or pipeline.scanning)
        if waits and (due or silent) and due < math.inf and self._due_timer is None:
            # uvloop's timers are of whole milliseconds: less than half of one is none.
            loop = asyncio.get_running_loop()
            self._due_timer = loop.call_later(max(due, 0.001), self._ask_again)
        if pipeline.outstanding and not self._sample_at:
            self._begin_sample()

    def _ask_again(self) -> None:
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
        if not self._connection.lost:
            self._top_up()

    def _count(self) -> None:
        """Tell the throttle what was received; how long it would be was not known before."""
        received = self._pipeline.bytes_received
        if received > self._counted:
            self._throttle.passed(0, received - self._counted)
            self._counted = received

    def _roomy(self) -> bool:
        pipeline = self._pipeline
        few = self._pace.roomy(pipeline.queued, pipeline.scanning)
        return few and pipeline.queued_bytes < _QUEUED_BYTES

    def _scan(self, dry: bool = False) -> None:
        request = self._pipeline.request_scan(self._pace.count(dry), self._match, self._key_type)
        self._connection.write(request)

    def _scan_ranges(self) -> None:
        """Ask for a page of the next range, if it is time, and see to it that the next is asked
        for in time."""
        pipeline, pace = self._pipeline, self._pace
        if not pipeline.may_scan:
            return
        # How long names are is known from the first pages, which are small: of all ranges at once.
        # Where they name none (few keys match), the next ones grow as usual.
        if not pipeline.named and self._first_pages < self._parts:
            while self._first_pages < self._parts and pipeline.may_scan:
                if self._connection.lost:
                    return
                self._first_pages += 1
                self._connection.write(
                    pipeline.request_scan(pace.first_count, self._match, self._key_type)
                )
            return
        self._look_at_names()
        # One that was not asked for in time is made good: timers and turns of the loop come late.
        now = time.monotonic()
        self._scan_at = max(self._scan_at, now - _SCAN_SECONDS)
        while self._roomy() and pipeline.may_scan and not self._connection.lost:
            if self._scan_at > now:
                if self._scan_timer is None:
                    # uvloop's timers are of whole milliseconds: less than half of one is none.
                    seconds = max(self._scan_at - now, 0.001)
                    loop = asyncio.get_running_loop()
                    self._scan_timer = loop.call_later(seconds, self._scan_again)
                return
            self._scan()
            self._scan_at += _SCAN_SECONDS

    def _scan_again(self) -> None:
        self._scan_timer = None
        self._top_up()

    def _ask(self, most: int) -> bool:
        """Ask for the next run of values, at the most so many; False: no more for now."""
        if most <= 0:
            return False
        run = self._fetch_policy.without_ttl()
        request = self._pipeline.request_values(
            min(most, run) if run else most, mget=self._fetch_policy.mget, without_ttl=run > 0
        )
        self._connection.write(request)
        return bool(request)

    def _begin_sample(self) -> None:
        pipeline = self._pipeline
        self._sample_depth = pipeline.outstanding
        self._sample_at = pipeline.answered + pipeline.outstanding
        self._sample_from = (pipeline.answered, self._value_bytes)
        self._sample_began = self._clock()

    def _end_sample(self) -> None:
        pipeline = self._pipeline
        keys, received = self._sample_from
        self._pace.answered(
            self._sample_depth,
            self._clock() - self._sample_began,
            pipeline.answered - keys,
            self._value_bytes - received,
        )
        self._look_at_names()
        self._sample_at = 0

    @property
    def _value_bytes(self) -> int:
        """Bytes that came in answer to questions for values: all but the names."""
        pipeline = self._pipeline
        named = pipeline.named_bytes + pipeline.named * _NAME_FRAME
        return max(pipeline.bytes_received - named, 0)

    def _look_at_names(self) -> None:
        """How long they are says how many a page may name."""
        pipeline = self._pipeline
        keys, nbytes = self._excluded
        self._excluded = pipeline.excluded, pipeline.excluded_bytes
        self._pace.page(
            pipeline.waiting + pipeline.excluded - keys,
            pipeline.queued_bytes + pipeline.excluded_bytes - nbytes,
        )
