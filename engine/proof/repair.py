"""What differs is made on the target what it is on the source: keys that were named, one by one."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from engine._native import ValueTranscoder, crc64
from engine.errors import EngineError
from engine.model.carried_with_loss import WORDS
from engine.model.db_key import DbKey
from engine.model.online_checkpoint import OwnKeys
from engine.model.server_capabilities import ServerCapabilities
from engine.proof.deployment import Deployment
from engine.proof.repair_long_values import LongValues, way_of_long_values
from engine.wire.control_connection import Admin

# Bytes of the longest value that is rewritten (`targets.known_forms`).
_REWRITTEN_MOST = 512 << 20
# A payload may be long: few are under way at a time.
_KEYS_AT_ONCE = 16
_ASKED_SECONDS = 5.0
_FOOTER, _CRC = 10, 8
# From this type on the two flavours differ.
_FIRST_OWN_TYPE = 22


@dataclass(slots=True)
class Repaired:
    """What came of it: keys that were refused, by which end and why; and how many values have lost
    what, by the bit of `model.carried_with_loss`, for the target does not know their form."""

    refused: dict[DbKey, str] = field(default_factory=dict)
    lost: Counter[int] = field(default_factory=Counter)
    owned: bool = False
    """It has ended early: a migration has the target."""

    def lose(self, bits: int) -> None:
        """A value has lost this."""
        self.lost.update(bit for bit in WORDS if bits & bit)


async def repair(
    ends: tuple[Deployment, Deployment],
    sources: Sequence[Admin],
    targets: Sequence[Admin],
    keys: Sequence[DbKey],
    owned: Callable[[], Awaitable[bool]],
    own: OwnKeys,
    timeout: float,
) -> Repaired:
    """Store each of these keys on the target as the source has it, and remove those that it has
    not. `owned` is asked now and then, and first of all: once a migration has the target nothing
    more is written there. `own`: the names of values that are not whole. `timeout`: seconds for
    each answer. Raises `EngineError` where an end is gone."""
    done = Repaired()
    owner = _Owner(owned, targets[0])
    groups: dict[tuple[int, int, int], list[bytes]] = defaultdict(list)
    for db, key in keys:
        groups[db, ends[0].part_of(key), ends[1].part_of(key)].append(key)
    for (db, one, other), names in groups.items():
        source, target = sources[one], targets[other]
        owner.target, owner.db = target, db
        await source.select(db)
        await target.select(db)
        ables = (await source.info()).capabilities, (await target.info()).capabilities
        long_values = await way_of_long_values(
            target, ends[1].shards[other].endpoint, ables[1], timeout, own, owner.found
        )
        for at in range(0, len(names), _KEYS_AT_ONCE):
            portion = names[at : at + _KEYS_AT_ONCE]
            if await owner.found():
                done.owned = True
                return done
            refused, longer = await _repair(source, target, ables, portion, done, long_values)
            for key, (payload, expire_at) in longer.items():
                # (One may take minutes.)
                if await owner.found():
                    done.owned = True
                    break
                if why := await long_values.store(db, key, payload, expire_at, done.lose):
                    refused.append((key, why))
            done.refused.update(((db, key), why) for key, why in refused)
    return done


@dataclass(slots=True)
class _Owner:
    """Whether a migration has the target, which is asked now and then."""

    ask: Callable[[], Awaitable[bool]]
    target: Admin
    db: int = 0
    """What is chosen at `target` behind each question."""
    _asked: float = -math.inf
    _found: bool = False

    async def found(self) -> bool:
        """As it was some seconds ago at the most. Raises `EngineError`."""
        if not self._found and time.monotonic() - self._asked > _ASKED_SECONDS:
            self._found = await self.ask()
            self._asked = time.monotonic()
            await self.target.select(self.db)
        return self._found


async def _repair(
    source: Admin,
    target: Admin,
    ables: tuple[ServerCapabilities, ServerCapabilities],
    keys: list[bytes],
    done: Repaired,
    long_values: LongValues,
) -> tuple[list[tuple[bytes, str]], dict[bytes, tuple[bytes, int]]]:
    """Those that were refused, and those that are longer than the target takes: (as the source has
    dumped it, its expire time in ms since the epoch or -1)."""
    able = ables[1]
    # A time does not change while values come over.
    by_time = bool(ables[0].pexpiretime) and bool(able.restore_absttl)
    ask = "PEXPIRETIME" if by_time else "PTTL"
    asked = [command for key in keys for command in ((ask, key), ("DUMP", key))]
    replies = await source.pipeline(asked)
    most = min(long_values.limit, _REWRITTEN_MOST)
    transcoder = ValueTranscoder(able.flavour, able.known_types, most=most)
    refused: list[tuple[bytes, str]] = []
    longer: dict[bytes, tuple[bytes, int]] = {}
    stores: list[tuple[bytes, tuple[bytes | str | int, ...]]] = []
    for key, ttl, payload in zip(keys, replies[::2], replies[1::2], strict=True):
        failed = next((each for each in (ttl, payload) if isinstance(each, EngineError)), None)
        if failed is not None:
            refused.append((key, failed.message))
        elif payload is None:
            stores.append((key, ("DEL", key)))
        elif not _sound(payload):
            refused.append((key, "the source sent a damaged value"))
        else:
            # What is left of it; 0 is none, and one that ends this very moment has 1.
            left = max(ttl, 1) if ttl >= 0 else 0
            absolute = ("ABSTTL",) if by_time and left else ()
            known, bits = transcoder.payload(payload)
            value = _stamped(known or payload, able)
            if known is None or len(value) > long_values.limit:
                longer[key] = payload, await _ends_at(target, left, by_time)
                continue
            done.lose(bits)
            stores.append((key, ("RESTORE", key, left, value, "REPLACE", *absolute)))
    answers = await target.pipeline([command for _, command in stores])
    refused += [
        (key, answer.message)
        for (key, _), answer in zip(stores, answers, strict=True)
        if isinstance(answer, EngineError)
    ]
    return refused, longer


async def _ends_at(target: Admin, left: int, by_time: bool) -> int:
    """When a key ends, in ms since the epoch; -1: never. `left`: that, or how long it has, by the
    target's clock then; 0: for ever."""
    if not left:
        return -1
    if by_time:
        return left
    seconds, micros = await target.call("TIME")
    return left + int(seconds) * 1000 + int(micros) // 1000


def _sound(payload: bytes) -> bool:
    """Whether a payload is as its server has sealed it; a CRC64 of 0 is none."""
    sealed = int.from_bytes(payload[-_CRC:], "little")
    return not sealed or sealed == crc64(payload[:-_CRC])


def _stamped(payload: bytes, able: ServerCapabilities) -> bytes:
    """The payload under a version that the target takes, where it knows the type of the value."""
    kind, version = payload[0], int.from_bytes(payload[-_FOOTER : -_FOOTER + 2], "little")
    if able.accepts_rdb_version(version) or kind not in able.known_types:
        return payload
    if kind >= _FIRST_OWN_TYPE and not able.numbers_types_as(version):
        return payload
    body = payload[:-_FOOTER] + able.footer_bounds[0].to_bytes(2, "little")
    return body + crc64(body).to_bytes(8, "little")
