"""Both ends of the online path over plain sockets, for tests of the core against real servers.

`RawReplica` asks a server for its replication stream; `Applier` sends transactions to one.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benches.support.servers import Server
from engine._native import (
    CommandBatch,
    StreamReader,
    TransactionEncoder,
    TransactionReader,
    TransactionResult,
    encode_command,
)

POSITION_KEY = b"startmigration:position"


class RawReplica:
    """The stream of `server` behind a full sync, or a partial one from a position, as bytes.

    `offset`: where the sync left it; `data`: everything that came since.
    """

    def __init__(self, server: Server, replid: bytes = b"", offset: int = 0) -> None:
        self._socket = socket.create_connection((server.host, server.port), timeout=20)
        # Not buffered: nothing of the stream is read ahead.
        self._file = self._socket.makefile("rb", buffering=0)
        self.data = b""
        self._call(b"REPLCONF capa eof capa psync2")
        if replid:
            answer = self._call(b"PSYNC %s %d" % (replid, offset + 1)).split()
            assert answer[0] == b"+CONTINUE", answer
            self.replid, self.offset = replid, offset
        else:
            answer = self._call(b"PSYNC ? -1").split()
            assert answer[0] == b"+FULLRESYNC", answer
            self.replid, self.offset = answer[1], int(answer[2])
            self._pass_snapshot()
        self.acknowledge()

    def _pass_snapshot(self) -> None:
        head = self._line()
        if head.startswith(b"$EOF:"):
            mark = head[5:].strip()
            tail = b""
            while tail != mark:
                tail = (tail + self._file.read(1))[-len(mark) :]
        else:
            left = int(head[1:])
            while left:
                left -= len(self._file.read(min(left, 1 << 16)))

    def _line(self) -> bytes:
        line = self._file.readline()
        while line in (b"\n", b"\r\n"):
            line = self._file.readline()
        return line

    def _call(self, command: bytes) -> bytes:
        self._socket.sendall(command + b"\r\n")
        return self._line()

    def acknowledge(self) -> None:
        """REPLCONF ACK, without which a diskless source holds the stream back."""
        reached = self.offset + len(self.data)
        self._socket.sendall(b"REPLCONF ACK %d\r\n" % reached)

    def read_to(self, offset: int, timeout: float = 20.0) -> None:
        """Read until the stream has come to `offset`, the source's own figure."""
        deadline = time.monotonic() + timeout
        self._socket.settimeout(0.1)
        while self.offset + len(self.data) < offset:
            assert time.monotonic() < deadline, "the stream did not come"
            self.acknowledge()
            try:
                got = self._socket.recv(1 << 16)
            except TimeoutError:
                continue
            assert got, "the source closed the connection"
            self.data += got

    def close(self) -> None:
        """Leave."""
        self._file.close()
        self._socket.close()


@contextmanager
def replica_of(server: Server, replid: bytes = b"", offset: int = 0) -> Iterator[RawReplica]:
    """A `RawReplica` for the length of a block; with a position it asks for a partial sync."""
    replica = RawReplica(server, replid, offset)
    try:
        yield replica
    finally:
        replica.close()


def source_offset(server: Server) -> int:
    """INFO replication's master_repl_offset."""
    return int(server.client().info("replication")["master_repl_offset"])


def batch_of(*commands: tuple[str | bytes | int, ...]) -> CommandBatch:
    """These commands as a batch of a stream."""
    reader = StreamReader(0)
    reader.feed(b"".join(encode_command(*command) for command in commands))
    reader.flush()
    (batch,) = reader.take()
    return batch


class Applier:
    """A connection that applies batches, one transaction at a time."""

    def __init__(self, server: Server, *before: tuple[str | int, ...], position_db: int = 0):
        self.encoder = TransactionEncoder(POSITION_KEY, position_db)
        self.reader = TransactionReader()
        self.position_db = position_db
        self._socket = socket.create_connection((server.host, server.port), timeout=20)
        for command in (*before, ("SELECT", position_db)):
            self._socket.sendall(encode_command(*command))
            self._socket.recv(1 << 16)

    def apply(
        self,
        batch: CommandBatch,
        position: bytes = b"position",
        skip: frozenset[int] = frozenset(),
        extras: tuple[tuple[int, bytes], ...] = (),
    ) -> TransactionResult:
        """One transaction, sent and answered."""
        transaction = self.encoder.encode(
            batch, position, db=self.position_db, skip=skip, extras=extras
        )
        self.reader.expect(transaction.queued)
        self._socket.sendall(bytes(transaction))
        while True:
            with memoryview(self.reader.input) as view:
                n = self._socket.recv_into(view)
            assert n, "the target closed the connection"
            if self.reader.received(n):
                break
        (result,) = self.reader.take()
        return result

    def close(self) -> None:
        """Leave."""
        self._socket.close()
