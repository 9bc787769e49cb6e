"""A state as the engine's first schema version has left it: its tables, word for word."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

# What that version's `CREATE TABLE`s were in SQLite; types are PostgreSQL's as well.
TABLES = """
CREATE TABLE schema_version (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);
CREATE TABLE replication_groups (
    id VARCHAR(40) NOT NULL,
    description TEXT NOT NULL,
    status VARCHAR(20) NOT NULL,
    cluster_enabled BOOLEAN NOT NULL,
    primary_url TEXT NOT NULL,
    created_at FLOAT NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE transfers (
    id {serial} NOT NULL,
    group_id VARCHAR(40) NOT NULL,
    status VARCHAR(20) NOT NULL,
    attempt INTEGER NOT NULL,
    source_urls JSON NOT NULL,
    target_url TEXT NOT NULL,
    settings JSON NOT NULL,
    held_before BOOLEAN,
    progress JSON,
    report JSON,
    process JSON,
    heartbeat_at FLOAT NOT NULL,
    changed_at FLOAT NOT NULL,
    created_at FLOAT NOT NULL,
    request VARCHAR(20) NOT NULL,
    refusal TEXT NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(group_id) REFERENCES replication_groups (id) ON DELETE CASCADE
);
CREATE INDEX transfers_of_group ON transfers (group_id, id);
CREATE TABLE checkpoints (
    transfer_id INTEGER NOT NULL,
    checkpoint JSON NOT NULL,
    saved_at FLOAT NOT NULL,
    PRIMARY KEY (transfer_id),
    FOREIGN KEY(transfer_id) REFERENCES transfers (id) ON DELETE CASCADE
);
CREATE TABLE events (
    id {serial} NOT NULL,
    group_id VARCHAR(40) NOT NULL,
    at FLOAT NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX events_of_group ON events (group_id, id);
"""
# Tables that came with later engines of that version.
LATER_TABLES = """
CREATE TABLE engines (
    group_id VARCHAR(40) NOT NULL,
    engine VARCHAR(20) NOT NULL,
    PRIMARY KEY (group_id),
    FOREIGN KEY(group_id) REFERENCES replication_groups (id) ON DELETE CASCADE
);
CREATE TABLE disconnections (
    transfer_id INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    until FLOAT NOT NULL,
    ended TEXT NOT NULL,
    process JSON,
    heartbeat_at FLOAT NOT NULL,
    clients JSON NOT NULL,
    PRIMARY KEY (transfer_id),
    FOREIGN KEY(transfer_id) REFERENCES transfers (id) ON DELETE CASCADE
);
"""


def statements(*, later: bool = True, serial: str = "INTEGER") -> list[str]:
    """What makes the tables; `serial` is the type of a number that is drawn."""
    text = TABLES + (LATER_TABLES if later else "")
    return [each.format(serial=serial) for each in text.split(";") if each.strip()]


def make(path: Path, *, later: bool = True) -> sqlite3.Connection:
    """An empty one. `later`: of the last engine of that version, not of the first one."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    for each in statements(later=later):
        connection.execute(each)
    connection.execute("INSERT INTO schema_version VALUES (1)")
    return connection


def taken_from(newer: Path, older: Path, process: dict[str, Any]) -> None:
    """Write what a state of this version says into one of that version, whose worker is `process`.

    The values' own form (progress, position) is the same in both, but for a setting's name.
    """
    source = sqlite3.connect(newer)
    made = make(older)
    made.executemany(
        "INSERT INTO replication_groups VALUES (?, ?, ?, ?, ?, ?)",
        source.execute(
            "SELECT id, description, status, cluster_enabled, primary_url, created_at "
            "FROM replication_groups"
        ),
    )
    now = time.time()
    rows = source.execute(
        "SELECT m.id, m.group_id, m.status, s.term, m.source_urls, m.target_url, m.settings, "
        "m.held_before, l.progress, m.report, m.changed_at, m.created_at, m.request, m.refusal "
        "FROM migrations m JOIN lanes l ON l.migration_id = m.id JOIN leases s ON s.id = l.lease_id"
    )
    for row in rows:
        settings = json.loads(row[6])
        settings["hold_horizon"] = settings.pop("extend_horizon")
        values = (*row[:6], json.dumps(settings), *row[7:10], json.dumps(process), now, *row[10:])
        made.execute(f"INSERT INTO transfers VALUES ({', '.join('?' * 16)})", values)
    made.executemany(
        "INSERT INTO checkpoints VALUES (?, ?, ?)",
        source.execute(
            "SELECT l.migration_id, c.checkpoint, c.saved_at "
            "FROM checkpoints c JOIN lanes l ON l.id = c.lane_id"
        ),
    )
    made.executemany(
        "INSERT INTO events VALUES (?, ?, ?, ?)",
        source.execute("SELECT id, group_id, at, message FROM events"),
    )
    made.close()
    source.close()
