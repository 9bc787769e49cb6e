"""Making a connection: TCP or unix socket, TLS, AUTH, a name, the round trip."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from engine import logs
from engine.errors import AuthError, FaultOf, LinkError, ProtocolFault, ServerError
from engine.model.endpoint import Endpoint
from engine.wire import allowed_addresses, cluster_primary, sentinel_primary, source_replica
from engine.wire.command_link import REMEDY as COMMAND_REMEDY
from engine.wire.command_link import CommandLink
from engine.wire.connection import Connection, answered
from engine.wire.failover_addresses import leading
from engine.wire.keep_alive import keep_alive
from engine.wire.login import Login, renewed_behind, secrets_of
from engine.wire.tls import ssl_context

_log = logs.logger(__name__)
# The round trip is that of the quickest of so many; from these seconds on the first tells enough.
_PINGS = 3
_FAR_SECONDS = 0.025
CLIENT_NAME = "startmigration"
Command = tuple[bytes | str | int, ...]


class Untrusted(LinkError):
    """The server's certificate cannot be trusted: at the start, dialling again does not help."""


async def dial(
    endpoint: Endpoint,
    *,
    fault: FaultOf,
    timeout: float,
    may_ping: bool = True,
    straight: bool = False,
) -> Connection:
    """Connect, authenticate, and measure the round trip. As `dial_and_ask`."""
    connection, _ = await dial_and_ask(
        endpoint, (), fault=fault, timeout=timeout, may_ping=may_ping, straight=straight
    )
    return connection


async def dial_and_ask(
    endpoint: Endpoint,
    questions: Sequence[Command],
    *,
    fault: FaultOf,
    timeout: float,
    may_ping: bool = True,
    straight: bool = False,
) -> tuple[Connection, list[Any]]:
    """Connect, authenticate, and measure the round trip; and the replies to `questions`, which go
    along, as `Connection.together` gives them. `may_ping`: a user who may not PING is refused.
    `straight`: the server at this very address is meant, wherever a detour leads from there
    (`wire.failover_addresses`).

    `timeout` is in seconds and covers all of it, but for a password's command, which has its own
    bound. Raises `LinkError` (refused, no such host, TLS, time), `AuthError` (credentials refused),
    `ServerError` (anything else that it answered).
    """
    began = asyncio.get_running_loop().time()
    named = endpoint if straight else leading(endpoint)
    there = await located(named, fault=fault, timeout=timeout)
    meant = cluster_primary.identity(named, there)
    if meant is None:
        return await _dial_at(there, questions, fault, timeout, may_ping, began)
    asked = [meant.question, *questions]
    connection, (who, *replies) = await _dial_at(there, asked, fault, timeout, may_ping, began)
    try:
        meant.check(who, connection.name, fault)
    except BaseException:
        connection.close()
        raise
    return connection, replies


async def located(
    endpoint: Endpoint, *, fault: FaultOf, timeout: float, anew: bool = False
) -> Endpoint:
    """The server that `endpoint` means by now: itself, or the primary that its Sentinels, or its
    cluster's nodes, name; or a healthy replica of that.

    Raises `LinkError` and `AuthError` of these. `timeout` is in seconds. `anew`: a server has
    contradicted what the cluster's nodes said last (MOVED): they are asked, however fresh that is.
    """

    async def ask_all(at: Endpoint, questions: Sequence[tuple[str, ...]]) -> list[Any]:
        began = asyncio.get_running_loop().time()
        connection, replies = await _dial_at(at, questions, fault, timeout, False, began)
        connection.close()
        return [answered(reply) for reply in replies]

    async def ask(at: Endpoint, question: tuple[str, ...]) -> Any:
        return (await ask_all(at, [question]))[0]

    if endpoint.from_replica:
        return await source_replica.located(endpoint, ask_all, fault=fault, timeout=timeout)
    if endpoint.sentinel is not None:
        return await sentinel_primary.primary(endpoint, ask, fault=fault, timeout=timeout)
    if endpoint.cluster is not None:
        if anew:
            cluster_primary.forget(endpoint)
        return await cluster_primary.primary(endpoint, ask_all, fault=fault, timeout=timeout)
    return endpoint


def named_last(endpoint: Endpoint) -> Endpoint | None:
    """Where what is looked up before each dial was last; None: it was not looked up yet."""
    if endpoint.from_replica:
        return source_replica.named_last(endpoint)
    if endpoint.sentinel is not None:
        return sentinel_primary.named_last(endpoint)
    return cluster_primary.named_last(endpoint)


async def _dial_at(
    endpoint: Endpoint,
    questions: Sequence[Command],
    fault: FaultOf,
    timeout: float,
    may_ping: bool,
    began: float,
) -> tuple[Connection, list[Any]]:
    """As `dial_and_ask`, at this very address; the time counts from `began` on, by the loop's
    clock."""
    connection: Connection | None = None
    kind = LinkError
    of = {"end": fault, "endpoint": endpoint.address}
    _log.debug("Connects", extra=of)
    login = Login(endpoint, fault, f"{fault} {endpoint.address}")
    through: CommandLink | None = None
    loop = asyncio.get_running_loop()
    asked = loop.time()
    # (By the server's clock a command that hangs would be told as a server that does not answer.)
    await login.first()
    began += loop.time() - asked
    waits = True
    try:
        async with asyncio.timeout_at(began + timeout):
            context = None if endpoint.tls is None else ssl_context(endpoint.tls)
            if endpoint.connect_command:
                await allowed_addresses.addresses(endpoint, f"{fault} {endpoint.address}")
                through = CommandLink(endpoint, fault, secrets_of(endpoint, login.password))
            connection = await _connect(endpoint, fault, context, through)
            replies = await _greet(connection, questions, may_ping, login)
            _log.debug(
                "Connected", extra=of | {"round_trip_seconds": round(connection.round_trip, 4)}
            )
            return connection, replies
    except TimeoutError:
        problem = f"no answer within {timeout:g} s"
        waits = False
    except ssl.SSLCertVerificationError as exc:
        problem = f"its certificate is not to be trusted: {exc.verify_message}"
        kind = Untrusted
    except ssl.SSLError as exc:
        problem = f"TLS failed: {exc.reason or exc}"
    except socket.gaierror as exc:
        problem = f"no such host: {exc.strerror}"
    except ConnectionRefusedError:
        problem = "connection refused"
    except OSError as exc:
        problem = exc.strerror or str(exc)
    except (LinkError, ProtocolFault) as error:
        # It took the connection, and did not answer as a server does.
        if connection is not None:
            connection.close()
        if not allowed_addresses.veiled():
            raise
        raise allowed_addresses.unreached(
            _as_link_error(error), f"{fault} {endpoint.address}"
        ) from None
    except BaseException:
        if connection is not None:
            connection.close()
        if through is not None:
            through.close()
        raise
    remedy = "Check the address, the network and the TLS settings."
    if through is not None:
        if kind is not Untrusted and (said := through.words(waits=waits)):
            problem, remedy = f"{problem}; {said}", COMMAND_REMEDY
        through.close()
    if connection is not None:
        connection.close()
    failure = kind(
        f"{fault} {endpoint.address} cannot be reached: {problem}.",
        remedy=remedy,
        fault=fault,
    )
    raise allowed_addresses.unreached(failure, f"{fault} {endpoint.address}")


def _as_link_error(error: LinkError | ProtocolFault) -> LinkError:
    if isinstance(error, LinkError):
        return error
    return LinkError(error.message, remedy=error.remedy, fault=error.fault)


async def _connect(
    endpoint: Endpoint,
    fault: FaultOf,
    context: ssl.SSLContext | None,
    through: CommandLink | None,
) -> Connection:
    loop = asyncio.get_running_loop()
    assert endpoint.file_path is None, "a file has no address to connect to"

    made: list[Connection] = []

    def factory() -> Connection:
        made.append(Connection(endpoint, fault, through))
        return made[-1]

    tls = endpoint.tls
    server_name = None
    if tls is not None:
        server_name = tls.server_name or endpoint.host
    if through is not None:
        try:
            _, connection = await loop.create_unix_connection(
                factory, sock=through.socket, ssl=context, server_hostname=server_name
            )
        except BaseException:
            for each in made:
                each.close()
            through.socket.close()
            raise
        return connection
    judged = await allowed_addresses.addresses(endpoint, f"{fault} {endpoint.address}")
    if endpoint.unix_path is not None:
        path = endpoint.unix_path if judged is None else judged[0]
        _, connection = await loop.create_unix_connection(factory, path)
        return connection
    hosts = [endpoint.host] if judged is None else judged
    for n, host in enumerate(hosts, 1):
        try:
            transport, connection = await loop.create_connection(
                factory,
                host,
                endpoint.port,
                ssl=context,
                server_hostname=server_name,
            )
            break
        except BaseException as error:
            # Given up in the moment in which the handshake was done: nothing else would close it.
            for each in made:
                each.close()
            if not isinstance(error, OSError) or n == len(hosts):
                raise
    sock = transport.get_extra_info("socket")
    if sock is not None:
        keep_alive(sock)
    return connection


async def _greet(
    connection: Connection, questions: Sequence[Command], may_ping: bool, login: Login
) -> list[Any]:
    """As `_introduce`, with the passwords of `login` until one of them is accepted."""
    while True:
        try:
            replies = await _introduce(connection, questions, may_ping, login.password)
        except AuthError as refusal:
            await login.following(refusal)
        else:
            login.accepted()
            connection.greeted = True
            if (seconds := renewed_behind(connection.endpoint)) is not None:
                connection.renew_behind(seconds)
            return replies


async def _introduce(
    connection: Connection, questions: Sequence[Command], may_ping: bool, password: str | None
) -> list[Any]:
    """AUTH, a name, PING and the questions in one go; the replies to the latter. What is answered
    behind an AUTH that is refused means nothing."""
    endpoint, loop = connection.endpoint, asyncio.get_running_loop()
    user: list[str] = []
    greeting: list[Command] = []
    if password is not None:
        # Before 6.0 there are no users; "default" is what the one there is called since.
        if endpoint.username not in (None, "", "default"):
            user = [str(endpoint.username)]
        greeting.append(("AUTH", *user, password))
    # So that the server's operator sees our name; not every user may.
    greeting += [("CLIENT", "SETNAME", CLIENT_NAME), ("PING",)]
    began = loop.time()
    quickest = float("inf")

    def answered(_: object) -> None:
        nonlocal quickest
        quickest = loop.time() - began

    replies = await connection.together(
        *greeting, *questions, callbacks={len(greeting) - 1: answered}
    )
    pong = replies[len(greeting) - 1]
    if password is not None:
        _check_auth(connection, replies[0], bool(user))
    denied = isinstance(pong, AuthError) and pong.message.partition("answered: ")[2][:6] == "NOPERM"
    if isinstance(pong, AuthError) and (may_ping or not denied):
        raise pong
    # LOADING, BUSY, MISCONF (its disk is full): a round trip all the same.
    for _ in range(_PINGS - 1):
        if denied or quickest >= _FAR_SECONDS:
            break
        began = loop.time()
        with contextlib.suppress(ServerError):
            await connection.call("PING")
        quickest = min(quickest, loop.time() - began)
    connection.round_trip = quickest
    return replies[len(greeting) :]


def _check_auth(connection: Connection, reply: object, user: bool) -> None:
    """Raise `AuthError` for an error reply to AUTH; `user`: a user's name was given with it."""
    if not isinstance(reply, ServerError | AuthError):
        return
    if user and "wrong number of arguments" in reply.message:
        raise AuthError(
            f"{connection.name} has no users (it is older than Redis 6.0), and the user "
            f"{connection.endpoint.username!r} was given",
            remedy="Leave out the user's name: redis://:PASSWORD@HOST.",
            fault=connection.fault,
        )
    refusal = reply
    if not isinstance(refusal, AuthError):
        refusal = AuthError(
            f"{connection.name} refused the credentials: {reply.message}", fault=connection.fault
        )
    refusal.of_password = True
    raise refusal
