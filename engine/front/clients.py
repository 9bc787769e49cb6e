"""The disconnecting of a source's clients behind a cut-over, as the operator sees it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidParameterValueException, InvalidReplicationGroupStateFault
from engine.front import shapes, validate
from engine.groups.states import Operation, TransferStatus, check
from engine.model import source_clients
from engine.model.source_clients import SourceClients

if TYPE_CHECKING:
    from engine.front.house import House
    from engine.groups.records import TransferRecord
    from engine.groups.registry import Registry

SECONDS_MOST = 7 * 86400.0
"""The longest time that can be asked for."""


async def disconnect(house: House, group_id: str, seconds: float | None) -> dict[str, Any]:
    """DisconnectClients (ours): go on with it, begin it again, or stop. See `Engine`."""
    group_id = validate.identifier(group_id)
    if seconds is not None and not 0 <= seconds <= SECONDS_MOST:
        raise InvalidParameterValueException(
            f"Invalid value for Seconds: must be between 0 and {SECONDS_MOST:.0f}."
        )
    told = await house.state(lambda registry: _ask(house, registry, group_id, seconds))
    return {**await house.answer(group_id), "Message": told}


def _ask(house: House, registry: Registry, group_id: str, seconds: float | None) -> str:
    from engine.fleet import local
    from engine.groups import disconnections

    group, transfer = registry.get(group_id)
    check(Operation.DISCONNECT, group_id, group.status)
    if transfer is None or not _closed_source(transfer):
        raise InvalidReplicationGroupStateFault(
            f"cannot {Operation.DISCONNECT} replication group {group_id}: its last migration did "
            "not close its source by a cut-over."
        )
    if seconds is None:
        seconds = transfer.settings.disconnect_for
    if not seconds:
        stopped = stop(registry, transfer, "an operator has stopped it")
        return "clients of the source are no longer disconnected" if stopped else NOTHING
    disconnections.extend(registry.store, transfer.id, seconds)
    local.disconnect_clients(registry, group_id, credentials=house.given_credentials)
    until = source_clients.moment(time.time() + seconds)
    return f"clients that connect to the source are disconnected until {until}"


def begin(house: House, registry: Registry, transfer: TransferRecord) -> None:
    """Have the clients of this migration's source disconnected for as long as it was to be."""
    from engine.fleet import local
    from engine.groups import disconnections

    disconnections.extend(registry.store, transfer.id, transfer.settings.disconnect_for)
    local.disconnect_clients(registry, transfer.group_id, credentials=house.given_credentials)


NOTHING = "nothing was to be done: clients of the source were not being disconnected"


def stop(registry: Registry, transfer: TransferRecord, why: str) -> bool:
    """Stop disconnecting the clients of this migration's source; whether it was being done."""
    from engine.groups import disconnections

    if not disconnections.end(registry.store, transfer.id, why):
        return False
    registry.add_event(
        transfer.group_id, f"clients of the source are no longer disconnected: {why}"
    )
    return True


def shape(found: SourceClients) -> dict[str, Any]:
    """The member `SourceClients` of a group: always all of its members, None for what is not
    known."""

    def moment(seconds: float | None) -> Any:
        return None if seconds is None else shapes.timestamp(seconds)

    return {
        "Disconnecting": not found.ended and found.until > time.time(),
        "Until": shapes.timestamp(found.until),
        "Connected": found.connected,
        "Kept": found.kept,
        "Disconnected": found.disconnected,
        "LookedAt": moment(found.looked_at),
        "LastSeen": moment(found.last_seen),
        "Addresses": [
            {
                "Address": each.address,
                "Library": each.library or None,
                "User": each.user or None,
                "Disconnected": each.disconnected,
                "LastSeen": shapes.timestamp(each.last_seen),
            }
            for each in reversed(found.addresses)
        ],
        "MoreAddresses": found.more_addresses,
        "Scripts": found.scripts,
        "Reason": found.ended or found.trouble,
    }


def _closed_source(transfer: TransferRecord) -> bool:
    """Whether the migration ended by a cut-over that had its source refuse writes."""
    read = transfer.progress.source_type == "replica"
    settings = transfer.settings
    closes = settings.fence == "pause" and settings.source_after == "refuse"
    # One that was aborted may have been cut over before that.
    ended = transfer.status is TransferStatus.DONE or transfer.source_clients is not None
    return ended and read and closes
