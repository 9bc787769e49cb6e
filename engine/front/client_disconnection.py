"""The disconnecting of a source's clients behind a cut-over, as the operator sees it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidParameterValueException, InvalidReplicationGroupStateFault
from engine.front import response_shapes, validate
from engine.groups.states import Operation, TransferStatus, check
from engine.model import clients_after_cut_over
from engine.model.clients_after_cut_over import SourceClients

if TYPE_CHECKING:
    from engine.front.service_context import ServiceContext
    from engine.groups.records import TransferRecord
    from engine.groups.registry import Registry

SECONDS_MOST = 7 * 86400.0
"""The longest time that can be asked for."""


async def disconnect(
    services: ServiceContext, group_id: str, seconds: float | None
) -> dict[str, Any]:
    """DisconnectClients (ours): go on with it, begin it again, or stop. See `Engine`."""
    group_id = validate.identifier(group_id)
    if seconds is not None and not 0 <= seconds <= SECONDS_MOST:
        raise InvalidParameterValueException(
            f"Invalid value for Seconds: must be between 0 and {SECONDS_MOST:.0f}."
        )
    message = await services.state(lambda registry: _ask(services, registry, group_id, seconds))
    return {**await services.answer(group_id), "Message": message}


def _ask(services: ServiceContext, registry: Registry, group_id: str, seconds: float | None) -> str:
    from engine.fleet.launcher import launcher
    from engine.groups import disconnections

    group, transfer = registry.get(group_id)
    check(Operation.DISCONNECT, group_id, group.status)
    if transfer is None or not _closed_source(transfer):
        raise InvalidReplicationGroupStateFault(
            f"cannot {Operation.DISCONNECT} replication group {group_id}: its last migration has "
            "not set its source to refuse writes at a cut-over."
        )
    if seconds is None:
        seconds = transfer.settings.disconnect_for
    if not seconds:
        why = "an operator has stopped it"
        if not stop(registry, transfer, why):
            return NOTHING
        found = SourceClients(0.0, lets_scripts=_lets_scripts(transfer)).end(why)
        return f"clients of the source are no longer disconnected: {found.ended}"
    disconnections.extend(registry.store, transfer.id, seconds)
    launcher().disconnect_clients(registry, group_id, credentials=services.given_credentials)
    until = clients_after_cut_over.moment(time.time() + seconds)
    return f"clients that connect to the source are disconnected until {until}"


def begin(services: ServiceContext, registry: Registry, transfer: TransferRecord) -> None:
    """Have the clients of this migration's source disconnected for as long as it was to be."""
    from engine.fleet.launcher import launcher
    from engine.groups import disconnections

    if not transfer.settings.disconnect_for:
        disconnections.note_once(registry.store, transfer.id)
        return
    disconnections.extend(registry.store, transfer.id, transfer.settings.disconnect_for)
    launcher().disconnect_clients(
        registry, transfer.group_id, credentials=services.given_credentials
    )


NOTHING = "nothing was to be done: clients of the source were not being disconnected"


def stop(registry: Registry, transfer: TransferRecord, why: str, *, refuses: bool = True) -> bool:
    """Stop disconnecting the clients of this migration's source; whether it was being done.
    `refuses`: it goes on refusing writes."""
    from engine.groups import disconnections

    return disconnections.end(registry.store, transfer, why, refuses=refuses)


def _lets_scripts(transfer: TransferRecord) -> bool:
    return transfer.report is not None and transfer.report.lets_scripts


def shape(found: SourceClients, group_id: str) -> dict[str, Any]:
    """The member `SourceClients` of the group: always all of its members, None for what is not
    known."""
    alone = found.unattended_since is not None
    # What was run while nothing counts it is not known.
    calls = found.calls_now

    def moment(seconds: float | None) -> Any:
        return None if seconds is None else response_shapes.timestamp(seconds)

    return {
        "Disconnecting": not found.ended and found.until > time.time() and not alone,
        "Until": response_shapes.timestamp(found.until),
        "Connected": None if found.unseen else found.connected,
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
                "LastSeen": response_shapes.timestamp(each.last_seen),
            }
            for each in reversed(found.addresses)
        ],
        "MoreAddresses": found.more_addresses,
        "Scripts": None if calls is None else calls.scripts,
        "Writes": None if calls is None else calls.writes,
        "UnattendedSince": moment(found.unattended_since),
        "Reason": clients_after_cut_over.alone(found, group_id)
        if alone
        else found.ended or found.trouble,
    }


def _closed_source(transfer: TransferRecord) -> bool:
    """Whether the migration ended by a cut-over that had its source refuse writes."""
    read = transfer.progress.source_type == "replica"
    settings = transfer.settings
    closes = settings.fence == "pause" and settings.source_after == "refuse"
    # One that was aborted may have been cut over before that.
    ended = transfer.status is TransferStatus.DONE or transfer.source_clients is not None
    return ended and read and closes
