"""Regular expressions over the bytes of names: RE2's, as far as they are about bytes.

They become programs that the core runs in a time that grows with the length of a name and of the
expression, whatever these are (`ext/key_rules.pxi`). What would need to go back over a name
(backreferences, lookaround) is refused, and so is what is about characters beyond ASCII (`\\p{…}`,
such characters in a class): a name is bytes. docs/rules.md has the list.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.model.key_glob import byte_set

REGEX_MOST = 10_000
"""Characters of the longest expression."""
STEPS_MOST = 2000
"""Steps of the longest program (ext/key_rules.pxi: REGEX_STEPS_MOST)."""
_REPEATED_MOST = 1000
_DEPTH_MOST = 100
# Parts that are looked at for a program: such as come to no step may be repeated.
_PARTS_MOST = 50_000

# As ext/key_rules.pxi has them.
_MATCH, _BYTE, _SET, _ANY, _JUMP, _SPLIT, _ASSERT = range(7)
_TEXT_BEGIN, _TEXT_END, _LINE_BEGIN, _LINE_END, _WORD_EDGE, _NO_WORD_EDGE = range(6)

_EVERY = frozenset(range(256))
_DIGITS = frozenset(string.digits.encode())
_WORD = frozenset((string.ascii_letters + string.digits + "_").encode())
_SPACE = frozenset(b"\t\n\f\r ")
_LETTERS = frozenset(string.ascii_letters.encode())
_PERL = {
    "d": _DIGITS, "D": _EVERY - _DIGITS, "w": _WORD, "W": _EVERY - _WORD, "s": _SPACE,
    "S": _EVERY - _SPACE,
}  # fmt: skip
_POSIX = {
    "alnum": _LETTERS | _DIGITS,
    "alpha": _LETTERS,
    "ascii": frozenset(range(128)),
    "blank": frozenset(b"\t "),
    "cntrl": frozenset([*range(32), 127]),
    "digit": _DIGITS,
    "graph": frozenset(range(33, 127)),
    "lower": frozenset(string.ascii_lowercase.encode()),
    "print": frozenset(range(32, 127)),
    "punct": frozenset(string.punctuation.encode()),
    "space": frozenset(b"\t\n\v\f\r "),
    "upper": frozenset(string.ascii_uppercase.encode()),
    "word": _WORD,
    "xdigit": frozenset(string.hexdigits.encode()),
}
_SIGNS = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_EDGES = {"A": _TEXT_BEGIN, "z": _TEXT_END, "b": _WORD_EDGE, "B": _NO_WORD_EDGE}
_OCTAL = "01234567"


class RegexFault(ValueError):
    """An expression that is none, or none of these; says where, by the number of the character."""


@dataclass(frozen=True, slots=True)
class Program:
    """What `KeyRules` takes for an expression: `steps` (operation, x, y), the `sets` of bytes that
    they name, the bytes (`head`) that a match begins with, and whether it is `anchored` at the
    name's beginning."""

    steps: list[tuple[int, int, int]]
    sets: bytes
    head: bytes
    anchored: bool


# --- What an expression is made of ---


@dataclass(frozen=True, slots=True)
class _Bytes:
    """One byte, of these."""

    members: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Edge:
    """Nothing, at such a place."""

    what: int


@dataclass(frozen=True, slots=True)
class _Row:
    """One after another."""

    parts: tuple[_Part, ...]


@dataclass(frozen=True, slots=True)
class _Either:
    """One of them."""

    parts: tuple[_Part, ...]


@dataclass(frozen=True, slots=True)
class _Repeated:
    """So many times; None: without an end."""

    part: _Part
    least: int
    most: int | None


_Part = _Bytes | _Edge | _Row | _Either | _Repeated


@dataclass(frozen=True, slots=True)
class _Flags:
    """`i`: letters of either case; `m`: ^ and $ are those of lines; `s`: a dot is a newline too."""

    i: bool = False
    m: bool = False
    s: bool = False


def compiled(pattern: str) -> Program:
    """The program of an expression. Raises `RegexFault`."""
    if len(pattern) > REGEX_MOST:
        raise RegexFault(f"it has {len(pattern):,} characters; at most {REGEX_MOST:,}")
    found = _Parser(pattern).read()
    writer = _Writer()
    writer.put(found)
    writer.end()
    head, anchored = _head(found)
    return Program(writer.steps, b"".join(writer.sets), head, anchored)


# --- Reading ---


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0

    def read(self) -> _Part:
        found = self._either(_Flags())
        if self._at < len(self._text):
            raise self._fault("a group is closed that was not opened")
        return found

    def _fault(self, words: str, at: int | None = None) -> RegexFault:
        place = self._at if at is None else at
        return RegexFault(f"at character {place + 1}: {words}")

    def _next(self, count: int = 1) -> str:
        return self._text[self._at : self._at + count]

    def _either(self, flags: _Flags) -> _Part:
        branches: list[_Part] = []
        parts: list[_Part] = []
        while (sign := self._next()) and sign != ")":
            if sign == "|":
                self._at += 1
                branches.append(_Row(tuple(parts)))
                parts = []
            elif self._next(2) == "(?" and (changed := self._flags_behind(flags)) is not None:
                flags = changed
            else:
                parts += self._repetitions(self._one(flags))
        branches.append(_Row(tuple(parts)))
        return branches[0] if len(branches) == 1 else _Either(tuple(branches))

    def _flags_behind(self, flags: _Flags) -> _Flags | None:
        """The flags for what follows in this group, of `(?i)`; None: it is another group."""
        begin, end = self._at, self._text.find(")", self._at)
        said = self._text[begin + 2 : end] if end > 0 else ""
        if not said or not set(said) <= set("imsU-"):
            return None
        changed = self._changed(flags, said, begin + 2)
        self._at = end + 1
        return changed

    def _changed(self, flags: _Flags, said: str, at: int) -> _Flags:
        on, dash, off = said.partition("-")
        if "U" in said:
            raise self._fault("the flag U has no effect, for nothing is captured", at)
        if not set(on + off) <= set("ims") or (dash and not off) or "-" in off:
            raise self._fault(f"flags i, m and s were expected, found {said!r}", at)
        values = {name: getattr(flags, name) for name in "ims"}
        values |= dict.fromkeys(on, True) | dict.fromkeys(off, False)
        return _Flags(**values)

    def _one(self, flags: _Flags) -> list[_Part]:
        """The next part, or (of `\\Q…\\E`) some."""
        begin, sign = self._at, self._next()
        if sign == "(":
            return [self._group(flags)]
        if sign == "[":
            self._at += 1
            return [_Bytes(self._class(flags, begin))]
        if sign in "*+?":
            raise self._fault(f"{sign} repeats nothing")
        if sign == "\\":
            return self._escaped(flags)
        self._at += 1
        if sign == ".":
            return [_Bytes(_EVERY if flags.s else _EVERY - {10})]
        if sign == "^":
            return [_Edge(_LINE_BEGIN if flags.m else _TEXT_BEGIN)]
        if sign == "$":
            return [_Edge(_LINE_END if flags.m else _TEXT_END)]
        return [self._literal(sign, flags, begin)]

    def _literal(self, sign: str, flags: _Flags, at: int) -> _Part:
        try:
            data = sign.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise self._fault("not a character: half of a surrogate pair", at) from None
        if len(data) == 1:
            return _Bytes(_folded(frozenset(data), flags))
        return _Row(tuple(_Bytes(frozenset([byte])) for byte in data))

    def _group(self, flags: _Flags) -> _Part:
        begin = self._at
        self._depth += 1
        if self._depth > _DEPTH_MOST:
            raise self._fault(f"groups in more than {_DEPTH_MOST} groups")
        self._at += 1
        if self._next() == "?":
            flags = self._kind_of_group(flags, begin)
        found = self._either(flags)
        if self._next() != ")":
            raise self._fault("a group that is not closed", begin)
        self._at += 1
        self._depth -= 1
        return found

    def _kind_of_group(self, flags: _Flags, begin: int) -> _Flags:
        """Pass over what stands behind the bracket of a group; its flags."""
        for words in ("(?=", "(?!", "(?<=", "(?<!"):
            if self._text.startswith(words, begin):
                raise self._fault(f"{words}…) is a look-around, which needs backtracking", begin)
        if self._text.startswith("(?P=", begin):
            raise self._fault("a backreference, which needs backtracking", begin)
        named = next((each for each in ("(?P<", "(?<") if self._text.startswith(each, begin)), "")
        if named:
            end = self._text.find(">", begin)
            name = self._text[begin + len(named) : end] if end > 0 else ""
            if not name or not name.isascii() or not name.replace("_", "a").isalnum():
                raise self._fault("a group's name, of letters, digits and _, was expected", begin)
            self._at = end + 1
            return flags
        end = self._text.find(":", begin)
        said = self._text[begin + 2 : end] if end > 0 else "?"
        if not set(said) <= set("imsU-"):
            raise self._fault("a kind of group that is not known; (?:…) captures nothing", begin)
        self._at = end + 1
        return self._changed(flags, said, begin + 2) if said else flags

    def _escaped(self, flags: _Flags) -> list[_Part]:
        begin = self._at
        sign = self._next(2)[1:]
        if sign == "Q":
            end = self._text.find("\\E", begin + 2)
            end = len(self._text) if end < 0 else end
            quoted = self._text[begin + 2 : end]
            self._at = min(end + 2, len(self._text))
            return [self._literal(each, flags, begin) for each in quoted] or [_Row(())]
        if sign in _EDGES and sign:
            self._at += 2
            return [_Edge(_EDGES[sign])]
        if sign == "C":
            self._at += 2
            return [_Bytes(_EVERY)]
        members = self._set_escaped()
        if members is not None:
            return [_Bytes(members)]
        return [_Bytes(_folded(frozenset([self._byte_escaped()]), flags))]

    def _set_escaped(self) -> frozenset[int] | None:
        r"""The bytes of \d and the like, which is passed; None: it is none of them."""
        sign = self._next(2)[1:]
        if sign in ("p", "P"):
            raise self._fault("a Unicode class is of characters, and a name is bytes")
        if sign not in _PERL:
            return None
        self._at += 2
        return _PERL[sign]

    def _byte_escaped(self) -> int:
        """The byte that is written behind a backslash, which is passed."""
        begin = self._at
        sign = self._next(2)[1:]
        self._at += 2
        if not sign:
            raise self._fault("nothing follows the backslash", begin)
        if sign in _SIGNS:
            return _SIGNS[sign]
        if sign == "x":
            return self._hexadecimal(begin)
        if sign in _OCTAL and (sign == "0" or (self._next() and self._next() in _OCTAL)):
            digits = sign
            while len(digits) < 3 and self._next() and self._next() in _OCTAL:
                digits += self._next()
                self._at += 1
            if int(digits, 8) > 255:
                raise self._fault(f"\\{digits} is not a byte", begin)
            return int(digits, 8)
        if sign in string.digits:
            raise self._fault(f"\\{sign} is a backreference, which needs backtracking", begin)
        if sign.isascii() and not sign.isalnum() and sign != "_":
            return ord(sign)
        raise self._fault(f"\\{sign} has no meaning", begin)

    def _hexadecimal(self, begin: int) -> int:
        digits = self._next(2)
        self._at += 2
        if digits.startswith("{"):
            end = self._text.find("}", begin)
            digits = self._text[begin + 3 : end] if end > 0 else ""
            self._at = end + 1
            digits = digits.rjust(2, "0") if digits else ""
        if len(digits) < 2 or not set(digits) <= set(string.hexdigits) or int(digits, 16) > 255:
            raise self._fault("\\x takes the two digits of a byte", begin)
        return int(digits, 16)

    def _class(self, flags: _Flags, begin: int) -> frozenset[int]:
        """The bytes of a class, behind whose bracket it stands."""
        negated = self._next() == "^"
        self._at += negated
        members: set[int] = set()
        first = True
        while first or self._next() != "]":
            first = False
            if not self._next():
                raise self._fault("a class that is not closed", begin)
            if self._next(2) == "[:":
                members |= self._posix()
                continue
            if self._next() == "\\" and (several := self._set_escaped()) is not None:
                members |= several
                continue
            low = high = self._byte_in_class()
            if self._next() == "-" and self._next(2) not in ("-]", "-"):
                at = self._at
                self._at += 1
                high = self._byte_in_class()
                if high < low:
                    raise self._fault("a range that runs backwards", at)
            members.update(range(low, high + 1))
        self._at += 1
        found = _folded(frozenset(members), flags)
        return _EVERY - found if negated else found

    def _posix(self) -> frozenset[int]:
        begin, end = self._at, self._text.find(":]", self._at + 2)
        name = self._text[begin + 2 : end] if end > 0 else ""
        if name.removeprefix("^") not in _POSIX:
            raise self._fault("the name of a class was expected, as in [:alpha:]", begin)
        self._at = end + 2
        found = _POSIX[name.removeprefix("^")]
        return _EVERY - found if name.startswith("^") else found

    def _byte_in_class(self) -> int:
        begin, sign = self._at, self._next()
        if sign == "\\":
            if self._next(2)[1:] in _PERL:
                raise self._fault("a range between classes")
            return self._byte_escaped()
        self._at += 1
        data = sign.encode("utf-8", "surrogateescape")
        if len(data) != 1:
            raise self._fault(
                f"{sign} is {len(data)} bytes, and a class is of bytes; (?:{sign}|…) names several",
                begin,
            )
        return data[0]

    def _repetitions(self, parts: list[_Part]) -> list[_Part]:
        """The same with the last one repeated as what stands behind it says."""
        begin = self._at
        count = self._count()
        if count is None:
            return parts
        # Which of several matches is taken makes no difference.
        self._at += self._next() == "?"
        again = self._at
        if self._count() is not None:
            raise self._fault("a repetition of a repetition; put the first one into (?:…)", again)
        least, most = count
        if max(least, most or 0) > _REPEATED_MOST:
            raise self._fault(f"more than {_REPEATED_MOST:,} repetitions", begin)
        if most is not None and most < least:
            raise self._fault("a repetition that runs backwards", begin)
        *before, last = parts
        return [*before, _Repeated(last, least, most)]

    def _count(self) -> tuple[int, int | None] | None:
        """How often the part before is repeated, which is passed; None: as often as it stands."""
        sign = self._next()
        if sign and sign in "*+?":
            self._at += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        end = self._text.find("}", self._at)
        if sign != "{" or end < 0:
            return None
        least, comma, most = self._text[self._at + 1 : end].partition(",")
        if not _is_number(least) or (most and not _is_number(most)):
            return None
        self._at = end + 1
        return int(least), int(most) if most else None if comma else int(least)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 8


def _folded(members: frozenset[int], flags: _Flags) -> frozenset[int]:
    if not flags.i:
        return members
    return members | {each ^ 0x20 for each in members & _LETTERS}


# --- Writing ---


@dataclass(slots=True)
class _Writer:
    steps: list[tuple[int, int, int]] = field(default_factory=list)
    sets: list[bytes] = field(default_factory=list)
    _known: dict[bytes, int] = field(default_factory=dict)
    _parts: int = 0

    def put(self, part: _Part) -> None:
        """Add the steps of a part. Raises `RegexFault` where it is too long."""
        self._parts += 1
        if len(self.steps) >= STEPS_MOST - 1 or self._parts > _PARTS_MOST:
            raise self._too_long()
        if isinstance(part, _Bytes):
            self._put_bytes(part.members)
        elif isinstance(part, _Edge):
            self.steps.append((_ASSERT, part.what, 0))
        elif isinstance(part, _Row):
            for each in part.parts:
                self.put(each)
        elif isinstance(part, _Either):
            self._put_either(part.parts)
        else:
            self._put_repeated(part)

    def end(self) -> None:
        """Add the last step. Raises `RegexFault` where that is one too many."""
        # Repetitions add steps behind their last part.
        if len(self.steps) >= STEPS_MOST:
            raise self._too_long()
        self.steps.append((_MATCH, 0, 0))

    @staticmethod
    def _too_long() -> RegexFault:
        return RegexFault(
            f"it comes to more than {STEPS_MOST:,} steps: repetitions are written out"
        )

    def _put_bytes(self, members: frozenset[int]) -> None:
        if len(members) == 1:
            self.steps.append((_BYTE, min(members), 0))
        elif members == _EVERY:
            self.steps.append((_ANY, 0, 0))
        else:
            bits = byte_set(members)
            number = self._known.setdefault(bits, len(self.sets))
            if number == len(self.sets):
                self.sets.append(bits)
            self.steps.append((_SET, number, 0))

    def _put_either(self, parts: Sequence[_Part]) -> None:
        ends = []
        for each in parts[:-1]:
            split = self._place()
            self.put(each)
            ends.append(self._place())
            self.steps[split] = (_SPLIT, split + 1, len(self.steps))
        self.put(parts[-1])
        for end in ends:
            self.steps[end] = (_JUMP, len(self.steps), 0)

    def _put_repeated(self, part: _Repeated) -> None:
        for _ in range(part.least):
            self.put(part.part)
        if part.most is None:
            split = self._place()
            self.put(part.part)
            self.steps.append((_JUMP, split, 0))
            self.steps[split] = (_SPLIT, split + 1, len(self.steps))
            return
        splits = []
        for _ in range(part.most - part.least):
            splits.append(self._place())
            self.put(part.part)
        for split in splits:
            self.steps[split] = (_SPLIT, split + 1, len(self.steps))

    def _place(self) -> int:
        """A place for a step that is known later."""
        self.steps.append((_MATCH, 0, 0))
        return len(self.steps) - 1


def _head(part: _Part) -> tuple[bytes, bool]:
    """What every match begins with, and whether it begins where the name does."""
    parts = _flat(part)
    anchored = bool(parts) and parts[0] == _Edge(_TEXT_BEGIN)
    head = bytearray()
    for each in parts[anchored:]:
        if not isinstance(each, _Bytes) or len(each.members) != 1:
            break
        head += bytes(each.members)
    return bytes(head), anchored or _begins_text(part)


def _flat(part: _Part) -> list[_Part]:
    if isinstance(part, _Row):
        return [inner for each in part.parts for inner in _flat(each)]
    return [part]


def _begins_text(part: _Part) -> bool:
    if isinstance(part, _Edge):
        return part.what == _TEXT_BEGIN
    if isinstance(part, _Row):
        return bool(part.parts) and _begins_text(part.parts[0])
    if isinstance(part, _Either):
        return all(map(_begins_text, part.parts))
    return isinstance(part, _Repeated) and part.least > 0 and _begins_text(part.part)
