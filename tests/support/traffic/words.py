"""What random commands are made of: names of keys, fields, members, ids; values; moments.

Names come from small pools and carry their type's letter, so that commands meet keys of their own
type, and each other, all the time. For a cluster each name is there once for each hash tag.
"""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

POOL = {
    "s": 30,  # strings
    "n": 16,  # strings that are whole numbers
    "f": 4,  # strings that are numbers
    "b": 8,  # bitmaps
    "p": 8,  # HyperLogLogs
    "l": 28,  # lists
    "e": 26,  # sets
    "z": 24,  # sorted sets
    "y": 6,  # sorted sets whose members have all the same score
    "g": 8,  # sorted sets with places in them
    "h": 32,  # hashes
    "x": 10,  # streams
}
"""Names a database, by letter: 200 of them, and a large one for some."""

LARGE = {"s": b"s:big", "l": b"l:big", "e": b"e:big", "z": b"z:big", "h": b"h:big"}
LARGE_ITEMS = 2_000
LARGE_BYTES = 200_000

LETTERS = {
    "string": "s",
    "bitmap": "b",
    "hyperloglog": "p",
    "list": "l",
    "set": "e",
    "sorted-set": "z",
    "geo": "g",
    "hash": "h",
    "stream": "x",
}
"""A command's group (as COMMAND DOCS names it) to the letter of the keys that it goes for."""

ANY_TYPE = 0.15
"""How often a command gets a key of whatever type."""

ANY_TYPE_OVERWRITTEN = 0.03
"""The same for what overwrites any type: more, and no key would keep its own type for long."""

AUTOMATIC = b"16"
"""Keys with these last letters get their stream ids from the server's clock."""

HOT = 0.6
HOT_KEYS = 4
"""How often a key is one of its letter's first few, so that there is much in these."""

SHORT_TTL = 0.3
"""How often a TTL is short (0.2 to 5 s): more, and there would soon be no key left."""


class Words:
    """Random words from one `random.Random`; `now` gives Unix time in seconds.

    With `tags` each name gets the hash tag `tag`, until `retag`; `apart`: each one of its own.
    """

    def __init__(
        self, rng: random.Random, now: Callable[[], float], tags: Sequence[bytes] = ()
    ) -> None:
        self.rng = rng
        self.now = now
        self.tags = tuple(tags)
        self.tag = self.tags[0] if self.tags else b""
        self.apart = False
        self.any_type = ANY_TYPE
        self.db = 0
        self.keys = {
            letter: [
                *(b"%s:%d" % (letter.encode(), n) for n in range(count)),
                *([LARGE[letter]] if letter in LARGE else []),
            ]
            for letter, count in POOL.items()
        }
        # A range by name among different scores is whatever the skip list's chance makes of it,
        # and comes out otherwise on a replica: only what keeps the score goes for these.
        self.any_keys = [key for letter in POOL if letter != "y" for key in self.keys[letter]]
        self._letters = [key[:1].decode() for key in self.any_keys]  # as often as it has names
        # A stream takes growing ids only; one counter for all of them survives RENAME and COPY.
        self._last_id = 0
        self._entries = 0
        self._ids: dict[tuple[int, bytes], deque[bytes]] = defaultdict(lambda: deque(maxlen=15))

    # Names.

    def key(self, letter: str | None) -> bytes:
        """A key's name: of this letter's, most of the time."""
        rng = self.rng
        if letter is None or (letter != "y" and rng.random() < self.any_type):
            letter = rng.choice(self._letters)
        keys = self.keys[letter]
        return self.tagged(
            keys[rng.randrange(HOT_KEYS)] if rng.random() < HOT else rng.choice(keys)
        )

    def tagged(self, name: bytes) -> bytes:
        """The name with the hash tag of now, if there are any: `s:{tag}7`."""
        if not self.tags:
            return name
        tag = self.rng.choice(self.tags) if self.apart else self.tag
        return b"%b{%b}%b" % (name[:2], tag, name[2:])

    def retag(self, apart: float = 0.0) -> None:
        """Draw the hash tag for what goes together next. `apart`: how often there is none."""
        if self.tags:
            self.tag = self.rng.choice(self.tags)
            self.apart = self.rng.random() < apart

    def field(self, kind: str = "") -> bytes:
        """A hash's field: `c` fields hold whole numbers, `d` numbers, `f` anything."""
        return b"%s%d" % ((kind or self.rng.choice("ffffcd")).encode(), self.rng.randrange(10))

    def member(self) -> bytes:
        """A member of a set."""
        return b"m%d" % self.rng.randrange(30)

    def value(self) -> bytes:
        """A value: often a number, often some bytes, now and then some kilobytes."""
        rng = self.rng
        dice = rng.random()
        if dice < 0.35:
            return b"%d" % rng.randrange(-1000, 1000)
        if dice < 0.60:
            return b"v%d" % rng.randrange(10_000)
        if dice < 0.62:
            return b""
        if dice < 0.65:
            return b"\r\n*1\r\n$4\r\nPING\r\n" * rng.randrange(1, 4)
        if dice < 0.98:
            return rng.randbytes(rng.randrange(1, 120))
        return rng.randbytes(rng.randrange(1_000, 6_000))

    def number(self) -> bytes:
        """A number with decimals that every version writes the same way."""
        return b"%g" % (self.rng.randrange(-400, 400) / 4)

    # Streams.

    def new_id(self, key: bytes) -> bytes:
        """An id for XADD: of the server's clock for some keys, one of our own for the others."""
        if key[-1:] in AUTOMATIC:
            return b"*"
        self._last_id += 1
        found = b"%d-%d" % (self._last_id, self.rng.randrange(3))
        self._ids[self.db, key].append(found)
        return found

    def later_id(self, key: bytes) -> bytes:
        """An id for XSETID: later than the stream's last, and out of no XADD's reach."""
        if key[-1:] in AUTOMATIC:
            return b"%d-0" % (int(self.now() * 1000) + 1)
        self._last_id += 1
        return b"%d-0" % self._last_id

    def more_entries(self) -> bytes:
        """A count for XSETID: more than any stream has had added by now, so that no group has read
        more than that."""
        self._entries += 1_000_000 + self.rng.randrange(1000, 2000)
        return b"%d" % self._entries

    def old_id(self, key: bytes) -> bytes:
        """An id that XADD was given for this key, if there was any."""
        ids = self._ids.get((self.db, key))
        return self.rng.choice(ids) if ids else b"%d-0" % (self._last_id + 1)

    def group(self) -> bytes:
        """A consumer group's name."""
        return b"g%d" % self.rng.randrange(2)

    def consumer(self) -> bytes:
        """A consumer's name."""
        return b"c%d" % self.rng.randrange(3)

    # Moments.

    def seconds(self) -> bytes:
        """A TTL in seconds, never past."""
        return b"%d" % (self.rng.randrange(1, 6) if self.rng.random() < SHORT_TTL else self._long())

    def milliseconds(self) -> bytes:
        """A TTL in milliseconds, never past."""
        short = self.rng.random() < SHORT_TTL
        return b"%d" % (self.rng.randrange(200, 5000) if short else self._long() * 1000)

    def unix_seconds(self) -> bytes:
        """A moment to come."""
        return b"%d" % (int(self.now()) + int(self.seconds()))

    def unix_milliseconds(self) -> bytes:
        """A moment to come."""
        return b"%d" % (int(self.now() * 1000) + int(self.milliseconds()))

    def _long(self) -> int:
        return self.rng.choice((600, 3_600, 86_400))

    # Choices.

    def some(self, word: Callable[[], bytes], most: int = 4) -> list[bytes]:
        """One word or several."""
        return [word() for _ in range(self.rng.randrange(1, most + 1))]

    def one(self, *words: bytes) -> bytes:
        """One of these."""
        return self.rng.choice(words)

    def maybe(self, words: Sequence[bytes], chance: float = 0.3) -> list[bytes]:
        """These words, or none."""
        return list(words) if self.rng.random() < chance else []
