"""Hashes in the form of one with field TTLs: read from payloads as a server gives them."""

from __future__ import annotations

import random

import pytest

from engine.transfer.listpack_ex_hashes import fields_of
from tests.support.servers import ServerFactory, known


def freed(rng: random.Random) -> dict[bytes, bytes]:
    """Fields and values of each kind that a listpack has."""
    values: list[bytes] = [
        b"", b"0", b"127", b"128", b"-1", b"4095", b"-4096", b"32767", b"-32768", b"8388607",
        b"2147483647", b"-2147483648", b"9223372036854775807", b"01", b"a" * 63, b"b" * 64,
        b"ab" * 300, rng.randbytes(40), rng.randbytes(4095),
    ]  # fmt: skip
    count = rng.randrange(1, 60)
    return {
        b"field:%d" % n + rng.randbytes(rng.randrange(3)): rng.choice(values) for n in range(count)
    }


def test_payloads_of_a_server(server_factory: ServerFactory) -> None:
    client = server_factory(known("redis-8.0"), "--hash-max-listpack-value", "5000").client()
    rng = random.Random(5)
    for _ in range(40):
        wanted = freed(rng)
        client.delete("hash")
        client.hset("hash", mapping=wanted)  # type: ignore[arg-type]
        assert fields_of(client.dump("hash")) is None
        one = next(iter(wanted))
        client.execute_command("HPEXPIRE", "hash", 1_000_000, "FIELDS", 1, one)
        assert fields_of(client.dump("hash")) is None
        client.execute_command("HPERSIST", "hash", "FIELDS", 1, one)
        assert client.object("ENCODING", "hash") == b"listpackex"
        payload = client.dump("hash")
        found = fields_of(payload)
        assert found is not None
        assert dict(zip(found[::2], found[1::2], strict=True)) == wanted
        # Cut anywhere it is none, and whatever is damaged is no exception.
        for _ in range(20):
            assert fields_of(payload[: rng.randrange(len(payload))]) is None
            damaged = bytearray(payload)
            damaged[rng.randrange(1, len(payload))] ^= 1 << rng.randrange(8)
            fields_of(bytes(damaged))


@pytest.mark.parametrize("payload", [None, b"", b"\x19", b"\x19" + bytes(30), 7])
def test_what_is_none(payload: object) -> None:
    assert fields_of(payload) is None
