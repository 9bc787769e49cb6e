"""What Sentinels are believed, and what is told to which of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.errors import InvalidParameterValueException, LinkError, UsageError
from engine.front import validate
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.wire import sentinel_primary

URL = "redis+sentinel://10.0.0.1,10.0.0.2,10.0.0.3/main"


class Sentinels:
    """What each of them says: (host, epoch); None: it does not answer."""

    def __init__(self) -> None:
        self.says: dict[str, tuple[str, int] | None] = {}

    async def ask(self, at: Endpoint, question: tuple[str, ...]) -> Any:
        assert question == ("SENTINEL", "MASTER", "main")
        told = self.says.get(at.host)
        if told is None:
            raise LinkError(f"{at.address} cannot be reached")
        host, epoch = told
        return [b"ip", host.encode(), b"port", b"6379", b"config-epoch", str(epoch).encode()]

    def primary(self, endpoint: Endpoint) -> str:
        sentinel_primary.forget(endpoint)
        found = sentinel_primary.primary(endpoint, self.ask, fault="source", timeout=1)
        return asyncio.run(found).host


def test_the_latest_epoch_counts_and_is_not_forgotten() -> None:
    """A Sentinel that was cut off names the former primary, also when it alone can be reached."""
    endpoint, told = Endpoint.parse(URL + "?sentinel_username=a"), Sentinels()
    old, new = ("10.1.0.1", 1), ("10.1.0.2", 2)
    told.says = {"10.0.0.1": old, "10.0.0.2": old, "10.0.0.3": old}
    assert told.primary(endpoint) == old[0]
    told.says = {"10.0.0.1": old, "10.0.0.2": new, "10.0.0.3": new}
    assert told.primary(endpoint) == new[0]
    told.says = {"10.0.0.1": old}
    with pytest.raises(LinkError, match="configuration is older"):
        told.primary(endpoint)
    assert sentinel_primary.named_last(endpoint) == endpoint.at(new[0], 6379)
    # They were set up anew: a majority says so.
    told.says = {"10.0.0.1": old, "10.0.0.2": old}
    assert told.primary(endpoint) == old[0]


@pytest.mark.parametrize(("calling", "down"), [(1, False), (2, True), (3, True)])
def test_most_of_all_sentinels_call_a_replica_down(calling: int, down: bool) -> None:
    """One that answers alone may be cut off together with us; and it counts once, however often it
    lists the replica."""
    endpoint = Endpoint.parse(URL)

    async def ask(at: Endpoint, question: tuple[str, ...]) -> Any:
        assert question == ("SENTINEL", "SLAVES", "main")
        if int(at.host[-1]) > calling:
            raise LinkError(f"{at.address} cannot be reached")
        row = [b"ip", b"10.1.0.3", b"port", b"6379", b"flags", b"s_down,slave"]
        return [row, row]

    found = asyncio.run(sentinel_primary.failing_replicas(endpoint, ask, 1.0))
    assert list(found) == (["10.1.0.3:6379"] if down else [])


@pytest.mark.parametrize("host", ["", "a b", "?"])
def test_an_answer_without_an_address(host: str) -> None:
    endpoint, told = Endpoint.parse(URL + "?sentinel_username=b"), Sentinels()
    told.says = {"10.0.0.1": (host, 1)}
    with pytest.raises(LinkError, match="no Sentinel says where main is"):
        told.primary(endpoint)


def test_the_loopback_of_a_sentinel_elsewhere() -> None:
    endpoint, told = Endpoint.parse(URL + "?sentinel_username=c"), Sentinels()
    told.says = {"10.0.0.1": ("127.0.0.1", 1)}
    assert told.primary(endpoint) == "10.0.0.1"


def test_a_password_is_for_the_sentinels_that_are_named_with_it() -> None:
    """Whoever may name a source cannot have it sent elsewhere by giving a primary a host's name."""
    entries = [
        {"host": "10.0.0.5", "password": "host's"},
        {"host": "192.168.*", "password": "network's"},
        {"host": "10.0.0.*:26379", "sentinel": "main", "password": "data's"},
        {"host": "10.0.0.*:26379", "password": "theirs"},
    ]
    credentials = Credentials.read(entries, "a test")

    def given(url: str) -> tuple[str | None, str | None]:
        filled = credentials.apply(Endpoint.parse(url))
        assert filled.sentinel is not None
        return filled.password, filled.sentinel.password

    assert given(URL) == ("data's", "theirs")
    assert given("redis+sentinel://10.0.0.1/other") == (None, "theirs")
    for name in ("10.0.0.5", "192.168.evil", "main"):
        assert given(f"redis+sentinel://10.9.9.9/{name}") == (None, None)
    # The primary that is found belongs to them, and its replicas.
    filled = credentials.apply(Endpoint.parse(URL))
    assert filled.at("10.1.0.1", 6379).password == "data's"
    assert credentials.beside(filled, "192.168.0.1:6379").password == "data's"
    # What a URL says is passed on, to its own Sentinels.
    own = Endpoint.parse("redis+sentinel://:mine@10.9.9.9/main?sentinel_password=own")
    again = Credentials().and_of(own).apply(Endpoint.parse("redis+sentinel://10.9.9.9/main"))
    assert again.sentinel is not None
    assert (again.password, again.sentinel.password) == ("mine", "own")


@pytest.mark.parametrize(
    "address",
    [
        "rdb:/etc/+sentinel:///../hostname",
        "aof:/var/+sentinel://x",
        "unix:///run/redis.sock#+sentinel://",
        "redis://h/+sentinel://x/main",
        "rediss+sentinel://h/main?ca_file=/etc/hostname",
        "redis+sentinel://:p@h/main",
        "redis+sentinel://h/main?sentinel_password=p",
    ],
)
def test_an_address_of_the_api_names_sentinels_or_a_host(address: str) -> None:
    with pytest.raises(InvalidParameterValueException) as refused:
        validate.node_endpoints([{"Address": address}], cluster_enabled=False)
    assert "hostname" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["redis+sentinel://:hunter2/x@h/main", "redis+sentinel://u:12/hunter2?@h/main"]
)
def test_no_part_of_a_password_is_repeated(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        Endpoint.parse(url)
    assert "hunter2" not in str(refused.value)
