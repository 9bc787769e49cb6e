"""What FalkorDB notes of queries, in the commands of an append-only file: left to each server.

The module writes `telemetry{GRAPH}` without a word to its server's file; a snapshot at the head of
the file has it, and so may commands of clients that name it (XGROUP CREATE, COPY). The target's
module makes such streams for itself. So commands that change one alone are left out; what is made
of one is named as not carried, for there is no server to ask for it.

Another key of such a name is a key as any other. Which it is, the target tells if it has one, and
else the command: one that makes a stream says its first field, and one that takes a key that no
command has made takes the module's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from engine._native import CommandBatch, is_telemetry
from engine.model.db_key import DbKey, placed
from engine.model.modules import FIRST_FIELD, HEAD_BYTES, TELEMETRY, is_telemetry_name
from engine.wire.control_connection import Admin, Arg

_DELETES = frozenset({b"DEL", b"UNLINK"})
# Commands of a key of any type, which do not make one under its first name.
_TAKES_ANY = _DELETES | {
    b"EXPIRE",
    b"PEXPIRE",
    b"EXPIREAT",
    b"PEXPIREAT",
    b"PERSIST",
    b"RENAME",
    b"RENAMENX",
    b"COPY",
    b"MOVE",
}
# Options of XADD before the id, and how many words each has; `=` and `~` stand between.
_XADD_OPTIONS = {
    b"NOMKSTREAM": 1,
    b"KEEPREF": 1,
    b"DELREF": 1,
    b"ACKED": 1,
    b"MAXLEN": 2,
    b"MINID": 2,
    b"LIMIT": 2,
}


class GraphTelemetry:
    """Tells the commands that name such a stream. `look`: which of some keys the target has, and
    whether each is such a stream."""

    def __init__(self, look: Callable[[Sequence[DbKey]], Awaitable[dict[DbKey, bool]]]) -> None:
        self._look = look
        # By key: whether it is such a stream.
        self._known: dict[DbKey, bool] = {}

    async def left_out(self, batch: CommandBatch) -> dict[int, tuple[list[DbKey], list[DbKey]]]:
        """Indices of commands that are left out: the streams that each names, and the keys that it
        would change beside them. All before `batch` is on the target. Raises as `look`."""
        named: dict[int, list[DbKey]] = {}
        for index in batch.naming(TELEMETRY):
            keys = placed(batch.db(index), batch.keys(index) or (), batch.swaps)
            if found := [each for each in keys if is_telemetry_name(each[1])]:
                named[index] = found
        new = {key for keys in named.values() for key in keys} - self._known.keys()
        if new:
            self._known.update(await self._look(sorted(new)))
        left: dict[int, tuple[list[DbKey], list[DbKey]]] = {}
        for index, keys in named.items():
            words = batch.command(index)
            for key in keys:
                if key not in self._known:
                    self._known[key] = _is_of_the_module(words, key[1])
            own = [key for key in keys if self._known[key]]
            beside = [key for key in batch.changes(index) or () if not self._known.get(key, False)]
            if own and not (beside and words[0].upper() in _DELETES):
                left[index] = own, beside
        return left


def _is_of_the_module(words: Sequence[bytes], key: bytes) -> bool:
    """Whether a key that the target has not, and that this command names, is such a stream."""
    verb = words[0].upper()
    if verb == b"XADD":
        return _first_field(words) == FIRST_FIELD
    if verb == b"RESTORE":
        return len(words) > 3 and is_telemetry(key, words[3][:HEAD_BYTES])
    if verb in _DELETES:
        return True
    if verb in _TAKES_ANY:
        return words[1] == key
    return verb.startswith(b"X")


def _first_field(words: Sequence[bytes]) -> bytes:
    at = 2
    while at < len(words) and (size := _XADD_OPTIONS.get(words[at].upper())):
        at += size + (size == 2 and words[at + 1 : at + 2] in ([b"="], [b"~"]))
    return words[at + 1] if at + 1 < len(words) else b""


async def look_at(end: Admin, keys: Sequence[DbKey]) -> dict[DbKey, bool]:
    """Which of `keys` there are, and whether each is such a stream, by its first field. Raises
    `LinkError`, `ServerError`."""
    found: dict[DbKey, bool] = {}
    for db in sorted({db for db, _ in keys}):
        await end.select(db)
        names = [key for at, key in keys if at == db]
        asked: list[tuple[Arg, ...]] = []
        for name in names:
            asked += [("TYPE", name), ("XRANGE", name, "-", "+", "COUNT", 1)]
        replies = await end.pipeline(asked)
        for name, kind, first in zip(names, replies[::2], replies[1::2], strict=True):
            if kind != b"none":
                found[db, name] = _is_stream_of_notes(kind, first)
    return found


def _is_stream_of_notes(kind: object, first: object) -> bool:
    if kind != b"stream" or not isinstance(first, list):
        return False
    # One without entries is taken for one by its name, as the core does (`modules.pxi`).
    return not first or (len(first[0]) > 1 and (first[0][1] or [b""])[0] == FIRST_FIELD)
