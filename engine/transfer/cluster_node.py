"""A node of a cluster, which is asked what it knows of the whole."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Sequence

from engine.errors import EngineError, LinkError, ServerError
from engine.model.cluster_topology import Topology
from engine.model.endpoint import Endpoint
from engine.model.slots import SlotSet
from engine.transfer.control_connections import Side
from engine.wire import cluster_primary
from engine.wire.control_connection import Admin, admin

_STATE = ("CLUSTER", "INFO")
_SLOT_MIGRATIONS = ("CLUSTER", "GETSLOTMIGRATIONS")
# The times of PING and PONG in a line of CLUSTER NODES: they change all the time.
_TIMES = re.compile(rb"(?<= )\d+ \d+(?= \d+ (?:dis)?connected)")
_OVER = frozenset({b"success", b"failed", b"cancelled", b"canceled"})


class ClusterNode:
    """A node that is asked again and again, over one connection while that stands."""

    def __init__(self, at: Endpoint, side: Side, timeout: float) -> None:
        """`timeout`: seconds for all that it is asked at once."""
        self._at = at
        self.place = at.host, at.port
        """Where it is reached."""
        self._side = side
        self._timeout = timeout
        self._stack = contextlib.AsyncExitStack()
        self._end: Admin | None = None
        self._closing: asyncio.Task[None] | None = None
        self._knows_migrations = True
        # What it said last, as it said it, and what that comes to.
        self._said: Sequence[object] = ()
        self._told: Topology | None = None
        self.under_way: set[int] = set()
        """Slots of migrations that it has under way (Valkey 9)."""
        self.refuses = False
        """It says that the cluster is not whole (`cluster_state`), and so refuses what it is
        asked."""

    async def ask(self) -> Topology | EngineError:
        """What it tells; or why it does not."""
        try:
            async with asyncio.timeout(self._timeout):
                if self._end is None:
                    opening = admin(
                        self._at, timeout=self._timeout, fault=self._side, straight=True
                    )
                    self._end = await self._stack.enter_async_context(opening)
                more = [_STATE, *([_SLOT_MIGRATIONS] if self._knows_migrations else [])]
                slots, nodes, state, *migrations = await self._end.pipeline(
                    [*cluster_primary.QUESTIONS, *more]
                )
                if isinstance(slots, EngineError) or isinstance(nodes, EngineError):
                    # What passes by itself (LOADING, say) is waited for.
                    slots, nodes = await self._end.ask(*cluster_primary.QUESTIONS)
            self._note(state, migrations)
            return self._read([slots, nodes])
        except TimeoutError:
            await self.close()
            return LinkError(
                f"{self._at.address} gave no answer within {self._timeout:g} s",
                fault=self._side,
            )
        except EngineError as exc:
            await self.close()
            return exc

    def _read(self, replies: Sequence[object]) -> Topology:
        """The very object of the last time, where nothing has changed since: to read a large
        cluster from each of its nodes every second takes its time."""
        said = [_TIMES.sub(b"", each) if isinstance(each, bytes) else each for each in replies]
        if self._told is None or said != self._said:
            self._told = cluster_primary.read(self._at, replies)
            self._said = said
        return self._told

    def _note(self, state: object, migrations: Sequence[object]) -> None:
        self.under_way = set()
        self.refuses = isinstance(state, bytes) and b"cluster_state:fail" in state
        for reply in migrations:
            if isinstance(reply, ServerError):
                self._knows_migrations = False
            elif isinstance(reply, list):
                self.under_way = {slot for job in reply for slot in _slots_under_way(job)}

    async def close(self) -> None:
        """Let go of its connection."""
        self._end = None
        with contextlib.suppress(EngineError):
            await self._stack.aclose()

    def let_go(self) -> None:
        """The same, beside what goes on."""
        self._closing = asyncio.ensure_future(self.close())


def _slots_under_way(job: object) -> SlotSet:
    """Of an entry of CLUSTER GETSLOTMIGRATIONS (a flat list of names and values)."""
    if not isinstance(job, list):
        return SlotSet()
    fields = dict(zip(job[::2], job[1::2], strict=False))
    state, ranges = fields.get(b"state"), fields.get(b"slot_ranges")
    if not isinstance(state, bytes) or not isinstance(ranges, bytes) or state.lower() in _OVER:
        return SlotSet()
    found: set[int] = set()
    for part in ranges.decode("ascii", "replace").replace(",", " ").split():
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            found.update(range(int(first), min(int(last or first), 16383) + 1))
    return SlotSet.of(found)
