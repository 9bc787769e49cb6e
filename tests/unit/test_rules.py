"""Rules that say which keys go over: what is written, and what the core makes of it."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine._native import REGEX_STEPS_LIMIT, KeyRules
from engine.errors import UsageError
from engine.model import key_regex, rules_file
from engine.model.key_glob import GLOB_MOST, of_prefix
from engine.model.key_regex import RegexFault
from engine.model.rules import RULES_MOST, TYPES, Rule, Rules, key_rules_of, rules_of

OTHER = len(TYPES)


def core(include: list[str], exclude: list[str] | None = None) -> KeyRules:
    found = key_rules_of(tuple(include), tuple(exclude or ()))
    assert found is not None
    return found


def matches(rule: str, key: bytes) -> bool:
    found = core([rule]).takes(0, key)
    assert found is not None
    return found


# --- Which rules hold for a key ---


@pytest.mark.parametrize(
    ("include", "exclude", "taken", "left"),
    [
        (["prefix:user:"], [], [(0, "user:1"), (7, "user:")], [(0, "user"), (0, "xuser:1")]),
        ([], ["prefix:tmp:"], [(0, "a"), (1, "tmp")], [(0, "tmp:"), (1, "tmp:a")]),
        (["prefix:a"], ["regex:z$"], [(0, "ab")], [(0, "az"), (0, "b")]),
        (["db:3,prefix:a"], [], [(3, "ab")], [(0, "ab"), (3, "b")]),
        (["db:3", "prefix:a"], ["db:3,glob:a*"], [(3, "b"), (0, "a")], [(3, "a"), (0, "b")]),
        (["prefix:a,b:c"], [], [(0, "a,b:c")], [(0, "a")]),
        (["glob:*"], [], [(0, ""), (0, "x")], []),
        (["prefix:a", "prefix:ab", "prefix:b"], [], [(0, "a"), (0, "abc"), (0, "b")], [(0, "c")]),
    ],
)
def test_what_rules_take(
    include: list[str],
    exclude: list[str],
    taken: list[tuple[int, str]],
    left: list[tuple[int, str]],
) -> None:
    found = core(include, exclude)
    assert [(db, key) for db, key in taken if found.takes(db, key.encode()) is not True] == []
    assert [(db, key) for db, key in left if found.takes(db, key.encode()) is not False] == []
    assert not found.by_type


def test_no_rules_take_everything() -> None:
    assert key_rules_of((), ()) is None
    assert not rules_of((), ())
    assert KeyRules([], []).takes(5, b"any") is True


CONDITIONS = st.tuples(
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, *TYPES[:3]]),
    st.sampled_from(["", "prefix:a", "prefix:", "glob:a*b", "regex:b$", "prefix:ab"]),
).filter(lambda each: any(part not in (None, "") for part in each) and each[2] != "prefix:")


def written(conditions: tuple[int | None, str | None, str]) -> str:
    db, kind, name = conditions
    parts = ["" if db is None else f"db:{db}", "" if kind is None else f"type:{kind}", name]
    return ",".join(part for part in parts if part)


def holds(conditions: tuple[int | None, str | None, str], db: int, kind: int, key: bytes) -> bool:
    of_db, of_kind, name = conditions
    if of_db not in (None, db) or (of_kind is not None and TYPES.index(of_kind) != kind):
        return False
    way, _, pattern = name.partition(":")
    if way == "prefix":
        return key.startswith(pattern.encode())
    if way == "glob":
        return key.startswith(b"a") and key.endswith(b"b") and len(key) > 1
    return way == "" or key.endswith(b"b")


@given(
    st.lists(CONDITIONS, max_size=4),
    st.lists(CONDITIONS, max_size=4),
    st.integers(0, 2),
    st.integers(0, OTHER),
    st.text("abc", max_size=4).map(str.encode),
)
def test_rules_by_the_book(
    include: list[tuple[int | None, str | None, str]],
    exclude: list[tuple[int | None, str | None, str]],
    db: int,
    kind: int,
    key: bytes,
) -> None:
    """A key goes over if it matches one that includes, or there is none, and none that excludes;
    where the type is not known the answer is that of every type, or none."""
    rules = Rules(
        tuple(Rule.read(written(each)) for each in include),
        tuple(Rule.read(written(each)) for each in exclude),
    )
    found = rules.compiled()

    def by_hand(kind: int) -> bool:
        included = not include or any(holds(each, db, kind, key) for each in include)
        return included and not any(holds(each, db, kind, key) for each in exclude)

    assert found.takes(db, key, kind) is by_hand(kind)
    answers = {by_hand(kind) for kind in range(OTHER + 1)}
    untyped = found.takes(db, key)
    # It may depend on the type by the rules' form, and on nothing else.
    assert untyped is None or answers == {untyped}
    assert untyped is not None or found.by_type
    if not rules.takes_db(db):
        assert answers == {False}
    if rules.scan_glob is not None and True in answers:
        assert core([f"glob:{rules.scan_glob.decode()}"]).takes(db, key)


@given(
    st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=40),
    st.lists(st.binary(max_size=6), min_size=1, max_size=40),
)
def test_prefixes(prefixes: list[bytes], keys: list[bytes]) -> None:
    found = core([f"prefix:{each.decode('utf-8', 'surrogateescape')}" for each in prefixes])
    for key in (*keys, *(prefix + key for prefix, key in zip(prefixes, keys, strict=False))):
        assert found.takes(0, key) is key.startswith(tuple(prefixes))


# --- Globs ---


def server_glob(glob: bytes, key: bytes) -> bool:
    """stringmatchlen of util.c, as it stands there."""
    p = 0
    while p < len(glob) and key:
        sign = glob[p]
        if sign == ord("*"):
            while glob[p + 1 : p + 2] == b"*":
                p += 1
            if p + 1 == len(glob):
                return True
            return any(server_glob(glob[p + 1 :], key[at:]) for at in range(len(key) + 1))
        if sign == ord("["):
            p += 1
            negated = glob[p : p + 1] == b"^"
            p += negated
            found = False
            while True:
                if glob[p : p + 1] == b"\\" and len(glob) - p >= 2:
                    p += 1
                    found |= glob[p] == key[0]
                elif glob[p : p + 1] == b"]":
                    break
                elif p >= len(glob):
                    p -= 1
                    break
                elif len(glob) - p >= 3 and glob[p + 1] == ord("-"):
                    low, high = sorted((glob[p], glob[p + 2]))
                    p += 2
                    found |= low <= key[0] <= high
                else:
                    found |= glob[p] == key[0]
                p += 1
            if found is negated:
                return False
        elif sign == ord("\\") and len(glob) - p >= 2:
            p += 1
            if glob[p] != key[0]:
                return False
        elif sign not in (ord("?"), key[0]):
            return False
        key = key[1:]
        p += 1
    while p < len(glob) and glob[p] == ord("*"):
        p += 1
    return p == len(glob) and not key


@settings(max_examples=400)
@given(
    st.text("ab*?[]^-\\", min_size=1, max_size=9).map(str.encode),
    st.lists(st.text("ab]^-*\\", max_size=7).map(str.encode), min_size=1, max_size=12),
)
def test_globs_match_as_the_servers_do(glob: bytes, keys: list[bytes]) -> None:
    for key in keys:
        assert matches(f"glob:{glob.decode()}", key) is server_glob(glob, key), key


@given(st.binary(min_size=1, max_size=6), st.binary(max_size=3))
def test_a_prefix_as_a_glob(prefix: bytes, rest: bytes) -> None:
    glob = of_prefix(prefix)
    assert server_glob(glob, prefix + rest)
    assert Rule.read(f"glob:{glob.decode('utf-8', 'surrogateescape')}").prefix == prefix


# --- Regular expressions ---

ATOMS = st.sampled_from(
    [
        "a",
        "b",
        "c",
        "1",
        "_",
        ".",
        "[ab]",
        "[^a]",
        r"\d",
        r"\w",
        r"\W",
        "[a-c1]",
        r"\.",
        ":",
        r"[\w:]",
    ]
)
PATTERNS = st.recursive(
    ATOMS | st.sampled_from(["^", "$", r"\b", r"\B", r"\A"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda each: f"(?:{'|'.join(each)})"),
        inner.map(lambda each: f"({each})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?", "+?"])).map(
            lambda each: f"(?:{each[0]}){each[1]}"
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=600)
@given(
    PATTERNS,
    st.sampled_from(["", "(?i)", "(?s)", "(?m)"]),
    st.lists(st.text("abcB1_:.\n", max_size=9).map(str.encode), min_size=1, max_size=8),
)
def test_regexes_match_as_in_python(pattern: str, flags: str, keys: list[bytes]) -> None:
    # Python's $ matches before a newline at the end as well, and its \B nowhere in nothing.
    python = re.compile(
        (flags + (pattern if flags == "(?m)" else pattern.replace("$", r"\Z"))).encode()
    )
    for key in keys:
        if key or r"\B" not in pattern:
            assert matches(f"regex:{flags}{pattern}", key) is bool(python.search(key)), key


@pytest.mark.parametrize(
    ("pattern", "taken", "left"),
    [
        (r"^\x41\x{42}\103\0$", [b"ABC\0"], [b"ABC"]),
        (r"^\Qa.b*\E+$", [b"a.b*", b"a.b***"], [b"axb*"]),
        ("^é+$", ["éé".encode()], ["éé".encode() + b"\xc3", b"e"]),
        (r"^[[:alpha:]_[:^space:]]$", [b"a", b"1"], [b" "]),
        (r"\xff$", [b"a\xff"], ["aÿ".encode()]),
        ("\udcff$", [b"a\xff"], ["aÿ".encode()]),
        ("(?i)USER:(?-i:X)", [b"user:X", b"aUser:X"], [b"user:x"]),
        ("(?i:a)b", [b"Ab"], [b"AB"]),
        ("^a(?P<n>b)(?<m>c)$", [b"abc"], [b"ab"]),
        ("a{,2}b{x}", [b"a{,2}b{x}"], [b"aab"]),
        (r"^a\Cb$", [b"a\nb"], [b"ab"]),
        ("^[]a]+$", [b"]a"], [b"b"]),
        ("^[^]a]+$", [b"b"], [b"]"]),
        ("^[a-]$", [b"-"], [b"b"]),
        ("", [b""], []),
        ("a||b", [b"", b"x"], []),
        ("^(a*)*$", [b"", b"aaa"], [b"b"]),
        (r"^tmp:\d+(:x)?$", [b"tmp:12", b"tmp:1:x"], [b"tmp:", b"atmp:1", b"tmp:1:y", b"tm"]),
    ],
)
def test_what_regexes_match(pattern: str, taken: list[bytes], left: list[bytes]) -> None:
    found = key_regex.compiled(pattern)
    group = (-1, -1, False, [], [], [(found.steps, found.sets, found.head, found.anchored)])
    rules = KeyRules([group], [])
    assert [key for key in taken if not rules.takes(0, key)] == []
    assert [key for key in left if rules.takes(0, key)] == []


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a(b", "at character 2: a group that is not closed"),
        ("a)b", "at character 2: a group is closed that was not opened"),
        ("[a", "at character 1: a class that is not closed"),
        ("a|*b", r"at character 3: \* repeats nothing"),
        ("a**", "at character 3: a repetition of a repetition"),
        ("a{2}{3}", "at character 5: a repetition of a repetition"),
        ("a{3,2}", "at character 2: a repetition that runs backwards"),
        ("a{1001}", "at character 2: more than 1,000 repetitions"),
        (r"(a)\1", "at character 4: .* is a backreference"),
        ("(?P<a>b)(?P=a)", "at character 9: a backreference"),
        ("a(?=b)", "at character 2: .* is a look-around"),
        ("(?<!a)b", "at character 1: .* is a look-around"),
        ("(?>a)", "at character 1: a kind of group that is not known"),
        ("(?x)a", "at character 1: a kind of group that is not known"),
        ("(?U)a", "the flag U has no effect"),
        (r"\pL", "at character 1: a Unicode class"),
        (r"\q", "has no meaning"),
        (r"\8", "backreference"),
        (r"\400", "is not a byte"),
        (r"\x4", "two digits of a byte"),
        (r"\x{100}", "two digits of a byte"),
        ("a\\", "nothing follows the backslash"),
        ("[é]", "is 2 bytes"),
        ("[b-a]", "a range that runs backwards"),
        ("[[:no:]]", "the name of a class was expected"),
        ("(?P<a-b>c)", "a group's name"),
        ("(" * 101 + ")" * 101, "groups in more than 100 groups"),
        ("(a{100}){100}", "more than 2,000 steps"),
        ("((((){1000}){1000}){1000}){1000}", "more than 2,000 steps"),
        ("(a{999}b{999})*", "more than 2,000 steps"),
        ("(" * 99 + "a" * 1850 + ")*" * 99, "more than 2,000 steps"),
        ("a" * 10_001, "at most 10,000"),
    ],
)
def test_regexes_that_are_refused(pattern: str, words: str) -> None:
    with pytest.raises(RegexFault, match=words):
        key_regex.compiled(pattern)


@given(st.text("ab()[]{}*+?|^$\\.-:,<>!=Pidx017Q", max_size=14))
def test_any_text_is_a_regex_or_refused(pattern: str) -> None:
    try:
        found = key_regex.compiled(pattern)
    except RegexFault:
        return
    group = (-1, -1, False, [], [], [(found.steps, found.sets, found.head, found.anchored)])
    for key in (b"", b"a", b"ab:01", b"\n"):
        KeyRules([group], []).takes(0, key)


def test_patterns_take_linear_time() -> None:
    """Such as take others a time that doubles with each byte."""
    key = b"a" * 100_000
    began = time.process_time()
    assert not matches("regex:^(a*)*b", key)
    assert not matches("regex:(a|aa)+$", key + b"b")
    assert not matches(f"regex:^{'a?' * 50}{'a' * 50}$", b"a" * 20_000)
    assert not matches("glob:" + "*a" * 40 + "*b", b"a" * 20_000)
    assert time.process_time() - began < 20


def test_a_program_is_bounded() -> None:
    assert key_regex.STEPS_MOST == REGEX_STEPS_LIMIT
    found = key_regex.compiled("a{1000}b{990}")
    assert len(found.steps) <= REGEX_STEPS_LIMIT
    longest = "regex:(a{999}b{998})*c?"
    with pytest.raises(UsageError, match="more than 2,000 steps"):
        rules_of((longest,), ())
    assert rules_of((longest.removesuffix("c?"),), ()).compiled().takes(0, b"")
    for steps in ([], [(1, 97, 0)], [(4, 7, 0)], [(7, 0, 0)], [(2, 0, 0), (0, 0, 0)],
                  [(5, 0, 9), (0, 0, 0)], [(6, 6, 0), (0, 0, 0)], [(0, 0, 0)] * 2001):  # fmt: skip
        with pytest.raises(ValueError, match=r"step|over its end"):
            KeyRules([(-1, -1, False, [], [], [(steps, b"", b"", False)])], [])
    for group in ((-2, -1, True, [], [], []), (0, 7, True, [], [], []),
                  (0, 0, False, [b"b", b"a"], [], []), (0, 0, False, [b"a", b"ab"], [], []),
                  (0, 0, False, [], [([258], b"")], [])):  # fmt: skip
        with pytest.raises(ValueError, match=r"no database|another order|not there"):
            KeyRules([group], [])  # type: ignore[list-item]


# --- As it is written ---


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("user:", r"--include 'user:': expected db:N"),
        ("", "expected db:N"),
        ("db:x", "'x' is not a database number"),
        ("db:-1", "'-1' is not a database number"),
        ("db:2147483648", "'2147483648' is not a database number"),
        ("db:" + "9" * 5000, "9' is not a database number"),
        ("type:Hash", "type 'Hash': expected string, list"),
        ("db:1,db:2", "expected db:N"),
        ("db:1,", "nothing follows the last comma"),
        ("prefix:", "prefix: does not say which names"),
        ("regex:(", "'regex:[(]': the regular expression: at character 1: a group"),
        ("glob:" + "a" * (GLOB_MOST + 1), "the glob: it has 4,097 bytes"),
    ],
)
def test_rules_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        rules_of((text,), ())


def test_there_are_so_many_rules() -> None:
    with pytest.raises(UsageError, match="20,001 rules; at most 20,000"):
        rules_of(tuple(f"prefix:{each}" for each in range(RULES_MOST + 1)), ())


def test_a_file_of_rules(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(
        '[[include]]\nprefix = ["user:", "s,:"]\ndb = 3\n\n[[include]]\ntype = ["hash", "set"]\n\n'
        "[[exclude]]\nregex = '^user:\\d'\n"
    )
    found = rules_file.read(str(path))
    assert found == {
        "include": ("db:3,prefix:user:", "db:3,prefix:s,:", "type:hash", "type:set"),
        "exclude": (r"regex:^user:\d",),
    }
    assert rules_of(found["include"], found["exclude"])
    assert rules_file.parse("", "x") == {"include": (), "exclude": ()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[include]\n", r"r.toml: .*\(at line 1, column"),
        ("[[drop]]\ndb = 1", "r.toml: 'drop': expected tables"),
        ("include = 3", "r.toml: 'include': expected tables, headed"),
        ("[include]\ndb = 3", "expected tables, headed"),
        (
            "[[include]]\ndb = 1\n\n[[include]]\nregex = 'a('",
            r"r.toml, line 4 \(include 2\): the regular expression: at character 2",
        ),
        ("[[exclude]]\nname = 'a'", r"line 1 \(exclude 1\): 'name': expected db, type, prefix"),
        ("[[exclude]]\nprefix = 'a'\nglob = 'b'", "prefix and glob: one of them in a table"),
        ("[[exclude]]", "it says nothing"),
        ("[[exclude]]\nprefix = []", "prefix: nothing in the list"),
        ("[[exclude]]\nprefix = 3", "prefix = 3: expected a text"),
        ("[[exclude]]\ndb = true", "db = True: expected a number"),
        ("[[exclude]]\ntype = 'no'", "type = 'no': expected string"),
        (f"[[exclude]]\ndb = {[*range(200)]}\nprefix = {['a'] * 200}", "40,000 rules; at most"),
        ("a = " + "[" * 5000, "r.toml: "),
        ("[[include]]\ndb = " + "9" * 5000, "r.toml: "),
        ("[[include]]\ndb = 0x" + "f" * 5000, "line 1 .*db: a number of 20,000 bits"),
        (
            f"[[include]]\ndb = {[*range(150)]}\nprefix = {['a'] * 100}\n" * 2,
            r"line 4 \(include 2\): 30,000 rules up to here; at most 20,000",
        ),
    ],
)
def test_files_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        rules_file.parse(text, "r.toml")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        rules_file.read(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        rules_file.read(str(tmp_path))
    (tmp_path / "bytes").write_bytes(b"a\xff")
    (tmp_path / "empty").write_text("# [[include]]\n")
    with pytest.raises(UsageError, match="empty has no rules"):
        rules_file.read(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="byte 1: TOML is UTF-8"):
        rules_file.read(str(tmp_path / "bytes"))


@pytest.mark.parametrize(
    ("include", "glob"),
    [
        (["prefix:a[b"], rb"a\[b*"),
        (["glob:a*", "db:3,prefix:a"], b"a*"),
        (["prefix:a", "prefix:b"], None),
        (["glob:a*b"], None),
        (["db:3"], None),
        (["glob:*"], None),
        (["prefix:a", "type:hash"], None),
        (["prefix:a", "glob:*"], None),
        ([], None),
    ],
)
def test_what_a_server_is_asked_to_look_for(include: list[str], glob: bytes | None) -> None:
    assert rules_of(tuple(include), ("prefix:z",)).scan_glob == glob
