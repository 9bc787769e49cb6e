"""A TCP proxy on loopback that does to a link what networks do.

    with Proxy(server.host, server.port) as proxy:
        proxy.cut_after(1000, "down")       # the link breaks 1000 bytes into the answer
        client = connect(proxy.port)

"up" is from the client to the upstream server, "down" the way back. The proxy runs an event loop
in a thread of its own; every method may be called from any thread and has taken effect when it
returns.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar

Direction = Literal["up", "down"]
T = TypeVar("T")

CHUNK_BYTES = 64 * 1024
QUEUED_CHUNKS = 64  # a direction; a full queue pauses the reader, as a full pipe would
THROTTLE_SLICE_SECONDS = 0.02
DRAIN_SECONDS = 1.0  # for what came before a cut to arrive
# l_onoff 1, l_linger 0: close() sends RST and not FIN.
_RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Link:
    """One client's connection and its twin to the upstream server."""

    client: socket.socket
    upstream: socket.socket
    flowing: asyncio.Event
    bytes_down: int = 0
    tail_up: bytes = b""
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def sender(self, direction: Direction) -> socket.socket:
        return self.client if direction == "up" else self.upstream

    def receiver(self, direction: Direction) -> socket.socket:
        return self.upstream if direction == "up" else self.client


class Proxy:
    """See the module. `connections`, `bytes_up`, `bytes_down` count since `start`.

    A byte counts when it is handed on, not when it is read.
    """

    def __init__(self, upstream_host: str, upstream_port: int) -> None:
        self.host = "127.0.0.1"
        self.port = 0
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self._upstream = (upstream_host, upstream_port)
        self._thread: threading.Thread | None = None
        # What follows is touched in the loop's thread only.
        self._loop: asyncio.AbstractEventLoop
        self._listener: socket.socket
        self._flowing: asyncio.Event
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._delay = 0.0
        self._rate: float | None = None
        self._cut: tuple[Direction | None, int] | None = None
        self._corrupt: dict[Direction, int] = {}
        self._watched: tuple[bytes, Callable[[], None]] | None = None
        self._veiled: tuple[bytes, ...] = ()

    @property
    def upstream(self) -> tuple[str, int]:
        """Host and port that new clients are led to."""
        return self._upstream

    # Its life.

    def start(self) -> Self:
        """Listen on a free loopback port (`port`). Raises `OSError` if there is none."""
        self._listener = socket.create_server((self.host, 0), backlog=128)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="proxy", daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def stop(self) -> None:
        """Reset every connection and stop listening. A second call does nothing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # What it does to the link.

    def cut_now(self) -> None:
        """Reset every connection, at both ends. New ones are taken as before."""
        self._call(self._reset_all)

    def cut_after(self, count: int, direction: Direction | None = None) -> None:
        """Let exactly `count` more bytes pass (both directions together if None), then cut.

        It happens once, and to every connection; `count` 0 cuts at the next byte.
        """
        self._call(lambda: setattr(self, "_cut", (direction, count)))

    @property
    def armed(self) -> bool:
        """Whether the cut that `cut_after` has ordered is still to come."""
        return self._cut is not None

    def refuse(self, on: bool = True) -> None:
        """Accept and reset at once, as a server at its connection limit does nearly."""
        self._call(lambda: setattr(self, "_refusing", on))

    def stall(self, on: bool = True) -> None:
        """Keep connections open, but let nothing through."""
        self._call(lambda: self._flowing.clear() if on else self._flowing.set())

    def stall_busiest(self, on: bool = True) -> None:
        """The same for the one connection alone that has brought the most down to its client.

        Turned off, every connection flows that was stalled so.
        """

        def act() -> None:
            if not on:
                for link in self._links:
                    link.flowing.set()
            elif self._links:
                max(self._links, key=lambda link: link.bytes_down).flowing.clear()

        self._call(act)

    def delay(self, seconds: float) -> None:
        """Add this latency, one way, to what comes in from now on: a round trip costs twice it."""
        self._call(lambda: setattr(self, "_delay", seconds))

    def throttle(self, bytes_per_second: float | None) -> None:
        """Let at most so many bytes a second through, a direction of a connection. None: all."""
        self._call(lambda: setattr(self, "_rate", bytes_per_second))

    def corrupt(self, at_byte: int, direction: Direction) -> None:
        """Flip the lowest bit of one byte: `at_byte` 0 is the next one in that direction. Once."""
        self._call(lambda: self._corrupt.__setitem__(direction, at_byte))

    def veil(self, *names: bytes) -> None:
        """Let no client see these bytes, as a service does that hides what its servers tell: others
        of the same length come down, where they are in one chunk."""
        self._call(lambda: setattr(self, "_veiled", names))

    def watch(self, what: bytes, act: Callable[[], None]) -> None:
        """Call `act`, in a thread, each time before bytes go up in which `what` ends."""
        self._call(lambda: setattr(self, "_watched", (what, act)))

    def lead_to(self, upstream_host: str, upstream_port: int) -> None:
        """Connect new clients to another server, as a name or a virtual address does that moved.

        Those that are connected stay where they are: `cut_now` ends them.
        """
        self._call(lambda: setattr(self, "_upstream", (upstream_host, upstream_port)))

    # Inside: the loop's thread.

    def _call(self, act: Callable[[], T]) -> T:
        """Run `act` in the loop and wait for it."""

        async def wrapped() -> T:
            return act()

        if self._thread is None:
            raise RuntimeError("the proxy is not running")
        return asyncio.run_coroutine_threadsafe(wrapped(), self._loop).result()

    def _run(self, ready: threading.Event) -> None:
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._keep(self._accept())
        self._loop.call_soon(ready.set)
        self._loop.run_forever()
        # Whoever was accepted a moment ago is taken from the future that holds it, then closed.
        self._loop.remove_reader(self._listener)
        self._refusing = True
        for _ in range(3):
            self._loop.run_until_complete(asyncio.sleep(0))
        self._reset_all()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._listener.close()
        self._loop.close()

    async def _accept(self) -> None:
        while True:
            client, _ = await self._loop.sock_accept(self._listener)
            self.connections += 1
            if self._refusing:
                _reset(client)
                continue
            self._keep(self._connect(client))

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        """Start a task that belongs to no link yet; the loop alone holds it weakly."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: socket.socket) -> None:
        upstream = socket.socket()
        upstream.setblocking(False)
        try:
            await self._loop.sock_connect(upstream, self._upstream)
        except OSError:
            _reset(upstream)
            _reset(client)
            return
        except asyncio.CancelledError:
            _reset(upstream)
            _reset(client)
            raise
        for end in (client, upstream):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flowing = asyncio.Event()
        flowing.set()
        link = _Link(client, upstream, flowing)
        self._links.add(link)
        for direction in ("up", "down"):
            queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_CHUNKS)
            link.tasks.append(self._loop.create_task(self._read(link, direction, queue)))
            link.tasks.append(self._loop.create_task(self._write(link, direction, queue)))

    async def _read(
        self, link: _Link, direction: Direction, queue: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        """One direction's first half: note when each chunk is due. An empty one is the end."""
        chunk = b"-"
        while chunk:
            try:
                chunk = await self._loop.sock_recv(link.sender(direction), CHUNK_BYTES)
            except OSError:
                self._reset_link(link)
                return
            await queue.put((time.monotonic() + self._delay, chunk))

    async def _write(
        self, link: _Link, direction: Direction, queue: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        """One direction's second half: wait, damage, cut, hand on."""
        receiver = link.receiver(direction)
        try:
            while True:
                due, chunk = await queue.get()
                wait = due - time.monotonic()
                if wait > 0:
                    await asyncio.sleep(wait)
                await self._flowing.wait()
                await link.flowing.wait()
                if not chunk:
                    receiver.shutdown(socket.SHUT_WR)
                    break
                if direction == "down":
                    link.bytes_down += len(chunk)
                    for name in self._veiled:
                        chunk = chunk.replace(name, b"x" * len(name))
                elif self._watched is not None:
                    await self._look(link, chunk, *self._watched)
                await self._hand_on(receiver, direction, self._damaged(chunk, direction))
        except OSError:
            self._reset_link(link)
            return
        # The end of one direction is not that of the other.
        if all(task.done() or task is asyncio.current_task() for task in link.tasks):
            self._links.discard(link)
            link.client.close()
            link.upstream.close()

    async def _look(self, link: _Link, chunk: bytes, what: bytes, act: Callable[[], None]) -> None:
        seen = link.tail_up + chunk
        link.tail_up = seen[len(seen) - len(what) + 1 :]
        if what in seen:
            await self._loop.run_in_executor(None, act)

    async def _hand_on(self, receiver: socket.socket, direction: Direction, chunk: bytes) -> None:
        """Send `chunk` at the throttle's pace; what is left at a cut or a stall waits there."""
        view = memoryview(chunk)
        while view:
            await self._flowing.wait()
            size = len(view)
            rate = self._rate
            if rate is not None:
                size = min(size, max(1, int(rate * THROTTLE_SLICE_SECONDS)))
            allowed = self._allowance(direction, size)
            if allowed:
                await self._loop.sock_sendall(receiver, view[:allowed])
                self._count(direction, allowed)
                view = view[allowed:]
            if self._cut is not None and self._cut[1] == 0 and self._cut[0] in (None, direction):
                await self._drain()  # the cut stays set meanwhile: nothing more passes
                self._cut = None
                self._reset_all()
                raise ConnectionResetError("cut")
            if rate is not None:
                await asyncio.sleep(allowed / rate)

    def _allowance(self, direction: Direction, size: int) -> int:
        """How many of `size` bytes may go before the cut; they are taken off its count."""
        if self._cut is None or self._cut[0] not in (None, direction):
            return size
        size = min(size, self._cut[1])
        self._cut = (self._cut[0], self._cut[1] - size)
        return size

    def _count(self, direction: Direction, size: int) -> None:
        if direction == "up":
            self.bytes_up += size
        else:
            self.bytes_down += size

    def _damaged(self, chunk: bytes, direction: Direction) -> bytes:
        at = self._corrupt.get(direction)
        if at is None:
            return chunk
        if at >= len(chunk):
            self._corrupt[direction] = at - len(chunk)
            return chunk
        del self._corrupt[direction]
        return chunk[:at] + bytes([chunk[at] ^ 1]) + chunk[at + 1 :]

    async def _drain(self) -> None:
        """Wait until the kernel has sent what was handed on: a reset would throw it away."""
        deadline = time.monotonic() + DRAIN_SECONDS
        ends = [end for link in self._links for end in (link.client, link.upstream)]
        # The kernel tells nobody when that is so.
        while any(map(_unsent, ends)) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def _reset_all(self) -> None:
        for link in list(self._links):
            self._reset_link(link)

    def _reset_link(self, link: _Link) -> None:
        if link not in self._links:
            return
        self._links.discard(link)
        current = asyncio.current_task(self._loop) if self._loop.is_running() else None
        for task in link.tasks:
            if task is not current:
                task.cancel()
        for end in (link.client, link.upstream):
            # The loop may still watch the descriptor for a task that was cancelled just now.
            self._loop.remove_reader(end)
            self._loop.remove_writer(end)
            _reset(end)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it may be gone already
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()


def _unsent(end: socket.socket) -> int:
    """Bytes that the peer's kernel has not acknowledged yet (SIOCOUTQ, which is TIOCOUTQ)."""
    count = array.array("i", [0])
    try:
        fcntl.ioctl(end, termios.TIOCOUTQ, count)
    except (OSError, ValueError):  # closed meanwhile: its descriptor is -1
        return 0
    return count[0]
