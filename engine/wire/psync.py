"""Becoming a replica: the handshake from REPLCONF to the first byte of snapshot or stream.

Theory of operation. A replica says what it is and what it understands (REPLCONF), then asks for the
stream behind what it has (PSYNC <replid> <offset + 1>, or `? -1` for everything). The source
answers with a partial sync (`+CONTINUE`, the stream follows at once) or with a full sync
(`+FULLRESYNC`, later `$<length>` or `$EOF:<mark>`, then the snapshot). It may fork for minutes in
between and sends bare newlines meanwhile, so the wait is bounded by silence, never by total time
(`replicationCron`, `syncCommand` and `replconfCommand` in replication.c).

Each state waits for one line to one command; `TABLE` says where the line leads. The announcements
go out together, as those of real replicas do: their answers come in the same order. PSYNC waits for
them, because a source that refuses an announcement would take a snapshot for nothing. What is
announced is only what we do: `eof` (snapshots of unknown length) and `psync2` (a replid that
changes with a failover). Anything else would change the form of what comes.

- The port is 0: no client can connect to us. INFO and Sentinel show it; Sentinel never promotes a
  replica that it cannot reach, which is what we want.
- Valkey takes the RDB version of a diskless snapshot from `REPLCONF version` (`replicaRdbVersion`).
  Told none it writes version 11, and breaks off at the first key with field TTLs. So it is told its
  own version, and writes what it has; or the newest whose snapshots we can read in full.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from engine.errors import AuthError, LinkError, ProtocolFault, PsyncRefused
from engine.model.backoff import Backoff
from engine.model.joined_sentences import without_arguments
from engine.model.position import StreamPosition
from engine.model.server import ServerInfo
from engine.model.transient_errors import transient
from engine.wire.connection import Connection
from engine.wire.line_mode import Lines

MARK_BYTES = 40
"""Length of the mark that ends a diskless snapshot (CONFIG_RUN_ID_SIZE)."""
# "Not now": the same question is worth asking again.
NOT_NOW = transient("psync")
_FULL = re.compile(rb"\+FULLRESYNC ([0-9A-Za-z]{1,64}) (\d{1,19})")
_CONTINUE = re.compile(rb"\+CONTINUE(?: ([0-9A-Za-z]{1,64}))?")
_LENGTH = re.compile(rb"\$(\d{1,19})")
_MARK = re.compile(rb"\$EOF:(.{%d})" % MARK_BYTES, re.DOTALL)


@dataclass(frozen=True, slots=True)
class FullSync:
    """A snapshot follows, then the stream from `offset` + 1 on.

    `length`: bytes of the snapshot; None if it ends with the 40 bytes of `mark`.
    """

    replid: str
    offset: int
    length: int | None
    mark: bytes | None


@dataclass(frozen=True, slots=True)
class PartialSync:
    """The stream follows from `offset` + 1 on; `replid` is its name from now on.

    After a failover it is another one than the one asked with, and the offsets go on (PSYNC2).
    """

    replid: str
    offset: int


class State(Enum):
    """What was sent, or what is waited for."""

    PORT = auto()
    CAPABILITIES = auto()
    VERSION = auto()
    PSYNC = auto()
    PREAMBLE = auto()
    """A full sync was promised; the snapshot's length or mark is to come."""
    # Final.
    FULL = auto()
    PARTIAL = auto()
    REFUSED = auto()
    LATER = auto()
    BROKEN = auto()


class Line(Enum):
    """What a line means."""

    ALIVE = auto()
    OK = auto()
    FULLRESYNC = auto()
    CONTINUE = auto()
    LENGTH = auto()
    NOT_NOW = auto()
    """Ask again on this connection."""
    FAILED = auto()
    """The source could not fork, or write its file; it closes the connection."""
    FORBIDDEN = auto()
    """No rights, or no such command."""
    ERROR = auto()
    OTHER = auto()
    """Nothing that a source says here."""


_ANNOUNCED = {
    # An error here is no obstacle: the source knows less of us, or less than we do.
    Line.ALIVE: None,
    Line.FORBIDDEN: State.REFUSED,
    Line.NOT_NOW: State.LATER,
    Line.FAILED: State.BROKEN,
}
# None: stay, and wait for the next line. A line that is not named is no answer to the question.
TABLE: dict[State, dict[Line, State | None]] = {
    State.PORT: {Line.OK: State.CAPABILITIES, Line.ERROR: State.CAPABILITIES, **_ANNOUNCED},
    State.CAPABILITIES: {Line.OK: State.VERSION, Line.ERROR: State.VERSION, **_ANNOUNCED},
    State.VERSION: {Line.OK: State.PSYNC, Line.ERROR: State.PSYNC, **_ANNOUNCED},
    State.PSYNC: {
        Line.ALIVE: None,
        Line.FULLRESYNC: State.PREAMBLE,
        Line.CONTINUE: State.PARTIAL,
        # A snapshot without a word before it is the answer to SYNC: the source's syncCommand takes
        # PSYNC for it under any other name (rename-command), and gives no position.
        Line.LENGTH: State.REFUSED,
        Line.NOT_NOW: State.LATER,
        Line.FAILED: State.BROKEN,
        Line.FORBIDDEN: State.REFUSED,
        Line.ERROR: State.REFUSED,
    },
    State.PREAMBLE: {
        Line.ALIVE: None,
        Line.LENGTH: State.FULL,
        Line.NOT_NOW: State.BROKEN,
        Line.FAILED: State.BROKEN,
        Line.FORBIDDEN: State.BROKEN,
        Line.ERROR: State.BROKEN,
    },
}
Command = tuple[bytes | str | int, ...]


def _version(info: ServerInfo, _: StreamPosition | None) -> Command | None:
    version = info.capabilities.announced_version
    if version is None:
        return None
    return ("REPLCONF", "version", ".".join(map(str, version)))


def _psync(_: ServerInfo, position: StreamPosition | None) -> Command:
    if position is None:
        return ("PSYNC", "?", -1)
    return ("PSYNC", position.replid, position.offset + 1)


ANNOUNCED: tuple[Command, Command] = (
    ("REPLCONF", "listening-port", 0),
    ("REPLCONF", "capa", "eof", "capa", "psync2"),
)
"""What is announced to every source, whatever it is."""
# What a state sends when it is entered; None: nothing, and it counts as answered with OK.
SENT: dict[State, Callable[[ServerInfo, StreamPosition | None], Command | None]] = {
    State.PORT: lambda *_: ANNOUNCED[0],
    State.CAPABILITIES: lambda *_: ANNOUNCED[1],
    State.VERSION: _version,
    State.PSYNC: _psync,
}
_ANNOUNCEMENTS = (State.PORT, State.CAPABILITIES, State.VERSION)


async def handshake(
    connection: Connection,
    position: StreamPosition | None,
    *,
    info: ServerInfo,
    timeout: float,
    announced: bool = False,
) -> FullSync | PartialSync:
    """Become a replica of the server behind `connection`, from `position` on (None: everything).

    A full sync may be the answer to a position as well: the source no longer has what follows it.
    Afterwards the connection is paused; what takes it over gets every byte behind the answer.
    `timeout`: seconds of silence after which the link counts as lost, and the seconds for which a
    source that says "not now" is asked again. `announced`: the source has said OK to all of
    `ANNOUNCED` over this connection.

    Raises `PsyncRefused`, `AuthError`, `LinkError`, `ProtocolFault`, and `ServerError` for a source
    that still says "not now" (`code` is in `NOT_NOW`).
    """
    lines = Lines(connection)
    loop = asyncio.get_running_loop()
    backoff = Backoff(timeout)
    state = State.VERSION if announced else State.PORT
    # Sent already, and not answered for.
    ahead: list[State] = []
    full: re.Match[bytes] | None = None
    while True:
        # 1. Ask.
        if state in SENT:
            command = SENT[state](info, position)
            if command is None:
                state = TABLE[state][Line.OK] or state
                continue
            if state in ahead:
                ahead.remove(state)
            else:
                connection.write(connection.encode(*command))
                if state is State.PORT:
                    ahead = _send_ahead(connection, info, position)
        # 2. The first line that is more than a sign of life.
        while True:
            line = await lines.next(timeout)
            meaning, match = classify(line)
            if meaning not in TABLE[state]:
                raise _broken(connection, ProtocolFault, state, line)
            following = TABLE[state][meaning]
            if following is not None:
                break
        # 3. Where it leads.
        if following is State.PARTIAL:
            if position is None or match is None:
                raise _broken(connection, ProtocolFault, state, line)
            lines.end()
            replid = match[1].decode() if match[1] else position.replid
            return PartialSync(replid, position.offset)
        if following is State.FULL:
            assert match is not None and full is not None  # noqa: PT018
            lines.end()
            mark = match[1] if match.re is _MARK else None
            length = None if mark is not None else int(match[1])
            return FullSync(full[1].decode(), int(full[2]), length, mark)
        if following is State.PREAMBLE:
            full = match
        elif following is State.REFUSED:
            raise _refusal(connection, state, line)
        elif following is State.BROKEN:
            raise _broken(connection, LinkError, state, line)
        elif following is State.LATER:
            backoff.failed(loop.time())
            if backoff.exhausted(loop.time()):
                error = connection.reply_error(_text(line))
                connection.fail(error)
                raise error
            # What was sent behind it is answered too, and is sent again.
            while ahead:
                if await lines.next(timeout):
                    ahead.pop()
            await asyncio.sleep(backoff.delay())
            following = state
        state = following


def _send_ahead(
    connection: Connection, info: ServerInfo, position: StreamPosition | None
) -> list[State]:
    """Send the announcements behind the first, and return their states."""
    sent: list[State] = []
    for state in _ANNOUNCEMENTS[1:]:
        command = SENT[state](info, position)
        if command is not None:
            connection.write(connection.encode(*command))
            sent.append(state)
    return sent


def classify(line: bytes) -> tuple[Line, re.Match[bytes] | None]:
    """What a line of the handshake means, and the parts of one that has any."""
    if not line:
        return Line.ALIVE, None
    for pattern, meaning in (
        (_FULL, Line.FULLRESYNC),
        (_CONTINUE, Line.CONTINUE),
        (_MARK, Line.LENGTH),
        (_LENGTH, Line.LENGTH),
    ):
        match = pattern.fullmatch(line)
        if match is not None:
            return meaning, match
    if line == b"+OK":
        return Line.OK, None
    if not line.startswith(b"-"):
        return Line.OTHER, None
    text = _text(line)
    code = text.partition(" ")[0]
    if code in NOT_NOW:
        return Line.NOT_NOW, None
    if "BGSAVE failed" in text:
        return Line.FAILED, None
    if code in ("NOPERM", "NOAUTH", "DENIED") or "unknown command" in text.lower():
        return Line.FORBIDDEN, None
    return Line.ERROR, None


def _text(line: bytes) -> str:
    return without_arguments(line.decode("utf-8", "replace").removeprefix("-"))


def _refusal(connection: Connection, state: State, line: bytes) -> PsyncRefused | AuthError:
    text = _text(line)
    if text.startswith("NOAUTH"):
        error: PsyncRefused | AuthError = AuthError(
            f"{connection.name} answered: {text}", fault=connection.fault
        )
    elif line.startswith(b"$"):
        error = PsyncRefused(
            f"{connection.name} treats PSYNC under another name as SYNC, and gives no position",
            remedy="Take rename-command for PSYNC out of its configuration; or copy without "
            "following the writes (--source-type scan).",
        )
    else:
        asked = "PSYNC" if state is State.PSYNC else "REPLCONF"
        error = PsyncRefused(
            f"{connection.name} does not accept the engine as a replica: it answered {asked} with: "
            f"{text}",
            remedy=_no_such(asked) if "unknown command" in text.lower() else _NO_RIGHT,
        )
    connection.fail(error)
    return error


_ASKED = {
    State.PORT: "REPLCONF listening-port",
    State.CAPABILITIES: "REPLCONF capa",
    State.VERSION: "REPLCONF version",
    State.PSYNC: "PSYNC",
    State.PREAMBLE: "PSYNC",
}
_OR_SCAN = "Or copy without following the writes (--source-type scan)."
_NO_RIGHT = f"Grant the source's user +psync and +replconf. {_OR_SCAN}"


def _no_such(asked: str) -> str:
    option = "--psync-command NAME" if asked == "PSYNC" else f"--command-name source:{asked}=NAME"
    return f"Where rename-command gave {asked} another name: {option}. {_OR_SCAN}"


def _broken(
    connection: Connection, kind: type[ProtocolFault] | type[LinkError], state: State, line: bytes
) -> ProtocolFault | LinkError:
    said = _text(line[:200])
    error: ProtocolFault | LinkError
    if kind is ProtocolFault:
        error = ProtocolFault(
            f"{connection.name} answered {_ASKED[state]} with {said!r}, which is unexpected",
            fault=connection.fault,
        )
    else:
        error = LinkError(
            f"{connection.name} could not begin the sync: {said}",
            remedy="See the source's log: it may lack memory to fork, or disk space.",
            fault=connection.fault,
        )
    connection.fail(error)
    return error
