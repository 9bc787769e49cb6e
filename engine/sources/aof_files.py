"""The files of an append-only file: one, or those that a manifest names, seen as one run of bytes.

Since Redis 7.0 (and in Valkey) the folder `appendonlydir` holds a base (a snapshot, or commands),
increments, and a manifest that says their order (aof.c); what it calls history is no part of the
data any more. Before that it is one file, which may begin with a snapshot.

An offset counts the bytes of all files in their order. Each file is opened once, and as many bytes
are read as it had then: a server that still writes, or rewrites, its file takes nothing away. Bytes
that are read again must be those of the first reading (`FileChecksums`).
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import EngineError, ProtocolFault, SourceLost
from engine.sources.unchanged_file import PORTION_BYTES, FileChecksums

Kind = Literal["base", "incr", "whole"]

_MANIFEST_BYTES_MOST = 1 << 20
# MANIFEST_MAX_LINE, aof.c.
_LINE_BYTES_MOST = 1024
# More files than a server's limit on failed rewrites can pile up in days.
_PARTS_MOST = 500
_NAMES: dict[bytes, Kind] = {b"b": "base", b"i": "incr"}
_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}
_REMEDIES = {
    errno.ENOENT: "The file is looked for on the machine where the engine runs.",
    errno.EACCES: "Let the user who runs the engine read it.",
}
_PUT_A_COPY = (
    "Put a copy in its place that no program changes, and start again: with the bytes that it had "
    "the migration goes on, with others it begins anew."
)
_WHAT_IT_TAKES = (
    "Give the folder with the manifest (appendonlydir, from Redis 7.0 on), or the file "
    "appendonly.aof of an older server."
)


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a manifest names."""

    name: str
    kind: Kind
    seq: int


@dataclass(frozen=True, slots=True)
class Part:
    """A file, opened: `begin` is the offset before its first byte, `size` its bytes at opening,
    `portion` the number of its first portion."""

    path: Path
    kind: Kind
    descriptor: int
    begin: int
    size: int
    portion: int

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.begin + self.size

    def place(self, offset: int) -> str:
        """The offset as a person finds it."""
        return f"byte {offset - self.begin:,} of {self.path}"


class AofFiles:
    """The opened files, in their order; closed by `close`.

    `limit`: no more bytes than this are seen. Raises `EngineError` (fault: the user's) for what is
    not there or cannot be read, `ProtocolFault` for a manifest that makes no sense.
    """

    def __init__(self, path: Path | str, *, limit: int | None = None) -> None:
        self.path = Path(path)
        found = _located(self.path)
        self.parts: list[Part] = []
        self._read_before = FileChecksums()
        self.beyond = 0
        """Bytes behind `limit` when the files were opened."""
        begin = portion = 0
        try:
            for each, kind in found:
                descriptor, size = _opened(each)
                if limit is not None:
                    self.beyond += max(size - (limit - begin), 0)
                    size = min(size, limit - begin)
                if self.parts and begin == limit:
                    os.close(descriptor)
                    continue
                self.parts.append(Part(each, kind, descriptor, begin, size, portion))
                begin += size
                portion += -(-size // PORTION_BYTES)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return self.parts[-1].end

    @property
    def checksum(self) -> int:
        """The CRC64 of all bytes that were read so far."""
        return self._read_before.checksum

    def read(self, part: Part, offset: int, end: int) -> bytes:
        """The next portion from `offset` on, at most to `end`; empty there.

        All files must have been read once in their order (`portions`). Raises `EngineError` where
        the file cannot be read, `SourceLost` where it has become shorter, or its bytes are not
        those of the first reading.
        """
        if offset >= min(end, part.end):
            return b""
        number, skipped = divmod(offset - part.begin, PORTION_BYTES)
        begin = number * PORTION_BYTES
        found = self._portion(part, begin, min(PORTION_BYTES, part.size - begin))
        if not self._read_before.holds(part.portion + number, found):
            raise changed(
                part,
                f"bytes {begin:,} to {begin + len(found):,} are not what they were at the first "
                "reading",
            )
        if skipped or begin + len(found) > end - part.begin:
            return found[skipped : end - part.begin - begin]
        return found

    def portions(self, part: Part) -> Iterator[bytes]:
        """All of one file, portion by portion; the next one is read meanwhile. Raises as `read`."""
        at = part.begin
        if part.size <= PORTION_BYTES:
            # A thread takes longer than this.
            if portion := self.read(part, at, part.end):
                yield portion
            return
        with ThreadPoolExecutor(1) as thread:
            ahead = thread.submit(self.read, part, at, part.end)
            while portion := ahead.result():
                at += len(portion)
                ahead = thread.submit(self.read, part, at, part.end)
                yield portion

    def _portion(self, part: Part, begin: int, wanted: int) -> bytes:
        found = b""
        while len(found) < wanted:
            try:
                more = os.pread(part.descriptor, wanted - len(found), begin + len(found))
            except OSError as exc:
                raise _unreadable(part.path, exc) from exc
            if not more:
                raise changed(part, f"it had {part.size:,} bytes, and has {begin + len(found):,}")
            found += more
        return found

    def close(self) -> None:
        """Let go of the files."""
        for part in self.parts:
            os.close(part.descriptor)
        self.parts = []


def changed(part: Part, how: str) -> SourceLost:
    """What to raise for a file that is not what it was."""
    return SourceLost(f"{part.path} was changed while it was read: {how}", remedy=_PUT_A_COPY)


def read_manifest(data: bytes, where: str) -> list[Named]:
    """The files that a manifest names, base first, without its history. Raises `ProtocolFault`."""
    found: list[Named] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        words = _words(line)
        if words is None or len(words) < 6 or len(words) % 2 or len(line) > _LINE_BYTES_MOST:
            raise _wrong_manifest(where, f"line {number} is {line[:80]!r}")
        said = dict(zip(words[::2], words[1::2], strict=True))
        name, seq, kind = said.get(b"file"), said.get(b"seq", b""), said.get(b"type")
        if not name or kind not in (b"b", b"i", b"h") or not seq.isdigit() or len(seq) > 18:
            raise _wrong_manifest(where, f"line {number} is {line[:80]!r}")
        if b"/" in name or b"\0" in name or name in (b".", b".."):
            raise _wrong_manifest(where, f"line {number} names no file of the folder: {name!r}")
        if kind != b"h":
            found.append(Named(os.fsdecode(name), _NAMES[kind], int(seq)))
    if sum(each.kind == "base" for each in found) > 1:
        raise _wrong_manifest(where, "it names more than one base")
    increments = [each.seq for each in found if each.kind == "incr"]
    if any(one >= other for one, other in itertools.pairwise(increments)):
        raise _wrong_manifest(where, "the numbers of its increments do not ascend")
    if not found:
        raise _wrong_manifest(where, "it names no file")
    return sorted(found, key=lambda each: each.kind != "base")


def _words(line: bytes) -> list[bytes] | None:
    """Words as a server splits them, quoted ones without their quotes; None: a quote is open."""
    words: list[bytes] = []
    at = 0
    while at < len(line):
        if line[at : at + 1].isspace():
            at += 1
        elif line[at : at + 1] == b'"':
            quoted = _QUOTED.match(line, at)
            if quoted is None:
                return None
            words.append(_ESCAPE.sub(_unescaped, quoted[1]))
            at = quoted.end()
        else:
            end = at
            while end < len(line) and not line[end : end + 1].isspace():
                end += 1
            words.append(line[at:end])
            at = end
    return words


def _unescaped(found: re.Match[bytes]) -> bytes:
    what = found[1]
    if len(what) == 3:
        return bytes([int(what[1:], 16)])
    return _ESCAPED.get(what, what)


def _located(path: Path) -> Sequence[tuple[Path, Kind]]:
    """The files that make up what the user has named."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _from_folder(path)
        if path.suffix == ".manifest":
            return _from_manifest(path)
        _refuse_part(path)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    return [(path, "whole")]


def _from_folder(folder: Path) -> Sequence[tuple[Path, Kind]]:
    manifests = sorted(folder.glob("*.manifest")) or sorted(folder.glob("*/*.manifest"))
    if len(manifests) == 1:
        return _from_manifest(manifests[0])
    if manifests:
        names = ", ".join(str(each.relative_to(folder)) for each in manifests[:5])
        raise EngineError(
            f"{folder} holds {len(manifests)} manifests: {names}",
            remedy="Give the path of the one that is meant.",
            fault="user",
        )
    single = sorted(folder.glob("*.aof"))
    remedy = f"Give the file: aof:{single[0]}." if len(single) == 1 else _WHAT_IT_TAKES
    raise EngineError(
        f"{folder} holds no manifest of an append-only file", remedy=remedy, fault="user"
    )


def _from_manifest(manifest: Path) -> Sequence[tuple[Path, Kind]]:
    with manifest.open("rb") as file:
        data = file.read(_MANIFEST_BYTES_MOST + 1)
    if len(data) > _MANIFEST_BYTES_MOST:
        raise _wrong_manifest(str(manifest), "it is longer than 1 MiB")
    named = read_manifest(data, str(manifest))
    if len(named) > _PARTS_MOST:
        raise _wrong_manifest(str(manifest), f"it names {len(named)} files")
    found = [(manifest.parent / each.name, each.kind) for each in named]
    for path, _ in found:
        if not path.is_file():
            raise EngineError(
                f"{manifest} names {path.name}, and there is no such file",
                remedy="Give a whole copy of the folder; every file of the manifest is needed.",
                fault="user",
            )
    return found


def _refuse_part(path: Path) -> None:
    """A base, or an increment, is a part of the data alone."""
    for manifest in sorted(path.parent.glob("*.manifest")):
        with manifest.open("rb") as file:
            data = file.read(_MANIFEST_BYTES_MOST)
        try:
            named = read_manifest(data, str(manifest))
        except ProtocolFault:
            continue
        if path.name in {each.name for each in named}:
            raise EngineError(
                f"{path} is one of the {len(named)} files of an append-only file",
                remedy=f"Give all of them: aof:{path.parent}.",
                fault="user",
            )


def _opened(path: Path) -> tuple[int, int]:
    try:
        # A FIFO without a writer would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        about = os.fstat(descriptor)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise EngineError(f"{path} is not a regular file", remedy=_WHAT_IT_TAKES, fault="user")
    return descriptor, about.st_size


def _unreadable(path: Path, exc: OSError) -> EngineError:
    return EngineError(
        f"cannot read {path}: {exc.strerror or exc}",
        remedy=_REMEDIES.get(exc.errno or 0, ""),
        fault="user",
    )


def _wrong_manifest(where: str, what: str) -> ProtocolFault:
    return ProtocolFault(
        f"{where} is not the manifest of an append-only file: {what}",
        remedy="Its server can say more (redis-check-aof).",
        fault="source",
    )
