"""Clients of a source through its cut-over, each a process of its own, as users have them.

    with Client("write", source, target) as writer, Client("read", source) as reader:
        ...
    print(writer.said["gap"])

The writer sends SET at `RATE` to the source at the most, each key once. On the first error, or when
its link goes, it turns to the target and repeats there what was not acknowledged, as an application
that fails over does. The reader reads from the source only, and dials again when it is cut off.

All times are of the monotonic clock, in seconds, which all processes of a machine share.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from typing import Any

import hiredis

from benches.support.servers import Server
from tests.support.reporting_process import ReportingProcess

RATE = 20_000
BATCH = 100
KEY = "write-stop:%d"
_MADE_UP_SECONDS = 0.1


class Client(ReportingProcess):
    """The process; `said` is what `write` or `read` returned."""

    def __init__(self, role: str, *servers: Server) -> None:
        ports = [str(server.port) for server in servers]
        super().__init__("-m", "tests.support.timed_clients", role, *ports)


class _Link:
    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()

    def send(self, commands: bytes) -> None:
        self._socket.sendall(commands)

    def reply(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            self._reader.feed(data)
        return reply


def write(over: threading.Event, source: int, target: int) -> dict[str, Any]:
    """`acknowledged`: numbers below it by the source, but for `lacking`; `written`: all of them, by
    either; `error`: the source's; `told`, `moved`: when it came, and the first OK of the target;
    `stop`, `gap`: from the source's last OK to each; `longest` between two OKs of the source."""
    link, at_target = _Link(source), False
    number, last, longest = 0, time.monotonic(), 0.0
    said: dict[str, Any] = {"lacking": []}
    sys.stdout.write("going\n")
    sys.stdout.flush()
    due = time.monotonic()
    while not over.is_set():
        # What a machine was too slow for is not made up for: no rest would be left to follow it.
        due = max(due + BATCH / RATE, time.monotonic() - _MADE_UP_SECONDS)
        time.sleep(max(due - time.monotonic(), 0))
        pending = list(range(number, number + BATCH))
        while pending:
            failed, error = [], ""
            try:
                link.send(b"".join(hiredis.pack_command(("SET", KEY % n, n)) for n in pending))
                for place, n in enumerate(pending):  # noqa: B007, read where the link goes
                    reply = link.reply()
                    now = time.monotonic()
                    if isinstance(reply, hiredis.ReplyError):
                        failed, error = [*failed, n], error or str(reply)
                        told = now
                    elif at_target:
                        if "moved" not in said:
                            said["moved"], said["gap"] = now, now - last
                    else:
                        longest, last = max(longest, now - last), now
            except OSError as exc:
                failed, error, told = (
                    [*failed, *pending[place:]],
                    error or repr(exc),
                    time.monotonic(),
                )
            if error and at_target:
                raise SystemExit(f"the target: {error}")
            if error:
                said |= {"error": error, "told": told, "stop": told - last}
                said |= {"acknowledged": number + BATCH, "lacking": failed}
                link, at_target = _Link(target), True
            pending = failed
        number += BATCH
    said.setdefault("acknowledged", number)
    return said | {"written": number, "longest": longest}


def read(over: threading.Event, source: int) -> dict[str, Any]:
    """`longest`: the longest time between two answers; `links`: how often it dialled."""
    link, links = _Link(source), 1
    last, longest, answers = time.monotonic(), 0.0, 0
    sys.stdout.write("going\n")
    sys.stdout.flush()
    while not over.wait(0.0005):
        try:
            link.send(hiredis.pack_command(("GET", KEY % 0)))
            link.reply()
        except OSError:
            link, links = _Link(source), links + 1
            continue
        now = time.monotonic()
        longest, last, answers = max(longest, now - last), now, answers + 1
    return {"longest": longest, "links": links, "answers": answers}


def main(role: str, *ports: str) -> None:
    """Go on until standard input ends, then print what was found."""
    over = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait, daemon=True).start()
    found = (write if role == "write" else read)(over, *map(int, ports))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
