"""What a server says of its replication, how its neighbours are reached, and the seal's names."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from engine.errors import ProtocolFault, UsageError
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint, Tls
from engine.model.replication import Replication, parse_replication
from engine.transfer import write_block
from engine.wire import failover_addresses
from engine.wire.control_connection import Admin, Arg

PRIMARY = b"""# Replication\r
role:master\r
connected_slaves:3\r
slave0:ip=10.0.0.3,port=6379,state=online,offset=14,lag=0\r
slave1:ip=10.0.0.9,port=0,state=online,offset=14,lag=1,type=replica\r
slave2:ip=fd00::3,port=6380,state=online,offset=14,lag=0\r
master_replid:8c4d7f\r
master_replid2:0000000000000000000000000000000000000000\r
master_repl_offset:1414\r
second_repl_offset:-1\r
"""
REPLICA = b"""# Replication\r
role:slave\r
master_host:fd00::1\r
master_port:6379\r
master_link_status:down\r
slave_repl_offset:99\r
master_replid:8c4d7f\r
master_replid2:1111\r
master_repl_offset:99\r
second_repl_offset:42\r
"""


def test_a_primary() -> None:
    assert parse_replication(PRIMARY) == Replication(
        "master", 1414, "8c4d7f", replicas=("10.0.0.3:6379", "[fd00::3]:6380")
    )


def test_a_replica() -> None:
    found = parse_replication(REPLICA)
    assert found == Replication("slave", 99, "8c4d7f", "1111", 42, "[fd00::1]:6379", False)
    assert found.is_replica
    assert found.place == "a replica of [fd00::1]:6379"


@pytest.mark.parametrize("reply", [None, b"", b"role:master\r\n", b"master_repl_offset:x\r\n", 7])
def test_a_server_that_tells_no_offset(reply: object) -> None:
    assert parse_replication(reply) is None


def test_before_4_0() -> None:
    found = parse_replication(b"role:master\r\nconnected_slaves:0\r\nmaster_repl_offset:5\r\n")
    assert found == Replication("master", 5)


@pytest.mark.parametrize(
    ("replid", "offset", "expected"),
    [
        ("new", 100, True),
        ("new", 101, False),
        ("old", 41, True),
        # 42 is the first byte of the new history: what was received as 42 of the old one is not it.
        ("old", 42, False),
        ("other", 1, False),
        ("", 1, False),
    ],
)
def test_a_history_that_goes_on(replid: str, offset: int, expected: bool) -> None:
    found = Replication("master", 100, "new", "old", 42)
    assert found.goes_on_from(replid, offset) is expected


async def test_a_detour_holds_for_one_transfer_alone() -> None:
    named, there = Endpoint.parse("10.0.0.1"), Endpoint.parse("10.0.0.2")

    async def one_transfer() -> Endpoint:
        failover_addresses.begin()

        async def find_out() -> None:
            failover_addresses.lead(named, there)

        # In one task, for the others as well.
        await asyncio.create_task(find_out())
        return failover_addresses.leading(named)

    failover_addresses.lead(named, there)
    assert await asyncio.create_task(one_transfer()) == there
    assert failover_addresses.leading(named) == named


# --- A server beside another ---

SOURCE = Endpoint.parse("rediss://me:secret@10.0.0.1:6379")


def test_a_server_beside_another_is_reached_as_that_one() -> None:
    found = Credentials().beside(SOURCE, "10.0.0.2:6380")
    assert (found.address, found.username, found.password) == ("10.0.0.2:6380", "me", "secret")
    assert found.tls == Tls()
    assert Credentials().beside(SOURCE, "[fd00::2]:6380").address == "[fd00::2]:6380"


def test_loopback_means_the_machine_of_the_server_that_named_it() -> None:
    for named in ("127.0.0.1", "localhost", "[::1]"):
        assert Credentials().beside(SOURCE, f"{named}:6380").address == "10.0.0.1:6380"
    local = Endpoint.parse("unix:///run/redis.sock")
    assert Credentials().beside(local, "127.0.0.1:6380").address == "127.0.0.1:6380"


def test_credentials_by_host_come_first() -> None:
    entry = {"host": "10.0.0.2", "username": "other", "password": "own", "tls": False}
    found = Credentials.read([entry], "test").beside(SOURCE, "10.0.0.2:6379")
    assert (found.username, found.password, found.tls) == ("other", "own", None)
    assert Credentials.read([entry], "test").beside(SOURCE, "10.0.0.3:6379").password == "secret"


@pytest.mark.parametrize("address", ["", "host", "host:x", "a b:6379", ":6379"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UsageError):
        Credentials().beside(SOURCE, address)


# --- The seal's names ---


class _Told:
    """A server of which the settings are these; it takes every CONFIG SET."""

    name, fault = "source x", "source"

    def __init__(self, **settings: str) -> None:
        self.settings = {name.replace("_", "-"): value for name, value in settings.items()}

    async def call(self, *args: Arg) -> Any:
        if args[:2] == ("CONFIG", "SET"):
            self.settings[str(args[2])] = bytes(cast(bytes, args[3])).decode()
            return b"OK"
        assert args[:2] == ("CONFIG", "GET")
        return [each.encode() for pair in self.settings.items() for each in pair]

    async def pipeline(self, commands: Any, *, raise_on_error: bool = False) -> list[Any]:
        return [await self.call(*each) for each in commands]


async def _sealed(told: _Told) -> str | None:
    end = cast(Admin, told)
    before = await write_block.ask(end)
    if before is not None:
        await end.pipeline(write_block.commands(before))
        assert await write_block.stands(end)
    return before


@pytest.mark.parametrize("lag", ["0", "7"])
async def test_the_names_before_5_0(lag: str) -> None:
    told = _Told(min_slaves_to_write="1", min_slaves_max_lag=lag)
    before = await _sealed(told)
    assert before == f"min-slaves-to-write 1 min-slaves-max-lag {lag}"
    assert told.settings["min-slaves-to-write"] == "65535"
    assert "CONFIG SET min-slaves-to-write 1" in write_block.remedy(before)
    assert await write_block.put_back(cast(Admin, told), before)
    assert told.settings == {"min-slaves-to-write": "1", "min-slaves-max-lag": lag}
    assert not await write_block.put_back(cast(Admin, told), before)


async def test_the_names_since_5_0() -> None:
    """Both are told; 5.0 and later mean one setting by them."""
    told = _Told(min_slaves_to_write="0", min_replicas_to_write="0", min_replicas_max_lag="10")
    assert await _sealed(told) == "0 10"
    assert told.settings["min-replicas-to-write"] == "65535"
    assert await _sealed(told) is None
    assert await write_block.put_back(cast(Admin, told), "0 10")


async def test_a_server_that_tells_neither() -> None:
    with pytest.raises(ProtocolFault, match="does not give its min-replicas-to-write"):
        await write_block.ask(cast(Admin, _Told()))
