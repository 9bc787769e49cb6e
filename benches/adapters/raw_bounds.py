"""What the servers alone can do: pre-encoded pipelines whose replies are thrown away.

Three runs, each with one server and one light process: a SCAN sweep and DUMP + PTTL on the source,
RESTORE on the target. What they cost the source's one thread is the bound of every migration that
reads by SCAN and DUMP: no such migration can move more than 1 / (SCAN + DUMP + PTTL) keys a second.

The commands are encoded once per data set, into files, and sent from there with sendfile(2).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import hiredis

from benches import procstat
from benches.adapters.base import (
    ROOT,
    AdapterError,
    Measurement,
    keys_by_db,
    last_json,
    plain,
    time_limit,
)
from benches.datasets import resp

if TYPE_CHECKING:
    from benches.datasets import Summary
    from benches.support.servers import Server

MODULE = "benches.adapters.raw_bounds"

SCAN_COUNT = 1_000

ENCODE_KEYS = 64
"""Keys whose values are asked for at once while encoding: values may be megabytes long."""

CHUNK_KEYS = 500
CHUNK_BYTES = 256 * 1024
"""A chunk ends at so many keys, or so many bytes of commands or replies, whichever is first."""

WINDOW_BYTES = 1 << 20
"""Replies (DUMP) or commands (RESTORE) in flight: more would grow the server's buffers."""

READ_BYTES = 1 << 20
TOKEN = b"the-end-of-this-run"
END = b"$%d\r\n%b\r\n" % (len(TOKEN), TOKEN)


@dataclass(slots=True)
class Chunk:
    """Consecutive commands in a file: their bytes, and the bytes of their replies."""

    size: int
    replies: int
    keys: int


class RawBounds:
    """SCAN, DUMP + PTTL and RESTORE, each alone."""

    name = "raw_bounds"

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def available(self) -> str | None:
        return None

    def prepare(self, source: Server, dataset: Summary) -> None:
        """Encode the commands for this data set, by a process of its own."""
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="bench-raw-")
        done = procstat.run(
            [sys.executable, "-m", MODULE, "encode", source.url, self._folder.name],
            timeout=time_limit(dataset),
            cwd=ROOT,
        )
        if done.returncode:
            raise AdapterError(f"raw_bounds: encoding failed: {done.stderr[-2000:]}")

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def run(self, source: Server, target: Server, dataset: Summary) -> Measurement:
        if self._folder is None:
            self.prepare(source, dataset)
        assert self._folder is not None
        total = {"seconds": 0.0, "source": 0.0, "target": 0.0, "tool": 0.0}
        peak = 0
        extra: dict[str, float] = {}
        for phase, server in (("scan", source), ("dump_pttl", source), ("restore", target)):
            before = procstat.cpu_seconds(server.pid)
            done = procstat.run(
                [sys.executable, "-m", MODULE, phase, server.url, self._folder.name],
                timeout=time_limit(dataset),
                cwd=ROOT,
            )
            if done.returncode:
                raise AdapterError(f"raw_bounds: {phase} failed: {done.stderr[-2000:]}")
            cpu = procstat.cpu_seconds(server.pid) - before
            seconds = last_json(done.stdout)["seconds"]
            extra[f"{phase}_us_per_key"] = cpu / dataset.keys * 1e6
            extra[f"{phase}_keys_per_second"] = dataset.keys / seconds
            extra[f"{phase}_busy"] = cpu / seconds
            total["seconds"] += seconds
            total["source" if server is source else "target"] += cpu
            total["tool"] += done.cpu_seconds
            peak = max(peak, done.peak_rss_bytes)
        extra["bound_keys_per_second"] = dataset.keys / total["source"]
        return Measurement(
            keys=dataset.keys,
            bytes=dataset.bytes,
            seconds=total["seconds"],
            own_seconds=total["seconds"],
            cpu_source=total["source"],
            cpu_target=total["target"],
            cpu_tool=total["tool"],
            peak_rss_tool=peak,
            peak_tree_tool=peak,
            note="three runs, one server each: the time is their sum",
            extra=extra,
        )


# ---------------------------------------------------------------------------------------------
# In the light process


class Wire:
    """A blocking connection on which replies are counted by the byte, and nothing is parsed."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.sock = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 6379))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = hiredis.Reader()
        self.buffer = memoryview(bytearray(READ_BYTES))
        if parts.password:
            user = [unquote(parts.username)] if parts.username else []
            self.ask("AUTH", *user, unquote(parts.password))

    def ask(self, *args: bytes | str | int) -> bytes:
        """Send one command, with an ECHO after it; return the reply's bytes.

        The ECHO tells where the reply ends, so that it need not be parsed.
        """
        self.sock.sendall(resp(*args) + resp("ECHO", TOKEN))
        data = bytearray()
        while not data.endswith(END):
            data += self.buffer[: self.read()]
        return bytes(data[: -len(END)])

    def read(self) -> int:
        """Read what is there into the buffer, at least a byte."""
        got = self.sock.recv_into(self.buffer)
        if not got:
            raise AdapterError("the server closed the connection")
        return got

    def replies(self, commands: bytes, count: int) -> list[Any]:
        """Send commands and read their replies, parsed. Raises `AdapterError` for an error."""
        self.sock.sendall(commands)
        found: list[Any] = []
        while len(found) < count:
            self._parser.feed(bytes(self.buffer[: self.read()]))
            while (reply := self._parser.gets()) is not False:
                if isinstance(reply, hiredis.ReplyError):
                    raise AdapterError(f"the server refused a command: {reply}")
                found.append(reply)
        return found

    def stream(self, path: Path, chunks: list[Chunk], weigh: Callable[[Chunk], int]) -> int:
        """Send a file of commands; return how many bytes of replies came.

        `weigh` says what a chunk takes of the window, in bytes.
        """
        got = sent = 0
        waiting: list[tuple[int, int]] = []  # (reply bytes up to here, weight), oldest first
        first = in_flight = due = 0
        with path.open("rb") as file:
            for chunk in chunks:
                weight = weigh(chunk)
                while in_flight and in_flight + weight > WINDOW_BYTES:
                    got += self.read()
                    while first < len(waiting) and waiting[first][0] <= got:
                        in_flight -= waiting[first][1]
                        first += 1
                end = sent + chunk.size
                while sent < end:
                    sent += os.sendfile(self.sock.fileno(), file.fileno(), sent, end - sent)
                due += chunk.replies
                in_flight += weight
                waiting.append((due, weight))
        self.sock.sendall(resp("ECHO", TOKEN))
        tail = b""
        while not tail.endswith(END):
            size = self.read()
            got += size
            tail = (tail + bytes(self.buffer[max(0, size - len(END)) : size]))[-len(END) :]
        return got - len(END)


def scan(url: str, _folder: Path) -> float:
    """Sweep every database; return the seconds."""
    wire = Wire(url)
    dbs = keys_by_db(plain(url))
    started = time.monotonic()
    for db in dbs:
        wire.ask("SELECT", db)
        cursor = b"0"
        while True:
            # *2, then the cursor as a bulk string, then the keys, which are not looked at.
            cursor = wire.ask("SCAN", cursor, "COUNT", SCAN_COUNT).split(b"\r\n", 3)[2]
            if cursor == b"0":
                break
    return time.monotonic() - started


def dump_pttl(url: str, folder: Path) -> float:
    """Send DUMP and PTTL for every key; return the seconds."""
    chunks = [Chunk(**row) for row in json.loads((folder / "dump.json").read_text())]
    wire = Wire(url)
    started = time.monotonic()
    # PTTL's reply may be a digit shorter than it was: so the end is found by ECHO, not by counting.
    wire.stream(folder / "dump.resp", chunks, lambda chunk: chunk.replies)
    return time.monotonic() - started


def restore(url: str, folder: Path) -> float:
    """Send RESTORE for every key; return the seconds. Raises `AdapterError` if one was refused."""
    chunks = [Chunk(**row) for row in json.loads((folder / "restore.json").read_text())]
    wire = Wire(url)
    started = time.monotonic()
    got = wire.stream(folder / "restore.resp", chunks, lambda chunk: chunk.size)
    seconds = time.monotonic() - started
    # Every reply must have been +OK: anything else has another length.
    if got != sum(chunk.replies for chunk in chunks):
        raise AdapterError("the target refused some RESTOREs: is its RDB version older?")
    return seconds


class _Chunks:
    """A file of commands being written, and the list of its chunks."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self._chunks: list[Chunk] = []
        self._open = Chunk(0, 0, 0)

    def add(self, command: bytes, replies: int, keys: int = 1) -> None:
        self._file.write(command)
        now = self._open
        now.size += len(command)
        now.replies += replies
        now.keys += keys
        if now.keys >= CHUNK_KEYS or max(now.size, now.replies) >= CHUNK_BYTES:
            self.cut()

    def cut(self) -> None:
        if self._open.size:
            self._chunks.append(self._open)
            self._open = Chunk(0, 0, 0)

    def close(self) -> None:
        self.cut()
        self._file.close()
        rows = [asdict(chunk) for chunk in self._chunks]
        self._path.with_suffix(".json").write_text(json.dumps(rows))


def encode(url: str, folder: Path) -> float:
    """Write dump.resp and restore.resp, with the lists of their chunks."""
    started = time.monotonic()
    dumps, restores = _Chunks(folder / "dump.resp"), _Chunks(folder / "restore.resp")
    wire = Wire(url)
    for db in keys_by_db(plain(url)):
        wire.ask("SELECT", db)
        for chunks in (dumps, restores):
            chunks.add(resp("SELECT", db), len(b"+OK\r\n"), 0)
        seen: set[bytes] = set()
        for keys in _batches(plain(url, db).scan_iter(count=SCAN_COUNT)):
            fresh = [key for key in dict.fromkeys(keys) if key not in seen]
            seen.update(fresh)
            asked = [resp("DUMP", key) + resp("PTTL", key) for key in fresh]
            now_ms = int(time.time() * 1000)
            replies = wire.replies(b"".join(asked), 2 * len(fresh))
            for key, command, value, ttl in zip(
                fresh, asked, replies[::2], replies[1::2], strict=True
            ):
                dump_reply = len(value) + len(b"$%d\r\n\r\n:%d\r\n" % (len(value), ttl))
                dumps.add(command, dump_reply)
                if ttl < 0:
                    what = resp("RESTORE", key, 0, value)
                else:
                    what = resp("RESTORE", key, now_ms + ttl, value, "ABSTTL")
                restores.add(what, len(b"+OK\r\n"))
    dumps.close()
    restores.close()
    return time.monotonic() - started


def _batches(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for key in keys:
        batch.append(key)
        if len(batch) == ENCODE_KEYS:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    PHASES = {"encode": encode, "scan": scan, "dump_pttl": dump_pttl, "restore": restore}
    print(json.dumps({"seconds": PHASES[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))}))
