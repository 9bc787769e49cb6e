"""Values that no RESTORE carries, made on the target by commands.

A value that is longer than one argument of the target may be, as it is or in the form that the
target knows, is put together under a name of the engine's own in the same slot. Invariant: under
its own name nobody sees it in part, or without its expire time, and nothing of it under another
name stays:

    DEL name; MULTI; the first command; PEXPIRE name; EXEC
    the other commands, each answered; its size is the value's; expire times of fields
    MULTI; PEXPIREAT | PERSIST name; RENAME | RENAMENX name key; PEXPIRE name; EXEC

The first element goes by itself, and until the last line the name expires within an hour: so an
engine that is killed, or has lost its link, leaves nothing for long, and the next one removes it
before that. The first line is one transaction, and so is the last: at no moment is the name there
without an end, and the target refuses all of it where it refuses a part. The size is asked for
because a target without memory may evict the name in between, and would then have the rest alone.

The commands lie in a temporary file, for a value may be longer than memory: what the core makes of
it (`ext/value_commands.pxi`) is written there first, so that nothing is sent of one that is not
sound.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from engine._native import (
    ProtocolError,
    ReplyError,
    ValueCommands,
    encode_command,
    value_kind,
)
from engine.errors import AuthError, EngineError, LinkError, ServerError
from engine.model.online_checkpoint import OwnKeys
from engine.model.server_capabilities import ServerCapabilities
from engine.model.slots import SlotSet
from engine.model.temporary_file import temporary_file, write_all
from engine.targets.target_refusals import TRY_AGAIN
from engine.wire.connection import Connection, answered
from engine.wire.control_connection import Admin

ASIDE_MS = 3_600_000
"""How long a value lasts that is not whole yet."""
GONE = "no such key"
"""What RENAME says where that is gone."""
_KINDS = {
    "string": "STRLEN",
    "list": "LLEN",
    "set": "SCARD",
    "zset": "ZCARD",
    "hash": "HLEN",
    "stream": "XLEN",
}
# A string's payload has so many bytes more than itself, at the most.
_STRING_HEAD = 32
# Bytes of commands that are under way at once, if it is not one portion that is longer.
_UNDER_WAY_BYTES = 2 << 20
_NAMES_AT_ONCE = 1000
_NO_MEMORY = "the engine has no memory for the value's longest element"
_TRIES = 2
# What HPEXPIREAT says of a field that it has removed.
_FIELD_EXPIRED = 2
# What commands of a stream say where it is no longer there: XCLAIM, XGROUP, XSETID.
_EVICTED = re.compile("NOGROUP|requires the key to exist|no such key", re.IGNORECASE)
_RENAME = b"*3\r\n$6\r\nRENAME\r\n"
# What the first command refuses keeps the second from running.
_NAMED_AT_ONCE = """redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
return redis.call('RENAME', KEYS[1], KEYS[2])"""


class Unmakeable(Exception):
    """A value that no commands make: why, in words."""


class Expired(Exception):
    """A hash of which the target has let every field expire meanwhile: nothing is left of it."""


def too_long_words(size: int, limit: int) -> str:
    """Why a value that is one string, or has such an element, is not carried."""
    return (
        f"the value, {size:,} bytes in one piece, is longer than the target takes: it "
        f"takes no more than {limit:,} (proto-max-bulk-len)"
    )


def check_makeable(number: int, size: int, limit: int) -> None:
    """Raises `Unmakeable` where the type of a value (RDB_TYPE_*), and its length as dumped, tell
    already that no commands make it of arguments of up to `limit` bytes."""
    kind = value_kind(number, "redis")
    if kind == "string" and size > limit + _STRING_HEAD:
        raise Unmakeable(too_long_words(size, limit))
    if kind not in _KINDS:
        raise Unmakeable(
            f"the value is longer than the {limit:,} bytes that the target takes "
            "(proto-max-bulk-len), as it is or in a form that the target knows, and no commands "
            f"make a {kind or 'value of its type'}"
        )


@dataclass(slots=True)
class Made:
    """The commands of one value: `file` has them, `portions` says how many bytes, and commands, go
    together; `late` those that give fields their expire times, behind the others. `pending`: how
    many entries a stream's consumers claim; `lost`: what it loses (bits of
    `model.carried_with_loss`)."""

    kind: str
    size: int
    file: IO[bytes]
    pending: int = 0
    lost: int = 0
    portions: list[tuple[int, int]] = field(default_factory=list)
    late: list[tuple[int, int]] = field(default_factory=list)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()


def make(
    value: bytes | mmap.mmap,
    name: bytes,
    *,
    limit: int,
    most: int,
    able: ServerCapabilities,
    folder: str,
) -> Made:
    """The commands that make a DUMP payload under `name` at a target that can do what `able` says
    and takes arguments of up to `limit` bytes, in a file of up to `most` in `folder`. It works for
    seconds: on a thread.

    Raises `Unmakeable`.
    """
    check_makeable(value[0], len(value), limit)
    try:
        commands = ValueCommands(
            value,
            consumers=bool(able.commands_of_6_2),
            counters=bool(able.commands_of_7_0),
        )
    except ProtocolError as exc:
        raise Unmakeable(
            f"the value is longer than the target takes, and not sound: {exc}"
        ) from exc
    except MemoryError as exc:
        raise Unmakeable(_NO_MEMORY) from exc
    if commands.longest > limit:
        raise Unmakeable(too_long_words(commands.longest, limit))
    if commands.timed and not able.field_ttls:
        raise Unmakeable("the target does not know expire times of fields")
    if commands.released:
        raise Unmakeable(
            "the value is longer than the target takes, and no commands make the entries that "
            "consumers have given back"
        )
    size = commands.longest if commands.kind == "string" else commands.count
    file = value_file(folder)
    made = Made(commands.kind, size, file, pending=commands.pending)
    written = 0

    def take(portions: list[tuple[int, int]]) -> Callable[[bytes, int], None]:
        def taken(data: bytes, count: int) -> None:
            nonlocal written
            written += len(data)
            if written > most:
                raise Unmakeable(
                    f"the value's commands have more than {most:,} bytes (--spool-bytes)"
                )
            write_all(made.file, data)
            portions.append((len(data), count))

        return taken

    try:
        commands.give(name, take(made.portions))
        if commands.timed:
            commands.give(name, take(made.late), ttls=True)
        made.lost = commands.lost
    except OSError as exc:
        made.close()
        raise unkept(exc) from exc
    except MemoryError as exc:
        made.close()
        raise Unmakeable(_NO_MEMORY) from exc
    except BaseException:
        made.close()
        raise
    return made


def unkept(exc: OSError) -> Unmakeable:
    """What to raise where the disk does not take it."""
    return Unmakeable(
        "the value is longer than the target takes, and it, or the commands that make it, could "
        f"not be kept on disk (--spool-directory): {exc.strerror or exc}"
    )


def value_file(folder: str) -> IO[bytes]:
    """A temporary file for a value, or its commands. Raises `Unmakeable`."""
    try:
        return temporary_file(folder)
    except OSError as exc:
        raise unkept(exc) from exc


@contextlib.contextmanager
def read_in_place(file: IO[bytes], size: int) -> Iterator[mmap.mmap]:
    """The bytes of a file as memory that need not be all there at once. Raises `Unmakeable`."""
    try:
        view = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as exc:
        raise unkept(exc) from exc
    try:
        yield view
    finally:
        # (What still looks into it keeps it.)
        with contextlib.suppress(BufferError):
            view.close()


async def build(connection: Connection, made: Made, name: bytes, timeout: float) -> str:
    """Put the value together under `name`, in the database that is chosen; why the target does not
    take it, or an empty text.

    Raises `LinkError`, `ServerError` for what passes by itself, and `Expired`.
    """
    try:
        for left in range(_TRIES - 1, -1, -1):
            made.file.seek(0)
            await connection.call("DEL", name)
            try:
                claimed = await _begin(connection, made, name, timeout)
                claimed += await _send(connection, made, name, made.portions[1:], timeout)
            except ServerError as refusal:
                if left and made.kind == "stream" and _EVICTED.search(refusal.message):
                    continue
                raise
            found = await connection.call(_KINDS[made.kind], name)
            if (found, claimed) == (made.size, made.pending):
                break
            if not left:
                await connection.call("DEL", name)
                if found == made.size:
                    return f"of its {made.pending:,} pending entries the target has {claimed:,}"
                return f"of its {made.size:,} elements the target has {found:,}"
        if made.late and await _send(connection, made, name, made.late, timeout) == made.size:
            raise Expired
    except (ServerError, AuthError) as refusal:
        # Also if it is tried again: a target that is out of memory may need what it takes.
        await connection.try_call("DEL", name)
        if isinstance(refusal, ServerError) and refusal.code in TRY_AGAIN:
            raise
        return refusal.message
    except OSError as exc:
        await connection.try_call("DEL", name)
        return str(unkept(exc))
    return ""


async def _begin(connection: Connection, made: Made, name: bytes, timeout: float) -> int:
    """Send the first portion, with an end for what it makes; what `_check` says of it."""
    if not made.portions:
        return 0
    size, count = made.portions[0]
    data = await asyncio.to_thread(made.file.read, size)
    data += connection.encode("PEXPIRE", name, ASIDE_MS) + connection.encode("EXEC")
    # By itself: behind one that is refused the rest would be no transaction.
    await connection.call("MULTI")
    *queued, done = await connection.exchange(data, count + 2, timeout=timeout)
    if isinstance(done, EngineError):
        await _leave_transaction(connection, done)
    _check(queued)
    return _check(_each_of(connection, answered(done)))


def _each_of(connection: Connection, replies: list[Any]) -> list[Any]:
    """What EXEC has answered, error replies as values."""
    return [
        connection.reply_error(str(each)) if isinstance(each, ReplyError) else each
        for each in replies
    ]


async def _send(
    connection: Connection,
    made: Made,
    name: bytes,
    portions: list[tuple[int, int]],
    timeout: float,
) -> int:
    """How many fields the target has removed, as their time is over; or how many pending entries
    it has taken."""
    under_way: deque[tuple[asyncio.Task[list[Any]], int]] = deque()
    nbytes = told = 0
    keep = connection.encode("PEXPIRE", name, ASIDE_MS)
    try:
        for size, count in portions:
            while under_way and nbytes + size > _UNDER_WAY_BYTES:
                oldest, its = under_way.popleft()
                nbytes -= its
                told += _check(await oldest)
            data = await asyncio.to_thread(made.file.read, size)
            await connection.writable(timeout)
            sent = connection.exchange(data + keep, count + 1, timeout=timeout)
            under_way.append((asyncio.ensure_future(sent), size))
            nbytes += size
        while under_way:
            told += _check(await under_way.popleft()[0])
        return told
    except (ServerError, AuthError, OSError):
        # The connection goes on behind it: what else is owed is waited for.
        await asyncio.gather(*(task for task, _ in under_way), return_exceptions=True)
        raise
    except BaseException:
        for task, _ in under_way:
            task.cancel()
        await asyncio.gather(*(task for task, _ in under_way), return_exceptions=True)
        raise


def _check(replies: list[Any]) -> int:
    told = 0
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, list):
            # XCLAIM names the entries that were claimed.
            told += sum(each == _FIELD_EXPIRED or isinstance(each, bytes) for each in reply)
    return told


async def give_name(
    connection: Connection, name: bytes, key: bytes, expire_at: int, *, replace: bool
) -> bool:
    """Give a whole value its key's name, all at once; False: the key is there, and not to be
    replaced. `expire_at` in ms since the epoch, -1: never.

    Raises `LinkError`, `ServerError`, `AuthError`: as it was before.
    """
    # By itself: behind one that is refused the rest would be no transaction.
    await connection.call("MULTI")
    *queued, done = await connection.together(
        _end(name, expire_at),
        ("RENAME" if replace else "RENAMENX", name, key),
        # Where it has that name still.
        ("PEXPIRE", name, ASIDE_MS),
        ("EXEC",),
    )
    if isinstance(done, EngineError):
        await _leave_transaction(connection, done)
    for each in queued:
        answered(each)
    ended, renamed, _ = _each_of(connection, answered(done))
    answered(renamed)
    if isinstance(ended, EngineError):
        # The right to it was taken away in this moment: the key ends as a value aside does.
        if renamed:
            await connection.call("DEL", key)
        raise ended
    return bool(renamed)


async def _leave_transaction(connection: Connection, refusal: EngineError) -> None:
    """Behind an EXEC that was refused: before Redis 6.2 the connection may be in it still, and
    everything that is sent from here on would be taken for queued."""
    if isinstance(refusal, ServerError) and refusal.code == "EXECABORT":
        return
    try:
        await connection.call("DISCARD")
    except ServerError:
        # It is in none.
        return
    except AuthError as exc:
        connection.fail(LinkError(f"no transaction can be ended: {exc.message}", fault="target"))
        raise


def _end(name: bytes, expire_at: int) -> tuple[bytes | str | int, ...]:
    return ("PERSIST", name) if expire_at < 0 else ("PEXPIREAT", name, max(expire_at, 1))


def stores(name: bytes, key: bytes, expire_at: int, *, by_script: bool) -> list[bytes]:
    """What gives a whole value its key's name, encoded: in a transaction of the caller's; or
    `by_script`, where each command goes by itself, in one that does all of it."""
    last = _end(name, expire_at)
    if by_script:
        return [encode_command("EVAL", _NAMED_AT_ONCE, 2, name, key, last[0], *last[2:])]
    return [encode_command(*last), encode_command("RENAME", name, key)]


def is_last(command: bytes) -> bool:
    """Whether this encoded command, of those that store a reading in a transaction, gives a whole
    value its key's name."""
    return command.startswith(_RENAME)


async def remove_asides(end: Admin, own: OwnKeys, slots: SlotSet) -> None:
    """Remove what an engine that was killed has not finished of a lane's keys. Raises `LinkError`,
    `ServerError`, `AuthError`."""
    names = own.asides(slots)
    for entry in (await end.info()).keyspace:
        await end.select(entry.db)
        for at in range(0, len(names), _NAMES_AT_ONCE):
            await end.pipeline([("DEL", name) for name in names[at : at + _NAMES_AT_ONCE]])
