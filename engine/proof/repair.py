"""What differs is made on the target what it is on the source: keys that were named, one by one."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from engine._native import ValueTranscoder, crc64
from engine.errors import EngineError
from engine.model.db_key import DbKey
from engine.model.losses import WORDS
from engine.model.server_capabilities import ServerCapabilities
from engine.proof.deployment import Deployment
from engine.wire.control_connection import Admin

# A payload may be long: few are under way at a time.
_KEYS_AT_ONCE = 16
_ASKED_SECONDS = 5.0
_FOOTER, _CRC = 10, 8
# From this type on the two flavours differ.
_FIRST_OWN_TYPE = 22


@dataclass(slots=True)
class Repaired:
    """What came of it: keys that were refused, by which end and why; and how many values have lost
    what, by the bit of `model.losses`, for the target does not know their form."""

    refused: dict[DbKey, str] = field(default_factory=dict)
    lost: Counter[int] = field(default_factory=Counter)
    owned: bool = False
    """It has ended early: a migration has the target."""


async def repair(
    ends: tuple[Deployment, Deployment],
    sources: Sequence[Admin],
    targets: Sequence[Admin],
    keys: Sequence[DbKey],
    owned: Callable[[], Awaitable[bool]],
) -> Repaired:
    """Store each of these keys on the target as the source has it, and remove those that it has
    not. `owned` is asked now and then, and first of all: once a migration has the target nothing
    more is written there. Raises `EngineError` where an end is gone."""
    done = Repaired()
    asked = -math.inf
    groups: dict[tuple[int, int, int], list[bytes]] = defaultdict(list)
    for db, key in keys:
        groups[db, ends[0].part_of(key), ends[1].part_of(key)].append(key)
    for (db, one, other), names in groups.items():
        source, target = sources[one], targets[other]
        await source.select(db)
        await target.select(db)
        ables = (await source.info()).capabilities, (await target.info()).capabilities
        for at in range(0, len(names), _KEYS_AT_ONCE):
            portion = names[at : at + _KEYS_AT_ONCE]
            if time.monotonic() - asked > _ASKED_SECONDS:
                done.owned = done.owned or await owned()
                asked = time.monotonic()
                await target.select(db)
            if done.owned:
                return done
            for key, why in await _repair(source, target, ables, portion, done.lost):
                done.refused[db, key] = why
    return done


async def _repair(
    source: Admin,
    target: Admin,
    ables: tuple[ServerCapabilities, ServerCapabilities],
    keys: list[bytes],
    lost: Counter[int],
) -> list[tuple[bytes, str]]:
    able = ables[1]
    # A time does not change while values come over.
    by_time = bool(ables[0].pexpiretime) and bool(able.restore_absttl)
    ask = "PEXPIRETIME" if by_time else "PTTL"
    asked = [command for key in keys for command in ((ask, key), ("DUMP", key))]
    replies = await source.pipeline(asked)
    transcoder = ValueTranscoder(able.flavour, able.known_types)
    refused: list[tuple[bytes, str]] = []
    stores: list[tuple[bytes, tuple[bytes | str | int, ...]]] = []
    for key, ttl, payload in zip(keys, replies[::2], replies[1::2], strict=True):
        failed = next((each for each in (ttl, payload) if isinstance(each, EngineError)), None)
        if failed is not None:
            refused.append((key, failed.message))
        elif payload is None:
            stores.append((key, ("DEL", key)))
        elif not _sound(payload):
            refused.append((key, "its value came damaged from the source"))
        else:
            # What is left of it; 0 is none, and one that ends this very moment has 1.
            left = max(ttl, 1) if ttl >= 0 else 0
            absolute = ("ABSTTL",) if by_time and left else ()
            known, bits = transcoder.payload(payload)
            lost.update(bit for bit in WORDS if known is not None and bits & bit)
            value = _stamped(known or payload, able)
            stores.append((key, ("RESTORE", key, left, value, "REPLACE", *absolute)))
    answers = await target.pipeline([command for _, command in stores])
    return refused + [
        (key, answer.message)
        for (key, _), answer in zip(stores, answers, strict=True)
        if isinstance(answer, EngineError)
    ]


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
