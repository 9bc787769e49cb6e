"""What a migration and the processes of its lanes say to each other, over one socket.

A frame is its length and a pickled tuple. Both ends are the same build, the socket is inherited,
and nobody else can write to it. Credentials go that way too, and are in no environment, command
line or log.

- A *request* is answered once: by what its handler returns, by what it raises, or by the word that
  it was cancelled. Whoever waits and is cancelled has the request cancelled there, and waits for
  the answer all the same: what must not be half done is not left behind.
- A *notice* has no answer. Notices, requests and answers of one end arrive in the order in which
  they were sent; a notice is dealt with before anything behind it is looked at.
- When the other end is gone every request that waits raises `WorkerLost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import struct
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from engine import logs
from engine.errors import EngineError, LinkError
from engine.transfer.async_helpers import cancelled

_log = logs.logger(__name__)
_LENGTH = struct.Struct("!I")
# A checkpoint that names ten thousand keys has a few MiB.
_FRAME_MOST = 256 << 20
# Behind the end of a process its socket is closed at once.
_GONE_SECONDS = 5.0

Serve = Callable[..., Awaitable[Any]]
Note = Callable[..., None]


class WorkerLost(LinkError):
    """The process of a lane has ended, or does not answer. What it was asked may be done, or not:
    the target and the checkpoint tell."""


class Channel:
    """One end. `serves` are the handlers of requests by their names, `notes` those of notices.

    `on_lost` is called once the other end is gone, behind the last frame that it has sent.
    """

    def __init__(
        self, serves: dict[str, Serve], notes: dict[str, Note], on_lost: Callable[[], None]
    ) -> None:
        self._serves = serves
        self._notes = notes
        self._on_lost = on_lost
        self.before_answer: Callable[[], None] = lambda: None
        """Called before each answer: what has changed by then is told first."""
        self.lost = ""
        """Why the other end is gone; empty: it is not."""
        self._waiting: dict[int, asyncio.Future[tuple[str, Any]]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._number = 0
        self._reading: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter

    async def open(self, end: socket.socket) -> None:
        """Begin, on the running loop; `end` is closed with the channel."""
        reader, self._writer = await asyncio.open_unix_connection(sock=end)
        self._reading = asyncio.create_task(self._read(reader))

    @property
    def unsent(self) -> int:
        """Bytes that the other end has not taken yet."""
        return 0 if self.lost else self._writer.transport.get_write_buffer_size()

    def notify(self, name: str, *arguments: Any) -> None:
        """Send a notice; one to an end that is gone is dropped."""
        self._send("notice", 0, (name, arguments))

    async def request(self, name: str, *arguments: Any) -> Any:
        """What the other end's handler returns. Raises what it raises, and `WorkerLost`."""
        if self.lost:
            raise WorkerLost(self.lost, fault="engine")
        self._number += 1
        number = self._number
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._send("request", number, (name, arguments))
        asked = False
        while not waiting.done():
            try:
                await asyncio.wait({waiting})
            except asyncio.CancelledError:
                asked = True
                self._send("cancel", number, None)
        how, value = waiting.result()
        if how == "failed":
            raise value
        if how == "cancelled":
            raise asyncio.CancelledError
        if asked and (current := asyncio.current_task()) is not None:
            # It came too late.
            current.uncancel()
        return value

    async def served(self) -> None:
        """Wait until no request of the other end is under way any more."""
        while self._serving:
            await asyncio.wait(list(self._serving.values()))

    async def closed(self) -> None:
        """Wait until the other end, which has ended, is known to be gone: all that it has sent is
        dealt with then."""
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=_GONE_SECONDS)
            await cancelled(self._reading)

    # --- What comes ---

    async def _read(self, reader: asyncio.StreamReader) -> None:
        why = "the process of the lane has ended"
        try:
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if length > _FRAME_MOST:
                    why = f"the process of the lane sent a message of {length:,} bytes"
                    break
                self._take(*pickle.loads(await reader.readexactly(length)))
        except (OSError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            why = f"a message of the lane's process was not understood ({type(error).__name__})"
            _log.exception("A message of a process of lanes was not understood")
        finally:
            self.lost = why
            self._writer.close()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_result(("failed", WorkerLost(why, fault="engine")))
            self._waiting.clear()
            for serving in self._serving.values():
                # Nobody waits for it any more.
                serving.cancel()
            self._on_lost()

    def _take(self, kind: str, number: int, what: Any) -> None:
        if kind == "notice":
            name, arguments = what
            self._notes[name](*arguments)
        elif kind == "request":
            name, arguments = what
            task = asyncio.create_task(self._serve(number, name, arguments))
            self._serving[number] = task
            task.add_done_callback(lambda task: self._served(number, task))
        elif kind == "cancel":
            if (serving := self._serving.get(number)) is not None:
                serving.cancel()
        else:
            waiting = self._waiting.pop(number, None)
            if waiting is not None and not waiting.done():
                value = raised(what) if kind == "failed" else what
                waiting.set_result((kind, value))

    def _served(self, number: int, task: asyncio.Task[None]) -> None:
        self._serving.pop(number, None)
        if task.cancelled():
            # Before it began.
            self._send("cancelled", number, None)

    async def _serve(self, number: int, name: str, arguments: tuple[Any, ...]) -> None:
        try:
            how, value = "answer", await self._serves[name](*arguments)
        except asyncio.CancelledError:
            how, value = "cancelled", None
        except Exception as error:
            how, value = "failed", told(error)
        self.before_answer()
        self._send(how, number, value)

    def _send(self, kind: str, number: int, what: Any) -> None:
        if self.lost:
            return
        frame = pickle.dumps((kind, number, what), pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(_LENGTH.pack(len(frame)) + frame)


def told(error: Exception) -> tuple[type[Exception], tuple[Any, ...], dict[str, Any]]:
    """An exception as its class, arguments and members, whatever its `__init__` takes; a notice may
    have it too. `raised` is the inverse."""
    if not type(error).__module__.startswith("engine."):
        error.add_note("In the process of the lane:\n" + "".join(traceback.format_exception(error)))
    found = type(error), error.args, dict(error.__dict__)
    try:
        pickle.loads(pickle.dumps(found))
    except Exception:
        return (
            EngineError,
            (f"{type(error).__name__}: {error}",),
            {
                "message": f"{type(error).__name__}: {error}",
                "remedy": "",
            },
        )
    return found


def raised(what: tuple[type[Exception], tuple[Any, ...], dict[str, Any]]) -> Exception:
    """Inverse of `told`."""
    kind, arguments, members = what
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(members)
    return error
