"""What an append-only file says of its keys in the end, against a model that runs the commands."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benches.support.encoded_values import string
from engine._native import crc64
from engine.model.settings import TransferSettings
from engine.sources.aof_files import AofFiles
from engine.sources.aof_survey import survey_aof
from engine.verify import aof_comparison as verifier
from engine.verify.key_comparison import Look
from tests.reference.stream import command
from tests.unit.test_rdb import key, whole

LATER = int(time.time() * 1000) + 3_600_000
KEYS = [b"a", b"b", b"c", b"d"]


def payload(value: bytes) -> bytes:
    """Of a string."""
    body = b"\x00" + string(value) + b"\x09\x00"
    return body + crc64(body).to_bytes(8, "little")


keys = st.sampled_from(KEYS)
commands = st.one_of(
    st.tuples(st.just(b"SET"), keys, st.sampled_from([b"1", b"a", b"x"])),
    st.tuples(st.just(b"SET"), keys, st.just(b"t"), st.just(b"PXAT"), st.just(b"%d" % LATER)),
    st.tuples(st.just(b"MSET"), keys, st.just(b"m"), keys, st.just(b"n")),
    st.tuples(st.just(b"DEL"), keys, keys),
    st.tuples(st.just(b"PEXPIREAT"), keys, st.just(b"%d" % (LATER + 5))),
    st.tuples(st.just(b"PERSIST"), keys),
    st.tuples(st.just(b"APPEND"), keys, st.just(b"+")),
    st.tuples(st.just(b"RENAME"), keys, keys),
    st.tuples(st.just(b"SELECT"), st.sampled_from([b"0", b"3"])),
    st.tuples(
        st.just(b"RESTORE"), keys, st.just(b"0"), st.just(payload(b"r")), st.just(b"REPLACE")
    ),
    st.tuples(st.just(b"FLUSHALL")),
)
Model = dict[tuple[int, bytes], tuple[bytes, int | None]]


def ran(given_: list[tuple[bytes, ...]], state: Model) -> Model:
    """What a server has behind these commands: (value, deadline) of each key."""
    db = 0
    for words in given_:
        name, rest = words[0], words[1:]
        if name == b"SELECT":
            db = int(rest[0])
        elif name == b"FLUSHALL":
            state.clear()
        elif name == b"MSET":
            state[db, rest[0]] = rest[1], None
            state[db, rest[2]] = rest[3], None
        elif name == b"DEL":
            for each in rest:
                state.pop((db, each), None)
        elif name == b"SET":
            state[db, rest[0]] = rest[1], LATER if len(rest) > 2 else None
        elif name == b"RESTORE":
            state[db, rest[0]] = b"r", None
        elif name == b"APPEND":
            value, deadline = state.get((db, rest[0]), (b"", None))
            state[db, rest[0]] = value + rest[1], deadline
        elif (db, rest[0]) in state:
            value, _ = state[db, rest[0]]
            if name == b"PEXPIREAT":
                state[db, rest[0]] = value, int(rest[1])
            elif name == b"PERSIST":
                state[db, rest[0]] = value, None
            else:
                state[db, rest[1]] = state.pop((db, rest[0]))
    return state


def told(path: Path) -> dict[tuple[int, bytes], verifier.FileValue]:
    """What the files say."""

    async def main() -> dict[tuple[int, bytes], verifier.FileValue]:
        files = AofFiles(path)
        survey = await survey_aof(files, TransferSettings())
        try:
            return await verifier.values_of_files(files, survey, TransferSettings())
        finally:
            files.close()

    return asyncio.run(main())


def answer(state: Model, at: tuple[int, bytes], each: verifier.FileValue) -> tuple[Look, object]:
    """What a server answers that has this."""
    if at not in state:
        return Look(b"none", None, None), None
    value, deadline = state[at]
    reply = payload(value) if each.payload is not None else value
    return Look(b"string", deadline, 50), reply


@pytest.mark.parametrize("most", [1000, 1, 4])
def test_nothing_is_told_that_is_not_so(
    most: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(verifier, "_LOOKED_AT_MOST", most)
    same = 0

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(st.lists(commands, max_size=25), st.booleans())
    def check(given_: list[tuple[bytes, ...]], snapshot: bool) -> None:
        nonlocal same
        path = tmp_path / "appendonly.aof"
        head = whole(key(0, b"a", string(b"s")) + key(0, b"d", string(b"s")), b"REDIS0009")
        path.write_bytes(
            (head if snapshot else b"") + b"".join(command(*words) for words in given_)
        )
        begun: Model = {(0, b"a"): (b"s", None), (0, b"d"): (b"s", None)} if snapshot else {}
        state = ran(given_, begun)
        for at, each in told(path).items():
            what, unknown = verifier._found(each, *answer(state, at, each))
            assert what == "", (at, each)
            same += not unknown
            # And what is wrong on the target is found, where it is told that it can be.
            if unknown:
                continue
            if at in state:
                value, deadline = state[at]
                others: list[Model] = [
                    {},
                    {at: (value + b"?", deadline)},
                    {at: (value, LATER + 9999)},
                ]
                for other in others:
                    found = verifier._found(each, *answer(other, at, each))
                    assert found != ("", ""), (at, each, other)
            else:
                assert verifier._found(each, Look(b"string", None, 50), b"x")[0]

    check()
    assert same > 20


def test_a_key_that_is_written_to_all_the_time(tmp_path: Path) -> None:
    """Of a hundred thousand commands of a few keys the last are looked at."""
    path = tmp_path / "appendonly.aof"
    many = b"".join(command(b"SET", b"hot:%d" % (n % 7), b"%d" % n) for n in range(100_000))
    path.write_bytes(many + command(b"SET", b"last", b"1"))
    found = told(path)
    assert {found[0, b"hot:%d" % (n % 7)].text for n in range(99_993, 100_000)} == {
        b"%d" % n for n in range(99_993, 100_000)
    }
