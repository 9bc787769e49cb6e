"""A link to a server through a command of the operator's (`--connect-command`): one end of a pair
of sockets is its standard input and output, the other one is ours.

What ends the command ends the link. Its standard error is read as it comes, so that it never waits
for us, and its last line is told with the loss, the passwords that we know left out of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Collection

from engine.errors import FaultOf, LinkError
from engine.model.connect_command import filled
from engine.model.endpoint import Endpoint
from engine.wire.operator_process import environment

REMEDY = "Run the connect command by hand, with the host and the port in their places."
# What is kept of its standard error, and told of it, in bytes and characters.
_KEPT = 4096
_TOLD = 300
# How long a command may go on behind the end of the link; and how long its end is waited for where
# it may be what ended the link, of one that had carried something and of one that had not.
_GRACE_SECONDS = 2.0
_WORDS_SECONDS = 0.1
_START_SECONDS = 1.0
_UNPRINTABLE = re.compile(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]+")


class CommandLink:
    """A command that runs, and our end of the link: `socket`, which whoever uses it closes."""

    def __init__(self, endpoint: Endpoint, fault: FaultOf, secrets: Collection[str]) -> None:
        """Start it. `secrets` are left out of what is told. Raises `LinkError` if it cannot be
        run."""
        words = filled(endpoint.connect_command, endpoint.host, endpoint.port)
        self._name = f"the connect command {os.path.basename(words[0])}"
        self._secrets = [each for each in secrets if each]
        self._said = b""
        self._ended = threading.Event()
        self._code: int | None = None
        self.socket, theirs = socket.socketpair()
        self._over = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        problem: str | None = None
        try:
            with theirs:
                self._process = subprocess.Popen(
                    words,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    env=environment(),
                    start_new_session=True,
                )
        except OSError as error:
            self.socket.close()
            os.close(self._over)
            problem = error.strerror or "no reason given"
        if problem is not None:
            # (Not within the handler: who asks for the first cause would find that of the system.)
            raise LinkError(
                f"{fault} {endpoint.address} cannot be reached: {self._name} cannot be run: "
                f"{problem}.",
                remedy=REMEDY,
                fault=fault,
            )
        self._lock = threading.Lock()
        watcher = threading.Thread(target=self._watch, name="connect command", daemon=True)
        watcher.start()

    def close(self) -> None:
        """Have it end: by the end of the link, and killed where it goes on."""
        with self._lock:
            if not self._ended.is_set():
                os.eventfd_write(self._over, 1)

    def words(self, *, carried: bool = False, waits: bool = True) -> str:
        """What it has to say to the loss of the link, as a part of a sentence; empty: nothing.
        `carried`: a server had answered over it.

        `waits`: the link has ended, and the end of the command is waited for for a moment, in which
        the loop stands still.
        """
        if waits:
            self._ended.wait(_WORDS_SECONDS if carried else _START_SECONDS)
        said = self._last_line()
        if self._code is None:
            return f"{self._name} says: {said}" if said else ""
        ended = f"exit code {self._code}" if self._code >= 0 else f"signal {-self._code}"
        return f"{self._name} ended with {ended}{f': {said}' if said else ''}"

    def _last_line(self) -> str:
        lines = self._said.decode("utf-8", "replace").split("\n")
        text = next((line for line in reversed(lines) if line.strip()), "")
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return _UNPRINTABLE.sub(" ", text).strip()[-_TOLD:]

    def _watch(self) -> None:
        """Read what it says, until it has ended. (On a thread of its own.)"""
        errors = self._process.stderr
        assert errors is not None
        os.set_blocking(errors.fileno(), False)
        ended = os.pidfd_open(self._process.pid)
        poll = select.poll()
        for fd in (errors.fileno(), ended, self._over):
            poll.register(fd, select.POLLIN)
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0) * 1000
            ready = {fd for fd, _ in poll.poll(left)}
            if errors.fileno() in ready and not self._read(errors.fileno()):
                poll.unregister(errors.fileno())
            if ended in ready:
                break
            if self._over in ready:
                poll.unregister(self._over)
                deadline = time.monotonic() + _GRACE_SECONDS
            elif deadline is not None and time.monotonic() >= deadline:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                deadline = None
        while self._read(errors.fileno()):
            pass
        self._code = self._process.wait()
        with self._lock:
            self._ended.set()
            os.close(self._over)
        os.close(ended)
        errors.close()

    def _read(self, fd: int) -> bool:
        """Whether there was something to read."""
        try:
            part = os.read(fd, _KEPT)
        except OSError:
            return False
        self._said = (self._said + part)[-_KEPT:]
        return bool(part)
