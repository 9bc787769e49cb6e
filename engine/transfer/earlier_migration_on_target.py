"""What a lane finds on its target before the first write, of migrations before this one."""

from __future__ import annotations

import contextlib

from engine.errors import AuthError, TransferFailed
from engine.transfer.control_connections import Endpoints
from engine.transfer.leftovers import NAME as LEFTOVERS
from engine.transfer.leftovers import REMEDY as LEFTOVERS_REMEDY
from engine.transfer.leftovers import Leftovers, find
from engine.transfer.migration_context import MigrationContext
from engine.transfer.online_checkpoint_writer import CheckpointWriter
from engine.transfer.target_claim import TargetClaim, foreign


def inherit(
    found: bytes | None, claim: TargetClaim, ends: Endpoints, checkpoint: CheckpointWriter
) -> None:
    """Another migration's position on the target: raises `Foreign`, unless it is to be taken
    over. What that one found there before counts then, not what it has brought."""
    other = claim.another(found)
    if other is None or other.opened:
        return
    if not ends.settings.take_over:
        raise foreign(other, ends.target.address)
    shared = ends.route.shared_target and not ends.route.to_cluster
    held_before = other.held_before or (shared and not ends.route.by_slot)
    checkpoint.note(held_before=held_before, had_keys=shared, taken_over=other.transfer)


class TargetLeftovers:
    """Keys of a migration that ended without a cut-over."""

    def __init__(self, ends: Endpoints) -> None:
        self._ends = ends
        self._found: Leftovers | None = None

    async def find(self) -> None:
        """Look for them. Raises `LinkError`, `ServerError`, `ProtocolFault`."""
        ends = self._ends
        self._found = None
        if ends.route.shared_target:
            # Each lane's source has some of the keys alone.
            return
        async with ends.admin("target") as target:
            # (Where the user may not, the preflight has said so.)
            with contextlib.suppress(AuthError):
                self._found = await find(
                    lambda: ends.admin("source"), target, ends.settings, ends.own_keys("").left
                )

    def recognise(self, checkpoint: CheckpointWriter, context: MigrationContext) -> None:
        """Raises `TransferFailed` where they cannot be there behind this migration's, and the
        operator has not said what becomes of them."""
        left, settings = self._found, self._ends.settings
        if left is None or left.held_before:
            return
        if not left.keys:
            checkpoint.note(held_before=False)
        elif settings.take_over:
            checkpoint.note(held_before=False, taken_over=left.transfer)
        elif LEFTOVERS in settings.skip_checks:
            context.on_event(f"{left.words}: they count as the target's own, as asked")
        elif why := left.in_the_way:
            raise TransferFailed(why, remedy=LEFTOVERS_REMEDY, fault="user")
        else:
            context.on_event(f"{left.words}: the source has each of them too, and overwrites it")
            checkpoint.note(held_before=False)
