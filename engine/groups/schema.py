"""The tables of the state.

A change that an older engine would misread is a new SCHEMA_VERSION. A table that is added is not
one: it is created in a state that lacks it, and an older engine passes it over.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
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
)

SCHEMA_VERSION = 1

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

transfers = Table(
    "transfers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("group_id", ForeignKey("replication_groups.id", ondelete="CASCADE"), nullable=False),
    Column("status", String(20), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("source_urls", _JSON, nullable=False),
    Column("target_url", Text, nullable=False),
    Column("settings", _JSON, nullable=False),
    # Whether the target had keys of its own before the first one of ours; None: not known (yet).
    Column("held_before", Boolean),
    Column("progress", _JSON),
    Column("report", _JSON),
    Column("process", _JSON),
    Column("heartbeat_at", Float, nullable=False),
    Column("changed_at", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("request", String(20), nullable=False),
    Column("refusal", Text, nullable=False),
    Index("transfers_of_group", "group_id", "id"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column(
        "transfer_id",
        ForeignKey("transfers.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("checkpoint", _JSON, nullable=False),
    Column("saved_at", Float, nullable=False),
)

# Migrations whose source's clients are disconnected behind the cut-over, and by which process.
disconnections = Table(
    "disconnections",
    metadata,
    Column(
        "transfer_id",
        ForeignKey("transfers.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("attempt", Integer, nullable=False),
    Column("until", Float, nullable=False),
    # Why it is over; empty: it goes on.
    Column("ended", Text, nullable=False),
    Column("process", _JSON),
    Column("heartbeat_at", Float, nullable=False),
    Column("clients", _JSON, nullable=False),
)

# No foreign key: a group's events outlive it, as ElastiCache's do.
events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("group_id", String(40), nullable=False),
    Column("at", Float, nullable=False),
    Column("message", Text, nullable=False),
    Index("events_of_group", "group_id", "id"),
)
