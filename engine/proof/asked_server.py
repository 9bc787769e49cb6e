"""One server whose keys are asked for: names page by page, and what they hold in runs of keys.

What comes is read into the core (`LookReader`). Requests go out without waiting for the answers to
those before; each has a future.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine._native import KeyNames, KeyPage, LookReader, Looks
from engine.errors import AuthError, EngineError, FaultOf, LinkError, ServerError
from engine.model.endpoint import Endpoint
from engine.model.proof import Mode
from engine.model.server import ServerInfo, parse_info
from engine.model.transient_errors import DIAL_AGAIN, transient
from engine.wire.connection import Connection
from engine.wire.dial import dial, located
from engine.wire.failover_addresses import leading

PAGE_KEYS = 1_000
# What a server answers comes in small portions: it is left to the kernel for a moment.
_REST_SECONDS = 0.0005
# What it answers while it cannot tell: the connection is made anew, and the question asked again.
_NOT_NOW = DIAL_AGAIN & transient("read")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of each key: the commands' names, and what each answers (`LookReader`);
    `together`, of many keys at once; `around`, before and behind all that."""

    commands: tuple[str, ...]
    shape: bytes
    together: str = ""
    around: tuple[tuple[str, ...], ...] = ()

    @property
    def clock(self) -> bool:
        """TIME goes before them."""
        return b"t" in self.shape


EXISTS = Question(("EXISTS",), b"e")


def question(mode: Mode, info: ServerInfo) -> Question:
    """What is asked of the keys of a server."""
    ttl, letter = _ttl(info)
    if mode == "count":
        return EXISTS
    if mode == "ttl":
        return Question(("TYPE", ttl), b"y" + letter)
    # Before the value: a key that is made anew between the two is noticed.
    return Question((ttl, "DUMP"), letter + b"d")


def question_of_strings(info: ServerInfo, around: tuple[tuple[str, ...], ...] = ()) -> Question:
    """What tells the values of strings alone, and their TTLs; with `around` those are not asked
    for."""
    ttl, letter = _ttl(info)
    commands, shape = ((), b"") if around else ((ttl,), letter)
    if info.mode == "cluster":
        # MGET takes keys of one slot there.
        return Question((*commands, "GET"), shape + b"s", "", around)
    return Question(commands, shape + b"m", "MGET", around)


def _ttl(info: ServerInfo) -> tuple[str, bytes]:
    return ("PEXPIRETIME", b"T") if info.capabilities.pexpiretime else ("PTTL", b"t")


class AskedServer:
    """A connection to one server. `reader` makes what reads it. Closed at the end of `with`."""

    def __init__(
        self,
        endpoint: Endpoint,
        reader: Callable[[], LookReader],
        fault: FaultOf,
        timeout: float,
        straight: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._straight = straight
        self._make_reader = reader
        self._reader = reader()
        self._fault = fault
        self._timeout = timeout
        self._connection: Connection | None = None
        self._owed: deque[asyncio.Future[Any]] = deque()
        self._commands: dict[Question, tuple[tuple[bytes, ...], bytes, bytes]] = {}
        self._info: ServerInfo | None = None
        self.read = 0
        """Bytes of looks that were read."""

    async def __aenter__(self) -> AskedServer:
        self._reader = self._make_reader()
        self._connection = await dial(
            self._endpoint, fault=self._fault, timeout=self._timeout, straight=self._straight
        )
        text = await self._connection.call("INFO", timeout=self._timeout)
        self._info = parse_info(text.decode("utf-8", "replace"))
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._connection is not None
        self._lost(self._connection.lost or EngineError("it was closed"))
        self._connection.close()

    async def alive(self) -> bool:
        """Dial again if the link was lost: a server may close one that is idle. Whether it was."""
        if self.connection.lost is None:
            return False
        await self.__aenter__()
        return True

    @property
    def reader(self) -> LookReader:
        """What reads it."""
        return self._reader

    @property
    def info(self) -> ServerInfo:
        """What the server said of itself when it was dialled."""
        assert self._info is not None
        return self._info

    @property
    def connection(self) -> Connection:
        """The connection."""
        assert self._connection is not None
        return self._connection

    async def select(self, db: int) -> None:
        """Choose a database; nothing may be owed."""
        connection = self.connection
        connection.release()
        await connection.call("SELECT", db, timeout=self._timeout)
        self._listen()

    def page(self, cursor: int, match: bytes | None) -> asyncio.Future[KeyPage]:
        """Ask for a page of names."""
        chosen: tuple[bytes, ...] = () if match is None else (b"MATCH", match)
        self._reader.expect_page()
        return self._sent(self.connection.encode("SCAN", cursor, *chosen, "COUNT", PAGE_KEYS))

    def looks(
        self, names: KeyNames, first: int, last: int, asked: Question
    ) -> asyncio.Future[Looks]:
        """Ask this of the keys from `first` to before `last`."""
        sent = self._commands.get(asked)
        if sent is None:
            name_of = self.connection.name_of
            sent = self._commands[asked] = (
                tuple(map(name_of, asked.commands)),
                name_of(asked.together) if asked.together else b"",
                b"".join(self.connection.encode(*each) for each in asked.around),
            )
        commands, together, around = sent
        self._reader.expect_looks(asked.shape, last - first, texts=len(asked.around))
        request = names.request(
            commands, first, last, clock=asked.clock, together=together, around=around
        )
        return self._sent(request)

    async def allowed(self, looks: Looks) -> None:
        """Raise `AuthError` where its user may not ask this of any key, and `LinkError` where it is
        not to be asked now, or another server in its place."""
        if looks.error is not None:
            error = self.connection.reply_error(looks.error)
            if isinstance(error, AuthError) and not error.of_key:
                raise error
        await self.serves(looks)

    async def serves(self, looks: Looks) -> None:
        """Raise `LinkError` where it refused keys for it loads its data, or its cluster is down, or
        its shard has another primary by now; it is dialled again then."""
        if looks.error is None:
            return
        code = looks.error.partition(" ")[0]
        if code == "MOVED":
            named = self._endpoint if self._straight else leading(self._endpoint)
            there = await located(named, fault=self._fault, timeout=self._timeout, anew=True)
            # (Where it is a slot that has moved the server is the same.)
            self.connection.leave_for(there)
        elif code in _NOT_NOW:
            self.connection.fail(self._refusal(looks.error))
        else:
            return
        if self.connection.lost is not None:
            raise self.connection.lost

    def _sent(self, request: Any) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_seen)
        if self.connection.lost is not None:
            answer.set_exception(self.connection.lost)
            return answer
        self._owed.append(answer)
        self.connection.write(request)
        return answer

    def _listen(self) -> None:
        connection = self.connection
        connection.take_over(self._reader, self._ready, self._lost)
        connection.watch(lambda: bool(self._owed), self._timeout)

    def _ready(self, count: int) -> None:
        if count:
            for found in self._reader.take():
                answer = self._owed.popleft()
                if answer.done():
                    continue
                if isinstance(found, str):
                    answer.set_exception(self._refusal(found))
                    continue
                if isinstance(found, Looks):
                    self.read += found.nbytes
                answer.set_result(found)
        elif self._owed:
            self.connection.rest(_REST_SECONDS)

    def _refusal(self, text: str) -> EngineError:
        error = self.connection.reply_error(text)
        if isinstance(error, ServerError) and error.code in _NOT_NOW:
            return LinkError(error.message, fault=self._fault)
        return error

    def _lost(self, error: EngineError) -> None:
        owed, self._owed = self._owed, deque()
        for answer in owed:
            if not answer.done():
                answer.set_exception(error)


def _seen(answer: asyncio.Future[Any]) -> None:
    """Of several that fail together one is waited for."""
    if not answer.cancelled():
        answer.exception()
