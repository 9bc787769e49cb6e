"""Which servers may be dialled, and what is told of those that cannot be reached."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.errors import LinkError, ProtocolFault, UsageError
from engine.model.allowed_endpoints import (
    VARIABLE,
    Rules,
    check,
    limited,
    plain,
    rules,
    with_every_reason,
)
from engine.model.endpoint import Endpoint
from engine.wire.allowed_addresses import NotAllowed, addresses
from engine.wire.control_connection import admin
from engine.wire.dial import dial


def allow(texts: list[str], host: str, address: str, port: int = 6379) -> bool:
    return Rules.parse(texts).allow(host, ipaddress.ip_address(address), port)


@pytest.mark.parametrize(
    ("texts", "host", "address", "allowed"),
    [
        ([], "10.0.0.1", "10.0.0.1", True),
        ([], "db", "169.254.169.254", False),
        ([], "db", "fe80::1", False),
        ([], "db", "fd00:ec2::254", False),
        ([], "db", "::ffff:169.254.169.254", False),
        ([], "db", "64:ff9b::a9fe:a9fe", False),
        ([], "db", "2002:a9fe:a9fe::", False),
        (["169.254.0.0/16"], "169.254.1.1", "169.254.1.1", True),
        (["*"], "db", "10.0.0.1", True),
        (["*"], "db", "169.254.169.254", False),
        (["10.0.0.0/8"], "db", "10.1.2.3", True),
        (["10.0.0.0/8"], "db", "11.1.2.3", False),
        (["10.0.0.0/8"], "db", "::ffff:10.1.2.3", True),
        (["10.0.0.0/8:6379"], "db", "10.1.2.3", True),
        (["10.0.0.0/8:6380"], "db", "10.1.2.3", False),
        (["10.0.0.0/8:6370-6380"], "db", "10.1.2.3", True),
        (["10.0.0.7"], "10.0.0.7", "10.0.0.7", True),
        (["[fd00::/8]:6379"], "db", "fd00::1", True),
        (["[fd00::/8]:6380"], "db", "fd00::1", False),
        (["fd00::/8"], "db", "fd00::1", True),
        (["127.0.0.0/8"], "0.0.0.0", "0.0.0.0", True),
        (["10.0.0.0/8"], "0.0.0.0", "0.0.0.0", False),
        (["*.cache.example.com"], "A.cache.example.com.", "192.0.2.1", True),
        (["*.cache.example.com:6380"], "a.cache.example.com", "192.0.2.1", False),
        (["*.cache.example.com"], "a.example.com", "192.0.2.1", False),
        # A name says nothing of where it leads.
        (["*.example.com"], "a.example.com", "169.254.169.254", False),
        (["10.0.0.0/8", "b"], "b", "192.0.2.1", True),
    ],
)
def test_rules(texts: list[str], host: str, address: str, allowed: bool) -> None:
    assert allow(texts, host, address) is allowed


def test_sockets() -> None:
    assert Rules.parse([]).allow_path("/run/a.sock")
    assert not Rules.parse(["*"]).allow_path("/run/a.sock")
    assert Rules.parse(["unix:/run/*.sock"]).allow_path("/run/a.sock")


def test_sockets_by_where_their_paths_lead(tmp_path: Path) -> None:
    """What `*` takes in is one name; the folder of a rule may itself be a link."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "deep").mkdir()
    (tmp_path / "var").symlink_to(tmp_path / "run")
    (tmp_path / "named.sock").symlink_to(tmp_path / "run" / "deep" / "far.sock")

    def fits(pattern: str, path: str) -> bool:
        return Rules.parse([f"unix:{tmp_path}/{pattern}"]).allow_path(str(tmp_path / path))

    assert fits("run/*.sock", "run/a.sock")
    assert fits("run/[ab]?.sock", "run/a1.sock")
    assert not fits("run/*.sock", "run/deep/a.sock")
    assert not fits("run/*", "run")
    assert not fits("*", "run/a.sock")
    assert not fits("run/*.sock", "running/a.sock")
    assert fits("*/a.sock", "run/a.sock")
    assert fits("run/*/a.sock", "run/deep/a.sock")
    assert fits("run/../run/./*.sock", "run/a.sock")
    # The operator names these folders and this link.
    assert fits("var/*.sock", "run/a.sock")
    assert fits("named.sock", "run/deep/far.sock")
    assert not fits("named.sock", "run/deep/other.sock")
    assert fits("run/a[*].sock", "run/a*.sock")
    assert not fits("run/a[*].sock", "run/ab.sock")
    assert Rules.parse(["unix:///run/%2A.sock"]) == Rules.parse(["unix:/run/*.sock"])
    assert Rules.parse(["UNIX://" + "/run//./x.sock"]) == Rules.parse(["unix:/run/x.sock"])
    with pytest.raises(UsageError, match=r"Write unix:/.*/run/\*"):
        check([f"unix:{tmp_path}/run"])


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("redis://x", "a URL is not a rule. Write x:6379."),
        ("redis://u:secret@x:7000/0", "a URL is not a rule. Write x:7000."),
        ("rediss://[fd00::1]", r"Write \[fd00::1\]:6379"),
        ("u:secret@x", "names no user"),
        ("unix://u:secret@/run/x.sock", "it names no absolute path"),
        ("rdb:/dump.rdb", "rules are for servers"),
        ("unix:", "no absolute path"),
        ("unix:run/x.sock", "no absolute path"),
        ("unix://run/x.sock", "no absolute path"),
        ("unix:/run/", r"Write unix:/run/\*"),
        ("unix:/", r"Write unix:/\*"),
        ("unix:/run/*/../x.sock", "behind a wildcard"),
        ("unix:/run/**/x.sock", "not a wildcard here"),
        ("/run/x.sock", "socket is unix:PATH"),
        ("a,b", "--allow-endpoint once for each"),
        ("10.0.0.0/8,10.1.0.0/16", "--allow-endpoint once for each"),
        ("10.*", r"would fit 10.example.com too. Write 10.0.0.0/8\."),
        ("10.*:6379", r"Write 10.0.0.0/8\."),
        ("192.168.7.*", r"Write 192.168.7.0/24\."),
        ("192.168.*.*", r"Write 192.168.0.0/16\."),
        ("10.0.0.[1-5]", r"Write 10.0.0.0/24\."),
        ("*.0.0.1", "is not a network"),
        ("1*", "is not a network"),
        ("fd00:*", r"written as fd00::/16\."),
        ("[fd00:1:*]:6379", r"Write fd00:1::/32\."),
        ("10.0.0.1/8", r"Write 10.0.0.0/8, or only the address"),
        ("10.0.0.0/33", "Expected one as 10.0.0.0/8"),
        ("::ffff:10.0.0.0/104", r"Write 10.0.0.0/8\."),
        ("64:ff9b::a00:0/104", r"Write 10.0.0.0/8\."),
        ("2002:a00::/24", r"Write 10.0.0.0/8\."),
        ("0.0.0.0", "Write 127.0.0.1 for this machine, 0.0.0.0/0 for all"),
        ("::", "Write ::1 for this machine, ::/0 for all"),
        ("fe80::1%eth0", r"Write fe80::1\."),
        ("cache:*", "write cache"),
        (".example.com", r"Write \*.example.com"),
        ("*..com", "fits no host"),
        ("redis-[ab", "fits no host"),
        ("bücher.example", "xn--"),
        ("*.bücher.example", "xn--"),
        ("-a", "is no endpoint"),
        ("a..b", "is no endpoint"),
        ("[::1", r"as \[::1\]:6379"),
    ],
)
def test_what_fits_nothing_says_what_to_write(text: str, write: str) -> None:
    with pytest.raises(UsageError, match=write) as caught:
        Rules.parse([text])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["*", "*:6379", "redis-[ab]", "*-1", "r?.example.com", "10.*.example.com", "0.0.0.0/0", "::/0",
     "[redis]:6379", "[10.0.0.1]:6379", "a_b", "xn--bcher-kva.example", "::ffff:0:0:0/90"],
)  # fmt: skip
def test_what_is_a_rule(text: str) -> None:
    assert len(Rules.parse([text]).rules) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":6379",
        "10.0.0.0/33",
        "10.0.0.1/8",
        "a:0",
        "a:70000",
        "a:9-8",
        "a:x",
        "redis://a",
        "a b",
        "1.2",
    ],
)
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(UsageError):
        Rules.parse([text])


def test_where_the_rules_lie() -> None:
    assert rules() is None
    with limited(["10.0.0.0/8"]):
        assert rules() == Rules.parse(["10.0.0.0/8"])
        with limited([]):
            assert rules() == Rules()
        assert VARIABLE in os.environ
    assert VARIABLE not in os.environ
    assert str(plain(ipaddress.ip_address("::"))) == "::1"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A unix socket's path is bounded (108 bytes)."""
    with tempfile.TemporaryDirectory(prefix="sm-", dir="/tmp") as folder:
        yield Path(folder).resolve()


async def by_dial(endpoint: Endpoint) -> None:
    (await dial(endpoint, fault="source", timeout=0.3)).close()


async def by_admin(endpoint: Endpoint) -> None:
    async with admin(endpoint, timeout=0.3, fault="source") as end:
        # Whether a server answers there is known from the first command.
        await end.call("PING")


WAYS = pytest.mark.parametrize("way", [by_dial, by_admin])
Way = Callable[[Endpoint], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(
    first: bytes | None = None, host: str = "127.0.0.1", met: list[str] | None = None
) -> AsyncIterator[int]:
    """A program that is no server of ours: it sends `first`, and waits. `met` gets the addresses at
    which it was reached."""
    links: list[socket.socket] = []

    async def accept(listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            link, _ = await loop.sock_accept(listener)
            links.append(link)
            if met is not None:
                met.append(link.getsockname()[0])
            if first is not None:
                link.send(first)

    with socket.create_server((host, 0)) as listener:
        listener.setblocking(False)
        accepting = asyncio.create_task(accept(listener))
        try:
            yield listener.getsockname()[1]
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            for link in links:
                link.close()


@WAYS
async def test_one_word_for_all_that_cannot_be_reached(way: Way) -> None:
    async with listening(None) as silent, listening(b"SSH-2.0-OpenSSH\r\n") as other:
        ends = [
            Endpoint("127.0.0.1", 1),  # closed
            Endpoint("127.0.0.1", silent),  # takes connections and says nothing, as a filter may
            Endpoint("127.0.0.1", other),
            Endpoint("240.0.0.1", 6379),  # no route
            Endpoint("no-such-host.invalid", 6379),
        ]

        async def told(endpoint: Endpoint) -> str:
            for _ in range(10):
                with pytest.raises((LinkError, ProtocolFault)) as caught:
                    await way(endpoint)
                # (A resolver may take longer than the time that there is.)
                if endpoint.host != "no-such-host.invalid" or "no answer" not in str(caught.value):
                    break
            return str(caught.value).replace(endpoint.address, "HOST")

        plainly = {await told(each) for each in ends}
        assert len(plainly) > 2
        with limited([]):
            words = {await told(each) for each in ends}
            assert len(words) == 1, words
            assert "source HOST cannot be reached, or is not a Redis" in words.pop()
            with with_every_reason():
                assert {await told(each) for each in ends} == plainly


@WAYS
async def test_what_may_not_be_dialled(way: Way) -> None:
    async with listening(None) as port:
        for texts, host in (
            ([], "169.254.169.254"),
            (["10.0.0.0/8"], "127.0.0.1"),
            (["10.0.0.0/8"], "localhost"),
            ([f"localhost:{port + 1 if port < 65535 else 1}"], "localhost"),
        ):
            with limited(texts), pytest.raises(NotAllowed, match="may connect to"):
                await way(Endpoint(host, port))
        with limited([f"127.0.0.0/8:{port}"]), pytest.raises(LinkError, match="cannot be reached"):
            await way(Endpoint("127.0.0.1", port))
        with limited(["*"]), pytest.raises(NotAllowed):
            await way(Endpoint(unix_path="/run/redis.sock"))


@WAYS
async def test_the_address_that_was_judged_is_dialled(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that stands for another address with each question leads nowhere else."""
    asked: list[str] = []

    def look_up(host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.9"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    met: list[str] = []
    async with listening(host="0.0.0.0", met=met) as port:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        with limited(["127.0.0.1"]), pytest.raises(LinkError):
            await way(Endpoint("twofold.example.com", port))
        assert asked == ["twofold.example.com"]
        assert met == ["127.0.0.1"]
        with limited(["127.0.0.1"]), pytest.raises(NotAllowed):
            await addresses(Endpoint("twofold.example.com", port), "source")


@contextlib.asynccontextmanager
async def sockets_at(*paths: Path) -> AsyncIterator[list[str]]:
    """Programs that take connections at these paths, and close them; where they were reached."""
    met: list[str] = []

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.append(writer.get_extra_info("sockname"))
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        for path in paths:
            await stack.enter_async_context(await asyncio.start_unix_server(take, path))
        yield met


@WAYS
async def test_the_socket_that_was_judged_is_dialled(way: Way, short_folder: Path) -> None:
    """Neither `..` nor a link leads out of a folder that is allowed; and a path that is allowed is
    dialled where it led when it was judged."""
    run, outside = short_folder / "run", short_folder / "t.sock"
    run.mkdir()
    inside = run / "s.sock"
    (run / "out.sock").symlink_to(outside)
    (run / "in.sock").symlink_to(inside)
    async with sockets_at(inside, outside) as met:

        async def dialled(path: str) -> str:
            met.clear()
            with limited([f"unix:{run}/*.sock"]), pytest.raises(LinkError) as caught:
                await way(Endpoint(unix_path=path))
            if not isinstance(caught.value, NotAllowed):
                assert len(met) == 1
            return met[0] if met else type(caught.value).__name__

        assert await dialled(f"{run}/../t.sock") == "NotAllowed"
        assert await dialled(f"{run}/out.sock") == "NotAllowed"
        assert await dialled(f"{outside}") == "NotAllowed"
        assert await dialled(f"{inside}") == str(inside)
        assert await dialled(f"{run}/../run/in.sock") == str(inside)
        with limited([f"unix:{run}/*.sock"]):
            judged = await addresses(Endpoint(unix_path=f"{run}/in.sock"), "target")
        assert judged == [str(inside)]


def test_a_path_with_a_nul_is_no_socket() -> None:
    with pytest.raises(UsageError, match="NUL"):
        Endpoint.parse("unix:///run/a%00b.sock")
