"""Tokens of IAM users: signed as AWS checks them, taken by real servers as passwords, renewed."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import hmac
import math
import threading
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote

import pytest

from benches.support.servers import Server, binaries
from engine.errors import AuthError, UsageError
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.password_source import IamToken
from engine.wire import iam_token, login
from engine.wire.control_connection import admin
from engine.wire.dial import dial
from tests.support.scenario import NewScenario
from tests.support.servers import ServerFactory

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
SESSION = "a/session+token=="
USER = "mover"


class Clock:
    """What botocore takes for the time."""

    def __init__(self) -> None:
        self.now = datetime.datetime(2026, 3, 1, 12, 0, tzinfo=datetime.UTC)

    def __call__(self, remove_tzinfo: bool = True) -> datetime.datetime:
        return self.now.replace(tzinfo=None) if remove_tzinfo else self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """Credentials of the environment, and a clock that stands."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    standing = Clock()
    monkeypatch.setattr("botocore.auth.get_current_datetime", standing)
    monkeypatch.setattr(iam_token, "_made", {})
    iam_token._session.cache_clear()
    yield standing
    iam_token._session.cache_clear()


def _signature(token: str, secret: str) -> str:
    """What AWS computes of a token: the rules of SigV4, written down once more."""
    host, _, query = token.partition("/?")
    given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
    del given["X-Amz-Signature"]
    canonical = "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(given.items())
    )
    nothing = hashlib.sha256(b"").hexdigest()
    request = f"GET\n/\n{canonical}\nhost:{host}\n\nhost\n{nothing}"
    _, day, region, service, end = given["X-Amz-Credential"].split("/")
    scope = f"{day}/{region}/{service}/{end}"
    hashed = hashlib.sha256(request.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{given['X-Amz-Date']}\n{scope}\n{hashed}"
    key = b"AWS4" + secret.encode()
    for part in (day, region, service, end):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


@pytest.mark.parametrize(
    ("given", "service", "kind"),
    [
        ("elasticache/eu-west-1/Orders", "elasticache", None),
        ("elasticache-serverless/eu-west-1/orders", "elasticache", "ServerlessCache"),
        ("memorydb/eu-west-1/orders", "memorydb", None),
    ],
)
async def test_a_token_is_signed_as_aws_checks_it(
    given: str, service: str, kind: str | None, clock: Clock
) -> None:
    token = await iam_token.token_of(IamToken.parse(given, "a user"))
    host, _, query = token.partition("/?")
    found = dict(parse_qsl(query, strict_parsing=True))
    assert host == "orders"  # no scheme, and in small letters
    assert found["Action"] == "connect"
    assert found["User"] == "a user"
    assert found.get("ResourceType") == kind
    assert found["X-Amz-Expires"] == "900"
    assert found["X-Amz-Date"] == "20260301T120000Z"
    assert found["X-Amz-Credential"] == f"AKIDEXAMPLE/20260301/eu-west-1/{service}/aws4_request"
    assert found["X-Amz-SignedHeaders"] == "host"
    assert found["X-Amz-Security-Token"] == SESSION
    assert query.rpartition("&")[2].startswith("X-Amz-Signature=")
    assert found["X-Amz-Signature"] == _signature(token, SECRET)
    assert found["X-Amz-Signature"] != _signature(token.replace("a%20user", "other"), SECRET)


async def test_a_token_is_renewed_before_it_ends(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = IamToken.parse("elasticache/eu-west-1/orders", USER)
    first = await iam_token.token_of(source)
    clock.now += datetime.timedelta(minutes=1)
    assert await iam_token.token_of(source) == first
    assert iam_token._HOLDS_SECONDS < iam_token.TOKEN_SECONDS
    monkeypatch.setattr(iam_token, "_HOLDS_SECONDS", 0.0)
    second = await iam_token.token_of(source)
    assert "20260301T120100Z" in second


def _takes(server: Server, token: str) -> None:
    acl = ["ACL", "SETUSER", USER, "on", "resetpass", f">{token}", "~*", "+@all"]
    if server.binary.version >= (6, 2, 0):
        acl.append("&*")
    server.client().execute_command(*acl)


def _entry(server: Server, cluster: str) -> dict[str, object]:
    host = f"{server.host}:{server.port}"
    return {
        "host": host, "username": USER, "iam": f"elasticache/eu-west-1/{cluster}", "tls": False,
    }  # fmt: skip


async def test_no_credentials(
    clock: Clock, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    server = server_factory(binaries()[0])
    filled = Credentials.read([_entry(server, "nobody")], "test").apply(Endpoint.parse(server.url))
    with pytest.raises(AuthError, match="no AWS credentials were found") as caught:
        await dial(filled, fault="target", timeout=20)
    assert "aws sts get-caller-identity" in caught.value.remedy


async def test_a_role_that_may_not_be_taken(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    def denied() -> None:
        raise ClientError({"Error": {"Code": "AccessDenied", "Message": SECRET}}, "AssumeRole")

    monkeypatch.setattr(iam_token, "_credentials", denied)
    with pytest.raises(UsageError, match="cannot be signed: ClientError of botocore") as caught:
        await iam_token.token_of(IamToken.parse("elasticache/eu-west-1/denied", USER))
    assert SECRET not in str(caught.value)


async def test_what_waits_for_aws_holds_up_nothing_else(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many dials, all given up: files and the state are written on threads meanwhile."""
    answered = threading.Event()
    monkeypatch.setattr(iam_token, "_credentials", answered.wait)
    monkeypatch.setattr(iam_token, "_SECONDS", 0.1)
    source = IamToken.parse("elasticache/eu-west-1/silent", USER)
    try:
        dials = (iam_token.token_of(source) for _ in range(100))
        for each in await asyncio.gather(*dials, return_exceptions=True):
            assert isinstance(each, UsageError)
            assert "no AWS credentials within" in each.message
        async with asyncio.timeout(20):
            await asyncio.to_thread(lambda: None)
    finally:
        answered.set()


async def test_a_connection_that_stands_logs_in_again(
    clock: Clock, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its login ends, with the token of that moment; one that is refused ends nothing."""
    server = server_factory(binaries()[0])
    given = Credentials.read([_entry(server, "stands")], "test")
    filled = given.apply(Endpoint.parse(server.url))
    first = await iam_token.token_of(IamToken.parse("elasticache/eu-west-1/stands", USER))
    _takes(server, first)
    monkeypatch.setattr(login, "RENEWED_SECONDS", 0.0)
    async with admin(filled, timeout=20) as side:
        before = await side.call("CLIENT", "ID")
        clock.now += datetime.timedelta(hours=11)
        monkeypatch.setattr(iam_token, "_HOLDS_SECONDS", 0.0)
        # The server takes the first alone: AUTH is refused, and the command runs.
        assert await side.call("CLIENT", "ID") == before
        second = await iam_token.token_of(IamToken.parse("elasticache/eu-west-1/stands", USER))
        assert second != first
        _takes(server, second)
        assert await side.call("CLIENT", "ID") == before
    assert server.client().info("commandstats")["cmdstat_auth"]["calls"] >= 3


async def test_a_login_that_is_given_up_leaves_each_reply_to_its_command(
    clock: Clock, server_factory: ServerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while a token is signed, with the reply to CLIENT SETNAME still to come."""
    server = server_factory(binaries()[0])
    given = Credentials.read([_entry(server, "given-up")], "test")
    filled = given.apply(Endpoint.parse(server.url))
    _takes(server, await iam_token.token_of(IamToken.parse("elasticache/eu-west-1/given-up", USER)))
    monkeypatch.setattr(login, "RENEWED_SECONDS", 0.0)
    asked = asyncio.Event()

    async def never(*_: object, **__: object) -> str:
        asked.set()
        return await asyncio.Future()

    async with admin(filled, timeout=20) as side:
        with monkeypatch.context() as patched:
            patched.setattr(login, "token_of", never)
            call = asyncio.create_task(side.call("PING"))
            await asked.wait()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        assert await side.call("ECHO", "there") == b"there"


def test_tokens_that_change_while_a_source_is_followed(
    clock: Clock, scenario: NewScenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target takes the token of the moment alone, and connections are dialled anew before their
    login ends: behind two seconds here."""
    s = scenario()
    s.load(keys=1_000)
    cluster = f"orders-{s.target.port}"
    source = IamToken.parse(f"elasticache/eu-west-1/{cluster}", USER)
    _takes(s.target, iam_token._make(source, math.inf))
    monkeypatch.setattr(login, "RENEWED_SECONDS", 2.0)
    credentials = Credentials.read([_entry(s.target, cluster)], "test")
    with s.running(credentials=credentials, retry_for=60.0) as run, s.counters():
        run.following()
        run.wait_for(lambda: run.progress.reconnects, "a link that is dialled anew")
        monkeypatch.setattr(login, "RENEWED_SECONDS", 3600.0)
        run.in_sync()
        clock.now += datetime.timedelta(minutes=10)
        _takes(s.target, iam_token._make(source, math.inf))
        s.target.client().execute_command("CLIENT", "KILL", "USER", USER)
        run.in_sync()
        run.cut_over()
    s.assert_migrated()
    told = "\n".join([*run.events, repr(run.work)])
    assert "X-Amz-Signature" not in told
    assert SECRET not in told
