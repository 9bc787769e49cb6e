"""The verification of a group, as the operator asks for it and sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import (
    InvalidParameterCombinationException,
    InvalidParameterValueException,
    UsageError,
)
from engine.front import operations, response_shapes, validate
from engine.groups.records import GroupRecord, TransferRecord, VerificationRecord
from engine.model.endpoint import Endpoint
from engine.model.proof import ProofSettings

if TYPE_CHECKING:
    from engine.front.service_context import ServiceContext
    from engine.groups.registry import Registry

NOTHING = "nothing was to be stopped: the group is not being verified"
_LIST = "CustomerNodeEndpointList"
_SETTINGS = ("mode", "match", "rate")


async def verify(
    services: ServiceContext,
    group_id: str,
    endpoints: object,
    settings: dict[str, Any],
    resume: bool,
    stop: bool,
) -> dict[str, Any]:
    """VerifyReplicationGroup (ours): see `Engine`."""
    group_id = validate.identifier(group_id)
    if stop:
        if resume or settings or endpoints is not None:
            raise InvalidParameterCombinationException("Stop goes together with nothing else.")
        message = await services.state(lambda registry: _stop(registry, group_id))
        return {**await services.answer(group_id), "Message": message}
    group, transfer = await services.state(lambda registry: registry.get(group_id))
    before = group.verification if resume else None
    if before is not None:
        settings = {name: before.asked[name] for name in _SETTINGS} | settings
    try:
        wanted = ProofSettings(**settings)
    except UsageError as error:
        raise InvalidParameterValueException(
            f"Invalid value for Mode, Match or Rate: {error.message}.", remedy=error.remedy
        ) from None
    source = await _source(group, transfer, endpoints, before)
    asked = {name: getattr(wanted, name) for name in _SETTINGS} | {"resume": resume}
    await services.state(lambda registry: _begin(services, registry, group_id, source, asked))
    return {**await services.answer(group_id), "Message": f"it is compared with {source.address}"}


async def _source(
    group: GroupRecord,
    transfer: TransferRecord | None,
    endpoints: object,
    before: VerificationRecord | None,
) -> Endpoint:
    """What the group is compared with: what was named, else what the one before that goes on was
    compared with, else what it was migrated from."""
    if endpoints is not None:
        (named,) = validate.node_endpoints(endpoints, cluster_enabled=group.cluster_enabled)
        source = validate.several_nodes(named)[0]
    elif before is not None:
        source = Endpoint.parse(before.source_url)
    elif transfer is not None:
        source = validate.several_nodes(transfer.source)[0]
    else:
        raise InvalidParameterValueException(
            f"The parameter {_LIST} must be provided: no migration of {group.id} says what it is "
            "to be compared with."
        )
    if source.file_path is not None:
        raise InvalidParameterValueException(
            f"Invalid value for {_LIST}: a verification compares two servers, not a file."
        )
    await operations.distinct([source], group.primary)
    return source


def _begin(
    services: ServiceContext,
    registry: Registry,
    group_id: str,
    source: Endpoint,
    asked: dict[str, Any],
) -> None:
    from engine.fleet.launcher import launcher
    from engine.groups import verifications

    verifications.begin(registry.store, group_id, source.url, asked)
    launcher().verify(registry, group_id, credentials=services.given_credentials)


def _stop(registry: Registry, group_id: str) -> str:
    from engine.groups import verifications

    stopped = verifications.stop(registry.store, group_id)
    return "the verification is being stopped" if stopped else NOTHING


def shape(found: VerificationRecord) -> dict[str, Any]:
    """The member `Verification` of the group: always all of its members, None for what is not known
    (yet)."""
    progress, result = found.progress, found.result or {}
    status = "running" if found.goes_on else result.get("status", "gone")
    reason = result.get("reason", "")
    if status == "gone":
        reason = (
            "the process that compared is gone: verify-replication-group --resume goes on where it "
            "was saved last"
        )
    elif status == "stopped":
        reason = "it was stopped: verify-replication-group --resume goes on"
    ended = None if found.ended_at is None else response_shapes.timestamp(found.ended_at)
    return {
        "Status": status,
        "Source": response_shapes.endpoint(Endpoint.parse(found.source_url)),
        "Mode": found.asked["mode"],
        "StartTime": response_shapes.timestamp(found.began_at),
        "EndTime": ended,
        "Step": progress.get("step") if status == "running" else None,
        "Keys": progress.get("keys", 0),
        "TotalKeys": progress.get("total"),
        "SecondsLeft": progress.get("seconds_left") if status == "running" else None,
        "Different": result.get("different", progress.get("different", 0)),
        "Compared": result.get("compared"),
        "NotCompared": result.get("unknown"),
        "Outcome": result.get("outcome"),
        "Reason": reason,
        "Digests": result.get("digests"),
        "Differences": [
            {"Db": each["db"], "Key": each["key"], "Kinds": list(each["kinds"])}
            for each in result.get("differences", ())
        ],
        "LeftOut": list(result.get("left_out", ())),
    }
