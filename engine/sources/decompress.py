"""Compressed files, unpacked while they are read: gzip, zstd, lz4, and Valkey's own envelope.

The first bytes of a file say what it is packed with, whatever its name is. Nothing is ever held
whole: a reader is asked for so many bytes, takes as much of the packed ones as that needs, and
gives no more than was asked for, so a file that unpacks to a thousand times its size costs no
memory. A file may be packed twice (`dump.rdb.gz` of a server that compresses its files itself).

Valkey 9.2 (`rdbcompression lz4`) puts seven bytes before one frame of the codec: `VCS`, version 1,
codec, 0, kind of stream. They are read by their public description
(design-docs/compressed-stream.md); no such server was available to write a file.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import IO, Any, Protocol, cast

PACKED_BYTES = 64 << 10
"""Of packed bytes no more are taken at once."""
HEAD_BYTES = 12
"""So many of the first bytes tell what a file is."""
_LAYERS_MOST = 3
_WINDOW_MOST = 128 << 20
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_LZ4 = b"\x04\x22\x4d\x18"
_VCS = b"VCS"
_VCS_BYTES = 7
_VCS_CODECS = {1: "lz4", 2: "zstd"}
_VCS_RDB = 1
# Of the LZ4 frame's descriptor: checksums of the blocks, and of all that they hold.
_LZ4_CHECKSUMS = 0x14
# Formats that are not unpacked here: how a file begins, and what unpacks it.
_OTHERS = (
    (b"BZh", "bzip2", "bzcat"),
    (b"\xfd7zXZ\x00", "xz", "xzcat"),
    (b"\x02\x21\x4c\x18", "lz4's old format", "lz4 -dc"),
    (b"PK\x03\x04", "zip", "unzip -p"),
)


class Readable(Protocol):
    """Gives bytes in order; blocks until there are some."""

    def read(self, n: int, /) -> bytes:
        """At most `n` bytes, none at the end."""
        ...


class Damaged(Exception):
    """Packed bytes that cannot be unpacked. `remedy` is what to do instead."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class Unpacked:
    """Reads `source` unpacked. `layers` names what it is packed with, the outermost first.

    `behind` counts the bytes that follow the packed ones, and belong to nothing; `checked` says
    whether the packing has a checksum of its own, which was compared. `read` raises `Damaged`.
    """

    def __init__(self, source: Readable) -> None:
        self.layers: list[str] = []
        self.checked = False
        self._readers: list[_Layer] = []
        self._top: Readable = source
        for _ in range(_LAYERS_MOST):
            head = _Head(self._top)
            self._top = head
            layer = self._layer(head)
            if layer is None:
                break
            self._readers.append(layer)
            self._top = layer

    @property
    def behind(self) -> int:
        """Bytes behind the packed ones, as far as they have been read."""
        return sum(layer.behind for layer in self._readers)

    def read(self, n: int) -> bytes:
        """At most `n` unpacked bytes, none at the end."""
        return self._top.read(n)

    def _layer(self, head: _Head) -> _Layer | None:
        first = head.first
        if first.startswith(_VCS):
            return self._envelope(head)
        for magic, name in ((_GZIP, "gzip"), (_ZSTD, "zstd"), (_LZ4, "lz4")):
            if first.startswith(magic):
                self.layers.append(name)
                return self._of(name, head, single=False)
        for magic, name, tool in _OTHERS:
            if first.startswith(magic):
                raise Damaged(
                    f"it is packed with {name}, which is not unpacked here",
                    f"Unpack it into the command: {tool} FILE | startmigration migrate --source "
                    "rdb:- …",
                )
        return None

    def _envelope(self, head: _Head) -> _Layer:
        first = head.first[:_VCS_BYTES]
        if len(first) < _VCS_BYTES:
            raise Damaged("it ends within Valkey's envelope of compressed files (VCS)")
        version, number, reserved, kind = first[3:]
        codec = _VCS_CODECS.get(number)
        if version != 1 or codec is None or reserved or kind != _VCS_RDB:
            raise Damaged(
                f"its envelope (VCS, of Valkey 9.2 and later) is version {version}, codec "
                f"{number}, reserved {reserved}, kind {kind}: known are version 1, codecs 1 (lz4) "
                "and 2 (zstd), reserved 0, kind 1 (RDB)",
                "Have its server write it with rdbcompression yes.",
            )
        head.skip(_VCS_BYTES)
        inner = _Head(head)
        if codec == "lz4" and len(inner.first) > 4 and inner.first[4] & _LZ4_CHECKSUMS:
            self.checked = True
        self.layers.append(f"{codec}, in Valkey's envelope")
        return self._of(codec, inner, single=True)

    def _of(self, name: str, head: _Head, *, single: bool) -> _Layer:
        if name == "gzip":
            self.checked = True
            return _Gzip(head)
        return _Lz4(head, single=single) if name == "lz4" else _Zstd(head)


class _Head:
    """The same bytes, the first of which have been looked at."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        first = b""
        while len(first) < HEAD_BYTES:
            more = source.read(HEAD_BYTES - len(first))
            if not more:
                break
            first += more
        self.first = first
        self._left = first

    def skip(self, n: int) -> None:
        self._left = self._left[n:]

    def read(self, n: int) -> bytes:
        if not self._left:
            return self._source.read(n)
        given, self._left = self._left[:n], self._left[n:]
        return given + self._source.read(n - len(given)) if n > len(given) else given


class _Layer:
    """One layer of packing. `behind`: bytes that follow its end, and are no more of it."""

    def __init__(self, source: Readable) -> None:
        self.behind = 0
        self._source = source
        self._input = b""
        self._ended = False

    def read(self, n: int) -> bytes:
        """At most `n` bytes, none at the end."""
        while not self._ended:
            found = self._some(n)
            if found:
                return found
        return b""

    def _some(self, n: int) -> bytes:
        """A step: some bytes, or none yet; at the end `_ended` is set."""
        raise NotImplementedError

    def _refill(self, name: str) -> None:
        self._input = self._source.read(PACKED_BYTES)
        if not self._input:
            raise Damaged(f"it ends in the middle of what {name} has packed")

    def _next(self, rest: bytes, magic: bytes | None) -> bool:
        """What follows an end: whether it is another of its kind, which `_input` then holds."""
        while len(rest) < len(magic or b"") and (more := self._source.read(PACKED_BYTES)):
            rest += more
        if magic is not None and rest.startswith(magic):
            self._input = rest
            return True
        self._ended = True
        self._input = b""
        self.behind = len(rest)
        while more := self._source.read(PACKED_BYTES):
            self.behind += len(more)
        return False


class _Gzip(_Layer):
    def __init__(self, source: Readable) -> None:
        super().__init__(source)
        self._decoder = zlib.decompressobj(31)

    def _some(self, n: int) -> bytes:
        decoder = self._decoder
        try:
            found = decoder.decompress(self._input, n)
        except zlib.error as exc:
            raise Damaged(f"gzip cannot unpack it: {exc}") from None
        self._input = decoder.unconsumed_tail
        if decoder.eof:
            if self._next(decoder.unused_data, _GZIP):
                self._decoder = zlib.decompressobj(31)
        elif not found and not self._input:
            self._refill("gzip")
        return found


class _Lz4(_Layer):
    def __init__(self, source: Readable, *, single: bool) -> None:
        super().__init__(source)
        # Compiled, and needed by few.
        from lz4.frame import LZ4FrameDecompressor

        self._new: Callable[[], Any] = LZ4FrameDecompressor
        self._decoder = self._new()
        self._magic = None if single else _LZ4

    def _some(self, n: int) -> bytes:
        decoder = self._decoder
        if decoder.needs_input:
            self._refill("lz4")
        try:
            found: bytes = decoder.decompress(self._input, n)
        except RuntimeError as exc:
            raise Damaged(f"lz4 cannot unpack it: {exc}") from None
        self._input = b""
        if decoder.eof and self._next(decoder.unused_data or b"", self._magic):
            self._decoder = self._new()
            found += self._decoder.decompress(self._input, 0)
            self._input = b""
        return found


class _Zstd(_Layer):
    def __init__(self, source: Readable) -> None:
        super().__init__(source)
        import zstandard

        self._error = zstandard.ZstdError
        decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MOST)
        # It asks for packed bytes itself, and at their end gives what there is: a snapshot that is
        # cut off is found by its own end.
        self._reader = decoder.stream_reader(
            cast(IO[bytes], source), read_size=PACKED_BYTES, read_across_frames=True, closefd=False
        )

    def _some(self, n: int) -> bytes:
        try:
            found: bytes = self._reader.read(n)
        except self._error as exc:
            remedy = ""
            if "too much memory" in str(exc):
                remedy = (
                    "It was packed with --long: zstd -dc --long=31 FILE | startmigration migrate "
                    "--source rdb:- …"
                )
            raise Damaged(f"zstd cannot unpack it: {exc}", remedy) from None
        self._ended = not found
        return found
