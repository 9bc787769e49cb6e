"""The tables of the state.

    replication_groups 1─n migrations 1─n lanes n─1 leases
                     └─1 shards             ├─1 checkpoints
                     └─1 verifications      └─1 lane_plans
                              ├─1 steering
                              └─n events, numbered

A migration begins with a start and is over for good once it is done, failed or forced; a group has
at most one that is not. A lane is the way of one shard of the source into a shard of the target. A
migration between servers that are no clusters has one. One with a cluster at an end has a lane for
the whole, which has its progress and no checkpoint, and one more for each pair of shards, which
says in `lane_plans` what it is planned for. A lease says which worker runs a lane, or several
(`lease`).

A change that an older engine would misread is a new SCHEMA_VERSION, with a step in `upgrade`. A
table that is added is not one: it is created in a state that lacks it, and an older engine passes
it over.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

SCHEMA_VERSION = 3
LANE = "0"
"""The name of a migration's first lane: its only one, or that of the whole."""
ALL_SLOTS = "0-16383"
"""`lanes.slots` of a lane that carries every key."""

metadata = MetaData()
_JSON = JSON(none_as_null=True)

schema_version = Table(
    "schema_version",
    metadata,
    # Not SERIAL on PostgreSQL: the one row's value is the version.
    Column("version", Integer, primary_key=True, autoincrement=False),
)

groups = Table(
    "replication_groups",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("description", Text, nullable=False),
    Column("status", String(20), nullable=False),
    Column("cluster_enabled", Boolean, nullable=False),
    Column("primary_url", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

# Which engine a group's servers run, where that is known.
engines = Table(
    "engines",
    metadata,
    Column(
        "group_id",
        ForeignKey("replication_groups.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("engine", String(20), nullable=False),
)

_NOT_OVER = text("status IN ('pending', 'running', 'stopped')")
migrations = Table(
    "migrations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("group_id", ForeignKey("replication_groups.id", ondelete="CASCADE"), nullable=False),
    Column("status", String(20), nullable=False),
    # What the start named.
    Column("source_urls", _JSON, nullable=False),
    Column("target_url", Text, nullable=False),
    Column("settings", _JSON, nullable=False),
    # Whether the target had keys of its own before the first one of ours; None: not known (yet).
    Column("held_before", Boolean),
    Column("report", _JSON),
    Column("changed_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("request", String(20), nullable=False),
    Column("refusal", Text, nullable=False),
    # How many events it has had: the number of the newest.
    Column("events", Integer, nullable=False),
    Index("migrations_of_group", "group_id", "id"),
    # No two of one group that go on, whatever a program does.
    Index("migration_not_over", "group_id", unique=True, sqlite_where=_NOT_OVER),
)


def complete_for(dialect: str) -> None:
    """What the tables need in a dialect other than SQLite's, whose name alone would import it: a
    fifth of what SQLAlchemy costs at a start."""
    for index in migrations.indexes:
        if index.name == "migration_not_over" and dialect == "postgresql":
            index.dialect_options[dialect]["where"] = _NOT_OVER


leases = Table(
    "leases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("migration_id", ForeignKey("migrations.id", ondelete="CASCADE"), nullable=False),
    # Counts the workers that it was given to.
    Column("term", Integer, nullable=False),
    # `lease.Worker`; None: none is named yet.
    Column("worker", _JSON),
    # Both by the clock of the database (`now`).
    Column("renewed_at", Float, nullable=False),
    Column("ends_at", Float, nullable=False),
    Index("leases_of_migration", "migration_id"),
)

lanes = Table(
    "lanes",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("migration_id", ForeignKey("migrations.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(40), nullable=False),
    Column("source_url", Text, nullable=False),
    # The shard's name where the source is a cluster; else empty.
    Column("shard", Text, nullable=False),
    # The slots that it covers, as ranges: "0-5460 10923".
    Column("slots", Text, nullable=False),
    Column("lease_id", ForeignKey("leases.id", ondelete="CASCADE"), nullable=False),
    Column("progress", _JSON),
    UniqueConstraint("migration_id", "name"),
)

# What a lane with a cluster at an end is planned for (`model.lane_plan.PlannedLane`).
lane_plans = Table(
    "lane_plans",
    metadata,
    Column(
        "lane_id",
        ForeignKey("lanes.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("plan", _JSON, nullable=False),
)

# How fast a migration is to move data, where the operator has said so since its start, and whether
# it is paused. Its settings have the rates too.
steering = Table(
    "steering",
    metadata,
    Column(
        "migration_id",
        ForeignKey("migrations.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("paused", Boolean, nullable=False),
    Column("max_rate", BigInteger, nullable=False),
    Column("max_key_rate", BigInteger, nullable=False),
)

# The shards of a group that is a cluster, as it has told last (`model.group_shards`).
shards = Table(
    "shards",
    metadata,
    Column(
        "group_id",
        ForeignKey("replication_groups.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("shards", _JSON, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column(
        "lane_id",
        ForeignKey("lanes.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("checkpoint", _JSON, nullable=False),
    Column("saved_at", Float, nullable=False),
)

# Migrations whose source's clients are disconnected behind the cut-over, and by which worker. The
# columns have the names of version 1, so that a process of that version goes on with its row.
disconnections = Table(
    "disconnections",
    metadata,
    Column(
        "transfer_id",
        ForeignKey("migrations.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("attempt", Integer, nullable=False),
    Column("until", Float, nullable=False),
    # Why it is over; empty: it goes on.
    Column("ended", Text, nullable=False),
    # `lease.Worker`, and when it last wrote, by the clock of the database.
    Column("process", _JSON),
    Column("heartbeat_at", Float, nullable=False),
    Column("clients", _JSON, nullable=False),
)

# The newest verification of a group, and the process that does it (`verifications`).
verifications = Table(
    "verifications",
    metadata,
    Column(
        "group_id",
        ForeignKey("replication_groups.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("number", Integer, nullable=False),
    Column("source_url", Text, nullable=False),
    # How the keys are compared, by the names of `model.proof.ProofSettings`; and `resume`.
    Column("asked", _JSON, nullable=False),
    Column("began_at", Float, nullable=False),
    Column("ended_at", Float),
    Column("stop", Boolean, nullable=False),
    # `lease.Worker`, and when it last wrote, by the clock of the database.
    Column("process", _JSON),
    Column("heartbeat_at", Float, nullable=False),
    Column("progress", _JSON, nullable=False),
    Column("result", _JSON),
)

# No foreign keys: a group's events outlive it, as ElastiCache's do.
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("group_id", String(40), nullable=False),
    Column("at", Float, nullable=False),
    Column("message", Text, nullable=False),
    # The migration that it is of, and its number there; None: it is the group's alone, or was
    # written by an engine that knew no numbers.
    Column("migration_id", Integer),
    Column("number", Integer),
    Index("events_of_group", "group_id", "id"),
    Index("events_of_migration", "migration_id", "number", unique=True),
)


class now(FunctionElement[float]):  # noqa: N801 (a function of SQL)
    """Seconds since the epoch by the clock of the database, at the moment of the statement."""

    type = Float()
    inherit_cache = True
    name = "seconds_now"


@compiles(now)
def _now(*_: Any, **__: Any) -> str:
    # Not CURRENT_TIMESTAMP, which is when the transaction began.
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(now, "sqlite")
def _now_of_sqlite(*_: Any, **__: Any) -> str:
    # 'now' has milliseconds; unixepoch with a fraction needs SQLite 3.42.
    return "((julianday('now') - 2440587.5) * 86400.0)"
