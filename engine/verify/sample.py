"""Which keys are compared: all that SCAN names, or some from all over the database."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

from engine.errors import ServerError
from engine.model.settings import TransferSettings
from engine.wire.admin import Admin, Arg

_PAGE = 1000
# Keys taken at one random place: fewer spread better, more need fewer round trips.
_AT_A_PLACE = 20
_PLACES_AT_ONCE = 25
# With a filter most places may have nothing; then SCAN goes through from the start.
_TRIES = 4


async def every_key(end: Admin, settings: TransferSettings) -> AsyncIterator[list[bytes]]:
    """Pages of the keys that match the settings' filters. SCAN may name a key twice."""
    cursor: Arg = 0
    while True:
        cursor, keys = await end.call("SCAN", cursor, "COUNT", _PAGE, *_filters(settings))
        if keys:
            yield keys
        if cursor == b"0":
            return


async def some_keys(
    end: Admin, settings: TransferSettings, wanted: int, seed: int, spread: bool
) -> list[bytes]:
    """Up to `wanted` distinct keys; with `spread` from random places, else SCAN's first ones.

    A cursor is a bucket's number with its bits reversed (dictScan, dict.c), so that any number is a
    place to begin. The same `seed` and the same tables give the same keys.
    """
    found: dict[bytes, None] = {}
    if spread:
        places = random.Random(seed)
        rounds = _TRIES * -(-wanted // (_AT_A_PLACE * _PLACES_AT_ONCE))
        for _ in range(rounds):
            replies = await end.pipeline(
                ("SCAN", places.getrandbits(48), "COUNT", _AT_A_PLACE, *_filters(settings))
                for _ in range(_PLACES_AT_ONCE)
            )
            for reply in replies:
                if isinstance(reply, ServerError):
                    raise reply
                found.update(dict.fromkeys(reply[1][:_AT_A_PLACE]))
            if len(found) >= wanted:
                return list(found)[:wanted]
    async for page in every_key(end, settings):
        found.update(dict.fromkeys(page))
        if len(found) >= wanted:
            break
    return list(found)[:wanted]


def _filters(settings: TransferSettings) -> list[Arg]:
    filters: list[Arg] = []
    if settings.match is not None:
        filters += ["MATCH", settings.match]
    if settings.key_type is not None:
        filters += ["TYPE", settings.key_type]
    return filters
