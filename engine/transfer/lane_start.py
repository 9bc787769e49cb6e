"""What a lane finds on its target before the first write, of migrations before this one."""

from __future__ import annotations

from engine.errors import AuthError, TransferFailed
from engine.transfer.checkpoint_writer import CheckpointWriter
from engine.transfer.control_connections import Endpoints
from engine.transfer.leftovers import NAME as LEFTOVERS
from engine.transfer.leftovers import REMEDY as LEFTOVERS_REMEDY
from engine.transfer.leftovers import find as find_leftovers
from engine.transfer.migration_context import MigrationContext
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
    held_before = other.held_before or ends.shared
    checkpoint.note(held_before=held_before, taken_over=other.transfer)


async def recognise(
    ends: Endpoints, checkpoint: CheckpointWriter, context: MigrationContext
) -> None:
    """Keys of a migration that ended without a cut-over: raises `TransferFailed` where they
    cannot be there behind this one's, and the operator has not said what becomes of them."""
    settings = ends.settings
    async with ends.admin("target") as target:
        try:
            left = await find_leftovers(lambda: ends.admin("source"), target, settings)
        except AuthError:
            return  # the preflight has said so
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
