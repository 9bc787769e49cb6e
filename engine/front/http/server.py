"""The server: sockets, TLS, signals, and the order in which things begin and end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine import logs
from engine.errors import UsageError
from engine.front.access_keys import AccessKeys
from engine.front.engine import Engine
from engine.front.http.app import Api
from engine.front.http.authentication import Authenticator, is_loopback
from engine.front.http.client_limits import HEAD_SECONDS, Guest, admit
from engine.front.http.tls_handshake_limits import TlsListener
from engine.front.migration_keeper import MigrationWatcher
from engine.model.allowed_endpoints import limited

GRACE_SECONDS = 10
"""For how long requests under way are waited for at the end."""
HEADERS_MOST = 160 << 10
"""A request's head (bytes): the longest query string, and the headers."""
STALL_SECONDS = 30.0
"""A client that takes nothing of its answer for so long is cut off."""
TOKEN_LEAST = 16
_BACKLOG = 512
_THREADS = 8
_NICE = 10
_log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to serve. `listen` are hosts and ports; `access_keys` None means that no client is asked
    their keys, which only the loopback may."""

    listen: Sequence[tuple[str, int]]
    access_keys: Path | None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    metrics_token_file: Path | None = None
    allowed: Sequence[str] = ()
    """Sources and targets that may be meant (`model.allowed_endpoints`); none: all but link-local
    ones."""


async def serve(state: str | None, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Migrations go on in their own processes.

    Raises `UsageError` for settings that cannot be, and for credentials that cannot be read;
    `StateError`.
    """
    # 1. What can be wrong is found before the first client comes.
    authenticator = _authenticator(settings)
    context = _tls(settings)
    token = _token(settings.metrics_token_file)
    engine = Engine(state)
    for problem in engine.services.credentials.unreadable():
        _log.warning("%s", problem)
    await engine.services.state(lambda registry: registry.list(limit=1), make=True)
    sockets = _bind(settings.listen)
    with limited(settings.allowed):
        await _serve(engine, authenticator, token, context, sockets)


async def _serve(
    engine: Engine,
    authenticator: Authenticator,
    token: bytes | None,
    context: ssl.SSLContext | None,
    sockets: list[socket.socket],
) -> None:
    # 2. The migrations that are there, and the door.
    api = Api(engine, authenticator, metrics_token=token)
    watcher = MigrationWatcher(
        engine.services,
        on_replaced=api.metrics.replaced.inc,
        on_look=lambda migrations: api.history.note(migrations, time.time()),
    )
    watching = asyncio.create_task(watcher.run())
    server = _Server(_config(api, context), api)
    _step_back()
    scheme = "http" if context is None else "https"
    for each in sockets:
        _log.info("listening on %s://%s", scheme, _shown(each))
        if context is None and not is_loopback(each.getsockname()[0]):
            _log.warning("%s is not encrypted: signed requests can be seen there", _shown(each))
    try:
        await server.serve(sockets)
    finally:
        # 3. The end.
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await asyncio.to_thread(engine.close)
        _log.info("ended; migrations go on in their workers")


def _step_back() -> None:
    """Let the event loop give way to everything else on a machine that is busy: clients can wait,
    and a transfer cannot.

    A thread's niceness is its own (setpriority(2)), and what it starts inherits it. Workers are
    started on the loop's other threads, so those are there before, and keep theirs. Where the
    kernel groups processes by session (autogroup, sched(7)), niceness counts within a group alone,
    and the group has one of its own; workers are sessions of their own. A session that is not ours
    (a user's shell) is left as it is.
    """
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="state")
    all_there = threading.Barrier(_THREADS + 1)
    for _ in range(_THREADS):
        pool.submit(all_there.wait)
    all_there.wait()
    asyncio.get_running_loop().set_default_executor(pool)
    with contextlib.suppress(OSError):
        before = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(before + _NICE, 19))
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(_NICE), encoding="ascii")


class _Connection(H11Protocol):
    """A connection that is given up where no request comes, or none to its end, or where no client
    takes the answer.

    To close a transport is to wait for what it still has to send, and a client that does not read
    would be waited for without end: those that are, count among `CONNECTIONS_MOST`.
    """

    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _since = 0.0
    leaving = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        if not admit(self.address, guests(self.connections - {self})):
            self.give_way()
            return
        self._expect()

    @property
    def address(self) -> str:
        """As `client_limits.Guest` has it."""
        return str(self.client[0]) if self.client else ""

    def waits(self) -> tuple[int, float] | None:
        """As `client_limits.Guest` has it."""
        answering = self.cycle is not None and not self.cycle.response_complete
        untaken = self.transport.get_write_buffer_size() > 0
        if answering and not self.cycle.more_body and self._stalled is None:
            return None
        return int(untaken), self._since

    def give_way(self) -> None:
        """As `client_limits.Guest` has it."""
        self.leaving = True
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._since = self.loop.time()
        self._expect()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        self._unwatch()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self._unwatch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            # The rest of a request that has its answer: there is no place for a second one.
            self.transport.close()

    def _expect(self) -> None:
        """Wait for a request's head while none is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self._forget()
        elif self._late is None:
            # Not set anew by each byte of a head.
            self._late = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        if self.transport.is_closing():
            self._late = None
            if self._stalled is None:
                # What was answered may still be on its way to its reader.
                self._watch_writing()
            return
        self.transport.close()
        self._late = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _watch_writing(self) -> None:
        self._unwatch()
        waiting = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(STALL_SECONDS, self._check_writing, waiting)

    def _check_writing(self, waiting: int) -> None:
        if self.transport.get_write_buffer_size() >= waiting:
            self.transport.abort()
        else:
            self._watch_writing()

    def _unwatch(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None


def guests(connections: Any) -> list[Guest]:
    """uvicorn's connections, which are ours."""
    return [each for each in connections if isinstance(each, _Connection)]


class _Server(uvicorn.Server):
    """uvicorn, which ends with the signal and not once more afterwards, and with it the feed."""

    def __init__(self, config: uvicorn.Config, api: Api) -> None:
        super().__init__(config)
        self._api = api
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config = self.config
        if (context := config.ssl) is None:
            await super().startup(sockets)
            return

        def protocol() -> asyncio.Protocol:
            return _Connection(config, self.server_state, self.lifespan.state)

        inside = self.server_state.connections
        self.servers: list[Any] = [
            TlsListener(each, context, protocol, lambda: guests(inside)) for each in sockets or []
        ]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        if self.should_exit:
            self.force_exit = True  # asked twice: no connection is waited for
            return
        _log.info("ending")
        self.should_exit = True
        self._ending = asyncio.get_running_loop().create_task(self._api.feed.close())


def _config(api: Api, context: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        api.app,
        loop="none",
        http=_Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADERS_MOST,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=math.ceil(HEAD_SECONDS),
        backlog=_BACKLOG,
        ssl_context_factory=None if context is None else lambda *_: context,
    )


def _authenticator(settings: Settings) -> Authenticator:
    if settings.access_keys is not None:
        return Authenticator(AccessKeys(settings.access_keys))
    for host, _ in settings.listen:
        if not is_loopback(host):
            raise UsageError(
                f"without authentication only the loopback is served, not {host}",
                remedy="Give a file of access keys with --credentials.",
            )
    return Authenticator(None)


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise UsageError("TLS needs both a certificate and its key")
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    both = f"{settings.tls_cert} and {settings.tls_key}"
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")
    except (ssl.SSLError, ValueError):
        raise UsageError(f"{both} are not a certificate with its key (PEM)") from None
    except OSError as error:
        raise UsageError(f"{both} cannot be read: {error.strerror}") from None
    return context


def _token(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            mode = file.fileno()
            token = file.read(4096).strip()
            readable = Path(f"/proc/self/fd/{mode}").stat().st_mode & 0o077
    except OSError as error:
        raise UsageError(f"the token file {path} cannot be read: {error.strerror}") from None
    if readable:
        raise UsageError(
            f"{path} holds a token and can be read by others", remedy=f"chmod 600 {path}"
        )
    if len(token) < TOKEN_LEAST:
        raise UsageError(f"the token in {path} has fewer than {TOKEN_LEAST} characters")
    return token


def _bind(listen: Sequence[tuple[str, int]]) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for host, port in listen:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            each = socket.create_server((host, port), family=family, backlog=_BACKLOG)
            each.setblocking(False)
            sockets.append(each)
    except OSError as error:
        for each in sockets:
            each.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return sockets


def _shown(each: socket.socket) -> str:
    host, port = each.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
