"""When keys are asked for as strings, and when without their expire times."""

from __future__ import annotations

import pytest

from engine.proof.string_looks import _Rests, _unexpiring

KEYSPACE = b"# Keyspace\r\ndb0:keys=5,expires=0,avg_ttl=0\r\ndb10:keys=5,expires=1,avg_ttl=0\r\n"
PERSISTENCE = (
    b"# Persistence\r\nloading:0\r\nrdb_changes_since_last_save:17\r\n"
    b"rdb_bgsave_in_progress:0\r\nrdb_last_save_time:1700000000\r\nrdb_saves:1\r\n"
)


def test_what_says_that_no_key_has_an_expire_time() -> None:
    proof = _unexpiring([KEYSPACE, PERSISTENCE], 0)
    assert proof is not None
    assert proof == _unexpiring([KEYSPACE, PERSISTENCE], 0)
    for other in (
        PERSISTENCE.replace(b":17", b":18"),
        PERSISTENCE.replace(b":1700000000", b":1700000001"),
        PERSISTENCE.replace(b"in_progress:0", b"in_progress:1"),
        PERSISTENCE.replace(b"saves:1", b"saves:2"),
    ):
        assert _unexpiring([KEYSPACE, other], 0) != proof


@pytest.mark.parametrize(
    "told",
    [
        [None, PERSISTENCE],
        [KEYSPACE, None],
        [b"", PERSISTENCE],
        [KEYSPACE, b"# Persistence\r\nloading:0\r\nrdb_saves:1\r\n"],
        [KEYSPACE.replace(b"expires=0", b"expires=00"), PERSISTENCE],
        [KEYSPACE.replace(b"expires=0", b"subexpires=0"), PERSISTENCE],
        [KEYSPACE.replace(b"db0:", b"xdb0:"), PERSISTENCE],
        [KEYSPACE.replace(b"db0:", b"db00:"), PERSISTENCE],
    ],
)
def test_what_does_not(told: list[bytes | None]) -> None:
    assert _unexpiring(told, 0) is None


@pytest.mark.parametrize("db", [1, 10, 100])
def test_another_database(db: int) -> None:
    assert _unexpiring([KEYSPACE, PERSISTENCE], db) is None


def test_a_way_that_does_not_do_is_left_for_longer_each_time() -> None:
    rests, taken = _Rests(), list[bool]()
    for _ in range(40):
        taken.append(rests.take())
        if taken[-1]:
            rests.failed()
    assert [n for n, each in enumerate(taken) if each] == [0, 2, 5, 10, 19, 36]
    rests = _Rests()
    for _ in range(3):
        rests.failed()
    assert [rests.take() for _ in range(3)] == [False, True, True]
    rests.did()
    rests.failed()
    assert [rests.take() for _ in range(2)] == [False, True]
