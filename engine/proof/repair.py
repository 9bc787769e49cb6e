"""What differs is made on the target what it is on the source: keys that were named, one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from engine._native import ValueTranscoder, crc64
from engine.errors import EngineError
from engine.model.db_key import DbKey
from engine.model.server_capabilities import ServerCapabilities
from engine.proof.deployment import Deployment
from engine.wire.control_connection import Admin

# A payload may be long: few are under way at a time.
_KEYS_AT_ONCE = 16
_FOOTER = 10
# From this type on the two flavours differ.
_FIRST_OWN_TYPE = 22


async def repair(
    ends: tuple[Deployment, Deployment],
    sources: Sequence[Admin],
    targets: Sequence[Admin],
    keys: Sequence[DbKey],
) -> dict[DbKey, str]:
    """Store each of these keys on the target as the source has it, and remove those that it has
    not. What was refused, and why. Raises `EngineError` where an end is gone."""
    refused: dict[DbKey, str] = {}
    groups: dict[tuple[int, int, int], list[bytes]] = defaultdict(list)
    for db, key in keys:
        groups[db, ends[0].part_of(key), ends[1].part_of(key)].append(key)
    for (db, one, other), names in groups.items():
        source, target = sources[one], targets[other]
        await source.select(db)
        await target.select(db)
        able = (await target.info()).capabilities
        for at in range(0, len(names), _KEYS_AT_ONCE):
            portion = names[at : at + _KEYS_AT_ONCE]
            for key, why in await _repair(source, target, able, portion):
                refused[db, key] = why
    return refused


async def _repair(
    source: Admin, target: Admin, able: ServerCapabilities, keys: list[bytes]
) -> list[tuple[bytes, str]]:
    asked = [command for key in keys for command in (("PTTL", key), ("DUMP", key))]
    replies = await source.pipeline(asked)
    transcoder = ValueTranscoder(able.flavour, able.known_types)
    stores: list[tuple[bytes | str | int, ...]] = []
    for key, ttl, payload in zip(keys, replies[::2], replies[1::2], strict=True):
        for reply in (ttl, payload):
            if isinstance(reply, EngineError):
                raise reply
        if payload is None:
            stores.append(("DEL", key))
        else:
            # What is left of it; 0 is none, and one that ends this very moment has 1.
            left = max(ttl, 1) if ttl >= 0 else 0
            known, _ = transcoder.payload(payload)
            stores.append(("RESTORE", key, left, _stamped(known or payload, able), "REPLACE"))
    answers = await target.pipeline(stores)
    return [
        (key, answer.message)
        for key, answer in zip(keys, answers, strict=True)
        if isinstance(answer, EngineError)
    ]


def _stamped(payload: bytes, able: ServerCapabilities) -> bytes:
    """The payload under a version that the target takes, where it knows the type of the value."""
    kind, version = payload[0], int.from_bytes(payload[-_FOOTER : -_FOOTER + 2], "little")
    if able.accepts_rdb_version(version) or kind not in able.known_types:
        return payload
    if kind >= _FIRST_OWN_TYPE and not able.numbers_types_as(version):
        return payload
    body = payload[:-_FOOTER] + able.footer_bounds[0].to_bytes(2, "little")
    return body + crc64(body).to_bytes(8, "little")
