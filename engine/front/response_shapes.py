"""Responses: the service model's shapes (botocore's `elasticache`, 2015-02-02), and `Migration`.

Members have the model's names and types (a timestamp is an aware `datetime`), and stand only where
we know them to be true: no node type, no zone. What the service can do for its servers and nothing
here does (failover, snapshots …) is told as off. `Migration` is ours: the group's migration that
goes on, or the last one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from engine.groups.records import EventRecord, GroupRecord, LaneRecord, TransferRecord
from engine.groups.states import ENDED, TransferStatus
from engine.logs import SHARD
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.joined_sentences import tidied
from engine.model.progress import FIGURES, Progress
from engine.model.report import Report
from engine.model.throttle import PAUSED
from engine.model.verification import Difference, Verification

ABORT = (
    "complete-migration --force (no cut-over: the source accepts writes, the target stays as it is)"
)
"""How a migration is given up, and what that leaves."""
# Of one that has stopped behind its cut-over.
_ABORT_BLOCKED = (
    "complete-migration --force (the source accepts writes again, the target stays as it is)"
)
NAMED_KEYS = 20
"""So many keys that were not carried are named; the report has more of them."""
# The id that ElastiCache gives the first node of a group with one shard.
NODE = "0001"
# What nothing here does for a group; and what it has none of.
_OFF: Mapping[str, Any] = {
    "AutomaticFailover": "disabled",
    "MultiAZ": "disabled",
    "SnapshotRetentionLimit": 0,
    "AtRestEncryptionEnabled": False,
    "DataTiering": "disabled",
    "AutoMinorVersionUpgrade": False,
    "MemberClustersOutpostArns": [],
    "UserGroupIds": [],
    "LogDeliveryConfigurations": [],
}


def replication_group(
    group: GroupRecord, transfer: TransferRecord | None, credentials: Credentials
) -> dict[str, Any]:
    """A `ReplicationGroup`, as known to us with these credentials."""
    primary = group.primary
    entry = credentials.find(primary)
    tls = primary.unix_path is None and (
        primary.tls is not None or (entry is not None and entry.tls_for(None) is not None)
    )
    members, node_groups = _node_groups(group)
    shape: dict[str, Any] = {
        "ReplicationGroupId": group.id,
        "Description": group.description,
        "Status": group.status,
        "MemberClusters": members,
        "NodeGroups": node_groups,
        **_OFF,
        "ClusterEnabled": group.cluster_enabled,
        "ClusterMode": "enabled" if group.cluster_enabled else "disabled",
        "AuthTokenEnabled": entry is not None and entry.has_password,
        "TransitEncryptionEnabled": tls,
        "ARN": arn(group.id),
        "ReplicationGroupCreateTime": timestamp(group.created_at),
    }
    if group.cluster_enabled:
        shape["ConfigurationEndpoint"] = _configuration(group)
    if tls:
        # The server may have a port without TLS too; what goes through this one is encrypted.
        shape["TransitEncryptionMode"] = "required"
    if group.engine is not None:
        shape["Engine"] = group.engine
    if (family := _family(primary)) is not None:
        shape |= {"NetworkType": family, "IpDiscovery": family}
    if transfer is not None:
        shape["Migration"] = migration(transfer)
    return shape


def _node_groups(group: GroupRecord) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of a group's nodes, and its shards: of a cluster those that it has told last."""
    if not group.shards:
        name = f"{group.id}-001"
        member = _member(name, endpoint(group.primary), "primary")
        return [name], [_node_group(SHARD, group.status, endpoint(group.primary), [member])]
    names, shards = [], []
    for number, shard in enumerate(group.shards, 1):
        places = [(shard.host, shard.port), *shard.replicas]
        members = []
        for place, (host, port) in enumerate(places, 1):
            names.append(f"{group.id}-{number:04d}-{place:03d}")
            role = "primary" if place == 1 else "replica"
            members.append(_member(names[-1], {"Address": host, "Port": port}, role))
        first = {"Address": shard.host, "Port": shard.port}
        made = _node_group(f"{number:04d}", group.status, first, members)
        shards.append({**made, "Slots": shard.slots})
    return names, shards


def _node_group(
    name: str, status: str, primary: dict[str, Any], members: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "NodeGroupId": name,
        "Status": status,
        "PrimaryEndpoint": primary,
        "NodeGroupMembers": members,
    }


def _member(name: str, place: dict[str, Any], role: str) -> dict[str, Any]:
    return {
        "CacheClusterId": name,
        "CacheNodeId": NODE,
        "ReadEndpoint": place,
        "CurrentRole": role,
    }


def _configuration(group: GroupRecord) -> dict[str, Any]:
    """Where a client of the cluster begins."""
    cluster = group.primary.cluster
    host, port = (group.primary.host, group.primary.port) if cluster is None else cluster.seeds[0]
    return {"Address": host, "Port": port}


def arn(group_id: str) -> str:
    """A group's name among all resources. The partition is ours: it is no resource of AWS, and no
    region or account has it."""
    return f"arn:startmigration:elasticache:::replicationgroup:{group_id}"


def _family(primary: Endpoint) -> str | None:
    """Which addresses the group is reached by, where its endpoint is one."""
    if primary.unix_path is not None or primary.looked_up:
        return None
    try:
        return f"ipv{ipaddress.ip_address(primary.host.split('%', 1)[0]).version}"
    except ValueError:
        return None


def migration(transfer: TransferRecord) -> dict[str, Any]:
    """Our `Migration`: always all of its members, None where a figure is not known (yet).

    Bytes are value bytes acknowledged by the target. Lag and offsets are None where nothing is
    followed. `SourceType` is what was asked for until it is known how the source is read.
    `Status` is the migration's own: running, stopped, done, failed, forced … One that has ended
    stays readable until the next start, with its last phase and figures; `Report` is what it came
    to, None until it has ended or stopped.
    """
    progress = transfer.known
    leased = transfer.leased()
    workers = []
    if leased and transfer.worker is not None:
        shown = transfer.worker.shown
        workers = [{"Shard": SHARD, **shown, "Phase": progress.phase.value}]
        if transfer.parts:
            workers = [_worker(each, shown) for each in transfer.parts]
    return {
        "Status": transfer.status.value,
        "Phase": progress.phase.value,
        "SourceType": source_type(transfer),
        "Keys": progress.keys,
        "TotalKeys": progress.total_keys,
        "Bytes": progress.bytes,
        "KeysPerSecond": progress.keys_per_second,
        "EtaSeconds": progress.eta_seconds,
        "LagBytes": progress.lag_bytes,
        "LagSeconds": progress.lag_seconds,
        "AppliedOffset": progress.applied_offset,
        "SourceOffset": progress.source_offset,
        "SourceLink": progress.link or None,
        "SourceHeardSeconds": progress.source_heard_seconds,
        "TargetHeardSeconds": progress.target_heard_seconds,
        "Counters": {each.member: getattr(progress, each.name) for each in FIGURES if each.member},
        "Rate": _rate(transfer),
        "Paused": _paused(transfer),
        "Throttled": transfer.known.throttled or None,
        "CanComplete": leased and progress.can_complete and not transfer.paused,
        "Reason": tidied(reason(transfer)),
        "Workers": workers,
        "Report": None if transfer.report is None else outcome(transfer.report),
    }


def _rate(transfer: TransferRecord) -> dict[str, int] | None:
    """What bounds how fast data is moved, a second; None: nothing."""
    data = transfer.settings_data
    rates = {"Bytes": data.get("max_rate", 0), "Keys": data.get("max_key_rate", 0)}
    return {name: rate for name, rate in rates.items() if rate} or None


def _paused(transfer: TransferRecord) -> str | None:
    """Why it moves nothing for the moment; None: it does, or has no worker for other reasons."""
    if transfer.status in ENDED:
        return None
    return PAUSED if transfer.paused else (transfer.known.paused or None)


def _worker(lane: LaneRecord, shown: Mapping[str, Any]) -> dict[str, Any]:
    """A lane of a migration with a cluster at an end, and who runs it."""
    progress = lane.progress
    if progress.worker_pid is not None:
        shown = {**shown, "LanePid": progress.worker_pid}
    return {
        "Shard": lane.title,
        **shown,
        "Phase": progress.phase.value,
        "Slots": lane.slots,
        "Keys": progress.keys,
        "LagBytes": progress.lag_bytes,
        "LagSeconds": progress.lag_seconds,
        "KeysPerSecond": progress.keys_per_second,
    }


def outcome(report: Report) -> dict[str, Any]:
    """What a migration came to. Of the keys that were not carried some are named."""
    return {
        "SourceType": report.source_type,
        "Keys": report.keys,
        "Bytes": report.bytes,
        "Seconds": report.seconds,
        "Commands": report.commands,
        "FenceSeconds": report.fence_seconds,
        "LostWrites": report.lost_writes,
        "NotCarried": report.not_carried_total,
        "NotCarriedKeys": [
            {"Db": each.db, "Key": each.key, "Reason": each.reason}
            for each in report.not_carried[:NAMED_KEYS]
        ],
        "Verification": verification(report.verification),
        "CarriedWithLoss": [each.words for each in report.losses],
        "LeftOut": [*report.left_out, *report.doubts][:NAMED_KEYS],
        "Errors": list(report.errors[:NAMED_KEYS]),
        "Steps": [
            {
                "Name": step.name,
                **({"Shard": step.lane} if step.lane else {}),
                "Seconds": step.seconds,
                "Keys": step.keys,
                "Bytes": step.bytes,
            }
            for step in report.steps
        ],
    }


def verification(found: Verification | None) -> dict[str, Any] | None:
    """What the last comparison of both ends has shown; None: there was none."""
    if found is None:
        return None
    return {
        "Ok": found.ok,
        "Reason": found.reason,
        "KeysSource": found.keys_source,
        "KeysTarget": found.keys_target,
        "Counted": found.counted,
        "Compared": found.compared,
        "Different": found.different,
        "Repaired": found.repaired,
        "NotCompared": [{"Type": kind, "Keys": keys} for kind, keys in found.not_compared],
        "Differences": _named(found.differences),
        "OverBudget": _named(found.over_budget),
        "Libraries": found.libraries,
        "LostLibraries": list(found.lost[:NAMED_KEYS]),
    }


def _named(found: Sequence[Difference]) -> list[dict[str, Any]]:
    return [{"Db": each.db, "Key": each.key, "Reason": each.what} for each in found[:NAMED_KEYS]]


def reason(transfer: TransferRecord) -> str:
    """In one line, why a migration stands where it stands, and what can be done about it."""
    if transfer.status in ENDED:
        errors = transfer.report.errors if transfer.report is not None else ()
        return errors[0] if errors else transfer.progress.reason
    blocked = transfer.report is not None and bool(transfer.report.sealed)
    way_out = f"resume with resume-migration, or abort with {_ABORT_BLOCKED if blocked else ABORT}"
    if transfer.status is TransferStatus.STOPPED:
        why = transfer.report.errors[0] if transfer.report and transfer.report.errors else ""
        if why:
            # With a full stop at its end it says itself what to do.
            return f"stopped: {why}{'' if why.endswith('.') else '. Correct that.'} Then {way_out}"
        return f"stopped: {way_out}"
    if transfer.undecided:
        return _undecided(transfer)
    if not transfer.leased():
        named = f" ({transfer.worker.words})" if transfer.worker is not None else ""
        return f"the worker process{named} is gone: {way_out}"
    if transfer.refused:
        refused = f"cut-over refused: {transfer.refused}"
        # It may be mended by now: how it stands is told first.
        if transfer.progress.can_complete:
            return f"{transfer.progress.reason} (last {refused})"
        return refused
    return transfer.progress.reason


def _undecided(transfer: TransferRecord) -> str:
    """The reason of one whose worker is gone from the middle of the cut-over."""
    gone = "the worker process ended in the middle of the cut-over, and the target may be promoted"
    next_one = "a new worker" if transfer.leased() else "resume-migration starts a worker that"
    text = f"{gone}: {next_one} finds out whether it is"
    if transfer.progress.lets_scripts:
        text += (
            ". Until then the source runs scripts (EVAL), although it refuses other writes: if the "
            "target is promoted, what they write is lost, and is counted then"
        )
    return text


def needs_hand(transfer: TransferRecord) -> bool:
    """Whether a migration has stopped by itself, and stops again unless something is corrected."""
    stopped = transfer.status is TransferStatus.STOPPED
    return stopped and transfer.report is not None and transfer.report.needs_hand


def source_type(transfer: TransferRecord) -> str:
    """How the source is read: "replica" or "scan"; or else what was asked for."""
    read = transfer.progress.source_type
    return read if read != "auto" else str(transfer.settings_data.get("source_type", read))


def how_far(progress: Progress) -> str:
    """How much has arrived, in words."""
    keys = progress.keys_words
    if progress.lag_unknown:
        return f"{keys}, with an unknown lag"
    if progress.lag_bytes is None:
        return keys
    return f"{keys}, with a lag of {progress.lag_bytes:,} bytes"


def event(record: EventRecord) -> dict[str, Any]:
    """An `Event`."""
    return {
        "SourceIdentifier": record.group_id,
        "SourceType": "replication-group",
        "Message": record.message,
        "Date": timestamp(record.at),
    }


def events(records: Iterable[EventRecord]) -> dict[str, Any]:
    """DescribeEvents's answer."""
    return {"Events": [event(record) for record in records]}


def endpoint(value: Endpoint) -> dict[str, Any]:
    """An `Endpoint`; a unix socket's path is the address, and it has no port; nor has a name that
    Sentinels watch, whose address names these."""
    if value.unix_path is not None:
        return {"Address": value.unix_path}
    if value.looked_up:
        return {"Address": value.address}
    return {"Address": value.host, "Port": value.port}


def timestamp(seconds: float) -> datetime:
    """Seconds since the epoch as the SDKs give a timestamp."""
    return datetime.fromtimestamp(seconds, UTC)
