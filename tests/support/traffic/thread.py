"""What writers have in common: a thread of their own, an end, and a server that may be another."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from typing import Self

from tests.support.traffic.link import Address
from tests.support.traffic.nodes import End, Nodes


class WritingThread(ABC):
    """Writes to `end` from `start` to `stop`; as a context manager, from its begin to its end.

    `failure` is what ended it, if it did not end by itself; `stop` and `join` raise it.
    """

    def __init__(self, end: End, name: str) -> None:
        self.failure: BaseException | None = None
        self._nodes = Nodes(end)
        self._stopping = threading.Event()
        self._moved = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name=name, daemon=True)

    def start(self) -> Self:
        """Begin to write."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send no more, and end once everything sent has been answered or lost."""
        self._stopping.set()
        self.join()

    def join(self) -> None:
        """Wait for the end."""
        if self._thread.ident is not None:
            self._thread.join()
        if self.failure is not None:
            raise self.failure

    def move_to(self, end: End) -> None:
        """Go on with another server: the one that took over. What the old one had not replicated
        is lost."""
        self._nodes = Nodes(end)
        self._moved.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        # A failure of the test itself is the one to be told.
        with contextlib.suppress(*(() if exc[0] is None else (Exception,))):
            self.stop()

    # --- The thread ---

    @property
    def _address(self) -> Address:
        """The server, or a cluster's first."""
        return self._nodes.all[0]

    @abstractmethod
    def _run(self) -> None:
        """Write until `_stopping` is set."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Let go of the links; they are made anew when there is something to send."""

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:  # for whoever stops or joins
            self.failure = error
        finally:
            self._disconnect()

    def _follow_the_server(self) -> None:
        """Let go of a server that another one took over from."""
        if self._moved.is_set():
            self._moved.clear()
            self._disconnect()
