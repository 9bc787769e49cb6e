"""What may be done to a replication group, and to its transfer, as tables.

A group is `available` or `migrating`. A start takes it from the first to the second; the end of
the transfer, good or bad, takes it back. A transfer that was stopped, or whose worker died, leaves
the group `migrating`: it can be resumed, or aborted (the API's `Force`).

A transfer is `pending` until a worker claims it, `running` while one has it, then `done`, `failed`,
`forced` (aborted by the operator: no cut-over) or `stopped`. A claim of a running transfer is
possible too: that of a worker that died.

The write block of a stopped transfer may be removed as well, if no clients use the target
as it is (`Registry.sealed_by`).

A group's status that is in neither table (written by a newer engine) allows nothing, and the fault
is the API's general one, InvalidReplicationGroupState.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from engine.errors import (
    ApiFault,
    EngineError,
    InvalidReplicationGroupStateFault,
    ReplicationGroupAlreadyUnderMigrationFault,
    ReplicationGroupNotUnderMigrationFault,
)


class GroupStatus(StrEnum):
    """A group's `Status`."""

    AVAILABLE = "available"
    MIGRATING = "migrating"


class Operation(StrEnum):
    """What can be asked of a group. The value is the verb in messages."""

    TEST = "test a migration of"
    START = "start a migration of"
    RESUME = "resume the migration of"
    COMPLETE = "complete the migration of"
    STOP = "stop the migration of"
    STEER = "set the rate of the migration of"
    PAUSE = "pause the migration of"
    CONTINUE = "continue the migration of"
    FINISH = "finish the migration of"
    UNBLOCK = "unblock the source of"
    DISCONNECT = "disconnect the clients of the source of"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row: the status that an operation needs, the one it leaves (None: the same), and the
    fault for each other status."""

    needs: GroupStatus
    leaves: GroupStatus | None
    faults: Mapping[GroupStatus, type[ApiFault]]


_AVAILABLE, _MIGRATING = GroupStatus.AVAILABLE, GroupStatus.MIGRATING
_ALREADY = {_MIGRATING: ReplicationGroupAlreadyUnderMigrationFault}
_NOT_UNDER = {_AVAILABLE: ReplicationGroupNotUnderMigrationFault}
_BUSY = {_MIGRATING: InvalidReplicationGroupStateFault}

RULES: dict[Operation, Rule] = {
    Operation.TEST: Rule(_AVAILABLE, None, _ALREADY),
    Operation.START: Rule(_AVAILABLE, _MIGRATING, _ALREADY),
    Operation.RESUME: Rule(_MIGRATING, None, _NOT_UNDER),
    Operation.COMPLETE: Rule(_MIGRATING, None, _NOT_UNDER),
    Operation.STOP: Rule(_MIGRATING, None, _NOT_UNDER),
    Operation.STEER: Rule(_MIGRATING, None, _NOT_UNDER),
    Operation.PAUSE: Rule(_MIGRATING, None, _NOT_UNDER),
    Operation.CONTINUE: Rule(_MIGRATING, None, _NOT_UNDER),
    Operation.FINISH: Rule(_MIGRATING, _AVAILABLE, _NOT_UNDER),
    Operation.UNBLOCK: Rule(_AVAILABLE, None, _BUSY),
    Operation.DISCONNECT: Rule(_AVAILABLE, None, _BUSY),
    Operation.DELETE: Rule(_AVAILABLE, None, _BUSY),
}


def check(operation: Operation, group_id: str, status: str) -> GroupStatus:
    """The group's status after `operation`; the row's `ApiFault` if its status forbids it."""
    rule = RULES[operation]
    if status == rule.needs:
        return rule.leaves or rule.needs
    faults: dict[str, type[ApiFault]] = {str(key): value for key, value in rule.faults.items()}
    fault = faults.get(status, InvalidReplicationGroupStateFault)
    raise fault(f"cannot {operation} replication group {group_id}: it is {status}.")


class TransferStatus(StrEnum):
    """Where a transfer stands in the state (its phases are another table)."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPED = "stopped"
    DONE = "done"
    FAILED = "failed"
    FORCED = "forced"


_P, _R, _S = TransferStatus.PENDING, TransferStatus.RUNNING, TransferStatus.STOPPED
_D, _F, _X = TransferStatus.DONE, TransferStatus.FAILED, TransferStatus.FORCED

ENDED = frozenset({_D, _F, _X})
"""Nothing comes after these."""

MOVES: dict[TransferStatus, frozenset[TransferStatus]] = {
    _P: frozenset({_P, _R, _S, _F, _X}),
    _R: frozenset({_P, _R, _S, _D, _F, _X}),
    _S: frozenset({_P, _R, _F, _X}),
    _D: frozenset(),
    _F: frozenset(),
    _X: frozenset(),
}


def move(old: TransferStatus, new: TransferStatus) -> TransferStatus:
    """Return `new` if the table allows it from `old`; raise `EngineError` (a bug) if not."""
    if new not in MOVES[old]:
        raise EngineError(f"a transfer's status cannot go from {old} to {new}")
    return new


class Request(StrEnum):
    """What the operator asked of the worker, through the state."""

    NONE = ""
    COMPLETE = "complete"
    COMPLETE_UNVERIFIED = "complete-unverified"
    """Cut over with fence, drain and write block as ever, and without the comparison."""
    FORCE = "force"
    """Abort: no cut-over. The source accepts writes, the target stays as it is."""
    STOP = "stop"


CUT_OVERS = frozenset({Request.COMPLETE, Request.COMPLETE_UNVERIFIED})
"""The requests for a cut-over."""
