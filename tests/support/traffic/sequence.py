"""The sequence of commands: a function of the seed, the server's version and the clock.

    for unit in Sequence(specs, seed=7, payloads=payloads): ...

A unit is what is sent together and in one database: a command, a few that belong together, or a
transaction. Arguments come from the command's own tree of arguments, node by node; where they must
fit each other or what the server holds, a hint makes them (`hints`).

Two lanes: what may wait at the server (BLPOP and its kind) goes, now and then, over a connection of
its own, so that somebody really waits when another pushes; otherwise it follows a push.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

from tests.support.traffic.hints import BLOCKING_HINTS, HINTS, Maker
from tests.support.traffic.scripts import sha
from tests.support.traffic.specs import Arg, Spec, Specs
from tests.support.traffic.words import (
    ANY_TYPE,
    ANY_TYPE_OVERWRITTEN,
    LARGE,
    LARGE_BYTES,
    LARGE_ITEMS,
    LETTERS,
    Words,
)

Command = tuple[str, tuple[bytes, ...]]
"""(name as COMMAND has it, the arguments with the name first)."""

RARE = ("flushall", "flushdb", "swapdb")
"""Commands that change everything; how often is the caller's word."""

TRANSACTION = 0.10
SELECT_INSIDE = 0.25
DISCARDED = 0.03
MOVE_ON = 0.2
"""How often a unit goes to another database than the one before."""

REFILL = 0.0004
"""How often a large key is written anew."""

BLOCKING = {
    "blpop": "l",
    "brpop": "l",
    "blmpop": "l",
    "blmove": "l",
    "brpoplpush": "l",
    "bzpopmin": "z",
    "bzpopmax": "z",
    "bzmpop": "z",
}
SECOND_LANE = 0.25
WAIT = b"0.05"  # seconds that a command of the second lane may wait

WEIGHTS = {
    # Without restraint these would leave nothing for the others.
    "del": 0.3,
    "unlink": 0.3,
    "rename": 0.4,
    "move": 0.6,
    "function|flush": 0.2,
    "script|flush": 0.2,
    "publish": 0.3,
    "spublish": 0.3,
    "pfdebug": 0.3,
    "restore-asking": 0.3,
    # What others need to find something.
    "set": 2.0,
    "hset": 5.0,
    "rpush": 4.0,
    "lpush": 2.0,
    "sadd": 5.0,
    "zadd": 5.0,
    "geoadd": 4.0,
    "pfadd": 1.5,
    "xadd": 5.0,
    "xreadgroup": 3.0,
    "xgroup|create": 4.0,
    "xgroup|destroy": 0.2,
    "function|load": 2.0,
    **dict.fromkeys(BLOCKING, 0.5),
}
"""How often a command is drawn; 1 for those not named."""

OVERWRITING = {
    *("set", "getset", "setex", "psetex", "mset", "msetex", "bitop", "sort", "pfmerge"),
    *("restore", "restore-asking", "rename", "copy"),
    *("sinterstore", "sunionstore", "sdiffstore"),
    *("zinterstore", "zunionstore", "zdiffstore", "zrangestore"),
    *("georadius", "georadiusbymember", "geosearchstore"),
}
"""What leaves nothing of a key's former value, whatever its type was."""

# A command whose group's letter is not the one of its keys.
_LETTERS = {
    **dict.fromkeys(("incr", "decr", "incrby", "decrby"), "n"),
    "incrbyfloat": "f",
}

_LATER = b"\0later"  # holds the place of a count that is not known yet


@dataclass(frozen=True, slots=True)
class Unit:
    """`commands` go together over connection `lane` (0, or 1 for what may wait).

    `db` is the database in which the first of them runs; a SELECT is among them where the lane was
    in another. `tag` is the hash tag that their keys have.
    """

    lane: int
    db: int
    commands: tuple[Command, ...]
    tag: bytes = b""


class Sequence:
    """See the module. Iterating yields units without end; there is one iterator.

    `without` are names of commands to leave out. `rare` is the probability of each of `RARE`.
    `clock` gives Unix time in seconds: moments among the arguments are counted from it. With `tags`
    the keys of a unit have one of these hash tags, and with the probability `apart` each its own.
    """

    def __init__(
        self,
        specs: Specs,
        seed: int | str,
        *,
        databases: Seq[int] = (0, 1, 2),
        rare: float = 0.0001,
        without: Collection[str] = (),
        payloads: Mapping[str, bytes],
        clock: Callable[[], float] = time.time,
        tags: Seq[bytes] = (),
        apart: float = 0.0,
    ) -> None:
        self.databases = tuple(databases)
        self._rng = random.Random(f"traffic {seed}")
        self._words = Words(self._rng, clock, tags)
        self._apart = apart
        self._make = Maker(self._words, self.databases, specs.version, payloads)
        self._specs = {name: spec for name, spec in specs.all().items() if name not in without}
        if not payloads.get("functions"):
            self._specs.pop("function|restore", None)
        # Sorted: COMMAND tells them in an order that hangs on the server's hash seed.
        self._names = sorted(name for name in self._specs if name not in RARE)
        weights = [WEIGHTS.get(name, 1.0) for name in self._names]
        for name in RARE:
            if name in self._specs:
                self._names.append(name)
                weights.append(rare * sum(weights))
        self._cumulated = list(accumulate(weights))
        self._known = frozenset(self._words.any_keys)
        self._lane_db: list[int | None] = [None, None]
        self._db = self.databases[0]

    @property
    def names(self) -> frozenset[str]:
        """The commands that the sequence draws from."""
        return frozenset(self._names)

    @property
    def shas(self) -> list[str]:
        """The SHA1s of the scripts that it loads and calls."""
        return [sha(script) for script in self._make.scripts]

    def __iter__(self) -> Iterator[Unit]:
        for db in self.databases:
            for letter in LARGE:
                self._words.retag()
                yield self._unit(0, db, [self._large(letter)])
        rng = self._rng
        while True:
            self._words.retag(self._apart)
            if len(self.databases) > 1 and rng.random() < MOVE_ON:
                self._db = rng.choice(self.databases)
            self._words.db = self._db
            dice = rng.random()
            if dice < REFILL:
                yield self._unit(0, self._db, [self._large(rng.choice("slezh"))])
            elif dice < REFILL + TRANSACTION:
                yield self._transaction()
            else:
                yield self._single()

    # Units.

    def _unit(self, lane: int, db: int, commands: list[Command]) -> Unit:
        if self._lane_db[lane] != db:
            self._lane_db[lane] = db
            commands = [_select(db), *commands]
        return Unit(lane, db, tuple(commands), self._words.tag)

    def _single(self) -> Unit:
        name = self._draw()
        if name in BLOCKING:
            return self._waiting(name)
        if name == "xreadgroup" and self._rng.random() < 0.1:
            return self._unit(1, self._db, [self._command(name, BLOCKING_HINTS[name])])
        command = self._command(name)
        if name == "evalsha" and "script|load" in self._specs and self._rng.random() < 0.3:
            # Otherwise it would hang on luck for a long while after SCRIPT FLUSH.
            load = [self._named("script|load", [text]) for text, _, _ in self._make.scripts]
            return self._unit(0, self._db, [*load, command])
        return self._unit(0, self._db, [command])

    def _waiting(self, name: str) -> Unit:
        if self._rng.random() < SECOND_LANE:
            return self._unit(1, self._db, [self._command(name)])
        command = self._command(name)
        # The push goes to the key that the command looks at first: there is something, or an error.
        key = next(word for word in command[1][1:] if self._is_key(word))
        push = ("rpush", (b"RPUSH", key, self._words.value()))
        if BLOCKING[name] == "z":
            push = ("zadd", (b"ZADD", key, b"1", self._words.member()))
        return self._unit(0, self._db, [push, command])

    def _is_key(self, word: bytes) -> bool:
        return word in self._known or (bool(self._words.tags) and word[1:3] == b":{")

    def _transaction(self) -> Unit:
        rng, db = self._rng, self._db
        commands: list[Command] = []
        if rng.random() < 0.1:
            commands.append(("watch", (b"WATCH", self._words.key(None))))
        commands.append(("multi", (b"MULTI",)))
        inside = False
        for _ in range(rng.randrange(2, 7)):
            if rng.random() < SELECT_INSIDE / 3:
                inside = True
                commands.append(_select(rng.choice(self.databases)))
            commands.append(self._command(self._draw()))
        commands.append(
            ("discard", (b"DISCARD",)) if rng.random() < DISCARDED else ("exec", (b"EXEC",))
        )
        unit = self._unit(0, db, commands)
        if inside:
            self._lane_db[0] = None  # an EXEC that was refused selected nothing
        return unit

    def _large(self, letter: str) -> Command:
        key, rng = self._words.tagged(LARGE[letter]), self._rng
        if letter == "s":
            return ("set", (b"SET", key, rng.randbytes(LARGE_BYTES)))
        many = [b"%d" % n for n in range(LARGE_ITEMS)]
        if letter == "l":
            return ("rpush", (b"RPUSH", key, *many))
        if letter == "e":
            return ("sadd", (b"SADD", key, *many))
        if letter == "z":
            words = [word for n in many for word in (n, b"m" + n)]
            return ("zadd", (b"ZADD", key, *words))
        return (
            "hset",
            (b"HSET", key, *(word for n in many for word in (b"f" + n, rng.randbytes(20)))),
        )

    # Commands.

    def _draw(self) -> str:
        return self._rng.choices(self._names, cum_weights=self._cumulated)[0]

    def _command(self, name: str, hint: Callable[[Maker], list[bytes]] | None = None) -> Command:
        self._words.any_type = ANY_TYPE_OVERWRITTEN if name in OVERWRITING else ANY_TYPE
        hint = hint or HINTS.get(name)
        if hint is not None:
            return self._named(name, hint(self._make))
        spec = self._specs[name]
        letter = _LETTERS.get(name) or LETTERS.get(spec.group)
        return self._named(name, _Arguments(self._make, spec, letter).made())

    def _named(self, name: str, arguments: list[bytes]) -> Command:
        # Servers take names in any case, and replicate most as they came.
        words = name.encode().split(b"|")
        if self._rng.random() < 0.9:
            words = [word.upper() for word in words]
        return (name, (*words, *arguments))


def _select(db: int) -> Command:
    return ("select", (b"SELECT", b"%d" % db))


class _Arguments:
    """Arguments of one call, from the command's tree."""

    def __init__(self, make: Maker, spec: Spec, letter: str | None) -> None:
        self._make = make
        self._words = make.words
        self._rng = make.rng
        self._spec = spec
        self._letter = letter
        # Keys are few, or too much would go at once; what goes into them may be more.
        self._most = 4 if letter is None or spec.name in OVERWRITING else 6
        self._repeated = 1  # how often the last node that may be repeated was

    def made(self) -> list[bytes]:
        return self._all(self._spec.parts)

    def _all(self, parts: tuple[Arg, ...]) -> list[bytes]:
        made: list[bytes] = []
        for part in parts:
            if part.optional and self._rng.random() > 0.3:
                continue
            if part.name in ("numkeys", "numfields"):
                made.append(_LATER)
                continue
            made += self._repetitions(part)
            if part.multiple and _LATER in made:
                made[made.index(_LATER)] = b"%d" % self._repeated
        return made

    def _repetitions(self, part: Arg) -> list[bytes]:
        count = 1
        if part.multiple:
            # One weight for each key.
            count = self._repeated if part.name == "weight" else self._rng.randrange(1, self._most)
            self._repeated = count
        made: list[bytes] = []
        for at in range(count):
            if (
                part.token is not None
                and part.kind != "pure-token"
                and (at == 0 or part.token_each)
            ):
                made.append(part.token.encode())
            made += self._node(part)
        return made

    def _node(self, part: Arg) -> list[bytes]:
        kind = part.kind
        if kind == "oneof":
            return self._repetitions(self._rng.choice(part.parts))
        if kind == "block":
            return self._all(part.parts)
        if kind == "pure-token":
            return [(part.token or "").encode()]
        if kind == "key":
            return [self._words.key(self._letter)]
        if kind == "double":
            return [WAIT if part.name == "timeout" else self._words.number()]
        if kind == "unix-time":
            seconds = "milli" not in part.name and not self._spec.name.startswith("p")
            return [self._words.unix_seconds() if seconds else self._words.unix_milliseconds()]
        if kind == "integer":
            return [self._integer(part.name)]
        if kind in ("string", "pattern"):
            return [self._string(part.name)]
        raise LookupError(f"{self._spec.name}: no words for an argument of type {kind}")

    def _integer(self, name: str) -> bytes:
        rng = self._rng
        if name == "seconds":
            return self._words.seconds()
        if name == "milliseconds":
            return self._words.milliseconds()
        if name in ("start", "stop") and self._spec.name == "ltrim":
            return b"%d" % (rng.randrange(3) if name == "start" else rng.randrange(-3, 60))
        if name in ("start", "stop", "index"):
            return b"%d" % rng.randrange(-4, 5)
        if name.endswith("-digest"):
            # Redis 8.6 refuses any other number of digits, and SET … GET is answered twice then.
            return b"%016x" % rng.getrandbits(64)
        if name in ("count", "weight"):
            low = -2 if self._spec.name == "lrem" else 1
            return b"%d" % rng.randrange(low, 5)
        return b"%d" % rng.randrange(-20, 40)

    def _string(self, name: str) -> bytes:
        words = self._words
        if name == "field":
            return words.field()
        if name in ("member", "pivot") or (name == "element" and self._spec.group == "list"):
            return words.member()
        if name == "group":
            return words.group()
        if name == "groupname":
            return words.group()
        if name in ("consumer", "consumername"):
            return words.consumer()
        if name == "value" and self._spec.group == "hash":
            return words.value()
        if self._letter in ("n", "f"):
            return b"%d" % self._rng.randrange(1000)
        return words.value()
