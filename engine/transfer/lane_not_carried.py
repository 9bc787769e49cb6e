"""What of a source did not arrive on a lane as it is there: told once, counted, and kept in the
checkpoint for the cut-over's comparison.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.model.server import ServerInfo
from engine.transfer.functions_and_scripts import LIBRARIES, is_library
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.restore_errors import explain_refusal
from engine.wire.search_indexes import shown

# How the follower names a change of libraries that the target refused.
_FUNCTION_COMMAND = "the command FUNCTION,"


class LaneLosses:
    """Takes note of it. `target` tells what is known of that server."""

    def __init__(
        self,
        checkpoint: CheckpointWriter,
        context: MigrationContext,
        target: Callable[[], ServerInfo],
    ) -> None:
        self._checkpoint = checkpoint
        self._context = context
        self._target = target
        self.left_out: list[str] = []
        """What is no key and was not carried, in words."""
        self.require: Callable[[str, str], None] = lambda _kind, _why: None
        """Has more keys compared before the next cut-over (`CutOverComparison.require`)."""

    def not_carried(self, db: int, key: bytes, message: str, value_type: int | None) -> None:
        """A key that the target has refused, and what it said."""
        reason = explain_refusal(message, value_type, self._target())
        self._context.stats.refuse(db, key, reason)
        self._checkpoint.dirty = True

    def carried(self, db: int, key: bytes) -> None:
        """A key that was refused is there by now."""
        self._context.stats.carried(db, key)
        self._checkpoint.dirty = True

    def on_unknown_command(self, name: bytes, known: bool) -> None:
        """A command that is not in the command table; `known`: the source says which keys it
        names."""
        shown = name[:64].decode("ascii", "backslashreplace")
        if known:
            done = "each key that it names is read again from the source"
        else:
            done = "the source does not say which keys it changes"
        said = f"the stream has the command {shown}, which is not known here: {done}"
        self._context.on_event(said)
        if not known:
            self.require("all", said)

    def search_refused(self, name: bytes, why: str) -> None:
        """A search alias or dictionary that may be otherwise on the target: it is compared."""
        self._checkpoint.note_search_names([name])
        self._context.lost.setdefault(f"search alias or dictionary {shown(name)}", why)

    def leave_out(self, what: str) -> None:
        """What is no key and is not carried, in words."""
        if what not in self.left_out:
            self.left_out.append(what)
            self._context.on_event(f"not migrated: {what}")
        if what.startswith(_FUNCTION_COMMAND):
            # Which library it was, a look at both ends tells.
            self._context.lost.setdefault(LIBRARIES, what)

    def forget_libraries(self) -> None:
        """Libraries that the target has by now are not left out any more."""
        if self.left_out and not self._context.lost:
            self.left_out = [each for each in self.left_out if not _is_of_library(each)]

    async def compare_all(self, why: str) -> None:
        """Keys that nothing names may differ. Raises `StateError`."""
        if not self._checkpoint.mark.compare_all:
            self._context.on_event(f"{why}: every key is compared before the cut-over")
            await self._checkpoint.save(compare_all=why)


def _is_of_library(what: str) -> bool:
    return is_library(what) or what.startswith(_FUNCTION_COMMAND)
