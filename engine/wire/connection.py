"""One connection to a server: replies as objects for the few, bytes into the core for the many.

A connection begins in control mode: `call` sends a command and waits for its reply, read by the
core's RESP reader. `take_over` puts it into data mode: what arrives is read straight into the
buffer of a core object (`BulkReader.input`), which is told how many bytes came. `release` goes
back, between two replies. A reader that read further than its own part ends hands the rest to the
next one (`hand_on`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import sys
import termios
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, cast

from engine import logs
from engine._native import (
    NEED_DATA,
    InputBuffer,
    ProtocolError,
    ReplyError,
    RespReader,
    encode_command,
)
from engine.errors import AuthError, EngineError, FaultOf, LinkError, ProtocolFault, ServerError
from engine.model.endpoint import Endpoint
from engine.model.joined_sentences import without_arguments
from engine.wire import command_renames
from engine.wire.command_link import CommandLink
from engine.wire.login import ASKS_AGAIN, asks_again

# Bytes in the transport that the kernel has not taken; above it `writable` waits.
_log = logs.logger(__name__)
WRITE_HIGH_WATER = 2 << 20
# Reads past the transport in a row, before the loop's other sockets have their turn.
_READS_AT_ONCE = 8
# How often a connection that is owed replies is looked at.
_WATCH_SECONDS = 1.0
_NO_CALLBACKS: Mapping[int, Callable[[object], None]] = MappingProxyType({})


class BulkReader(Protocol):
    """A core object that eats replies: it is read into, then told how much came."""

    @property
    def input(self) -> Any:
        """Writable buffer of bytes: the free tail of the object's own memory; it has a length."""
        ...

    def received(self, n: int, /) -> int:
        """`n` bytes were read into `input`; returns how much there is to take."""
        ...


class Connection(asyncio.BufferedProtocol):
    """A dialled connection. `fault` says whose server it is, for errors."""

    def __init__(
        self, endpoint: Endpoint, fault: FaultOf, through: CommandLink | None = None
    ) -> None:
        """`through`: the command that is the link, if it is one."""
        self.endpoint = endpoint
        self._through = through
        self.fault: FaultOf = fault
        self._names = command_renames.table(endpoint.command_names)
        self.greeted = False
        """Whether the server has taken the credentials, and answered."""
        self._renewal: asyncio.TimerHandle | None = None
        self.round_trip = 0.0
        """Seconds of the quickest PING at dialling."""
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = RespReader()
        self._calls: deque[asyncio.Future[Any]] = deque()
        self._bulk: BulkReader | None = None
        self._surplus = b""
        self._on_ready: Callable[[int], None] = _ignore
        self._on_lost: Callable[[EngineError], None] = _ignore
        self._write_waiter: asyncio.Future[None] | None = None
        self._write_paused = False
        self._read_paused = False
        # What the transport was last told.
        self._listening = True
        # The socket's, if what it gives is plain; -1: it is not to be read past the transport. The
        # transport closes it behind `connection_lost`, and the next socket may get its number.
        self._fd = -1
        self._rest: asyncio.TimerHandle | None = None
        # What rests until this connection's own rest is over.
        self._beside: Connection | None = None
        self.resting = False
        """Whether what comes is left to the kernel for the moment."""
        self._watch: asyncio.TimerHandle | None = None
        self._received_at = 0.0
        self._room = 0
        self.last_read = 0
        """Bytes that the last read brought."""
        self.filled = False
        """Whether the last read took all the room there was: more may be there. Data mode only."""
        self.lost: EngineError | None = None
        """Why the connection is of no more use; None while it is."""

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The transport is there."""
        # uvloop's transports are Transports in all but the class.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_WATER)
        if self._transport.get_extra_info("ssl_object") is None:
            sock = self._transport.get_extra_info("socket")
            self._fd = sock.fileno() if sock is not None else -1

    def get_buffer(self, sizehint: int) -> Any:
        """Where the next bytes go."""
        if self._bulk is not None:
            room = memoryview(self._bulk.input)
            self._room = len(room)
            return room
        return self._reader.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """`nbytes` came."""
        self._received_at = self._loop.time()
        self.last_read = nbytes
        self.filled = nbytes >= self._room
        self._hand_to_reader(nbytes)

    def _hand_to_reader(self, nbytes: int) -> None:
        try:
            if self._bulk is not None:
                self._on_ready(self._bulk.received(nbytes))
            else:
                self._reader.buffer_updated(nbytes)
                self._answer_calls()
        except Exception as exc:
            self._fail_by(exc)

    def _fail_by(self, exc: Exception) -> None:
        """Give the connection up for what a reader, or what it was handed to, has raised."""
        if isinstance(exc, ProtocolError):
            words = f"{self.name} sent bytes that are no RESP reply: {exc}"
            self.fail(ProtocolFault(words, fault=self.fault))
        elif isinstance(exc, ReplyError):
            self.fail(self.reply_error(str(exc)))
        elif isinstance(exc, EngineError):
            self.fail(exc)
        elif isinstance(exc, MemoryError):
            self.fail(EngineError("the engine is out of memory"))
        else:
            # Not raised: in a timer's callback that would leave a link of which nothing is read.
            _log.error("A fault of the engine", exc_info=exc, extra={"end": self.fault})
            self.fail(
                EngineError(
                    f"{type(exc).__name__} while the answers of {self.name} were read: this is a "
                    "fault of the engine",
                    remedy="The log has the place.",
                )
            )

    def eof_received(self) -> bool:
        """The server closed its side: nothing more will come."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The link is gone, for whatever reason."""
        what = f": {exc}" if exc else ""
        if self.lost is None and self._through is not None:
            said = self._through.words(carried=self.greeted)
            what = f": {said}" if said else what
        self.fail(LinkError(f"{self.name} closed the connection{what}", fault=self.fault))

    def pause_writing(self) -> None:
        """The kernel takes no more for now."""
        self._write_paused = True

    def resume_writing(self) -> None:
        """The kernel takes bytes again."""
        self._write_paused = False
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)

    # --- the engine's side ---

    @property
    def received_at(self) -> float:
        """When bytes came last, by the loop's clock; also when reading was taken up again. 0: none
        came yet."""
        return self._received_at

    @property
    def name(self) -> str:
        """`source 10.0.0.1:6379`, for messages."""
        return f"{self.fault} {self.endpoint.address}"

    def reply_error(self, text: str) -> EngineError:
        """An error reply as an exception of ours."""
        text = without_arguments(text)
        code = text.partition(" ")[0]
        kind = AuthError if code in _AUTH_CODES else ServerError
        message = f"{self.name} answered: {text}"
        if kind is AuthError:
            of_key = code == "NOPERM" and "to access" in text
            remedy = _OF_KEY if of_key else _AUTH_CODES[code]
            if not of_key and code == "NOPERM" and (named := _REFUSED.search(text)):
                remedy = f"ACL SETUSER {self.endpoint.username or 'default'} +{named[1].lower()}."
            refusal = AuthError(message, remedy=remedy, fault=self.fault)
            refusal.of_key = of_key
            refusal.of_password = code in ("NOAUTH", "WRONGPASS")
            if self.greeted and asks_again(self.endpoint, refusal):
                return LinkError(message, remedy=ASKS_AGAIN, fault=self.fault)
            return refusal
        return ServerError(message, code=code, fault=self.fault)

    async def call(self, *command: bytes | str | int, timeout: float = 30.0) -> Any:
        """Send one command and return its reply (bytes, int, None, list …).

        Raises `ServerError` or `AuthError` for an error reply, `LinkError` when the link goes or
        no reply comes within `timeout` seconds. Control mode only.
        """
        (reply,) = await self.exchange(self.encode(*command), 1, timeout=timeout)
        return answered(reply)

    async def together(
        self,
        *commands: tuple[bytes | str | int, ...],
        callbacks: Mapping[int, Callable[[object], None]] = _NO_CALLBACKS,
    ) -> list[Any]:
        """Send commands in one go and return their replies in order, error replies as values
        (`ServerError`, `AuthError`). `callbacks`: what is called once the command of this index is
        answered. Raises `LinkError`. Control mode only."""
        # In the order of their making tasks begin, and write.
        calls = [asyncio.ensure_future(self.call(*command)) for command in commands]
        for index, call in callbacks.items():
            calls[index].add_done_callback(call)
        replies = await asyncio.gather(*calls, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, ServerError | AuthError):
                raise reply
        return replies

    async def exchange(self, commands: bytes, count: int, *, timeout: float = 30.0) -> list[Any]:
        """Send `count` encoded commands in one go and return their replies in order, error replies
        as values (`ServerError`, `AuthError`). Raises `LinkError`. Control mode only."""
        if self.lost is not None:
            raise self.lost
        assert self._transport is not None
        assert self._bulk is None
        waiters: list[asyncio.Future[Any]] = [self._loop.create_future() for _ in range(count)]
        self._calls.extend(waiters)
        self._transport.write(commands)
        try:
            async with asyncio.timeout(timeout):
                replies = [await waiter for waiter in waiters]
        except TimeoutError:
            # Replies may still come and be taken for others': the connection is of no use.
            self.fail(LinkError(f"{self.name} gave no answer for {timeout:g} s", fault=self.fault))
            assert self.lost is not None
            raise self.lost from None
        finally:
            # Nobody else waits for them: what becomes of them is no news.
            for waiter in waiters:
                if not waiter.cancel() and not waiter.cancelled():
                    waiter.exception()
        return [
            self.reply_error(str(reply)) if isinstance(reply, ReplyError) else reply
            for reply in replies
        ]

    def encode(self, *command: bytes | str | int) -> bytes:
        """A command's bytes, under the name that it has at this server."""
        return encode_command(*command_renames.sent(command, self._names))

    def name_of(self, command: str) -> bytes:
        """The name that a command has at this server."""
        (name,) = command_renames.sent((command,), self._names)
        return name if isinstance(name, bytes) else str(name).encode()

    async def try_call(self, *command: bytes | str | int) -> Any:
        """As `call`, but None where the server answers with an error."""
        try:
            return await self.call(*command)
        except (ServerError, AuthError):
            return None

    def take_over(
        self,
        bulk: BulkReader,
        on_ready: Callable[[int], None],
        on_lost: Callable[[EngineError], None],
    ) -> None:
        """Enter data mode: bytes go to `bulk`; `on_ready` is told what its `received` returned.

        `on_lost` is called once, with the reason, when the connection fails. EngineErrors raised
        by `on_ready` fail the connection. What the reader before left over (`hand_on`) is given to
        `bulk` first, before this returns. A connection that is lost already says so at once.
        """
        assert not self._calls
        lost = self.lost
        self._bulk, self._on_ready, self._on_lost = bulk, on_ready, on_lost
        while self._surplus and self.lost is None:
            with memoryview(bulk.input) as room:
                portion = self._surplus[: len(room)]
                room[: len(portion)] = portion
            self._surplus = self._surplus[len(portion) :]
            self._hand_to_reader(len(portion))
        if lost is not None:
            self._on_lost = _ignore
            on_lost(lost)

    def hand_on(self, rest: bytes) -> None:
        """End data mode with `rest` read and not used: the next `take_over` gets it first.

        Reading is paused until it is resumed.
        """
        self.pause_reading()
        self._bulk, self._on_ready, self._on_lost = None, _ignore, _ignore
        self._surplus = rest

    def release(self) -> None:
        """Back to control mode. No reply may be owed."""
        self._bulk, self._on_ready, self._on_lost = None, _ignore, _ignore
        self.stop_watching()
        self.stop_resting()
        self.resume_reading()

    def write(self, data: Any, beside: Connection | None = None) -> None:
        """Send bytes, or any object with a buffer; it is kept alive until it is sent.

        `beside`: while that connection rests this one rests too, without a timer of its own: what
        comes is left to the kernel, until `take` or `look` reads it, or that rest is over.
        """
        if self.lost is not None:
            return
        transport = self._transport
        assert transport is not None
        sent = 0
        if self._fd >= 0 and not transport.get_write_buffer_size():
            # Past the transport, which would write it at the end of the loop's turn.
            try:
                sent = os.write(self._fd, data)
            except OSError:
                # What is wrong, if anything, the transport finds out as well, and tells.
                sent = 0
        if sent < len(data):
            # A view, for asyncio's own transports take no other buffer.
            transport.write(memoryview(data)[sent:])
        if beside is not None and beside.resting:
            beside._beside = self
            self.resting = True
            if self._listening:
                self._listen(False)

    async def writable(self, timeout: float) -> None:
        """Wait until the transport holds less than `WRITE_HIGH_WATER`. Raises when it is lost.

        It counts as lost when the server takes nothing for `timeout` seconds.
        """
        while self._write_paused and self.lost is None:
            assert self._transport is not None
            left = self._transport.get_write_buffer_size()
            self._write_waiter = self._loop.create_future()
            await asyncio.wait({self._write_waiter}, timeout=timeout)
            if self._write_paused and self._transport.get_write_buffer_size() >= left:
                self.fail(
                    LinkError(f"{self.name} took nothing for {timeout:g} s", fault=self.fault)
                )
        if self.lost is not None:
            raise self.lost

    def pause_reading(self) -> None:
        """Read no more until `resume_reading`: the server's side then fills up, not ours."""
        if not self._read_paused and self.lost is None:
            self._read_paused = True
            self._listen(False)

    def resume_reading(self) -> None:
        """Read again."""
        if self._read_paused and self.lost is None:
            self._read_paused = False
            self._received_at = self._loop.time()
            if not self.resting:
                self._listen(True)

    def rest(self, seconds: float) -> None:
        """Leave what comes to the kernel for so long: fewer, larger reads.

        A server answers in small portions, and waking up for each costs more than reading it.
        """
        if self._rest is None and self.lost is None:
            if self._listening:
                self._listen(False)
            self.resting = True
            self._rest = self._loop.call_later(seconds, self._wake)

    def stop_resting(self) -> None:
        """Read on, unless the reader is paused besides."""
        if not self.resting:
            return
        self._end_rest()
        if self.lost is None and not self._read_paused:
            self._listen(True)
        self._wake_beside()

    def look(self) -> None:
        """End a rest by reading what has come, if anything has."""
        if self.resting:
            self._end_rest()
            self._wake()

    @property
    def listening(self) -> bool:
        """Whether what comes is read in the loop's next turn."""
        return self._listening and self.lost is None

    def _end_rest(self) -> None:
        self.resting = False
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _wake_beside(self) -> None:
        """The rest is over, and with it that of what rests beside it."""
        beside, self._beside = self._beside, None
        if beside is not None and beside._rest is None:
            beside.stop_resting()

    def _wake(self) -> None:
        """The rest is over. The transport listens again if nothing is there, or much.

        Else it stays as it is, for the next rest often follows at once: to stop and to start it
        takes the kernel more calls than the reading.
        """
        self._rest = None
        self.resting = False
        try:
            for _ in range(_READS_AT_ONCE):
                ready = self.take()
                if ready < 0:
                    break
                self._on_ready(ready)
                if self.resting:
                    return
        except Exception as exc:
            self._fail_by(exc)
        if self.lost is None and not self._read_paused and not self.resting:
            self._listen(True)
        self._wake_beside()

    def take(self) -> int:
        """Read past the transport what has come, without a word to `on_ready`: what `received` of
        the reader returned. -1: nothing is there, or what the transport will find out as well, and
        tell. Data mode only; the connection rests on, if it did."""
        bulk = self._bulk
        if self._fd < 0 or bulk is None or self._read_paused:
            return -1
        room = bulk.input
        self._room = len(room)
        if type(room) is InputBuffer:
            n = room.read_from(self._fd)
        else:
            try:
                n = os.readv(self._fd, (room,))
            except OSError:
                return -1
        if n <= 0:
            return -1
        self._received_at = self._loop.time()
        self.last_read = n
        self.filled = n >= self._room
        del room
        try:
            return bulk.received(n)
        except Exception as exc:
            self._fail_by(exc)
            return -1

    def _listen(self, on: bool) -> None:
        if on is not self._listening:
            assert self._transport is not None
            self._listening = on
            if on:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def watch(self, owed: Callable[[], bool], timeout: float) -> None:
        """Fail the connection when `owed` says that replies are due and none came for `timeout` s.

        A reader that we paused ourselves does not count, nor does time in which the server still
        takes in what it is to answer.
        """
        self._received_at = self._loop.time()
        self.stop_watching()
        unsent = 0

        def look() -> None:
            nonlocal unsent
            now = self._loop.time()
            before, unsent = unsent, self._unsent()
            if self._read_paused or not owed() or unsent < before:
                self._received_at = now
            if now - self._received_at >= timeout:
                self.fail(
                    LinkError(f"{self.name} sent nothing for {timeout:g} s", fault=self.fault)
                )
                return
            self._watch = self._loop.call_later(min(_WATCH_SECONDS, timeout), look)

        self._watch = self._loop.call_later(min(_WATCH_SECONDS, timeout), look)

    def _unsent(self) -> int:
        """Bytes that the server has not taken: the transport's, and the kernel's (SIOCOUTQ)."""
        assert self._transport is not None
        waiting = self._transport.get_write_buffer_size()
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError, ValueError, AttributeError):
            reply = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            waiting += int.from_bytes(reply, sys.byteorder)
        return waiting

    def stop_watching(self) -> None:
        """End `watch`."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def fail(self, error: EngineError) -> None:
        """Give the connection up: every waiter gets `error`. Only the first call counts."""
        if self.lost is not None:
            return
        self.lost = error
        self._fd = -1
        if self._renewal is not None:
            self._renewal.cancel()
        if self._through is not None:
            self._through.close()
        self.stop_watching()
        self.stop_resting()
        for waiter in self._calls:
            if not waiter.done():
                waiter.set_exception(error)
        self._calls.clear()
        if self._write_waiter is not None and not self._write_waiter.done():
            self._write_waiter.set_result(None)
        if self._transport is not None:
            self._transport.abort()
        on_lost, self._on_lost = self._on_lost, _ignore
        on_lost(error)

    def renew_behind(self, seconds: float) -> None:
        """Give the connection up after `seconds`, before its login ends: it cannot be made to log
        in between what it carries, so it is dialled anew, and goes on where it was."""
        what = f"{self.name} is dialled anew: its login of {seconds:g} s ago ends soon"
        self._renewal = self._loop.call_later(
            seconds, lambda: self.fail(LinkError(what, fault=self.fault))
        )

    def leave_for(self, there: Endpoint) -> None:
        """Give the connection up, unless it leads to `there`: the server that now has the part of
        the one which was dialled."""
        if self.endpoint.address != there.address:
            what = f"{there.address} has taken the place of {self.name}: the engine connects there"
            self.fail(LinkError(what, fault=self.fault))

    def close(self) -> None:
        """Give the connection up without a report."""
        self._on_lost = _ignore
        self.fail(LinkError(f"the engine closed the connection to {self.name}", fault=self.fault))

    def _answer_calls(self) -> None:
        while (reply := self._reader.gets()) is not NEED_DATA:
            if not self._calls:
                raise ProtocolFault(
                    f"{self.name} sent a reply that no command asked for", fault=self.fault
                )
            waiter = self._calls.popleft()
            if not waiter.done():
                with contextlib.suppress(asyncio.InvalidStateError):
                    waiter.set_result(reply)


def answered(reply: Any) -> Any:
    """A reply that `Connection.together` gave; raises it if it is an error."""
    if isinstance(reply, EngineError):
        raise reply
    return reply


def unless_refused(reply: Any) -> Any:
    """A reply that `Connection.together` gave; None if it is an error."""
    return None if isinstance(reply, EngineError) else reply


_AUTH_CODES = {
    "NOAUTH": "Give a user and a password: in the URL, the environment or the credentials file.",
    "WRONGPASS": "Check the user and the password.",
    "NOPERM": "Grant the user this command (ACL SETUSER).",
    "DENIED": "The server is in protected mode: set a password or allow this host.",
}
# "… no permissions to run the 'config|get' command" (ACL, acl.c and server.c).
_REFUSED = re.compile(r"run the '([\w|.-]+)' command")
_OF_KEY = (
    "Grant the user these keys (ACL SETUSER … ~PATTERN), or choose those that its rules name with "
    "--match."
)


def _ignore(_: object) -> None:
    pass
