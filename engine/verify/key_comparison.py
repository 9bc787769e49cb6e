"""Keys of one database, compared: type, value, expire time.

Both ends are asked at the same time, hundreds of keys a round trip, bounded by the bytes that the
replies would have. A key that seems to differ is read again: on a live source it may have changed
between the two answers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import AuthError, EngineError, ProtocolFault
from engine.model.endpoint import Endpoint
from engine.model.hyperloglog import registers
from engine.model.server import ServerInfo
from engine.verify.value_digest import unordered
from engine.verify.value_readers import (
    HYPERLOGLOG,
    MADE_BY,
    RULES,
    WHOLE_BYTES,
    WINDOW_BYTES,
    Abilities,
    Changed,
    Command,
    Parts,
    Reading,
    reading,
)
from engine.wire.control_connection import Admin, admin

# Two expire times this far apart count as one: an older server tells the time left, not the expire
# time.
TTL_BOUND_MS = 1000
# A key this near to its expire time may be gone at one end and not yet at the other.
NEAR_MS = 2000
KEYS_AT_ONCE = 256
_BYTES_AT_ONCE = 4 << 20
# Bytes of names that go into one pipeline; each stands in several commands.
_NAMES_AT_ONCE = 1 << 20
_READ_AGAIN = 2
_PAUSE_SECONDS = 0.1

CANNOT = "cannot compare"
MISSING = "missing on the target"
EXTRA = "on the target alone"


@dataclass(frozen=True, slots=True)
class Look:
    """A key at one end: TYPE (`none` if absent), expire time in ms since 1970, MEMORY USAGE."""

    kind: bytes
    expire_at: int | None
    size: int | None


@dataclass(frozen=True, slots=True)
class Finding:
    """A key that is not the same, or (`unknown`) whose type (`kind`) cannot be compared."""

    key: bytes
    what: str
    unknown: bool = False
    kind: str = ""


class Side:
    """One end: its connection and what it can be asked. In one database at a time."""

    def __init__(self, end: Admin, able: Abilities) -> None:
        self.end = end
        self.able = able

    @classmethod
    async def open(
        cls, end: Admin, info: ServerInfo | None = None, *, followed: bool = False
    ) -> Side:
        """Learn the server's abilities, by its `info`; leave its keys' idle times alone where it
        lets us.

        `followed`: one end was fed by the other's replication.
        """
        info = info or await end.info()
        end.keep("CLIENT", "NO-TOUCH", "ON")  # Redis 7.2, Valkey
        return cls(end, Abilities.of(info, followed=followed))

    async def look(self, keys: Sequence[bytes]) -> list[Look]:
        """Type, expire time and size of each key. Raises `AuthError` where TYPE is denied."""
        ttl = "PEXPIRETIME" if self.able.expire_times else "PTTL"
        commands: list[Command] = [("TIME",)]
        for key in keys:
            commands += [("TYPE", key), (ttl, key), ("MEMORY", "USAGE", key, "SAMPLES", 64)]
        clock, *replies = await self.end.pipeline(commands)
        triples = zip(replies[::3], replies[1::3], replies[2::3], strict=True)
        return [self.look_of(kind, left, clock, size) for kind, left, size in triples]

    def look_of(self, kind: Any, left: Any, clock: Any, size: Any = None) -> Look:
        """What the replies to TYPE, PEXPIRETIME or PTTL, TIME and MEMORY USAGE say of a key.

        Raises `AuthError` where TYPE is denied.
        """
        for reply in (kind, left):
            if isinstance(reply, AuthError):
                raise reply
        if not isinstance(kind, bytes) or not isinstance(left, int):
            ttl = "PEXPIRETIME" if self.able.expire_times else "PTTL"
            raise ProtocolFault(
                f"{self.end.name} answered TYPE or {ttl} with {kind!r}, {left!r}",
                fault=self.end.fault,
            )
        expire_at = None
        if left >= 0:
            expire_at = left if self.able.expire_times else _milliseconds(clock) + left
        return Look(kind, expire_at, size if isinstance(size, int) else None)

    async def read(self, items: Sequence[tuple[bytes, Look]]) -> list[Parts | None]:
        """The parts of each value; None for one that changed while it was read.

        All readings advance together: one round trip carries the next command of each.
        """
        results: list[Parts | None] = [None] * len(items)
        waiting: list[tuple[int, Reading, list[Command]]] = []
        for index, (key, look) in enumerate(items):
            steps = reading(look.kind, key, look.size, self.able)
            try:
                waiting.append((index, steps, next(steps)))
            except StopIteration as stop:
                results[index] = stop.value
        while waiting:
            replies = iter(
                await self.end.pipeline([each for _, _, commands in waiting for each in commands])
            )
            going_on = []
            for index, steps, commands in waiting:
                answers = [next(replies) for _ in commands]
                for answer in answers:
                    if isinstance(answer, AuthError):
                        raise answer
                try:
                    going_on.append((index, steps, steps.send(answers)))
                except StopIteration as stop:
                    results[index] = stop.value
                except Changed:
                    pass
            waiting = going_on
        return results

    async def is_over(self, key: bytes, look: Look) -> bool:
        """Whether it is a hash of which nothing is left: the last field's time has passed.

        A source that is paused keeps such a key until it may write again, and shows no field of it.
        """
        if look.kind != b"hash" or not self.able.field_ttls:
            return False
        (parts,) = await self.read([(key, look)])
        return parts is not None and parts["value"] == unordered().digest()


async def differing(
    source: Endpoint, target: Endpoint, db: int, keys: Sequence[bytes]
) -> list[bytes]:
    """Those of `keys` (of database `db`) that the target does not hold as the source does.

    Missing on the target, another type, value or expire time, and types that cannot be compared.
    Keys that are gone from both ends are not among them. Raises `LinkError`, `AuthError`,
    `ServerError`.
    """
    async with (
        admin(source, db=db, fault="source") as one,
        admin(target, db=db, fault="target") as other,
    ):
        pair = (await Side.open(one), await Side.open(other))
        return [finding.key for finding in await compare(pair, keys)]


def portions(keys: Sequence[bytes]) -> Iterator[list[bytes]]:
    """`keys` in runs of `KEYS_AT_ONCE`, shorter where the names are long."""
    portion: list[bytes] = []
    size = 0
    for key in keys:
        if portion and (len(portion) >= KEYS_AT_ONCE or size + len(key) > _NAMES_AT_ONCE):
            yield portion
            portion, size = [], 0
        portion.append(key)
        size += len(key)
    if portion:
        yield portion


async def compare(pair: tuple[Side, Side], keys: Iterable[bytes]) -> list[Finding]:
    """What differs among `keys`, in the database that both connections are in."""
    found: list[Finding] = []
    distinct = list(dict.fromkeys(keys))
    for portion in portions(distinct):
        findings = await compare_once(pair, portion)
        for _ in range(_READ_AGAIN):
            if not findings:
                break
            await asyncio.sleep(_PAUSE_SECONDS)
            findings = await compare_once(pair, [finding.key for finding in findings])
        found += findings
    return found


async def compare_once(
    pair: tuple[Side, Side],
    keys: Sequence[bytes],
    extend_ms: int = 0,
    seen: dict[bytes, tuple[Look, Look]] | None = None,
) -> list[Finding]:
    """What differs among some keys, by one look at each; `extend_ms` as for `judge_looks`. `seen`
    gets the looks."""
    source, target = pair
    ours, theirs = await asyncio.gather(source.look(keys), target.look(keys))
    if seen is not None:
        seen.update(zip(keys, zip(ours, theirs, strict=True), strict=True))
    found: list[Finding] = []
    alike: list[tuple[bytes, Look, Look]] = []
    for key, one, other in zip(keys, ours, theirs, strict=True):
        what = judge_looks(one, other, extend_ms)
        if what == MISSING and await source.is_over(key, one):
            continue
        if what == EXTRA and await target.is_over(key, other):
            continue
        if what:
            found.append(Finding(key, what))
        elif one.kind != b"none" and other.kind != b"none":
            alike.append((key, one, other))
    for portion in _by_bytes(alike):
        values, others = await asyncio.gather(
            source.read([(key, one) for key, one, _ in portion]),
            target.read([(key, other) for key, _, other in portion]),
        )
        for (key, one, _), value, other_value in zip(portion, values, others, strict=True):
            finding = judge_values(key, one.kind, value, other_value)
            if finding is not None:
                found.append(finding)
    return found


def judge_looks(one: Look, other: Look, extend_ms: int = 0) -> str:
    """What differs before any value was read; empty if nothing (or both are gone).

    `extend_ms`: by so much an expire time on the target may be later than the source's.
    """
    if b"none" in (one.kind, other.kind):
        present = other if one.kind == b"none" else one
        if present.kind == b"none" or _near(present.expire_at):
            return ""
        return EXTRA if one.kind == b"none" else MISSING
    if one.kind != other.kind:
        return f"type: {_text(one.kind)} on the source, {_text(other.kind)} on the target"
    if (one.expire_at is None) != (other.expire_at is None):
        bare = "target" if other.expire_at is None else "source"
        return f"TTL: none on the {bare}"
    if one.expire_at is not None and other.expire_at is not None:
        apart = other.expire_at - one.expire_at
        if extend_ms and apart > extend_ms // 2:
            apart -= extend_ms
        if abs(apart) > TTL_BOUND_MS:
            return f"TTL: {abs(apart)} ms {'longer' if apart > 0 else 'shorter'} on the target"
    return ""


def judge_values(
    key: bytes, kind: bytes, value: Parts | None, other: Parts | None
) -> Finding | None:
    """What differs between the values of a key of one type at both ends; None if nothing does."""
    if value is None or other is None:
        return Finding(key, f"value ({_text(kind)}): it changes while it is read")
    if "dump" in value or not value:
        if value and value["dump"] == other.get("dump") and value.get(RULES) == other.get(RULES):
            return None
        if value.get(MADE_BY) and value[MADE_BY] == other.get(MADE_BY):
            return Finding(key, f"value ({_text(kind)})")
        if RULES in value and RULES in other and value[RULES] != other[RULES]:
            return Finding(key, f"{RULES} ({_text(kind)})")
        return Finding(key, f"{CANNOT}: type {_text(kind)}", True, _text(kind))
    # A part that one of the versions cannot tell is left out.
    parts = [
        name
        for name in value
        if name in other and value[name] != other[name] and name != HYPERLOGLOG
    ]
    if parts and _same_registers(value, other):
        return None
    if not parts:
        return None
    return Finding(key, f"{', '.join(parts)} ({_text(kind)})")


def _same_registers(value: Parts, other: Parts) -> bool:
    """Whether both are one HyperLogLog in other bytes."""
    if HYPERLOGLOG not in value or HYPERLOGLOG not in other:
        return False
    found = registers(value[HYPERLOGLOG])
    return found is not None and found == registers(other[HYPERLOGLOG])


def _by_bytes(items: list[tuple[bytes, Look, Look]]) -> Iterator[list[tuple[bytes, Look, Look]]]:
    """Portions whose replies have about `_BYTES_AT_ONCE` together, at each end."""
    portion: list[tuple[bytes, Look, Look]] = []
    total = 0
    for item in items:
        sizes = [WINDOW_BYTES if look.size is None else look.size for look in item[1:]]
        # What is larger than WHOLE_BYTES comes in windows.
        cost = min(max(sizes), max(WINDOW_BYTES, WHOLE_BYTES))
        if portion and total + cost > _BYTES_AT_ONCE:
            yield portion
            portion, total = [], 0
        portion.append(item)
        total += cost
    if portion:
        yield portion


def _near(expire_at: int | None) -> bool:
    return expire_at is not None and expire_at <= _milliseconds(None) + NEAR_MS


def _milliseconds(clock: Any) -> int:
    """TIME's reply in milliseconds; this machine's clock where TIME is denied."""
    if isinstance(clock, EngineError) or not isinstance(clock, list):
        return round(time.time() * 1000)
    return int(clock[0]) * 1000 + int(clock[1]) // 1000


def _text(kind: bytes) -> str:
    return kind.decode("ascii", "replace")
