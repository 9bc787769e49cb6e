"""Which replica of a source is read (`--read-from replica`): a healthy one, looked for before each
dial, and while it is followed (`transfer.source_replica_monitor`).

    source ─▶ its primary ─▶ the primary's replicas ─▶ each is asked ─▶ the one that is fit

A replica's stream is its primary's, byte for byte and by the same offsets, under the same
replication id: what was begun at one server of a replication goes on at another by a partial sync.
So only what shares the primary's id is fit; and its link to the primary has to be up, it has to
have loaded its data, and to be near the primary's offset. Sentinels, or a cluster, that call it
failing are believed.

One that was chosen stays the choice as long as it is fit, and for `_PATIENCE_SECONDS` when it
answers and is not. Then another one is taken. The primary itself is taken where no replica is fit
and `may_read_primary` was said (a stream that was begun goes on at any price; a snapshot is not
asked of a primary that was to be spared); replicas are gone back to when one has been fit for
`_BACK_SECONDS`.

Sentinels, and a cluster, say which server is the primary. Else it is the server that was named, or
the primary above it; where that does not answer, the only server of its replication that is a
primary now. Of two primaries of one history nobody can tell which one the clients write to: none is
taken then.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from engine import logs
from engine.errors import EngineError, FaultOf, LinkError, ProtocolFault, UsageError
from engine.model.endpoint import Endpoint
from engine.model.replication import Replication, parse_replication
from engine.model.sentinel_group import node_address
from engine.model.server import ServerInfo, parse_info
from engine.wire import cluster_primary, sentinel_primary

# How long a choice holds.
_HOLDS_SECONDS = 1.0
# How long a server may take to answer, and the share of a dial's time for all of them.
_ANSWER_SECONDS = 2.0
_SHARE = 0.6
# A replica is chosen that lacks no more of its primary's stream, and left when it lacks more.
_CHOSEN_BYTES = 16 << 20
_LEFT_BYTES = 64 << 20
# As long as it has heard nothing of its primary, which sends a PING each 10 s by default.
_SILENT_SECONDS = 60
_PATIENCE_SECONDS = 3.0
_BACK_SECONDS = 10.0
# A chain that is longer is taken for one without a head; servers that are kept.
_HOPS_MOST = 8
_KNOWN_MOST = 64
_REMEDY = "Mend one of its replicas, or have the primary read: --read-from primary."
_LAST_IO = re.compile(rb"^master_last_io_seconds_ago:(\d+)", re.MULTILINE)
_log = logs.logger(__name__)
Ask = Callable[[Endpoint, Sequence[tuple[str, ...]]], Awaitable[list[Any]]]
"""Dials this very server, asks, and gives the replies; raises `EngineError`."""


class NoReplica(LinkError):
    """No replica of the source is fit to be read."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one server says of itself. `silent`: seconds since a replica heard of its primary."""

    at: Endpoint
    info: ServerInfo
    replication: Replication
    silent: int = 0

    @property
    def history(self) -> set[str]:
        return {self.replication.replid, self.replication.replid2} - {""}


@dataclass(frozen=True, slots=True)
class Choice:
    """`there` is the server that is read, and `primary` the address of its primary; `words` say
    both, and how near they are. `is_primary`: no replica is fit, and it is the primary itself;
    `why` says so of each. A cluster as a whole is any of its nodes."""

    there: Endpoint
    primary: str
    words: str
    is_primary: bool = False
    why: str = ""


@dataclass(slots=True)
class _Memory:
    choice: Choice | None = None
    at: float = float("-inf")
    # Servers of the replication, those that are no part of it any more, and its histories' ids.
    known: dict[str, None] = field(default_factory=dict)
    detached: set[str] = field(default_factory=set)
    histories: set[str] = field(default_factory=set)
    may_read_primary: bool = False
    # Since when the one that was chosen is not fit, and since when one is fit beside the primary.
    unfit_since: float | None = None
    fit_since: float | None = None


_TRANSFER: ContextVar[dict[Endpoint, _Memory] | None] = ContextVar("source_replicas", default=None)
# Outside of a transfer.
_OTHERS: dict[Endpoint, _Memory] = {}


def begin() -> None:
    """From here on this context, and the tasks that it starts, have choices of their own: none."""
    _TRANSFER.set({})


def may_read_primary(endpoint: Endpoint, allowed: bool, history: str = "") -> None:
    """Whether the primary may be read where no replica of it is fit: a stream that was begun goes
    on there. `history`: that stream's replication id, by which what has succeeded the primary is
    known; an engine that comes back while the former one is down has it from nowhere else."""
    memory = _memory(endpoint)
    memory.may_read_primary = allowed
    memory.histories |= {history} - {""}


def note(endpoint: Endpoint, addresses: Iterable[str], detached: Iterable[str] = ()) -> None:
    """These servers (`host:port`) are of the replication of `endpoint`; those that are `detached`
    were."""
    memory = _memory(endpoint)
    memory.detached.update(detached)
    for each in addresses:
        if each and len(memory.known) < _KNOWN_MOST:
            memory.known[each] = None


def chosen_last(endpoint: Endpoint) -> Choice | None:
    """What was chosen last; None: nothing yet."""
    return _memory(endpoint).choice


def named_last(endpoint: Endpoint) -> Endpoint | None:
    """The same, where it is."""
    choice = chosen_last(endpoint)
    return None if choice is None else choice.there


async def located(endpoint: Endpoint, ask: Ask, *, fault: FaultOf, timeout: float) -> Endpoint:
    """The server that is read by now. `timeout`: seconds for all of it. Raises as `look`."""
    memory = _memory(endpoint)
    if memory.choice is not None and time.monotonic() - memory.at < _HOLDS_SECONDS:
        return memory.choice.there
    return (await look(endpoint, ask, fault=fault, timeout=timeout * _SHARE)).there


async def look(endpoint: Endpoint, ask: Ask, *, fault: FaultOf, timeout: float) -> Choice:
    """Look at the source's replicas, and choose one.

    Raises `NoReplica` where none is fit, and `LinkError`, `AuthError`, `ServerError` where it is
    not known which server is the primary, or that one does not answer.
    """
    memory, limit = _memory(endpoint), min(_ANSWER_SECONDS, timeout / 2)
    plain = endpoint.of_primary
    asking = _Asking(ask, fault, limit)
    if plain.cluster is not None:
        there = await cluster_primary.primary(plain, ask, fault=fault, timeout=timeout)
        if not plain.cluster.ids:
            return Choice(there, there.address, there.address)
        primary = await asking.of(there)
        candidates, failing = _members(plain)
    elif plain.sentinel is not None:

        async def ask_one(at: Endpoint, question: tuple[str, ...]) -> Any:
            return (await ask(at, [question]))[0]

        there = await sentinel_primary.primary(plain, ask_one, fault=fault, timeout=timeout)
        primary = await asking.of(there)
        candidates = _beside(plain, primary.replication.replicas, primary.at)
        failing = await sentinel_primary.failing_replicas(plain, ask_one, limit)
    else:
        named = await asking.try_of(plain)
        if isinstance(named, _Seen) and named.info.mode == "cluster":
            # Not planned yet: its shards are.
            return Choice(plain, plain.address, plain.address)
        found = await _primary_of(plain, named, memory, asking)
        primary, failing = found, {}
        beside = _beside(plain, found.replication.replicas, found.at)
        note(endpoint, (each.address for each in beside))
        candidates = [*beside, *_beside(plain, _known(memory), plain)]
        if isinstance(named, _Seen) and named.info.is_replica:
            candidates.insert(0, plain)
    memory.histories |= primary.history
    candidates = [each for each in dict.fromkeys(candidates) if each.address != primary.at.address]
    seen = await asyncio.gather(*(asking.try_of(each) for each in candidates))
    fit: dict[str, _Seen] = {}
    unfit: dict[str, str] = {}
    before = memory.choice
    for at, one in zip(candidates, seen, strict=True):
        if isinstance(one, EngineError):
            unfit[at.address] = f"it does not answer ({one.message.removesuffix('.')})"
            continue
        if not plain.looked_up:
            _refuse_second(primary, one, memory, fault)
        stays = before is not None and before.there.address == at.address
        most = _LEFT_BYTES if stays else _CHOSEN_BYTES
        why = failing.get(at.address) or _objection(one, primary, most)
        if why:
            unfit[at.address] = why
        else:
            fit[at.address] = one
    answering = {one.at.address for one in seen if isinstance(one, _Seen)}
    choice = _choose(memory, plain, primary, fit, unfit, answering, fault)
    if before is None or before.there.address != choice.there.address:
        _log.info("Read is %s", choice.words, extra={"end": fault, "endpoint": endpoint.address})
    memory.choice, memory.at = choice, time.monotonic()
    return choice


def _choose(
    memory: _Memory,
    plain: Endpoint,
    primary: _Seen,
    fit: dict[str, _Seen],
    unfit: dict[str, str],
    answering: set[str],
    fault: FaultOf,
) -> Choice:
    now, before = time.monotonic(), memory.choice
    why = "; ".join(f"{at}: {reason}" for at, reason in unfit.items())
    if before is not None and not before.is_primary:
        address = before.there.address
        if address in fit:
            memory.unfit_since = None
            return _read(fit[address], primary)
        # (It stays so until another server is chosen, however often none is.)
        answers = address in answering or address == primary.at.address
        memory.unfit_since = memory.unfit_since or now
        if answers and now - memory.unfit_since < _PATIENCE_SECONDS:
            return before
    if before is not None and before.is_primary and memory.may_read_primary:
        memory.fit_since = (memory.fit_since or now) if fit else None
        if memory.fit_since is None or now - memory.fit_since < _BACK_SECONDS:
            return _primary(primary, why or before.why)
    memory.fit_since = None
    if fit:
        first = plain.address if plain.address in fit else ""
        # In step above all, and then the same one for everybody who looks.
        best = min(fit, key=lambda at: (at != first, _behind(fit[at], primary) >> 20, at))
        memory.unfit_since = None
        return _read(fit[best], primary)
    if memory.may_read_primary:
        memory.unfit_since = None
        return _primary(primary, why or "it has none")
    of = f"the primary {primary.at.address}"
    if not unfit:
        raise NoReplica(f"{of} has no replica that could be read.", remedy=_REMEDY, fault=fault)
    raise NoReplica(
        f"of {len(unfit)} replicas of {of} none can be read: {why}.", remedy=_REMEDY, fault=fault
    )


def _read(one: _Seen, primary: _Seen) -> Choice:
    behind, above = _behind(one, primary), primary.at.address
    words = f"{one.at.address}, a replica of {above}, {behind:,} bytes behind it"
    return Choice(one.at, above, words)


def _primary(primary: _Seen, why: str) -> Choice:
    at = primary.at.address
    return Choice(primary.at, at, f"the primary {at}: none of its replicas is fit", True, why)


def _objection(one: _Seen, primary: _Seen, most: int) -> str:
    """Why this server is not to be read; empty: it may."""
    told = one.replication
    if not told.is_replica:
        return "it is a primary"
    if one.info.loading:
        return "it is loading its data"
    if not told.primary_link_up:
        return f"its link to {told.primary} is down"
    if not (told.replid and primary.replication.replid):
        return (
            "it does not say whether its offsets are its primary's (before Redis 4.0 they are not)"
        )
    if told.replid != primary.replication.replid:
        return "it has another replication history than the primary"
    if one.silent > _SILENT_SECONDS:
        return f"it has heard nothing of {told.primary} for {one.silent} s"
    if (behind := _behind(one, primary)) > most:
        return f"it is {behind:,} bytes behind"
    return ""


def _behind(one: _Seen, primary: _Seen) -> int:
    # The primary was asked before.
    return max(primary.replication.offset - one.replication.offset, 0)


def _refuse_second(primary: _Seen, one: _Seen, memory: _Memory, fault: FaultOf) -> None:
    """Raises `LinkError` where `one` is a primary beside `primary`, of the same history."""
    told, ours = one.replication, primary.history | memory.histories
    if told.is_replica or told.replid == primary.replication.replid or not one.history & ours:
        return
    raise LinkError(
        f"{primary.at.address} and {one.at.address}, of one replication, are primaries both: which "
        "of them the applications write to is unknown.",
        remedy="Make one of them a replica of the other; for a copy that was detached on purpose "
        f"resume the migration with --source-node {one.at.address}=detached.",
        fault=fault,
    )


async def _primary_of(
    plain: Endpoint, named: _Seen | EngineError, memory: _Memory, asking: _Asking
) -> _Seen:
    """The primary of the server that was named, or what has succeeded it."""
    if isinstance(named, _Seen):
        above = named
        for _ in range(_HOPS_MOST):
            if not above.replication.is_replica:
                return above
            up = _beside(plain, [above.replication.primary], above.at)
            found = await asking.try_of(up[0]) if up else None
            if not isinstance(found, _Seen):
                break
            above = found
    known = _beside(plain, _known(memory), plain)
    others = [each for each in known if each.address != plain.address]
    seen = await asyncio.gather(*(asking.try_of(each) for each in others))
    heads = [
        one
        for one in seen
        if isinstance(one, _Seen)
        and not one.replication.is_replica
        and one.history & memory.histories
    ]
    if len(heads) == 1:
        return heads[0]
    if isinstance(named, EngineError):
        raise named
    raise LinkError(
        f"the primary {named.replication.primary} of {plain.address} does not answer, and it is "
        "not known which server has succeeded it.",
        remedy="Make it reachable from here, with the credentials of the source.",
        fault=asking.fault,
    )


class _Asking:
    """Asks servers of one replication for their INFO."""

    def __init__(self, ask: Ask, fault: FaultOf, limit: float) -> None:
        self._ask = ask
        self.fault = fault
        self._limit = limit

    async def of(self, at: Endpoint) -> _Seen:
        """What this server says of itself. Raises `LinkError`, `AuthError`, `ServerError`."""
        try:
            async with asyncio.timeout(self._limit):
                (reply,) = await self._ask(at, [("INFO",)])
        except TimeoutError:
            raise LinkError(
                f"{self.fault} {at.address} gave no answer within {self._limit:g} s",
                fault=self.fault,
            ) from None
        told = parse_replication(reply)
        if told is None:
            raise LinkError(f"{self.fault} {at.address} does not tell its role", fault=self.fault)
        try:
            info = parse_info(reply.decode("utf-8", "replace"))
        except ProtocolFault as exc:
            raise LinkError(f"{self.fault} {at.address}: {exc.message}", fault=self.fault) from None
        silent = _LAST_IO.search(reply)
        return _Seen(at, info, told, int(silent[1]) if silent else 0)

    async def try_of(self, at: Endpoint) -> _Seen | EngineError:
        """The same, or why it does not."""
        try:
            return await self.of(at)
        except EngineError as exc:
            return exc


def _memory(endpoint: Endpoint) -> _Memory:
    found = _TRANSFER.get()
    return (_OTHERS if found is None else found).setdefault(endpoint, _Memory())


def _known(memory: _Memory) -> list[str]:
    return [each for each in memory.known if each not in memory.detached]


def _beside(plain: Endpoint, addresses: Iterable[str], by: Endpoint) -> list[Endpoint]:
    """The servers at these addresses, reached as the source is. The loopback is that of the
    server `by`, which has said so."""
    found = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if sentinel_primary.is_loopback(host) and by.unix_path is None:
            host = by.host
        try:
            found.append(plain.at(host, int(port)))
        except (ValueError, UsageError):
            continue
    return found


def _members(plain: Endpoint) -> tuple[list[Endpoint], dict[str, str]]:
    """The replicas of a cluster's shard, and why some of them are failing, by their addresses."""
    shard, told = plain.cluster, cluster_primary.heard_last(plain)
    assert shard is not None
    head = None if told is None else shard.found(told)
    found: list[Endpoint] = []
    failing: dict[str, str] = {}
    for node in told.nodes if told is not None else ():
        if head is None or node.replica_of != head.id:
            continue
        if (place := shard.place_of(node)) is None:
            continue
        try:
            found.append(replace(plain.at(*place), read_only=True))
        except UsageError:
            continue
        if node.failing:
            failing[node_address(*place)] = "the cluster calls it failing"
    return found, failing
