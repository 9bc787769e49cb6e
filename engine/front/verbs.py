"""Every verb, once: what it is called on the command line, in the library and in the API.

The command line (`cli.app`), the HTTP face (`front.http.actions`, `front.http.botocore_model`) and
the tests read this table. What a verb does is a method of `front.engine.Engine`; in which state it
may be done is a row of `groups.states.RULES`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

BOOLEAN, INTEGER, NAME = "Boolean", "IntegerOptional", "String"
"""Shapes of the service's model, for members of ours."""
MODELS = ""
"""The service's model has the member, and says its shape."""
_GROUP = {"ReplicationGroupId": MODELS}
_ENDS = {**_GROUP, "CustomerNodeEndpointList": MODELS}
_PAGE = {"MaxRecords": MODELS, "Marker": MODELS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One verb. What it is not found in is empty.

    `name` is its command, and `command` the file of `cli` (with the function, where that has
    another name) unless that follows from it. `method` is the library's, `action` the API's, which
    needs a key of `role`. `former` is the command's name before; method and action had that name
    too. `members`: those of a request that are acted upon, each with the shape of its value, beside
    those that give settings (`model.setting`); `only`: members that are taken with these values
    alone. `ours`: the service's model does not have the action. `operation` is its row of `RULES`,
    where it changes something; `slow`: it talks to servers.
    """

    name: str
    command: str = ""
    former: str = ""
    method: str = ""
    action: str = ""
    role: Literal["read", "migrate", "admin"] = "migrate"
    members: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ours: bool = False
    operation: str = ""
    slow: bool = False

    @property
    def file(self) -> str:
        """The file of `cli`, with its function where that has another name."""
        return self.command or self.name.replace("-", "_")

    @property
    def former_action(self) -> str:
        """The action's name before."""
        return "".join(part.capitalize() for part in self.former.split("-"))


def parameter(member: str) -> str:
    """The parameter of the library's method that a member gives: `SkipVerification` is
    `skip_verification`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", member).lower()


VERBS = (
    Verb(name="migrate", method="migrate"),
    Verb(
        name="register-replication-group",
        method="register_replication_group",
        action="CreateReplicationGroup",
        role="admin",
        members={
            **_GROUP,
            "ReplicationGroupDescription": MODELS,
            "PrimaryClusterId": MODELS,
            "Port": MODELS,
            "TransitEncryptionEnabled": MODELS,
            "ClusterMode": MODELS,
            "NumNodeGroups": MODELS,
        },
        only={
            "AtRestEncryptionEnabled": (False,),
            "AutomaticFailoverEnabled": (False,),
            "DataTieringEnabled": (False,),
            "Engine": ("redis", "valkey"),
            "MultiAZEnabled": (False,),
            "NumCacheClusters": (1,),
            "ReplicasPerNodeGroup": (0,),
            "SnapshotRetentionLimit": (0,),
        },
    ),
    Verb(
        name="test-migration",
        command="test_migration.preflight",
        method="test_migration",
        action="TestMigration",
        members=_ENDS,
        slow=True,
    ),
    Verb(
        name="start-migration",
        method="start_migration",
        action="StartMigration",
        members=_ENDS,
        only={"ClearTargetCacheData": (False,)},
        operation="START",
        slow=True,
    ),
    Verb(
        name="complete-migration",
        method="complete_migration",
        action="CompleteMigration",
        members={**_GROUP, "Force": MODELS, "SkipVerification": BOOLEAN},
        operation="COMPLETE",
    ),
    Verb(
        name="resume-migration",
        method="resume_migration",
        action="ResumeMigration",
        members={"ReplicationGroupId": NAME, "AcceptSourceLoss": BOOLEAN},
        ours=True,
        operation="RESUME",
    ),
    Verb(
        name="set-migration-rate",
        method="set_migration_rate",
        action="SetMigrationRate",
        members={
            "ReplicationGroupId": NAME,
            "BytesPerSecond": INTEGER,
            "KeysPerSecond": INTEGER,
            "Off": BOOLEAN,
        },
        ours=True,
        operation="STEER",
    ),
    Verb(
        name="pause-migration",
        method="pause_migration",
        action="PauseMigration",
        members={"ReplicationGroupId": NAME},
        ours=True,
        operation="PAUSE",
    ),
    Verb(
        name="continue-migration",
        method="continue_migration",
        action="ContinueMigration",
        members={"ReplicationGroupId": NAME},
        ours=True,
        operation="CONTINUE",
    ),
    Verb(
        name="unblock-source",
        former="release-source",
        method="unblock_source",
        action="UnblockSource",
        members={"ReplicationGroupId": NAME},
        ours=True,
        operation="UNBLOCK",
        slow=True,
    ),
    Verb(
        name="disconnect-clients",
        method="disconnect_clients",
        action="DisconnectClients",
        members={"ReplicationGroupId": NAME, "Seconds": INTEGER},
        ours=True,
        operation="DISCONNECT",
    ),
    Verb(
        name="describe-replication-groups",
        method="describe_replication_groups",
        action="DescribeReplicationGroups",
        role="read",
        members={**_GROUP, **_PAGE},
    ),
    Verb(
        name="describe-events",
        method="describe_events",
        action="DescribeEvents",
        role="read",
        members={
            "SourceIdentifier": MODELS,
            "SourceType": MODELS,
            "StartTime": MODELS,
            "EndTime": MODELS,
            "Duration": MODELS,
            **_PAGE,
        },
    ),
    Verb(
        name="delete-replication-group",
        method="delete_replication_group",
        action="DeleteReplicationGroup",
        role="admin",
        members=_GROUP,
        only={"RetainPrimaryCluster": (True,)},
        operation="DELETE",
    ),
    Verb(
        name="verify-replication-group",
        method="verify_replication_group",
        action="VerifyReplicationGroup",
        members={
            "ReplicationGroupId": NAME,
            "CustomerNodeEndpointList": "CustomerNodeEndpointList",
            "Mode": NAME,
            "Match": NAME,
            "Rate": INTEGER,
            "Resume": BOOLEAN,
            "Stop": BOOLEAN,
        },
        ours=True,
        slow=True,
    ),
    Verb(name="verify", method="verify"),
    Verb(name="inspect", command="inspect_keys.inspect"),
    Verb(name="test-rules", command="test_rules.trial"),
    Verb(name="serve"),
    Verb(name="create-access-key"),
)
"""In the order of the help."""
