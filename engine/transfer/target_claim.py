"""Whose a target is, said by the target itself.

The state says which engine a migration belongs to, but an engine looks there now and then only. One
that was replaced may be asleep (SIGSTOP, a paged-out host) between its look and its next command,
or dead with commands under way that the target has not read yet. So an engine that takes a
migration over first writes its own name into the position key, and everything that must not be done
by a replaced engine is done in this order, on one connection to the target:

    WATCH key  →  GET key  →  the state still says that the migration is ours  →  MULTI … SET … EXEC

An engine that takes over has the state say so before it writes the key. So if our look at the state
came before that, its write came behind our WATCH, and our EXEC answers nil; if it came after, the
look fails. Transactions of the stream are guarded in the same way (`targets.applier`): their WATCH
is older than the successor's write, whenever they arrive.

Where the stream goes with records in place of transactions (`ext/position_records.pxi`) nothing of
that guards a batch: what the engine before had under way may arrive behind our name, until its
connections are ended. So a claim that finds such a record ends them or fails, and what is found
there after that is looked at once more, by whoever dials for the stream.

The values of a snapshot go without transactions. Their connections have a name instead, by which an
engine that takes over ends them, with all that the target has not read yet; and an engine that
dials anew claims the target again before it sends anything. A user who may not do that (`CLIENT
LIST`, `CLIENT KILL`) goes without: what was under way may then arrive behind the successor's
FLUSHALL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from engine import logs
from engine.errors import (
    AuthError,
    EngineError,
    FaultOf,
    ServerError,
    TransferFailed,
    TransferStopped,
)
from engine.model.online_checkpoint import OwnKeys
from engine.model.position import TargetPosition
from engine.model.server import ServerInfo
from engine.wire.control_connection import Admin, Arg
from engine.wire.dial import CLIENT_NAME

_log = logs.logger(__name__)
# How often another client may write the key between our WATCH and our EXEC.
_TRIES_MOST = 10


async def _goes_on(target: Admin) -> None:
    """What was brought to the target before may be brought again."""


class Foreign(TransferFailed):
    """The target is another migration's."""

    fault: FaultOf = "user"


class Seen(NamedTuple):
    """What the key of the position has, and over which connection it is watched since
    (`Admin.link`)."""

    value: bytes | None
    link: object | None


class TargetClaim:
    """The claim of `engine` on the target of the migration whose keys there are `own`.

    `still_ours` looks at the state, and raises (`StateError`) if the migration is another's.
    `held_before` as in `TargetPosition`. `lost` is asked where the target had this claim and has
    none now, and raises if nothing may be written there. `first`: nothing of this migration is on
    the target yet. Then a mark that another one's promotion has left there is no obstacle, and
    neither is, with `take_over`, another one that goes on: it loses the target. In all other cases
    whatever would change another migration's target raises `Foreign`.
    """

    def __init__(
        self,
        own: OwnKeys,
        engine: str,
        still_ours: Callable[[], Awaitable[None]],
        *,
        held_before: bool = False,
        first: bool = False,
        lost: Callable[[Admin], Awaitable[None]] = _goes_on,
        take_over: bool = False,
    ) -> None:
        self._own = own
        self._key = own.position
        self._still_ours = still_ours
        self.first = first
        """Whether we have brought nothing there yet."""
        self._take_over = take_over
        self._lost = lost
        # Another migration's position was there, and ours is now.
        self._taken_over = False
        # What was found there was written by an engine whose commands no WATCH holds back.
        self._begun = False
        # The replies to CLIENT LIST and INFO behind the claim.
        self._listed: object = None
        self._info_reply: object = None
        self.bare = TargetPosition(own.token, None, engine, held_before=held_before)
        """What the key holds while there is no position."""

    def ours(self, found: bytes | None) -> TargetPosition | None:
        """What the key has, if it is of this transfer. Raises `ProtocolFault`."""
        target_position = TargetPosition.decode(found) if found is not None else None
        return (
            target_position
            if target_position is not None and target_position.transfer == self.bare.transfer
            else None
        )

    def another(self, found: bytes | None) -> TargetPosition | None:
        """What the key has, if it is another migration's. Raises `ProtocolFault`."""
        target_position = TargetPosition.decode(found) if found is not None else None
        return (
            target_position
            if target_position is not None and target_position.transfer != self.bare.transfer
            else None
        )

    async def look(self, target: Admin) -> Seen:
        """What the key has; from here on a WATCH stands. Raises `LinkError`, `ServerError`,
        `AuthError`."""
        _, _, value = await target.ask(("UNWATCH",), ("WATCH", self._key), ("GET", self._key))
        return Seen(value, target.link)

    async def take(self, target: Admin, seen: Seen | None = None) -> TargetPosition:
        """Write our name beside the position that is there, if any; what is there then. `seen`:
        what `look` has found over this connection, which nothing was sent over since.

        Raises what the state raises, `LinkError`, `ServerError`, `AuthError`.
        """

        def taken(found: TargetPosition | None) -> tuple[list[Sequence[Arg]], TargetPosition]:
            target_position = self.bare
            if found is not None:
                target_position = replace(found, engine=target_position.engine).anew()
            return [], target_position

        target_position = await self._guarded(target, "Claim the target", taken, seen)
        where = target_position.position
        if where is None:
            _log.info("The target has no position of this migration", extra={"end": "target"})
        else:
            extra = {"end": "target", "offset": where.offset, "replid": where.replid}
            _log.info("The target has a position of this migration", extra=extra)
        await self._end_others(target)
        return target_position

    async def revoke(self, target: Admin) -> TargetPosition:
        """Take the mark of a promotion off the position again, which stays; what is there then.

        Raises as `take` does.
        """

        def revoked(found: TargetPosition | None) -> tuple[list[Sequence[Arg]], TargetPosition]:
            target_position = self.bare
            if found is not None:
                target_position = replace(found, engine=target_position.engine, opened=False)
            return [], target_position.anew()

        return await self._guarded(target, "Take the promotion back", revoked)

    def info(self, target: Admin) -> ServerInfo:
        """What the target said of itself behind the claim. Raises as `Admin.info`."""
        if isinstance(self._info_reply, EngineError):
            raise self._info_reply
        return target.info_in(self._info_reply)

    @property
    def client_name(self) -> str:
        """What connections are called that are to end when the claim does."""
        return f"{self._names}{self.bare.engine}"

    @property
    def _names(self) -> str:
        return f"{CLIENT_NAME}:{self.bare.transfer}:"

    async def _end_others(self, target: Admin) -> None:
        listed = self._listed
        if not isinstance(listed, bytes):
            if self._begun:
                raise _may_not_end()
            return  # the user may not ask for it
        with self._unless_refused():
            for line in listed.decode("utf-8", "replace").splitlines():
                words = dict(word.partition("=")[::2] for word in line.split(" "))
                name = words.get("name", "")
                names = f"{CLIENT_NAME}:" if self._taken_over else self._names
                if name.startswith(names) and name != self.client_name:
                    # It may be gone by now.
                    with contextlib.suppress(*(() if self._begun else (ServerError,))):
                        await target.call("CLIENT", "KILL", "ID", words["id"])
                        text = "The target closed the connection of another engine"
                        _log.info(text, extra={"end": "target", "client": name})

    @contextlib.contextmanager
    def _unless_refused(self) -> Iterator[None]:
        try:
            yield
        except (AuthError, ServerError):
            if self._begun:
                raise _may_not_end() from None

    async def clear(self, target: Admin, *commands: Sequence[Arg]) -> None:
        """Run `commands`, which take away what was there, and leave our bare claim.

        Raises as `take` does; what the target refuses of it, all of it; `TransferFailed` for a
        target that was promoted: what is there belongs to its users.
        """

        def cleared(found: TargetPosition | None) -> tuple[list[Sequence[Arg]], TargetPosition]:
            if found is not None and found.opened:
                raise TransferFailed(
                    f"{target.name} was promoted at the end of this migration: nothing is removed "
                    "there",
                    remedy="Resume the migration: it ends at once.",
                    fault="target",
                )
            return list(commands), self.bare

        names = ", ".join(_text(each[0]) for each in commands)
        await self._guarded(target, f"Run {names} on the target", cleared)

    async def _guarded(
        self,
        target: Admin,
        what: str,
        work: Callable[[TargetPosition | None], tuple[list[Sequence[Arg]], TargetPosition]],
        seen: Seen | None = None,
    ) -> TargetPosition:
        with logs.timed(_log, what, extra={"end": "target", "engine": self.bare.engine}):
            return await self._try(target, work, seen)

    async def _try(
        self,
        target: Admin,
        work: Callable[[TargetPosition | None], tuple[list[Sequence[Arg]], TargetPosition]],
        seen: Seen | None,
    ) -> TargetPosition:
        for _ in range(_TRIES_MOST):
            (value, link), seen = seen or await self.look(target), None
            found, other = self.ours(value), self.another(value)
            if other is not None and not self.first:
                raise beaten(other)
            if other is not None and not (other.opened or self._take_over):
                raise foreign(other, target.name)
            at = found or other
            self._begun = self._begun or (at is not None and at.begun is not None)
            await self._still_ours()
            if value is None and not self.first:
                await self._lost(target)
            if link is None or target.link is not link:
                # Another server may be meant by now, where nothing watches over the key.
                continue
            commands, target_position = work(found)
            if self.first:
                # What a migration that ended has left is this one's from now on (`leftovers`).
                commands = [*commands, ("DEL", self._own.left)]
            if other is not None:
                self._taken_over = not other.opened
                commands = [*commands, ("DEL", self._own.of(other.transfer).dirty)]
            *queued, done, self._listed, self._info_reply = await target.pipeline(
                [
                    ("MULTI",),
                    *commands,
                    ("SET", self._key, target_position.encode()),
                    ("EXEC",),
                    # What is there behind the claim; a round trip of its own less.
                    ("CLIENT", "LIST"),
                    ("INFO",),
                ]
            )
            for reply in (*queued, *(done if isinstance(done, list) else [done])):
                if isinstance(reply, EngineError):
                    raise reply
            if done is not None:
                return target_position
        raise ServerError(
            f"{target.name}: another client keeps writing {self._key.decode()}",
            code="TRYAGAIN",
            fault="target",
        )


def not_ours(target: str, keys: int) -> TransferStopped:
    """What to raise where the claim is gone from a target that has keys: another migration was
    completed there, say."""
    return TransferStopped(
        f"{target} has lost this migration's position, and has {keys:,} keys: they may be others' "
        "by now (another migration was completed there, say), and nothing is written to it",
        remedy="If the target is in use, abort this migration. If its keys may go, empty it and "
        "resume, or abort and start with --take-over.",
        fault="target",
    )


async def end_engines(target: Admin, transfers: Sequence[str]) -> None:
    """End the connections of every engine of these migrations, as far as the user may. Raises
    `LinkError`."""
    names = tuple(f"{CLIENT_NAME}:{each}:" for each in transfers)
    with contextlib.suppress(AuthError, ServerError):
        listed = await target.call("CLIENT", "LIST")
        for line in listed.decode("utf-8", "replace").splitlines():
            words = dict(word.partition("=")[::2] for word in line.split(" "))
            if words.get("name", "").startswith(names):
                with contextlib.suppress(ServerError):  # it may be gone by now
                    await target.call("CLIENT", "KILL", "ID", words["id"])


def _may_not_end() -> AuthError:
    """What to raise where an engine before us may still write, and cannot be ended."""
    return AuthError(
        "the target's user may not end the connections of the engine before this one, which may "
        "still have commands under way",
        remedy="Grant +client|list +client|kill to the target's user, and resume.",
        fault="target",
    )


def _text(argument: Arg) -> str:
    return argument.decode() if isinstance(argument, bytes) else str(argument)


def beaten(other: TargetPosition) -> Foreign:
    """What to raise where another migration, which left `other` there, has taken over ours."""
    return Foreign(
        f"another migration, {other.transfer}, has taken the target over",
        remedy="This migration has ended, and writes nothing there any more. If the target is to "
        "be its own again, start it anew with --take-over.",
    )


def foreign(other: TargetPosition, target: str) -> Foreign:
    """What to raise where another migration, which left `other` there, has the target."""
    text = f"{target} is the target of another migration, {other.transfer}"
    if other.position is not None:
        text += f", which has applied the stream up to offset {other.position.offset:,}"
    return Foreign(
        text,
        remedy="Complete or abort that one first (it may be of another state or group). If it is "
        "meant to lose the target, start with --take-over: it can no longer write there then, and "
        "the target gets a full sync.",
    )
