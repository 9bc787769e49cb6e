"""The target's promotion: from here on it is its users', and nothing of ours may write to it.

    promoting ──promote──▶ opened ──tidy_up──▶ tidied
        └── the target says that it was not promoted ──▶ followed again

What is true at every moment, whatever breaks at either end:

- The target is promoted by one transaction on the target itself, which replaces the final position
  by the same position marked `open` (`TargetPosition.opened`). It runs only where the target holds
  exactly the final position, in the process that was compared with the source: WATCH has guarded
  the position since it was written, on the connection that wrote it. A target that died, came back
  older or empty, failed over, or has another engine by now is not promoted.
- Before that transaction is sent the checkpoint says `promoting`. An engine that finds it
  without `opened` asks the target: the mark `open` says that it was promoted, any other position
  (or none) that it was not. The question is put by a write to the position key (`Claim.take`), so
  that a transaction which is still under way is refused from then on. As long as the target does
  not answer it is not known, and the source stays closed.
- A fence that ends by itself (there is no write block at the source, or the fence is the operator's
  command) is known to stand for its time alone. The target's answer has to be seen within it, and
  until that is in the checkpoint the promotion does not count (`timed`): an engine that finds the
  mark takes it off again and goes on following, for the source may have taken writes since. No
  client was told of the target by then.
- Where a migration has several lanes (`transfer.shared_promotion`) no promotion counts before all
  targets have been promoted (`timed`, until `commit`), and all of them do as soon as one does.
- `opened` is written down when the transaction's answer was seen, or its mark; never before.
- The mark is removed behind that, and only the mark: where another position is found the target
  came back with older data after it was promoted. Those data are the stream's up to that position,
  so the target is followed again from there, and is not reported as complete. But once clients may
  have been led to it (`handed_over`) that is the operator's to decide: what they wrote there is on
  no other server. The migration is stopped then (`came_back`), and the source stays as it is until
  the operator releases it, resumes the migration, or aborts it. `tidied` is written
  when the mark is gone; without it, a target that has no mark and is another process than the one
  that was promoted may have lost anything, which is said (`StillOpen`).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable

from engine import logs
from engine.errors import AuthError, LinkError, ServerError, TransferFailed, TransferStopped
from engine.model.position import TargetPosition
from engine.model.retry import Attempts
from engine.model.server import ServerInfo
from engine.targets.applier import Applier, PositionMoved, Unanswered
from engine.targets.import_mode import leave_import_mode
from engine.transfer.async_helpers import to_the_end
from engine.transfer.control_connections import Endpoints
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.wire.connection import answered
from engine.wire.dial import Command
from engine.wire.info_command import ask_info, info_in

_log = logs.logger(__name__)
# How long the target may be away when it is to be tidied up.
_TIDY_SECONDS = 120.0
_LATE = "the time of the fence ran out before the target confirmed its promotion"


class Promotion:
    """Opens the target on the target itself; the checkpoint says what is known of it."""

    def __init__(
        self,
        ends: Endpoints,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        target: Callable[[], ServerInfo],
    ) -> None:
        self._ends = ends
        self._checkpoint = checkpoint
        self._context = context
        self._target = target

    @property
    def history(self) -> str:
        """The replication history of the source whose last position the target was opened at, by
        the checkpoint; empty: it was not."""
        promoting = self._checkpoint.mark.promoting
        if not promoting:
            return ""
        final = TargetPosition.decode(promoting.encode()).position
        return "" if final is None else final.replid

    @property
    def in_doubt(self) -> bool:
        """Whether the target may have been promoted for good, which it alone can tell."""
        return self.asked and (not self._checkpoint.mark.timed or self._context.peers.decided)

    @property
    def asked(self) -> bool:
        """Whether the target was asked to open, and nothing is known of its answer."""
        mark = self._checkpoint.mark
        return bool(mark.promoting) and not mark.opened

    async def promote(
        self,
        applier: Applier,
        process: str,
        *,
        by: float | None = None,
        hand_over: bool = False,
        provisional: bool = False,
    ) -> None:
        """Open the target if it is as `applier` left it, in the process called `process`.

        `by`: until then, by the loop's clock, the source's writes are known to be blocked; where
        the target's answer comes later, the promotion does not count, and is to be taken back
        (`asked`). `hand_over`: clients are led to the target next. `provisional`: it does not count
        before `commit`.

        Even if cancelled meanwhile. Raises `PositionMoved`, `LinkError`, `ServerError`, `AuthError`
        (it is not open then, or `asked`) and `StateError` (`asked`).
        """
        with logs.timed(_log, "Cut-over: promote the target", extra={"end": "target"}):
            await to_the_end(self._promote(applier, process, by, hand_over, provisional))

    async def _promote(
        self,
        applier: Applier,
        process: str,
        by: float | None,
        hand_over: bool,
        provisional: bool,
    ) -> None:
        final, token = applier.found, self._checkpoint.mark.token
        if final is None:
            raise PositionMoved(None)
        promoted = TargetPosition.decode(final).promoted()
        await self._checkpoint.save(
            promoting=final.decode(),
            process=process,
            timed=by is not None or provisional,
            opened=False,
        )
        now = asyncio.get_running_loop().time
        behind = []
        if self._has_import_mode and not self._ends.route.shared_target:
            # In the same round trip; where it fails `tidy_up` does it. A target of other lanes
            # stays in it until all of them are through: one may be followed again.
            behind = [("CONFIG", "SET", "import-mode", "no")]
        left = math.inf if by is None else by - now()
        if left <= 0:
            await self.deny()
            # What leads back to following.
            raise LinkError(_LATE, fault="target")
        try:
            await applier.promote(
                promoted.encode(),
                process,
                inside=[("DEL", self._ends.own_keys(token).dirty)],
                behind=behind,
                limit=left,
            )
        except Unanswered:
            raise
        except (PositionMoved, LinkError, ServerError, AuthError):
            await self.deny()
            raise
        if not provisional:
            await self._commit(by, hand_over)

    async def commit(self, *, by: float | None = None, hand_over: bool = False) -> None:
        """The promotion counts from here on: the targets of all lanes have been promoted. `by` and
        `hand_over` as for `promote`. Even if cancelled meanwhile.

        Raises `Unanswered` where the time of the fence is over, and `StateError`.
        """
        if not self._checkpoint.mark.opened:
            await to_the_end(self._commit(by, hand_over))

    async def _commit(self, by: float | None, hand_over: bool) -> None:
        if by is not None and asyncio.get_running_loop().time() >= by:
            raise Unanswered(_LATE, fault="target")
        await self._checkpoint.save(opened=True, handed_over=hand_over)

    async def deny(self) -> None:
        """The target was not promoted, or came back from before it: it has said so itself.

        Raises `StateError`: it is `asked` still.
        """
        await self._checkpoint.save(
            promoting="", process="", timed=False, opened=False, tidied=False, switched=False
        )

    async def hand_over(self) -> None:
        """Clients are led to the open target next. Raises `StateError`."""
        if not self._checkpoint.mark.handed_over:
            await self._checkpoint.save(handed_over=True)

    async def confirm(self) -> None:
        """The target was promoted: its mark was found. Raises `StateError`."""
        await self._checkpoint.save(opened=True)

    @property
    def _has_import_mode(self) -> bool:
        """Whether the target may be in import mode for this migration: by rules it is not, as the
        mode is the whole server's."""
        return self._target().capabilities.import_mode and not self._ends.settings.rules

    async def tidy_up(self) -> None:
        """Remove the mark, and let expire times pass again; all of it, even if cancelled meanwhile,
        and for as long as the target may be away.

        Raises as `tidy_up_once`, but `TransferStopped` when it is away for longer.
        """
        with logs.timed(
            _log, "Cut-over: remove the position from the target", extra={"end": "target"}
        ):
            await to_the_end(self._tidy_up())

    async def _tidy_up(self) -> None:
        patience = self._context.patience(
            "the promotion",
            ended="the engine's key and extended TTLs could not be removed from the target",
            next_step="the engine tries again",
            fault="target",
            # Nothing can cancel it, and the engine that resumes does it.
            limit=_TIDY_SECONDS,
        )
        async for attempt in Attempts(patience):
            try:
                await self.tidy_up_once()
                patience.progress()
                return
            except (LinkError, ServerError) as exc:
                attempt.failed(exc.message, event=f"{exc.message}: trying again")

    async def tidy_up_once(self) -> None:
        """One try. Raises `PositionMoved` where the target came back older since it was promoted,
        `TransferStopped` if it was handed over before that; `TransferFailed` where that cannot be
        known; `LinkError`, `ServerError`, `StateError`."""
        mark = self._checkpoint.mark
        own = self._ends.own_keys(mark.token)
        key = own.position
        questions: list[Command] = [("WATCH", key), ("GET", key), ("INFO",)]
        async with self._ends.dialled_with(*questions) as (connection, replies):
            watched, found, info = replies
            for reply in (watched, found):
                answered(reply)
            if isinstance(found, bytes) and TargetPosition.decode(found).transfer != mark.token:
                # Another migration has the target by now: nothing there is ours.
                self._checkpoint.note(tidied=True)
                return
            if mark.promoting and not mark.tidied:
                try:
                    await self._judge(found, info_in(connection, answered(info)))
                except PositionMoved as moved:
                    if mark.handed_over:
                        await self._stand_back(moved.found)
                    raise
            promoted = isinstance(found, bytes) and TargetPosition.decode(found).opened
            left = isinstance(found, bytes) and not promoted and not mark.promoting
            if left:
                # Not completed: the next start has to know (`leftovers`). RENAME, because a target
                # without memory takes it.
                removal = [("RENAME", key, own.left), ("DEL", own.dirty)]
            else:
                # A source that was such a target once has sent its own mark along.
                removal = [("DEL", key, own.dirty, own.left)]
            done = await connection.together(("MULTI",), *removal, ("EXEC",))
            for reply in done:
                answered(reply)
            if done[-1] is None:
                raise ServerError(
                    "the target's position changed while it was removed",
                    code="TRYAGAIN",
                    fault="target",
                )
            if left and (await ask_info(connection)).keys <= 1:
                # Nothing else is there.
                await connection.call("DEL", own.left)
            if self._has_import_mode:
                with contextlib.suppress(AuthError, ServerError):
                    await leave_import_mode(connection)
        self._checkpoint.note(tidied=True)

    async def _stand_back(self, found: bytes | None) -> None:
        """The target is older than when clients were led to it: what they wrote there since is on
        no other server, and what they wrote before is lost there. That is not for us to weigh.

        Raises `TransferStopped`, `StateError`.
        """
        final = TargetPosition.decode(self._checkpoint.mark.promoting.encode()).position
        on_target = TargetPosition.decode(found).position if found is not None else None
        has = (
            "none of this migration's data"
            if on_target is None
            else f"the data up to offset {on_target.offset:,}"
        )
        at = "" if final is None else f", and was promoted at offset {final.offset:,}"
        words = (
            "the target lost data after it was promoted: it was restarted or replaced, has "
            f"{has}{at}. Clients may have been pointed to it since: it is not followed again "
            "automatically"
        )
        await self._checkpoint.save(came_back=words)
        raise TransferStopped(
            words,
            remedy="The source has everything up to the cut-over. To go back to it: unblock-source "
            "and point clients there. To update the target from it: stop the target's "
            "writers, then resume the migration and cut over again.",
            fault="target",
        )

    async def _judge(self, found: object, info: ServerInfo) -> None:
        """Whether what was promoted is still there. Raises as `tidy_up_once`."""
        if isinstance(found, bytes):
            if not TargetPosition.decode(found).opened:
                raise PositionMoved(found)
        # Its process alone: a target gets another replication id with its first replica.
        elif info.run_id != self._checkpoint.mark.process.partition(":")[0]:
            if not info.keys:
                raise PositionMoved(None)
            raise TransferFailed(
                "the target was promoted, then restarted or replaced, and holds no mark of this "
                "migration: it may have come back older",
                remedy="Look whether the target has what the source has (INFO keyspace at both, "
                "and some keys). If so nothing is left to do, else start the migration anew.",
                fault="target",
            )
