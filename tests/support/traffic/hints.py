"""Commands whose arguments must fit each other, or what the server holds: made by hand.

A hint makes all arguments after the command's name. Everything else is made from the command's
own tree of arguments (see `sequence`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tests.support.traffic.scripts import FUNCTIONS, LIBRARIES, library, scripts, sha
from tests.support.traffic.specs import Version
from tests.support.traffic.words import Words

Hint = Callable[["Maker"], list[bytes]]

UNITS = (b"m", b"km", b"ft", b"mi")


class Maker:
    """What hints draw from: words, the databases, the server's version, the set-up's payloads."""

    def __init__(
        self,
        words: Words,
        databases: Sequence[int],
        version: Version,
        payloads: Mapping[str, bytes],
    ) -> None:
        self.words = words
        self.rng = words.rng
        self.databases = databases
        self.version = version
        self.payloads = payloads
        self.scripts = scripts(databases)
        self._names = sorted(name for name in payloads if name != "functions")

    def database(self) -> bytes:
        """One of the databases in play."""
        return b"%d" % self.rng.choice(self.databases)

    def payload(self) -> tuple[bytes, bytes]:
        """A key's name and a DUMP payload that goes with its letter."""
        name = self.rng.choice(self._names)
        return self.words.key(name[0]), self.payloads[name]


def _restore(make: Maker) -> list[bytes]:
    key, payload = make.payload()
    words = make.words
    ttl, absolute = b"0", []
    if make.rng.random() < 0.3:
        ttl = words.milliseconds()
    elif make.rng.random() < 0.3:
        ttl, absolute = words.unix_milliseconds(), [b"ABSTTL"]
    more = words.one(b"", b"", b"IDLETIME", b"FREQ")
    return [
        key,
        ttl,
        payload,
        *words.maybe([b"REPLACE"], 0.9),
        *absolute,
        *([more, b"%d" % make.rng.randrange(200)] if more else []),
    ]


def _bitfield(make: Maker) -> list[bytes]:
    rng, made = make.rng, [make.words.key("b")]
    for _ in range(rng.randrange(1, 4)):
        kind = make.words.one(b"u4", b"u8", b"i5", b"i16", b"u31")
        at = make.words.one(b"%d" % rng.randrange(200), b"#%d" % rng.randrange(20))
        made += make.words.maybe([b"OVERFLOW", make.words.one(b"WRAP", b"SAT", b"FAIL")])
        what = make.words.one(b"SET", b"INCRBY", b"INCRBY", b"GET")
        made += [what, kind, at]
        if what != b"GET":
            made.append(b"%d" % rng.randrange(-20, 40))
    if b"FAIL" in made:
        # A BITFIELD whose writes all fail may still make its key, or lengthen it, and no replica is
        # told: so one does not fail.
        made += [b"OVERFLOW", b"WRAP", b"SET", b"u8", b"#0", b"5"]
    return made


def _bitop(make: Maker) -> list[bytes]:
    what = make.words.one(b"AND", b"OR", b"XOR", b"NOT")
    sources = [
        make.words.key("b") for _ in range(1 if what == b"NOT" else make.rng.randrange(1, 4))
    ]
    return [what, make.words.key("b"), *sources]


def _setbit(make: Maker) -> list[bytes]:
    rng = make.rng
    return [make.words.key("b"), b"%d" % rng.randrange(4000), b"%d" % rng.randrange(2)]


def _copy(make: Maker) -> list[bytes]:
    letter = make.rng.choice("snblezghxp")
    made = [make.words.key(letter), make.words.key(letter)]
    made += make.words.maybe([b"DB", make.database()], 0.4)
    return made + make.words.maybe([b"REPLACE"], 0.7)


def _rename(make: Maker) -> list[bytes]:
    letter = make.rng.choice("snblezghxp")
    return [make.words.key(letter), make.words.key(letter)]


def _sort(make: Maker) -> list[bytes]:
    words = make.words
    by = words.maybe([b"BY", words.one(b"nosort", b"n:*", b"h:*->c1")])
    made = [words.key(make.rng.choice("lez")), *by]
    made += words.maybe([b"LIMIT", b"%d" % make.rng.randrange(3), b"%d" % make.rng.randrange(20)])
    made += words.maybe([b"GET", words.one(b"#", b"s:*", b"h:*->f1"), b"GET", b"#"], 0.2)
    made += words.maybe([words.one(b"ASC", b"DESC")])
    # Without ALPHA every element must be a number. With BY as well, elements of equal weight come
    # in whatever order, and in another one on a replica.
    alpha = [] if by else words.maybe([b"ALPHA"], 0.9)
    return [*made, *alpha, b"STORE", words.key("l")]


def _zrangestore(make: Maker) -> list[bytes]:
    rng, words = make.rng, make.words
    how = rng.randrange(3)
    made = [words.key("z"), words.key("y" if how == 2 else "z")]
    if how == 0:
        made += [b"%d" % rng.randrange(4), b"%d" % rng.randrange(-4, 20)]
        return made + words.maybe([b"REV"])
    limits = [b"-inf", b"+inf"] if how == 1 else [b"-", b"+"]
    if rng.random() < 0.5:
        limits[0] = b"(%d" % rng.randrange(20) if how == 1 else b"[m%d" % rng.randrange(30)
    reverse = rng.random() < 0.3
    made += [*(reversed(limits) if reverse else limits), b"BYSCORE" if how == 1 else b"BYLEX"]
    made += [b"REV"] if reverse else []
    return made + words.maybe([b"LIMIT", b"%d" % rng.randrange(3), b"%d" % rng.randrange(1, 20)])


def _zremrangebylex(make: Maker) -> list[bytes]:
    rng = make.rng
    low = make.words.one(b"-", b"[m%d" % rng.randrange(30), b"(m%d" % rng.randrange(30))
    high = make.words.one(b"[m%d" % rng.randrange(30), b"(m%d" % rng.randrange(30))
    return [make.words.key("y"), low, high]


def _zremrangebyscore(make: Maker) -> list[bytes]:
    low = make.rng.randrange(-100, 100)
    high = low + make.rng.randrange(60)
    how = make.words.one(b"%d", b"(%d")
    return [make.words.key("z"), how % low, how % high]


def _zadd(make: Maker) -> list[bytes]:
    rng, words = make.rng, make.words
    if rng.random() < 0.15:
        members = words.some(words.member, 8)
        return [words.key("y"), *(word for name in members for word in (b"0", name))]
    made = [words.key("z")]
    if rng.random() < 0.3:
        # GT and LT came with 6.2.
        made.append(words.one(b"NX", b"XX", *([b"GT", b"LT"] if make.version >= (6, 2) else [])))
    made += words.maybe([b"CH"])
    if rng.random() < 0.15:
        return [*made, b"INCR", words.number(), words.member()]
    for _ in range(rng.randrange(1, 5)):
        score = words.one(words.number(), words.number(), b"+inf", b"0.1", b"-0", b"1e-9")
        made += [score, words.member()]
    return made


def _place(make: Maker) -> list[bytes]:
    rng = make.rng
    return [b"%g" % (rng.randrange(-1700, 1700) / 10), b"%g" % (rng.randrange(-800, 800) / 10)]


def _geo_query(make: Maker, around: list[bytes]) -> list[bytes]:
    words = make.words
    made = [words.key("g"), *around, b"%d" % make.rng.randrange(1, 9000), words.one(*UNITS)]
    made += words.maybe([b"COUNT", b"%d" % make.rng.randrange(1, 9)])
    made += words.maybe([words.one(b"ASC", b"DESC")])
    return [*made, words.one(b"STORE", b"STOREDIST"), words.key("g")]


def _geosearchstore(make: Maker) -> list[bytes]:
    words, rng = make.words, make.rng
    made = [words.key("g"), words.key("g")]
    if rng.random() < 0.5:
        made += [b"FROMLONLAT", *_place(make)]
    else:
        made += [b"FROMMEMBER", words.member()]
    if rng.random() < 0.5:
        made += [b"BYRADIUS", b"%d" % rng.randrange(1, 9000), words.one(*UNITS)]
    else:
        made += [b"BYBOX", b"%d" % rng.randrange(1, 9000), b"%d" % rng.randrange(1, 9000), b"km"]
    made += words.maybe([words.one(b"ASC", b"DESC")])
    made += words.maybe([b"COUNT", b"%d" % rng.randrange(1, 9), *words.maybe([b"ANY"])])
    return made + words.maybe([b"STOREDIST"])


# Hashes with fields that expire.


def _fields(make: Maker, pairs: bool = False) -> list[bytes]:
    words = make.words
    # A field must not be named twice.
    names = sorted({words.field() for _ in range(make.rng.randrange(1, 4))})
    made = [b"FIELDS", b"%d" % len(names)]
    for name in names:
        made += [name, words.value()] if pairs else [name]
    return made


def _hash_expire(moment: str) -> Hint:
    def hint(make: Maker) -> list[bytes]:
        made = [make.words.key("h"), getattr(make.words, moment)()]
        return [
            *made,
            *make.words.maybe([make.words.one(b"NX", b"XX", b"GT", b"LT")]),
            *_fields(make),
        ]

    return hint


def _expiration(make: Maker, last: bytes) -> list[bytes]:
    words = make.words
    return make.rng.choice(
        (
            [],
            [b"EX", words.seconds()],
            [b"PX", words.milliseconds()],
            [b"EXAT", words.unix_seconds()],
            [b"PXAT", words.unix_milliseconds()],
            [last],
        )
    )


def _hgetex(make: Maker) -> list[bytes]:
    return [make.words.key("h"), *_expiration(make, b"PERSIST"), *_fields(make)]


def _hsetex(make: Maker) -> list[bytes]:
    made = [make.words.key("h"), *make.words.maybe([make.words.one(b"FNX", b"FXX")], 0.2)]
    return [*made, *_expiration(make, b"KEEPTTL"), *_fields(make, pairs=True)]


# Streams.


def _xreadgroup(make: Maker, *, block: bool = False) -> list[bytes]:
    words = make.words
    made = [b"GROUP", words.group(), words.consumer()]
    made += words.maybe([b"COUNT", b"%d" % make.rng.randrange(1, 6)], 0.6)
    made += [b"BLOCK", b"20"] if block else []
    made += words.maybe([b"NOACK"], 0.1)
    keys = words.some(lambda: words.key("x"), 2)
    # No other id: what a consumer reads again is counted, and no replica is told.
    return [*made, b"STREAMS", *keys, *(b">" for _ in keys)]


def _xadd(make: Maker) -> list[bytes]:
    words, key = make.words, make.words.key("x")
    made = [key]
    if make.version >= (6, 2):
        made += words.maybe([b"NOMKSTREAM"], 0.1)
        made += words.maybe([b"MINID", words.old_id(key)], 0.05)
    if len(made) < 3:
        made += words.maybe([b"MAXLEN", words.one(b"=", b"~"), b"%d" % make.rng.randrange(5, 60)])
    made.append(words.new_id(key))
    for _ in range(make.rng.randrange(1, 4)):
        made += [words.field("f"), words.value()]
    return made


def _xtrim(make: Maker) -> list[bytes]:
    words, key = make.words, make.words.key("x")
    if make.version >= (6, 2) and make.rng.random() < 0.4:
        return [key, b"MINID", *words.maybe([b"~"]), words.old_id(key)]
    made = [key, b"MAXLEN", b"~", b"%d" % make.rng.randrange(1, 12)]
    if make.version >= (6, 2) and make.rng.random() < 0.3:
        return [*made, b"LIMIT", b"%d" % make.rng.randrange(1, 200)]
    return made if make.rng.random() < 0.3 else [key, b"MAXLEN", b"%d" % make.rng.randrange(1, 12)]


def _ids_of(*, group: bool) -> Hint:
    def hint(make: Maker) -> list[bytes]:
        words, key = make.words, make.words.key("x")
        return [key, *([words.group()] if group else []), *words.some(lambda: words.old_id(key), 6)]

    return hint


def _xclaim(make: Maker) -> list[bytes]:
    words, key = make.words, make.words.key("x")
    made = [key, words.group(), words.consumer(), b"0", *words.some(lambda: words.old_id(key), 6)]
    made += words.maybe([b"IDLE", b"%d" % make.rng.randrange(9000)])
    made += words.maybe([b"RETRYCOUNT", b"%d" % make.rng.randrange(9)])
    made += words.maybe([b"FORCE"])
    return made + words.maybe([b"JUSTID"])


def _xautoclaim(make: Maker) -> list[bytes]:
    words = make.words
    made = [words.key("x"), words.group(), words.consumer(), b"0", words.one(b"0", b"-")]
    made += words.maybe([b"COUNT", b"%d" % make.rng.randrange(1, 9)])
    return made + words.maybe([b"JUSTID"])


def _xgroup_create(make: Maker) -> list[bytes]:
    words, key = make.words, make.words.key("x")
    made = [key, words.group(), words.one(b"0", b"0", b"$", words.old_id(key))]
    made += words.maybe([b"MKSTREAM"], 0.8)
    return made + (words.maybe([b"ENTRIESREAD", b"0"], 0.1) if make.version >= (7, 0) else [])


def _xgroup_setid(make: Maker) -> list[bytes]:
    words, key = make.words, make.words.key("x")
    made = [key, words.group(), words.one(b"0", b"$", words.old_id(key))]
    # A count that is too large for the id Redis 8.2 counts on from, beyond what was added, and its
    # replica does not (findings/replica-counts-entries-read-anew.sh).
    return made + (words.maybe([b"ENTRIESREAD", b"0"], 0.1) if make.version >= (7, 0) else [])


def _xsetid(make: Maker) -> list[bytes]:
    key = make.words.key("x")
    made = [key, make.words.later_id(key)]
    if make.version >= (7, 0) and make.rng.random() < 0.3:
        made += [b"ENTRIESADDED", make.words.more_entries(), b"MAXDELETEDID", b"0-1"]
    return made


# Scripts and functions.


def _keys_for(make: Maker, letters: str) -> list[bytes]:
    return [make.words.key(letter) for letter in letters]


def _eval(make: Maker, *, by_sha: bool = False) -> list[bytes]:
    script = make.rng.choice(make.scripts)
    text, count, letters = script
    name = sha(script).encode() if by_sha else text
    return [name, b"%d" % count, *_keys_for(make, letters), make.words.member(), make.words.value()]


def _fcall(make: Maker) -> list[bytes]:
    name, _, count, letters = make.rng.choice(FUNCTIONS)
    called = b"lib%d_%s" % (make.rng.randrange(LIBRARIES), name)
    arguments = [make.words.member(), make.words.value()]
    return [called, b"%d" % count, *_keys_for(make, letters), *arguments]


def _function_load(make: Maker) -> list[bytes]:
    code = library(make.rng.randrange(LIBRARIES), make.rng.randrange(5))
    return [*make.words.maybe([b"REPLACE"], 0.8), code]


def _function_restore(make: Maker) -> list[bytes]:
    policy = make.words.maybe([make.words.one(b"REPLACE", b"REPLACE", b"APPEND", b"FLUSH")], 0.9)
    return [make.payloads.get("functions", b""), *policy]


def _swapdb(make: Maker) -> list[bytes]:
    return [make.database(), make.database()]


HINTS: dict[str, Hint] = {
    "restore": _restore,
    "restore-asking": _restore,
    "bitfield": _bitfield,
    "bitop": _bitop,
    "setbit": _setbit,
    "setrange": lambda make: [
        make.words.key("s"),
        b"%d" % make.rng.randrange(300),
        make.words.value(),
    ],
    "copy": _copy,
    "rename": _rename,
    "renamenx": _rename,
    "move": lambda make: [make.words.key(None), make.database()],
    "swapdb": _swapdb,
    "sort": _sort,
    "zrangestore": _zrangestore,
    "zremrangebylex": _zremrangebylex,
    "zremrangebyscore": _zremrangebyscore,
    "zadd": _zadd,
    "geoadd": lambda make: [
        make.words.key("g"),
        *(make.words.maybe([b"CH"]) if make.version >= (6, 2) else []),
        *(
            word
            for _ in range(make.rng.randrange(1, 4))
            for word in (*_place(make), make.words.member())
        ),
    ],
    "lset": lambda make: [
        make.words.key("l"),
        b"%d" % make.rng.randrange(-2, 2),
        make.words.member(),
    ],
    "georadius": lambda make: _geo_query(make, _place(make)),
    "georadiusbymember": lambda make: _geo_query(make, [make.words.member()]),
    "geosearchstore": _geosearchstore,
    "hexpire": _hash_expire("seconds"),
    "hpexpire": _hash_expire("milliseconds"),
    "hexpireat": _hash_expire("unix_seconds"),
    "hpexpireat": _hash_expire("unix_milliseconds"),
    "hpersist": lambda make: [make.words.key("h"), *_fields(make)],
    "hgetdel": lambda make: [make.words.key("h"), *_fields(make)],
    "hgetex": _hgetex,
    "hsetex": _hsetex,
    "hincrby": lambda make: [
        make.words.key("h"),
        make.words.field("c"),
        b"%d" % make.rng.randrange(-9, 20),
    ],
    "hincrbyfloat": lambda make: [
        make.words.key("h"),
        make.words.field("d"),
        make.words.number(),
    ],
    "xreadgroup": _xreadgroup,
    "xadd": _xadd,
    "xtrim": _xtrim,
    "xack": _ids_of(group=True),
    "xdel": _ids_of(group=False),
    "xclaim": _xclaim,
    "xautoclaim": _xautoclaim,
    "xgroup|create": _xgroup_create,
    "xgroup|setid": _xgroup_setid,
    "xsetid": _xsetid,
    "eval": _eval,
    "evalsha": lambda make: _eval(make, by_sha=True),
    "fcall": _fcall,
    "function|load": _function_load,
    "function|delete": lambda make: [b"lib%d" % make.rng.randrange(LIBRARIES)],
    "function|restore": _function_restore,
    "script|load": lambda make: [make.rng.choice(make.scripts)[0]],
    "publish": lambda make: [b"channel", make.words.value()],
    "spublish": lambda make: [b"channel", make.words.value()],
    "pfdebug": lambda make: [make.words.one(b"TODENSE", b"GETREG"), make.words.key("p")],
    "delifeq": lambda make: [
        make.words.key("n"),
        b"%d" % make.rng.randrange(-2, 5),
    ],
}

BLOCKING_HINTS: dict[str, Hint] = {"xreadgroup": lambda make: _xreadgroup(make, block=True)}
"""The same for the connection that may wait."""
