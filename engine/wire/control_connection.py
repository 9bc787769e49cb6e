"""The control plane: few commands, any reply, one connection.

redis-py's connection is used (`wire.redis_py_connection`), not its client: replies come back as the
server sent them (bytes, int, None, list), and SELECT stays where it was put.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from typing import TYPE_CHECKING, Any, TypeVar

from engine import logs
from engine._native import ReplySplitter
from engine.errors import AuthError, EngineError, FaultOf, LinkError, ProtocolFault, ServerError
from engine.model.endpoint import Endpoint
from engine.model.retry import Attempts, Deadline
from engine.model.server import ServerInfo, parse_info
from engine.model.transient_errors import transient
from engine.wire import allowed_addresses, cluster_primary, command_renames
from engine.wire.command_link import REMEDY as COMMAND_REMEDY
from engine.wire.command_link import CommandLink
from engine.wire.dial import Untrusted, located, named_last
from engine.wire.error_replies import ErrorReplies
from engine.wire.failover_addresses import leading
from engine.wire.link_diagnosis import diagnose, root
from engine.wire.login import ASKS_AGAIN, Login, asks_again, renewed_behind
from engine.wire.redis_py_connection import connection_over, connection_to, prepare

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection
    from redis.exceptions import RedisError

Arg = bytes | str | int | float
T = TypeVar("T")
_log = logs.logger(__name__)


class Raw(tuple[bytes | str | int, ...]):
    """A command whose reply is wanted as the bytes that came; an error is an error as ever."""

    __slots__ = ()


CLIENT_NAME = "startmigration-admin"
# A server that loads its data or runs a script is asked again for this many seconds.
BUSY_SECONDS = 3.0
_BUSY_CODES = transient("answer")
_BUSY_PAUSE = 0.1
# From a login that could not be renewed to the next try, in seconds.
_LOG_IN_PAUSE = 60.0
# A pipeline's timeout holds for so many replies.
_REPLIES_A_CLOCK = 64
# Of a connection that was handed over: what is read at once, and between two looks at its end.
_READ_BYTES = 1 << 16
_READ_PAUSE = 0.005
# What an error reply begins with.
_ERROR = ord("-")
# To a replica in a cluster, which gives its keys then.
_READ_ONLY: tuple[Arg, ...] = ("READONLY",)
# From a replica, which says that it is there (`repl-timeout`); it has no answer.
_HERE_I_AM: tuple[Arg, ...] = ("REPLCONF", "ACK", 0)


@asynccontextmanager
async def admin(
    endpoint: Endpoint,
    *,
    timeout: float = 10.0,
    db: int = 0,
    fault: FaultOf = "engine",
    straight: bool = False,
) -> AsyncIterator[Admin]:
    """A connection for control commands, authenticated and in database `db`; closed at the end.

    `timeout`, in seconds, holds for connecting and for each reply (in a pipeline: for some replies
    together); `fault` says for errors which end of the migration this is; `straight`: the server at
    this very address is meant, wherever a detour leads from there (`wire.failover_addresses`).
    Whether a server answers there is known from the first command, unless credentials are given.
    Raises `LinkError`, `AuthError`, `ServerError` (SELECT refused), and `UsageError` for TLS files
    that are of no use.
    """
    named = endpoint if straight else leading(endpoint)
    side = Admin(await located(named, fault=fault, timeout=timeout), timeout, fault, named=named)
    try:
        await side._open()
        _log.debug("Connected, for commands", extra={"end": fault, "endpoint": endpoint.address})
        if db:
            await side.select(db)
        yield side
    finally:
        await side.close()


@asynccontextmanager
async def adopted(
    handed: int, endpoint: Endpoint, *, timeout: float = 10.0, fault: FaultOf = "engine"
) -> AsyncIterator[Admin]:
    """A replica's connection (`Admin.become_replica`) that another process of ours has handed over
    as the file descriptor `handed`; closed at the end. Raises `LinkError`."""
    try:
        given = socket.socket(fileno=handed)
    except OSError as error:
        raise LinkError(f"no connection was handed over: {error.strerror}", fault=fault) from None
    side = Admin(endpoint, timeout, fault, given=connection_over(given))
    try:
        await side._pass_by(given)
        # It has logged in: no password is read for it, nor any command run that prints one.
        async with side._dropped_on_failure():
            await side._connection.connect()  # type: ignore[no-untyped-call]
        side._replica = True
        yield side
    finally:
        await side.close()


async def all_of(
    stack: AsyncExitStack, dialling: Iterable[AbstractAsyncContextManager[T]]
) -> list[T]:
    """Enter all of them beside each other; `stack` closes them. Raises what the first one that
    fails raises; none goes on behind that."""
    tasks = [asyncio.ensure_future(stack.enter_async_context(each)) for each in dialling]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _read_up_to(given: socket.socket, asked: bytes, last: bytes, timeout: float) -> None:
    """Send `asked`, and read all that comes until `last` has come, and nothing behind it. Raises
    `OSError`."""
    deadline = time.monotonic() + timeout
    given.settimeout(timeout)
    try:
        given.sendall(asked)
        while time.monotonic() < deadline:
            seen = given.recv(_READ_BYTES, socket.MSG_PEEK)
            if not seen:
                raise ConnectionResetError("it was closed")
            at = seen.find(last)
            if at >= 0:
                given.recv(at + len(last))
                return
            # Its beginning may be there.
            if len(seen) >= len(last):
                given.recv(len(seen) - len(last) + 1)
            else:
                time.sleep(_READ_PAUSE)
        raise TimeoutError("no answer")
    finally:
        given.setblocking(False)


class Admin:
    """One connection of the control plane. Not for two tasks at once.

    After a `LinkError` the next call dials again, and is in the database that was chosen last.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        timeout: float,
        fault: FaultOf,
        *,
        given: AbstractConnection | None = None,
        named: Endpoint | None = None,
    ) -> None:
        """Not for callers: `admin` and `adopted` are. `given`: a connection that is there.
        `named`: what `endpoint` was found by; if that are Sentinels, or a cluster's nodes, they are
        asked again before the server is dialled again."""
        self._timeout = timeout
        self._named = named
        # Which node of a cluster it has to be that is reached there.
        self._meant = None if named is None else cluster_primary.identity(named, endpoint)
        self.endpoint = endpoint
        self.fault: FaultOf = fault
        self._names = command_renames.table(endpoint.command_names)
        self._connection = given or connection_to(endpoint, timeout, self.name, fault)
        # When it logs in again over the connection that stands, by the loop's clock; None: never.
        self._log_in_at: float | None = None
        # It is a replica's: what comes may be of the stream.
        self._replica = False
        self._lost = False
        # Whether what listens there has answered as a server does.
        self._answered = False
        self._kept: list[tuple[Arg, ...]] = []
        # Of `_kept`: what is to be sent with the next commands, and what was sent and has replies
        # that were not read yet.
        self._unsent: list[tuple[Arg, ...]] = []
        self._unread: list[tuple[Arg, ...]] = []
        # The database that is to be chosen with the next commands.
        self._chosen: int | None = None

    @property
    def name(self) -> str:
        """`source 10.0.0.1:6379`, for messages."""
        side = self.fault if self.fault in ("source", "target") else "server"
        return f"{side} {self.endpoint.address}"

    async def call(self, *args: Arg) -> Any:
        """Send one command and return its reply (bytes, int, None, or a list of these).

        A server that answers LOADING or BUSY is asked again for `BUSY_SECONDS`. Raises
        `ServerError` for an error reply, `AuthError` for one about rights or credentials, and
        `LinkError` when the link goes or the reply does not come in time.
        """
        (reply,) = await self.ask(args)
        return reply

    async def ask(self, *questions: Sequence[Arg]) -> list[Any]:
        """As `call` for each, in one go: all of them are asked again where the server answers one
        with LOADING or BUSY. Raises as `call` does, for the first that is refused."""
        deadline = Deadline(BUSY_SECONDS, _BUSY_PAUSE)
        async for attempt in Attempts(deadline):
            try:
                replies = await self.pipeline(questions)
                refused = [reply for reply in replies if isinstance(reply, EngineError)]
            except ServerError as error:  # of the database that was chosen
                refused = [error]
            if not refused:
                return replies
            busy = any(isinstance(e, ServerError) and e.code in _BUSY_CODES for e in refused)
            if not (busy and deadline.left):
                raise refused[0]
            attempt.failed(refused[0].message)
        raise AssertionError("attempts ended with neither replies nor an error")

    def choose(self, db: int) -> None:
        """As `select`, in one go with the next commands: these are to read alone, for they are sent
        before it is known whether there is such a database. They raise what `select` does."""
        self._chosen = db

    async def ask_in(self, db: int, *questions: Sequence[Arg]) -> list[Any]:
        """As `ask`, behind a `select` of the database `db`, which stays chosen."""
        _, *replies = await self.ask(("SELECT", db), *questions)
        self._connection.db = db
        return replies

    async def pipeline(
        self, commands: Iterable[Sequence[Arg]], *, raise_on_error: bool = False
    ) -> list[Any]:
        """Send the commands in one go and return their replies in order.

        An error reply is a value (`ServerError` or `AuthError`) in its place; with
        `raise_on_error` the first one is raised when all replies are in. Raises `LinkError`.
        """
        from hiredis import pack_command

        if self._lost:
            # Dialled anew it would be an ordinary one.
            raise self._link_error(ConnectionResetError())
        listed = [c if isinstance(c, tuple) else tuple(c) for c in commands]
        connected = self._connection.is_connected
        if self._named is not None and self._named.looked_up:
            if connected and self._given_up:
                await self._drop()
                connected = False
            if not connected:
                await self._locate(self._named)
                await self._recognise()
        if not self._connection.is_connected:
            await self._connect()
        again = await self._login_again()
        # (From here on whoever is cancelled drops the connection.)
        unread, before = (self._unread, self._unsent) if connected else ([], self._kept)
        self._unread, self._unsent = [], []
        before = [*again, *before]
        if self._chosen is not None:
            before = [*before, ("SELECT", self._chosen)]
        first = len(unread) + len(before)
        listed = [*before, *listed]
        wired = [_HERE_I_AM, *listed] if self._replica else listed
        if self._names:
            wired = [tuple(command_renames.sent(command, self._names)) for command in wired]
        packed = b"".join([pack_command(command) for command in wired])  # type: ignore[arg-type]
        replies: list[Any] = []
        # One clock, set anew now and then: redis-py's own would start a timer for each reply.
        async with self._dropped_on_failure(), asyncio.timeout(self._timeout) as limit:
            await self._connection.send_packed_command(packed, check_health=False)
            now = asyncio.get_running_loop().time
            due = [*unread, *listed]
            clocked = 0
            splitter = ReplySplitter() if any(type(each) is Raw for each in due) else None
            while len(replies) < len(due):
                if len(replies) >= clocked:
                    limit.reschedule(now() + self._timeout)
                    clocked = len(replies) + _REPLIES_A_CLOCK
                if splitter is not None:
                    await self._read_raw(splitter, due, replies)
                    continue
                replies.append(await self._reply(due[len(replies)]))
                self._answered = True
                if not self._replica:
                    # Those that came with it, without redis-py's turns for each of them.
                    self._take_come(due, replies)
        chosen, self._chosen = self._chosen, None
        if chosen is not None:
            if isinstance(refused := replies[first - 1], EngineError):
                self._chosen = chosen
                raise refused
            self._connection.db = chosen
        replies = replies[first:]
        if raise_on_error:
            for reply in replies:
                if isinstance(reply, EngineError):
                    raise reply
        return replies

    async def _login_again(self) -> list[tuple[Arg, ...]]:
        """AUTH, where the login of the connection that stands comes to an end. One that the server
        refuses changes nothing: it ends the connection when it is over, which is dialled anew."""
        now = asyncio.get_running_loop().time()
        if self._log_in_at is None or now < self._log_in_at or self._replica:
            return []
        login = Login(self.endpoint, self.fault, self.name)
        try:
            await login.first()
        except AuthError as error:
            _log.warning("%s", error.message, extra={"end": self.fault})
            self._log_in_at = now + _LOG_IN_PAUSE
            return []
        seconds = renewed_behind(self.endpoint)
        self._log_in_at = None if seconds is None else now + seconds
        return [("AUTH", self.endpoint.username or "default", login.password or "")]

    @property
    def _given_up(self) -> bool:
        """Whether its Sentinels, or its cluster, have given up the server that is connected to, or
        another replica is read by now. It may answer on."""
        if self._named is None or not self._named.looked_up:
            return False
        there = named_last(self._named)
        return there is not None and there.address != self.endpoint.address

    @property
    def link(self) -> object | None:
        """What the next commands go over, to be compared: what holds for one connection (WATCH)
        holds as long as this is the same. None: another one is dialled first."""
        if not self._connection.is_connected or self._given_up:
            return None
        writer: object = getattr(self._connection, "_writer", None)
        return writer

    async def _locate(self, named: Endpoint) -> None:
        """Dial the server that the Sentinels, or the cluster, name now, if it is another one.

        Raises `LinkError`, `AuthError`."""
        there = await located(named, fault=self.fault, timeout=self._timeout)
        self._meant = cluster_primary.identity(named, there)
        if there != self.endpoint:
            db = self._connection.db
            self.endpoint = there
            self._connection = connection_to(there, self._timeout, self.name, self.fault)
            self._connection.db = db
            if there.read_only and _READ_ONLY not in self._kept:
                self.keep(*_READ_ONLY)

    def packed(self, *args: Arg) -> bytes:
        """The command as it goes over the wire."""
        from hiredis import pack_command

        packed: bytes = pack_command(tuple(command_renames.sent(args, self._names)))
        return packed

    async def _pass_by(self, given: socket.socket) -> None:
        """Read what the process before us left unread of `given`: it may have been killed within
        an answer. Raises `LinkError`."""
        mark = os.urandom(16).hex()
        asked, last = self.packed("ECHO", mark), f"$32\r\n{mark}\r\n".encode()
        try:
            await asyncio.to_thread(_read_up_to, given, asked, last, self._timeout)
        except OSError as error:
            given.close()
            raise self._link_error(ConnectionResetError(str(error))) from None

    def keep(self, *args: Arg) -> None:
        """Send a command that holds for the connection, before the next ones, and whenever it is
        dialled anew; where the server refuses it, it goes without."""
        self._kept.append(args)
        self._unsent.append(args)

    async def info(self, section: str | None = None) -> ServerInfo:
        """INFO, parsed: its default sections, or `section` ("server" among several needs none).

        Raises what `call` raises, with the option that names INFO where the server does not know
        it, and `ProtocolFault` for a text without a version.
        """
        try:
            text = await self.call("INFO", *([section] if section else []))
        except ServerError as error:
            if "unknown" in error.message.lower():
                # Every server has it: one that doesn't know it has given it another name.
                side = f"{self.fault}:" if self.fault in ("source", "target") else ""
                error.remedy = (
                    f"Where rename-command gave it another name: --command-name {side}INFO=NAME."
                )
            raise
        return self.info_in(text)

    async def info_with(self, *beside: Sequence[Arg]) -> tuple[ServerInfo, list[Any]]:
        """As `info`, in one go with other questions, whose replies come with it, errors as values:
        those are not asked again where the server is busy."""
        text, *replies = await self.pipeline([("INFO",), *beside])
        return self.info_in(text) if isinstance(text, bytes) else await self.info(), replies

    def info_in(self, text: object) -> ServerInfo:
        """A reply to INFO, parsed. Raises `ProtocolFault`."""
        if not isinstance(text, bytes):
            raise ProtocolFault(f"{self.name} answered INFO with no text", fault=self.fault)
        return parse_info(text.decode("utf-8", "replace"))

    async def subscribe(self, channel: str) -> None:
        """Receive what is published in `channel` (`message`); the connection can do nothing
        else then. Raises as `call` does."""
        await self.call("SUBSCRIBE", channel)

    async def message(self, seconds: float) -> bytes | None:
        """The next message of the channel; None: none came within `seconds`, and the server still
        answers. One that comes while it is asked for that may be missed. Raises `LinkError`."""
        ends = asyncio.get_running_loop().time() + seconds
        while (left := ends - asyncio.get_running_loop().time()) > 0:
            async with self._dropped_on_failure():
                # Not cancelled: that would drop the connection.
                reading = asyncio.ensure_future(self._reply(("SUBSCRIBE",)))
                try:
                    await asyncio.wait({reading}, timeout=left)
                    if not reading.done():
                        break
                    reply = reading.result()
                finally:
                    reading.cancel()
                    await asyncio.gather(reading, return_exceptions=True)
            if isinstance(reply, list) and len(reply) == 3 and reply[0] == b"message":
                return bytes(reply[2])
        # A link that was cut somewhere says nothing either.
        await self.call("PING")
        return None

    async def select(self, db: int) -> None:
        """Choose the database of the following commands. Raises `ServerError` if there is none."""
        await self.call("SELECT", db)
        # A connection that is dialled anew would otherwise be back in database 0.
        self._connection.db = db

    async def has_database(self, db: int) -> bool:
        """Whether there is such a database, which is chosen then. Raises as `call` does, but where
        there is none."""
        try:
            await self.select(db)
        except ServerError as error:
            if error.code != "ERR":
                raise
            return False
        return True

    @property
    def lost(self) -> bool:
        """Whether this was a replica's connection, which is not dialled anew."""
        return self._lost

    async def become_replica(self, replid: str, offset: int) -> None:
        """Make this connection a replica's, by a partial sync from the byte `offset` on.

        Before 6.2 CLIENT PAUSE does not hold a replica's commands. They are answered as before;
        what the stream brings is passed over. No MULTI from here on. `replid` is the run id before
        Redis 4.0. Raises `ServerError` where the server would not go on from there, `AuthError`,
        `LinkError`.
        """
        # Were this command not known, `_HERE_I_AM` would have an answer after all.
        await self.call("REPLCONF", "listening-port", 0)
        reply = await self.call("PSYNC", replid, offset)
        if not (isinstance(reply, bytes) and reply.startswith(b"CONTINUE")):
            await self._drop()
            raise ServerError(
                f"{self.name} refused a partial sync from its own offset {offset:,}: a connection "
                "of the engine cannot be kept out of CLIENT PAUSE",
                code="ERR",
                fault=self.fault,
            )
        self._replica = True

    def duplicate(self) -> int | None:
        """Another file descriptor of this connection, for `adopted` in another process; None where
        TLS has a state of its own, a command of ours is the link, or the connection is lost. The
        caller closes it."""
        writer = getattr(self._connection, "_writer", None)
        held = self.endpoint.tls is not None or bool(self.endpoint.connect_command)
        if held or self._lost or writer is None:
            return None
        with suppress(OSError):
            return os.dup(writer.get_extra_info("socket").fileno())
        return None

    async def close(self) -> None:
        """Close the connection. A second call does nothing."""
        await self._drop()

    async def _recognise(self) -> None:
        """Connect, and see that the node which was meant is there: before anything is sent that
        changes something. Raises `LinkError`, `AuthError`, `ServerError`."""
        meant = self._meant
        if meant is None:
            return
        if not self._connection.is_connected:
            await self._connect()
        async with self._dropped_on_failure(), asyncio.timeout(self._timeout):
            packed = self.packed(*meant.question)
            await self._connection.send_packed_command(packed, check_health=False)
            meant.check(await self._reply(meant.question), self.name, self.fault)

    async def _open(self) -> None:
        await self._connect()
        await self._recognise()
        # So that the server's operator sees our name, and our own connections are told from those
        # of clients; not every user may. The reply is read with those to the first commands: by
        # itself it would take a round trip.
        named: tuple[Arg, ...] = ("CLIENT", "SETNAME", CLIENT_NAME)
        self._kept.append(named)
        async with self._dropped_on_failure(), asyncio.timeout(self._timeout):
            packed = self.packed(*named)
            await self._connection.send_packed_command(packed, check_health=False)
        self._unread.append(named)
        if self.endpoint.read_only:
            self.keep(*_READ_ONLY)

    @asynccontextmanager
    async def _dropped_on_failure(self) -> AsyncIterator[None]:
        """Drop the connection where what is done with it meanwhile fails: replies that are not read
        would be taken for those of the next commands. Raises `LinkError` where the link went."""
        from redis.exceptions import RedisError

        try:
            yield
        except (RedisError, TimeoutError) as error:
            lost = self._link_error(error)
            await self._drop()
            raise lost from None
        except RuntimeError as error:
            # uvloop says so of a transport that the server has closed meanwhile.
            lost = self._link_error(ConnectionResetError())
            await self._drop()
            if "closed" not in str(error):
                raise
            raise lost from None
        except BaseException:
            await self._drop()
            raise

    async def _connect(self) -> None:
        from redis.exceptions import RedisError

        login = Login(self.endpoint, self.fault, self.name)
        try:
            # (A password's command has a clock of its own, by which it is named.)
            await login.first()
            async with asyncio.timeout(self._timeout):
                while True:
                    prepare(self._connection, self.endpoint, login.password)
                    try:
                        await self._connection.connect()  # type: ignore[no-untyped-call]
                        break
                    except RedisError as error:
                        if error.status_code is None:
                            raise
                        refusal = self._error_replies.of_credentials(error.status_code, str(error))
                    await self._drop()
                    await login.following(refusal)
        except (RedisError, TimeoutError) as error:
            lost = self._link_error(error)
            await self._drop()
            raise lost from None
        except BaseException:
            await self._drop()
            raise
        login.accepted()
        seconds = renewed_behind(self.endpoint)
        if seconds is not None:
            self._log_in_at = asyncio.get_running_loop().time() + seconds

    async def _reply(self, command: Sequence[Arg]) -> Any:
        from redis.exceptions import RedisError

        try:
            while True:
                reply = await self._connection.read_response(
                    timeout=math.inf, disconnect_on_error=False
                )
                if not (self._replica and _streamed(reply, command)):
                    return reply
        except RedisError as error:
            return self._refusal(error, command)

    def _refusal(self, error: RedisError, command: Sequence[Arg]) -> EngineError:
        """An error reply. Raises `LinkError` where it says that the login is over."""
        refusal = self._error_replies.error(error, command)
        if command[0] != "AUTH" and asks_again(self.endpoint, refusal):
            raise LinkError(refusal.message, remedy=ASKS_AGAIN, fault=self.fault) from None
        return refusal

    def _take_come(self, due: Sequence[Sequence[Arg]], replies: list[Any]) -> None:
        """Add replies that have been read from the socket already; `due` are the commands."""
        from redis.exceptions import RedisError

        parser = self._connection._parser
        next_reply, nothing = parser.next_come, parser.nothing  # type: ignore[attr-defined]
        while len(replies) < len(due) and (reply := next_reply()) is not nothing:
            if isinstance(reply, RedisError):
                reply = self._refusal(reply, due[len(replies)])
            replies.append(reply)

    async def _read_raw(
        self, splitter: ReplySplitter, due: Sequence[Sequence[Arg]], replies: list[Any]
    ) -> None:
        """Read from the socket once, and add the replies that came, some of them as bytes. Nothing
        is read of them by redis-py: its reader keeps what is behind a reply to itself."""
        assert not self._replica
        parser: Any = self._connection._parser
        splitter.feed(await parser.read_bytes())
        while len(replies) < len(due):
            try:
                reply = splitter.next()
            except ValueError as error:
                raise ProtocolFault(f"{self.name}: {error}", fault=self.fault) from None
            if reply is None:
                return
            self._answered = True
            if type(due[len(replies)]) is Raw and reply[0] != _ERROR:
                replies.append(reply)
            else:
                parser.put(reply)
                self._take_come(due, replies)

    @property
    def _error_replies(self) -> ErrorReplies:
        return ErrorReplies(self.name, self.endpoint, self.fault)

    def _link_error(self, error: RedisError | TimeoutError | ConnectionError) -> LinkError:
        cause = root(error)
        if isinstance(cause, allowed_addresses.NotAllowed):
            return cause
        if isinstance(cause, LinkError):  # of a command that cannot be run
            return allowed_addresses.unreached(cause, self.name)
        problem, remedy = diagnose(error, self.endpoint, self._answered)
        through: CommandLink | None = getattr(self._connection, "through", None)
        waits = not isinstance(cause, TimeoutError)
        if through and (said := through.words(carried=self._answered, waits=waits)):
            problem, remedy = f"{problem}; {said}", COMMAND_REMEDY
        kind = Untrusted if isinstance(cause, ssl.SSLCertVerificationError) else LinkError
        found = kind(f"{self.name}: {problem}.", remedy=remedy, fault=self.fault)
        return found if self._answered else allowed_addresses.unreached(found, self.name)

    async def _drop(self) -> None:
        from redis.exceptions import RedisError

        self._lost = self._lost or self._replica
        with suppress(RedisError, OSError):
            await self._connection.disconnect(nowait=True)


def _streamed(reply: object, command: Sequence[Arg]) -> bool:
    """Whether a replica's connection has read a command of the stream, and not the reply to its
    own. Both may be lists: of the commands that are sent there CONFIG GET alone is answered by one,
    which begins with the name of a setting."""
    if not isinstance(reply, list):
        return False
    first = reply[0] if reply else b""
    return not (command[0] == "CONFIG" and isinstance(first, bytes) and first[:4] == b"min-")
