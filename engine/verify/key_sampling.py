"""Which keys are compared: all that SCAN names, or some from all over the database."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from engine.errors import ServerError
from engine.model.settings import TransferSettings
from engine.wire.control_connection import Admin, Arg

# Pages begin small, for names may be long, and grow by so much: far away each one is a wait.
_FIRST_PAGE = 50
# A table of so few keys is one page.
_FEW_KEYS = 128
_GROWTH = 8
_PAGE = 2000
# The same where other places are walked beside it: a server answers no one else meanwhile.
_PAGE_OF_MANY = 500
# Bytes of names in one page, and in a sample: names of megabytes make both short.
_PAGE_BYTES = 4 << 20
_SAMPLE_BYTES = 16 << 20
# Keys taken at one random place: fewer spread better, more need fewer round trips.
_AT_A_PLACE = 20
_PLACES_AT_ONCE = 25
# With a filter most places may have nothing; then SCAN goes through from the start.
_TRIES = 4


class Pages:
    """Goes through the keys that match the settings' filters, a page at a time, from the cursor
    `start` on, with so many others `beside` it. `keys`: how many there are; None: not known."""

    def __init__(
        self,
        settings: TransferSettings,
        start: int = 0,
        beside: int = 0,
        keys: int | None = None,
    ) -> None:
        self._filters = _filters(settings)
        self.cursor = start
        """Where the next page begins."""
        few = keys is not None and keys <= _FEW_KEYS
        # A table has up to twice as many places as keys.
        self._count = 2 * _FEW_KEYS if few else _FIRST_PAGE
        self._most = _PAGE_OF_MANY if beside else _PAGE
        self._most_bytes = _PAGE_BYTES // (1 + beside)
        self.over = False
        """The page that was taken is the last."""

    def command(self) -> tuple[Arg, ...]:
        """What asks for the next page."""
        return ("SCAN", self.cursor, "COUNT", self._count, *self._filters)

    def take(self, reply: Any) -> list[bytes]:
        """The keys of a reply to it. SCAN may name a key twice."""
        keys: list[bytes]
        cursor, keys = reply
        self.pass_page(int(cursor), len(keys), _bytes(keys))
        return keys

    def pass_page(self, cursor: int, keys: int, nbytes: int) -> None:
        """A page was taken: where the next one begins, its keys, and the bytes of their names."""
        self.cursor = cursor
        self._count = min(self._count * _GROWTH, self._most)
        if keys:
            self._count = max(min(self._count, self._most_bytes // max(nbytes // keys, 1)), 1)
        self.over = cursor == 0


async def every_key(
    end: Admin, settings: TransferSettings, keys: int | None = None
) -> AsyncIterator[list[bytes]]:
    """Pages of the keys that match the settings' filters, of so many `keys` (None: not known). SCAN
    may name a key twice."""
    pages = Pages(settings, keys=keys)
    while not pages.over:
        if page := pages.take(await end.call(*pages.command())):
            yield page


async def some_keys(
    end: Admin,
    settings: TransferSettings,
    wanted: int,
    seed: int,
    spread: bool,
    among: Callable[[list[bytes]], list[bytes]] | None = None,
    keys: int | None = None,
) -> list[bytes]:
    """Up to `wanted` distinct keys; with `spread` from random places, else SCAN's first ones.
    `among`: gives those of a page that are wanted at all. `keys`: how many there are, if known.

    A cursor is a bucket's number with its bits reversed (dictScan, dict.c), so that any number is a
    place to begin. The same `seed` and the same tables give the same keys.
    """
    found: dict[bytes, None] = {}
    if spread:
        places = random.Random(seed)
        rounds = _TRIES * -(-wanted // (_AT_A_PLACE * _PLACES_AT_ONCE))
        # One place first, to see how long the names are.
        at_once = 1
        for _ in range(rounds + 1):
            replies = await end.pipeline(
                ("SCAN", places.getrandbits(48), "COUNT", _AT_A_PLACE, *_filters(settings))
                for _ in range(at_once)
            )
            for reply in replies:
                if isinstance(reply, ServerError):
                    raise reply
                page = reply[1][:_AT_A_PLACE]
                found.update(dict.fromkeys(among(page) if among is not None else page))
            if len(found) >= wanted or _bytes(found) > _SAMPLE_BYTES:
                return list(found)[:wanted]
            if found:
                room = _PAGE_BYTES // max(_bytes(found) // len(found), 1)
                at_once = max(min(_PLACES_AT_ONCE, room // _AT_A_PLACE), 1)
    async for page in every_key(end, settings, keys):
        found.update(dict.fromkeys(among(page) if among is not None else page))
        if len(found) >= wanted or _bytes(found) > _SAMPLE_BYTES:
            break
    return list(found)[:wanted]


def _bytes(names: Iterable[bytes]) -> int:
    return sum(map(len, names))


def _filters(settings: TransferSettings) -> list[Arg]:
    filters: list[Arg] = []
    if (match := settings.scan_match) is not None:
        filters += ["MATCH", match]
    if settings.key_type is not None:
        filters += ["TYPE", settings.key_type]
    return filters
