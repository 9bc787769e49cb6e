"""Register, test, start and complete in one go, in the calling process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine import fleet, logs
from engine.errors import (
    InvalidParameterValueException,
    InvalidReplicationGroupStateFault,
    ReplicationGroupAlreadyExistsFault,
    ReplicationGroupAlreadyUnderMigrationFault,
    ReplicationGroupNotFoundFault,
    UsageError,
)
from engine.front import operations, validate
from engine.front.faults_with_details import PreflightFault
from engine.groups.states import GroupStatus
from engine.model.endpoint import Endpoint
from engine.model.progress import Progress
from engine.model.report import Report
from engine.model.settings import CHANGEABLE, TransferSettings

if TYPE_CHECKING:
    from engine.fleet.inline import Inline
    from engine.front.service_context import ServiceContext
    from engine.groups.records import GroupRecord, TransferRecord
    from engine.groups.registry import Registry
    from engine.transfer.switch_hook import OnSwitch

_log = logs.logger(__name__)
Checks = Sequence[dict[str, Any]]


def default_id(target: Endpoint) -> str:
    """The group of a target that was given no name: the same one for the same address."""
    digest = hashlib.sha256(target.address.lower().encode()).hexdigest()
    return f"migrate-{digest[:12]}"


async def migrate(
    services: ServiceContext,
    source: Endpoint,
    target: Endpoint,
    settings: TransferSettings,
    group_id: str | None,
    on_progress: Callable[[Progress], None] | None,
    on_event: Callable[[str], None] | None,
    on_checks: Callable[[Checks], None] | None,
    on_switch: OnSwitch | None,
    accept_source_loss: bool = False,
) -> Report:
    """Move `source` into `target`. See `Engine.migrate`."""
    validate.not_a_file(target, "PrimaryEndpoint")
    validate.possible_from([source], settings)

    def note_event(text: str) -> None:
        _log.info(text, extra={"event": True})
        if on_event is not None:
            on_event(text)

    # What is tested is what is carried, whatever becomes of the file's name meanwhile.
    with fleet.holding(source.rdb_path, settings, note_event):
        # 1. The target's group, if it is registered.
        name = default_id(target) if group_id is None else validate.identifier(group_id)
        found = await services.state(lambda registry: _group(registry, name, target))
        await operations.distinct([source], target)
        # 2. A new migration, after a test; or the one that an earlier run left.
        from engine.fleet.inline import Inline

        apply = services.credentials.apply
        inline = Inline(
            apply(source),
            apply(target),
            on_progress=on_progress,
            on_event=on_event,
            on_switch=on_switch,
        )
        if found is not None and found[0].status == GroupStatus.MIGRATING and found[1] is not None:
            transfer = await _take_up(
                services, inline, found[1], source, settings, accept_source_loss
            )
        else:
            try:
                checks, told = await operations.preflight(services, source, target, settings)
            except PreflightFault as fault:
                if on_checks is not None:
                    on_checks(fault.checks)
                raise
            if on_checks is not None:
                on_checks(checks)

            # Named as this worker's from the first moment: should it end here, that can be seen.
            def begin(registry: Registry) -> TransferRecord:
                if _group(registry, name, target) is None:
                    # Only now: a run that is refused leaves no group.
                    _register(registry, name, target)
                begun = registry.begin_migration(
                    name, [source], settings, lanes=told.lanes, worker=inline.worker
                )
                operations.note_found(registry, name, checks, told)
                return begun

            transfer = await services.state(begin, make=True)
        # 3. Run it here, cut-over included.
        inline.launch(services.registry, transfer, credentials=services.credentials)
        report = await inline.report()
        # 4. Clients that come back to the source are disconnected by a process that outlives us.
        if report.status == "done":
            await services.state(
                lambda registry: _disconnect_clients(services, registry, name, source)
            )
        return report


def _disconnect_clients(
    services: ServiceContext, registry: Registry, group_id: str, source: Endpoint
) -> None:
    from engine.fleet.launcher import launcher

    # What the source's URL said: the state does not have it.
    given = services.credentials.and_of(source)
    launcher().disconnect_clients(registry, group_id, credentials=given)


def _group(
    registry: Registry, name: str, target: Endpoint
) -> tuple[GroupRecord, TransferRecord | None] | None:
    """The group of this name and its migration; None where it is not registered."""
    try:
        group, transfer = registry.get(name)
    except ReplicationGroupNotFoundFault:
        return None
    if group.primary.address.lower() != target.address.lower():
        raise InvalidParameterValueException(
            f"the target of replication group {name} is {group.primary.address}, not "
            f"{target.address}.",
            remedy="Name another group with --replication-group-id.",
        )
    return group, transfer


def _register(registry: Registry, name: str, target: Endpoint) -> None:
    try:
        registry.register(name, target)
    except ReplicationGroupAlreadyExistsFault:
        # Another process was faster; what it registered is judged like any other.
        _group(registry, name, target)


async def _take_up(
    services: ServiceContext,
    inline: Inline,
    transfer: TransferRecord,
    source: Endpoint,
    settings: TransferSettings,
    accept_source_loss: bool,
) -> TransferRecord:
    name = transfer.group_id
    if transfer.leased():
        who = f" by {transfer.worker.name}" if transfer.worker is not None else ""
        raise ReplicationGroupAlreadyUnderMigrationFault(
            f"replication group {name} is already under migration{who}."
        )
    changes = {each: getattr(settings, each) for each in CHANGEABLE}
    try:
        same = replace(transfer.settings, **changes) == settings
    except UsageError:
        same = False
    if not same or transfer.source.address.lower() != source.address.lower():
        raise InvalidReplicationGroupStateFault(
            f"replication group {name} was left under migration from {transfer.source.address}, "
            "with another source or other settings than these.",
            remedy="Resume it with what it was started with, or with resume-migration; or abort it "
            f"with complete-migration --force --replication-group-id {name} (no cut-over: the "
            "source accepts writes, the target stays as it is).",
        )
    return await services.state(
        lambda registry: registry.resume_migration(
            name,
            worker=inline.worker,
            changes=changes,
            accept_source_loss=accept_source_loss,
        )
    )
