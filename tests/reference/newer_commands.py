"""Newer commands made of older ones, in slow, obvious Python: what the core must agree with."""

from __future__ import annotations

from engine import _native as core
from tests.reference.crc import crc64

Args = list[bytes]

LAST = b"18446744073709551615-18446744073709551614"
MOST = 2**63 - 1


def number(text: bytes) -> int | None:
    """A positive number as servers write it, or None."""
    digits = text.isdigit() and len(text) <= 19
    return int(text) if digits and 0 < int(text) <= MOST else None


def moment(word: bytes, text: bytes) -> int | None:
    """The ms of EXAT or PXAT and its number; None if it is no such option."""
    unit = {b"EXAT": 1000, b"PXAT": 1}.get(word.upper(), 0)
    found = number(text)
    return None if not unit or found is None or found * unit > MOST else found * unit


def options(
    words: Args, plain: tuple[bytes, ...], valued: tuple[bytes, ...] = ()
) -> tuple[set[bytes], int | None] | None:
    """The words among these options, and the expire time; None if there is anything else."""
    found: set[bytes] = set()
    at = None
    words = list(words)
    while words:
        word = words.pop(0).upper()
        if word in plain:
            found.add(word)
        elif word in valued and words:
            found.add(word)
            words.pop(0)
        elif at is None and words and (when := moment(word, words[0])) is not None:
            at = when
            words.pop(0)
        else:
            return None
    if at is not None and b"KEEPTTL" in found:
        return None
    return found, at


def made(args: Args, lacks: int) -> list[Args]:
    """What a command is sent as to a target that lacks this."""
    maker = MAKERS.get(args[0].upper())
    if maker is None or len(args) < 2:
        return [args]
    flags, make = maker
    found = make(args, lacks) if flags & lacks else None
    return [args] if found is None else found


def of_set(args: Args, lacks: int) -> list[Args] | None:
    if len(args) < 4:
        return None
    conditions = (b"IFEQ", b"IFNE", b"IFDEQ", b"IFDNE")
    found = options(args[3:], (b"NX", b"XX", b"GET", b"KEEPTTL"), conditions)
    if found is None:
        return None
    words, at = found
    plain = [b"SET", args[1], args[2]]
    if at is not None and lacks & core.CMD_LACKS_6_2:
        return [plain, [b"PEXPIREAT", args[1], b"%d" % at]]
    if words & set(conditions) and lacks & core.CMD_LACKS_CONDITIONS:
        return [plain + timing(at, b"KEEPTTL" in words)]
    return None


def timing(at: int | None, keeps: bool) -> Args:
    """The option of a SET."""
    return [b"PXAT", b"%d" % at] if at is not None else [b"KEEPTTL"] if keeps else []


def of_msetex(args: Args, lacks: int) -> list[Args] | None:
    keys = number(args[1])
    if keys is None or len(args) < 2 + 2 * keys:
        return None
    pairs, rest = args[2 : 2 + 2 * keys], args[2 + 2 * keys :]
    found = options(rest, (b"NX", b"XX", b"KEEPTTL"))
    if found is None:
        return None
    words, at = found
    if b"KEEPTTL" in words or (at is not None and not lacks & core.CMD_LACKS_6_2):
        return [
            [b"SET", *pairs[i : i + 2], *timing(at, b"KEEPTTL" in words)]
            for i in range(0, len(pairs), 2)
        ]
    late = [[b"PEXPIREAT", key, b"%d" % at] for key in pairs[::2]] if at is not None else []
    return [[b"MSET", *pairs], *late]


def of_delex(args: Args, _: int) -> list[Args] | None:
    return [[b"DEL", args[1]]] if len(args) == 2 else None


def of_pop(args: Args, _: int) -> list[Args] | None:
    n = number(args[2]) if len(args) == 3 else None
    if n is None or n == MOST:
        return None
    kept = [b"%d" % n, b"-1"] if args[0].upper() == b"LPOP" else [b"0", b"%d" % -(n + 1)]
    return [[b"LTRIM", args[1], *kept]]


def of_lmove(args: Args, _: int) -> list[Args] | None:
    if [each.upper() for each in args[3:]] != [b"RIGHT", b"LEFT"]:
        return None
    return [[b"RPOPLPUSH", args[1], args[2]]]


def of_hsetex(args: Args, lacks: int) -> list[Args] | None:
    upper = [each.upper() for each in args]
    places = [i for i in range(2, len(args)) if upper[i] == b"FIELDS"]
    # An option's number may be no word.
    for place in places[:1]:
        found = options(args[2:place], (b"FNX", b"FXX", b"KEEPTTL"))
        pairs = args[place + 2 :]
        count = number(args[place + 1]) if place + 1 < len(args) else None
        if found is None or count is None or len(pairs) != 2 * count:
            return None
        words, at = found
        if at is not None if lacks & core.CMD_LACKS_FIELD_TTLS else b"KEEPTTL" in words:
            return None
        late = [b"HPEXPIREAT", args[1], b"%d" % (at or 0), b"FIELDS", b"%d" % count, *pairs[::2]]
        return [[b"HSET", args[1], *pairs], *([late] if at is not None else [])]
    return None


def of_hgetdel(args: Args, _: int) -> list[Args] | None:
    if len(args) < 5 or args[2].upper() != b"FIELDS" or number(args[3]) != len(args) - 4:
        return None
    return [[b"HDEL", args[1], *args[4:]]]


def of_trim(args: Args, lacks: int) -> list[Args] | None:
    """XADD and XTRIM."""
    kept, rest = args[:2], args[2:]
    exact, limited, cut = True, False, False
    while rest:
        word = rest[0].upper()
        if word == b"NOMKSTREAM":
            drop = bool(lacks & core.CMD_LACKS_6_2)
            n = 1
        elif word == b"KEEPREF":
            drop = bool(lacks & core.CMD_LACKS_REFERENCES)
            n = 1
        elif word in (b"DELREF", b"ACKED"):
            if lacks & core.CMD_LACKS_REFERENCES:
                return None
            drop, n = False, 1
        elif word == b"IDMPAUTO" and len(rest) > 1:
            drop, n = False, 2
        elif word == b"IDMP" and len(rest) > 2:
            drop, n = False, 3
        elif word == b"LIMIT" and len(rest) > 1:
            if limited:
                return None
            limited = drop = True
            n = 2
        elif word in (b"MAXLEN", b"MINID") and len(rest) > 1:
            if word == b"MINID" and lacks & core.CMD_LACKS_6_2:
                return None
            drop, n = False, 2
            if rest[1] in (b"=", b"~") and len(rest) > 2:
                exact = rest[1] == b"="
                n = 3
        else:
            break
        cut = cut or drop
        kept += [] if drop else rest[:n]
        rest = rest[n:]
    return None if (limited and not exact) or not cut else [kept + rest]


def of_xdelex(args: Args, _: int) -> list[Args] | None:
    rest = args[2:]
    if rest and rest[0].upper() == b"KEEPREF":
        rest = rest[1:]
    if len(rest) < 3 or rest[0].upper() != b"IDS" or number(rest[1]) != len(rest) - 2:
        return None
    return [[b"XDEL", args[1], *rest[2:]]]


def of_xgroup(args: Args, lacks: int) -> list[Args] | None:
    word = args[1].upper()
    if not 5 <= len(args) <= 16:
        return None
    if word == b"CREATECONSUMER":
        if len(args) != 5 or not lacks & core.CMD_LACKS_6_2:
            return None
        head = [b"XREADGROUP", b"GROUP", args[3], args[4], b"COUNT", b"1"]
        return [[*head, b"STREAMS", args[2], LAST]]
    if word not in (b"CREATE", b"SETID") or not lacks & core.CMD_LACKS_7_0:
        return None
    for i in range(5, len(args) - 1):
        if args[i].upper() == b"ENTRIESREAD":
            return [args[:i] + args[i + 2 :]]
    return None


def of_xsetid(args: Args, _: int) -> list[Args] | None:
    return [args[:3]] if len(args) > 3 else None


def of_flush(args: Args, _: int) -> list[Args] | None:
    return [args[:1]] if len(args) == 2 and args[1].upper() == b"SYNC" else None


def of_script(args: Args, _: int) -> list[Args] | None:
    return [args[:2]] if len(args) == 3 and args[1].upper() == b"FLUSH" else None


def of_spublish(_: Args, __: int) -> list[Args] | None:
    return []


def of_function(args: Args, _: int) -> list[Args] | None:
    if len(args) < 3 or args[1].upper() != b"RESTORE" or len(args[2]) < 10:
        return None
    body, version = args[2][:-10], int.from_bytes(args[2][-10:-8], "little")
    if version <= 10 or crc64(args[2][:-8]) != int.from_bytes(args[2][-8:], "little"):
        return None
    if not only_libraries(body):
        return None
    stamped = body + b"\x0a\0"
    crc = crc64(stamped).to_bytes(8, "little")
    return [[b"FUNCTION", args[1], stamped + crc, *args[3:]]]


def only_libraries(body: bytes) -> bool:
    """Libraries of functions, each behind its opcode, as strings that are not compressed."""
    while body:
        if body[0] != 245 or len(body) < 2:
            return False
        if body[1] < 0x40:
            end = 2 + body[1]
        elif body[1] < 0x80 and len(body) > 2:
            end = 3 + ((body[1] & 0x3F) << 8 | body[2])
        else:
            return False
        if end > len(body):
            return False
        body = body[end:]
    return True


TRIM = core.CMD_LACKS_6_2 | core.CMD_LACKS_REFERENCES | core.CMD_LACKS_EXACT_LIMIT
MAKERS = {
    b"SET": (core.CMD_LACKS_6_2 | core.CMD_LACKS_CONDITIONS, of_set),
    b"MSETEX": (core.CMD_LACKS_MSETEX, of_msetex),
    b"DELEX": (core.CMD_LACKS_CONDITIONS, of_delex),
    b"LPOP": (core.CMD_LACKS_6_2, of_pop),
    b"RPOP": (core.CMD_LACKS_6_2, of_pop),
    b"LMOVE": (core.CMD_LACKS_6_2, of_lmove),
    b"HSETEX": (core.CMD_LACKS_HSETEX, of_hsetex),
    b"HGETDEL": (core.CMD_LACKS_HGETDEL, of_hgetdel),
    b"XADD": (TRIM, of_trim),
    b"XTRIM": (TRIM, of_trim),
    b"XDELEX": (core.CMD_LACKS_REFERENCES, of_xdelex),
    b"XGROUP": (core.CMD_LACKS_6_2 | core.CMD_LACKS_7_0, of_xgroup),
    b"XSETID": (core.CMD_LACKS_7_0, of_xsetid),
    b"FLUSHALL": (core.CMD_LACKS_6_2, of_flush),
    b"FLUSHDB": (core.CMD_LACKS_6_2, of_flush),
    b"SCRIPT": (core.CMD_LACKS_6_2, of_script),
    b"SPUBLISH": (core.CMD_LACKS_7_0, of_spublish),
    b"FUNCTION": (core.CMD_LACKS_FUNCTION_VERSIONS, of_function),
}
