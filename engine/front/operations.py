"""The operations: first validation, then the state, then the fleet."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from engine import fleet
from engine.errors import (
    EngineError,
    InvalidParameterCombinationException,
    InvalidParameterValueException,
    InvalidReplicationGroupStateFault,
    StateError,
)
from engine.front import client_disconnection, page_details, response_shapes, validate
from engine.front.faults_with_details import CompletionRefused, PreflightFault
from engine.front.host_resolution import resolve
from engine.groups.states import Operation, Request, check
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import OnlineCheckpoint, left_at_sources
from engine.model.progress import Phase
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.model.throttle import PAUSED, rate_words

if TYPE_CHECKING:
    from engine.front.service_context import ServiceContext
    from engine.groups.records import GroupRecord, TransferRecord
    from engine.groups.registry import Registry
    from engine.transfer.checks.check_result import Preflight


async def register(
    services: ServiceContext,
    group_id: str,
    primary: object,
    description: str,
    cluster_enabled: bool,
    engine: str | None = None,
) -> dict[str, Any]:
    """RegisterReplicationGroup (ours)."""
    group_id = validate.identifier(group_id)
    target = validate.primary_endpoint(primary)
    cluster_enabled = cluster_enabled or target.cluster is not None
    if engine not in (None, "redis", "valkey"):
        raise InvalidParameterValueException(
            "Invalid value for Engine: must be redis or valkey.",
        )
    # The answer needs them: where they cannot be read no group is left behind.
    services.credentials  # noqa: B018
    group = await services.state(
        lambda registry: registry.register(
            group_id,
            target,
            description=description,
            cluster_enabled=cluster_enabled,
            engine=engine,
        ),
        make=True,
    )
    return {"ReplicationGroup": services.shape(group, None)}


async def test(
    services: ServiceContext, group_id: str, endpoints: object, settings: TransferSettings | None
) -> dict[str, Any]:
    """TestMigration."""
    settings = settings or TransferSettings()
    group, sources = await _asked(services, Operation.TEST, group_id, endpoints, settings)
    checks, found = await preflight(services, sources[0], group.primary, settings)
    await services.state(lambda registry: note_target(registry, group.id, found))
    return {**await services.answer(group.id), "Checks": checks}


async def start(
    services: ServiceContext, group_id: str, endpoints: object, settings: TransferSettings | None
) -> dict[str, Any]:
    """StartMigration."""
    wanted = settings or TransferSettings()
    # 1. What can be known before is looked at before anything is written.
    group, sources = await _asked(services, Operation.START, group_id, endpoints, wanted)
    try:
        checks, found = await preflight(services, sources[0], group.primary, wanted)
    except PreflightFault as fault:
        refusal = f"start refused: {fault.message}"
        await services.state(lambda registry: registry.add_event(group.id, refusal))
        raise

    # 2. It begins.
    def begin(registry: Registry) -> TransferRecord:
        begun = registry.begin_migration(group.id, sources, wanted, lanes=found.lanes)
        note_found(registry, group.id, checks, found)
        return begun

    transfer = await services.state(begin)
    await services.state(lambda registry: _launch(services, registry, transfer))
    return {**await services.answer(group.id), "Checks": checks}


async def resume(
    services: ServiceContext,
    group_id: str,
    changes: Mapping[str, Any] | None = None,
    accept_source_loss: bool = False,
) -> dict[str, Any]:
    """ResumeMigration (ours): a new worker goes on from the checkpoint."""
    group_id = validate.identifier(group_id)
    transfer = await services.state(
        lambda registry: registry.resume_migration(
            group_id, changes=changes, accept_source_loss=accept_source_loss
        )
    )
    await services.state(lambda registry: _launch(services, registry, transfer))
    return await services.answer(group_id)


async def complete(
    services: ServiceContext, group_id: str, force: bool, skip_verification: bool
) -> dict[str, Any]:
    """CompleteMigration. `skip_verification` (ours): cut over without the comparison."""
    group_id = validate.identifier(group_id)
    if force and skip_verification:
        raise InvalidParameterCombinationException(
            "Force and SkipVerification do not go together: Force aborts the migration, "
            "SkipVerification cuts over without the comparison.",
            remedy="Give one of them.",
        )
    _tidy()
    group, transfer = await services.state(lambda registry: registry.get(group_id))
    check(Operation.COMPLETE, group_id, group.status)
    assert transfer is not None
    if force:
        await _force(services, transfer)
    elif (refusal := _not_ready(transfer, skip_verification)) is not None:
        await services.state(
            lambda registry: registry.add_event(group_id, f"completion refused: {refusal}")
        )
        raise CompletionRefused(f"cannot complete the migration of {group_id}: {refusal}", refusal)
    else:
        wanted = Request.COMPLETE_UNVERIFIED if skip_verification else Request.COMPLETE
        await services.state(lambda registry: registry.request(group_id, wanted))
    return await services.answer(group_id)


async def set_rate(
    services: ServiceContext,
    group_id: str,
    max_rate: int | None,
    max_key_rate: int | None,
    off: bool,
) -> dict[str, Any]:
    """SetMigrationRate (ours)."""
    group_id = validate.identifier(group_id)
    given = (max_rate, max_key_rate) != (None, None)
    if off and given:
        raise InvalidParameterCombinationException(
            "Off does not go together with a rate: it takes every bound away.",
            remedy="Give one of them.",
        )
    if not (off or given):
        raise InvalidParameterCombinationException(
            "No rate is given.", remedy="Give BytesPerSecond, KeysPerSecond or both; or Off."
        )
    for name, rate in (("BytesPerSecond", max_rate), ("KeysPerSecond", max_key_rate)):
        if rate is not None and not 0 <= rate < 1 << 62:
            raise InvalidParameterValueException(
                f"Invalid value for {name}: must be 0 or more, and below 2^62."
            )
    if off:
        max_rate = max_key_rate = 0
    transfer = await services.state(
        lambda registry: registry.set_rate(group_id, max_rate=max_rate, max_key_rate=max_key_rate)
    )
    words = rate_words(transfer.settings.max_rate, transfer.settings.max_key_rate)
    return {**await services.answer(group_id), "Message": f"rate: {words}"}


async def pause(services: ServiceContext, group_id: str, paused: bool) -> dict[str, Any]:
    """PauseMigration and ContinueMigration (ours)."""
    group_id = validate.identifier(group_id)
    changed = await services.state(lambda registry: registry.pause(group_id, paused))
    if paused:
        words = "the migration is paused" if changed else "the migration was paused already"
    else:
        words = "the migration goes on" if changed else "the migration was not paused"
    return {**await services.answer(group_id), "Message": words}


async def unblock_source(services: ServiceContext, group_id: str) -> dict[str, Any]:
    """UnblockSource (ours): the source of a completed migration accepts writes again."""
    group_id = validate.identifier(group_id)
    transfer = await services.state(lambda registry: registry.blocked_by(group_id))
    if transfer is None or transfer.report is None:
        raise await _nothing_to_unblock(services, group_id)
    script_pause = transfer.report.held
    if script_pause:
        # The pause that holds its clients holds our connection as well.
        await services.state(lambda registry: _stop_disconnecting(registry, transfer))
    report = transfer.report
    source, done = services.credentials.apply(transfer.source), []
    # Each shard of a cluster, of which one that is not there keeps none of the others waiting.
    failed: EngineError | None = None
    for sealed_at, before in ((report.sealed_at, report.sealed), *report.sealed_too):
        try:
            text = await fleet.unblock_source(
                source,
                sealed_at,
                before,
                transfer.settings,
                services.credentials,
                script_pause=script_pause,
            )
        except EngineError as error:
            failed = failed or error
        else:
            done.append(text)
    message = "; ".join(done)
    if failed is not None:
        if done:
            await services.state(lambda registry: registry.add_event(group_id, message))
        raise failed
    await services.state(lambda registry: registry.add_event(group_id, message))
    # Writes are wanted there, and so are clients.
    await services.state(lambda registry: _stop_disconnecting(registry, transfer))
    return {**await services.answer(group_id), "Message": message}


async def _nothing_to_unblock(
    services: ServiceContext, group_id: str
) -> InvalidReplicationGroupStateFault:
    cannot = f"cannot {Operation.UNBLOCK} replication group {group_id}"
    transfer = await services.state(lambda registry: registry.found_closed_by(group_id))
    if transfer is None or transfer.report is None:
        return InvalidReplicationGroupStateFault(
            f"{cannot}: no migration of it has blocked writes at its source."
        )
    report = transfer.report
    name = f"the source's primary {report.closed_at}" if report.closed_at else ""
    return InvalidReplicationGroupStateFault(
        f"{cannot}: {name or f'the source {transfer.source.address}'} refused writes "
        f"before the cut-over, by its setting {report.closed_before}, which no migration of this "
        "group has changed.",
        remedy=f"Set {report.closed_before} back there by hand, or run unblock-source for "
        "the group whose migration has set it.",
    )


def _stop_disconnecting(registry: Registry, transfer: TransferRecord) -> None:
    client_disconnection.stop(
        registry, transfer, "the source accepts writes again (unblock-source)", refuses=False
    )


async def describe(
    services: ServiceContext, group_id: str | None, max_records: int, marker: str | None
) -> dict[str, Any]:
    """DescribeReplicationGroups."""
    limit, after = validate.page(max_records, marker)
    _tidy()
    await _report_unattended(services)
    if group_id is not None:
        name = validate.identifier(group_id)
        answer = await services.answer(name)
        return {"ReplicationGroups": [answer["ReplicationGroup"]]}
    found, more = await services.state(
        lambda registry: registry.list(after=after or "", limit=limit)
    )
    response: dict[str, Any] = {
        "ReplicationGroups": [services.shape(group, transfer) for group, transfer in found]
    }
    if more is not None:
        response["Marker"] = more
    return response


async def describe_events(services: ServiceContext, group_id: str | None) -> dict[str, Any]:
    """DescribeEvents, all at once."""
    name = None if group_id is None else validate.identifier(group_id)
    await _report_unattended(services)
    return response_shapes.events(await services.state(lambda registry: registry.list_events(name)))


async def _report_unattended(services: ServiceContext) -> None:
    """A reader of the state is the first that can report what no process does any more."""
    from engine.groups import disconnections

    # A state that cannot be written is still told.
    with contextlib.suppress(StateError):
        await services.state(lambda registry: disconnections.report_unattended(registry.store))


async def page_events(
    services: ServiceContext,
    group_id: str | None,
    since: float | None,
    until: float | None,
    max_records: int,
    marker: str | None,
) -> dict[str, Any]:
    """DescribeEvents, in pages. Times are seconds since the epoch."""
    name = None if group_id is None else validate.identifier(group_id, "SourceIdentifier")
    limit, after = validate.events_page(max_records, marker)
    await _report_unattended(services)
    found, more = await services.state(
        lambda registry: registry.page_events(
            name, since=since, until=until, after=after, limit=limit
        )
    )
    response = response_shapes.events(found)
    if more is not None:
        response["Marker"] = str(more)
    return response


async def overview(services: ServiceContext, events: int) -> dict[str, Any]:
    """All groups, with what `watched` adds, and the newest `events`."""
    _tidy()

    def look(registry: Registry) -> Any:
        return registry.list(limit=None)[0], registry.list_events(limit=events)

    groups, newest = await services.state(look)
    shown = [
        {
            **services.shape(group, transfer),
            "Details": page_details.details(group.status, transfer),
        }
        for group, transfer in groups
    ]
    return {"ReplicationGroups": shown, **response_shapes.events(newest)}


async def delete(services: ServiceContext, group_id: str) -> dict[str, Any]:
    """DeleteReplicationGroup. Our record of it: the servers stay."""
    group_id = validate.identifier(group_id)
    group = await services.state(lambda registry: registry.delete(group_id))
    return {"ReplicationGroup": services.shape(group, None)}


async def preflight(
    services: ServiceContext, source: Endpoint, target: Endpoint, settings: TransferSettings
) -> tuple[list[dict[str, Any]], Preflight]:
    """The preflight's checks as dicts, and what it has found; raises `PreflightFault` if one
    failed."""
    apply = services.credentials.apply
    found = await fleet.preflight(apply(source), apply(target), settings)
    checks = [asdict(check) for check in found.checks]
    for side, endpoint in (("source", source), ("target", target)):
        _name_other_port(checks, f"{side}-auth", services.credentials.other_port(endpoint))
    failed = [listed(check) for check in checks if check["outcome"] == "fail"]
    if failed:
        raise PreflightFault(f"the migration cannot start: {'; '.join(failed)}", checks)
    return checks, found


def listed(check: Mapping[str, Any]) -> str:
    """A finding of the preflight as a part of a sentence, without a full stop at its end."""
    parts = (check["figure"].removesuffix("."), check["remedy"].removesuffix("."))
    return f"{check['name']}: {' → '.join(filter(None, parts))}"


def _name_other_port(checks: list[dict[str, Any]], name: str, entry: str | None) -> None:
    """Say of a server that wants a password that the one for its host is for another port."""
    for each in checks:
        if each["name"] == name and each["outcome"] == "fail" and entry is not None:
            each["remedy"] = (
                f"The credentials for host {entry!r} are for another port (without one: 6379). "
                "Write the port there too, or :* for every port of the host."
            )


def note_found(
    registry: Registry, group_id: str, checks: Sequence[dict[str, Any]], found: Preflight
) -> None:
    """Keep what the preflight has found: what the target is, if it told, with the group, and each
    warning as an event of it."""
    note_target(registry, group_id, found)
    for each in checks:
        if each["outcome"] == "warn":
            registry.add_event(group_id, f"warning: {listed(each)}")


def note_target(registry: Registry, group_id: str, found: Preflight) -> None:
    """Keep what the target has told of itself: what it runs, and its shards."""
    if found.engine:
        registry.note_engine(group_id, found.engine)
        registry.note_shards(group_id, found.shards)


async def distinct(sources: Sequence[Endpoint], target: Endpoint) -> None:
    """Raise `InvalidParameterValue` if a source is a member of the target."""
    sources = [node for each in sources for node in validate.several_nodes(each)]
    members = validate.several_nodes(target)
    # By name first: it costs nothing.
    validate.not_the_target(sources, members, {})
    validate.not_the_target(sources, members, await resolve([*sources, *members]))


async def _asked(
    services: ServiceContext,
    operation: Operation,
    group_id: str,
    endpoints: object,
    settings: TransferSettings,
) -> tuple[GroupRecord, tuple[Endpoint, ...]]:
    """What Test and Start have in common: the group, in a fitting state, and valid sources."""
    group_id = validate.identifier(group_id)
    group, _ = await services.state(lambda registry: registry.get(group_id))
    sources = validate.node_endpoints(endpoints, cluster_enabled=group.cluster_enabled)
    validate.possible_from(sources, settings)
    await distinct(sources, group.primary)
    check(operation, group_id, group.status)
    return group, sources


def _launch(services: ServiceContext, registry: Registry, transfer: TransferRecord) -> None:
    from engine.fleet.launcher import launcher

    try:
        launcher().launch(registry, transfer, credentials=services.given_credentials)
    except StateError:
        # The worker runs, and claims the migration by itself.
        raise
    except EngineError as error:
        report = Report(status="failed", errors=(error.message,))
        registry.fail_start(transfer, report, f"migration failed: {error.message}")
        raise


def _not_ready(transfer: TransferRecord, skip_verification: bool) -> str | None:
    """Why a migration cannot be completed now, None if it can."""
    if transfer.undecided or not transfer.leased():
        return response_shapes.reason(transfer)
    if transfer.paused:
        return PAUSED
    progress = transfer.progress
    if progress.can_complete or (skip_verification and progress.uncomparable):
        return None
    if progress.phase is Phase.CUT_OVER:
        return "a cut-over is under way"
    return (
        progress.reason
        or f"not in sync yet ({progress.phase}, {response_shapes.how_far(progress)})"
    )


async def _force(services: ServiceContext, transfer: TransferRecord) -> None:
    group_id, progress, apply = transfer.group_id, transfer.progress, services.credentials.apply
    # 1. Without a worker we end it ourselves. What the last worker wrote last is what we know.
    checkpoints = await services.state(lambda registry: registry.checkpoints(transfer))
    positions = [each.position for each in checkpoints.values()]
    marks = [each for each in positions if isinstance(each, OnlineCheckpoint)]
    promoted = any(mark.opened for mark in marks)
    came_back = any(mark.came_back for mark in marks)
    if promoted:
        message = "ended by force, without a worker, after the target was promoted"
        if any(mark.sealed for mark in marks) and not came_back:
            message += "; the source refuses writes, until unblock-source"
    elif any(mark.promoting for mark in marks):
        message = "aborted by force, without a worker, while the target was being promoted"
    else:
        how_far = response_shapes.how_far(progress)
        message = f"aborted by force, without a worker and not cut over, after {how_far}"
        fenced = any(mark.fenced for mark in marks)
        if not fenced and transfer.source.file_path is None:
            said = await fleet.source_writes(
                apply(transfer.source),
                apply(transfer.target),
                transfer.settings,
                services.credentials,
                transfer.plans,
            )
            message += f"; {said}"
    report = Report(
        status="stopped",
        source_type=progress.source_type,
        keys=progress.keys,
        bytes=progress.bytes,
        applied_offset=progress.applied_offset,
        source_offset=progress.source_offset,
        commands=progress.commands,
        partial_syncs=progress.partial_syncs,
        full_syncs=progress.full_syncs,
        repaired_keys=progress.repaired_keys,
        held_keys=progress.held_keys,
        errors=(message,),
    )
    if promoted and not came_back:
        # The abort lets the cut-over's end come, and the write block with it.
        report = replace(report, **left_at_sources(marks))
    ended = await services.state(
        lambda registry: registry.end_without_worker(group_id, report, f"migration {message}")
    )
    # 2. Else the worker does.
    if not ended:
        await services.state(lambda registry: registry.request(group_id, Request.FORCE))
        return
    # 3. What it left at both ends; the group is available, whatever becomes of that.
    left = await fleet.abandon(
        apply(transfer.source),
        apply(transfer.target),
        transfer.settings,
        checkpoints,
        services.credentials,
        transfer.plans,
    )

    def note(registry: Registry) -> None:
        for each in left.events:
            registry.add_event(group_id, each)
        # What still refuses writes is kept for unblock-source.
        if left.marks:
            registry.note_write_block(transfer.id, replace(report, **left.at_source()))
        if left.cut_over and transfer.settings.closes_source:
            client_disconnection.begin(services, registry, transfer)

    await services.state(note)


def _tidy() -> None:
    from engine.fleet.launcher import launcher

    launcher().tidy()
