"""The table of `docs/servers.md`: what is promised of each server, and what a server itself shows.

    python -m tests.support.server_table          print the table, as the document has to have it

`promised` asks the engine's own functions; `measured` asks a running server. The tests hold the two
against each other for each server of the machine, and the document against the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields

import redis

from benches.support.servers import Server
from engine.model.server import ServerInfo
from engine.model.server_capabilities import Flavour, Version
from engine.transfer import hold_source, write_block

HEADS = (
    "Server",
    "Tried with",
    "Into it",
    "Payload",
    "Writes held off by",
    "Refused afterwards by",
    "Scripts behind the cut-over",
    "Functions",
    "Field TTLs",
)
# Releases from which on something in a row changes, and the newest that is known; the release that
# the tests run with where `make servers` has been run.
SERVERS: tuple[tuple[Flavour, str, str], ...] = (
    ("redis", "2.8", "2.8.17"),
    ("redis", "3.0", "3.0.5"),
    ("redis", "3.2", "3.2.6"),
    ("redis", "4.0", ""),
    ("redis", "5.0", "5.0.6"),
    ("redis", "6.0", "6.0.16"),
    ("redis", "6.2", "6.2.14"),
    ("redis", "7.0", "7.0.15"),
    ("redis", "7.2", ""),
    ("redis", "7.4", "7.4.1"),
    ("redis", "8.0", "8.0.2"),
    ("redis", "8.2", "8.2.3"),
    ("redis", "8.4", ""),
    ("redis", "8.6", "8.6.3"),
    ("redis", "8.8", ""),
    ("redis", "8.10", ""),
    ("redis", "8.12", ""),
    ("valkey", "7.2", ""),
    ("valkey", "8.0", ""),
    ("valkey", "8.1", "8.1.8"),
    ("valkey", "9.0", ""),
    ("valkey", "9.1", "9.1.2"),
    ("valkey", "9.2", ""),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one server, in the words of the table. `payload`: the RDB version of what it DUMPs."""

    into: str
    payload: str
    held_off: str
    refused: str
    scripts: str
    functions: str
    field_ttls: str


def promised(flavour: Flavour, version: Version) -> Facts:
    """What the engine takes such a server for."""
    info = ServerInfo(flavour, version)
    able = info.capabilities
    behind = "paused" if hold_source.needed(info) else "counted"
    if able.pause_of_writes:
        held_off = "CLIENT PAUSE WRITE"
    else:
        held_off = "CLIENT PAUSE" if able.client_pause else "the setting"
    return Facts(
        "yes" if able.restore_absttl else "refused",
        str(able.rdb_version),
        held_off,
        write_block.setting_of(info),
        "refused" if able.refuses_writes_of_scripts else behind,
        # The engine asks each server (FUNCTION DUMP), whatever its version.
        "yes" if version >= (7, 0, 0) else "",
        "yes" if able.field_ttls else "",
    )


def measured(server: Server) -> Facts:
    """The same, as this server shows it. Its keys and settings are not as they were afterwards."""
    client = server.client()
    client.set("key", "value")
    payload = client.dump("key")
    assert payload is not None
    far = 4_000_000_000_000
    into = _does(client, "RESTORE", "other", far, payload, "REPLACE", "ABSTTL")
    pausing = _does(client, "CLIENT", "PAUSE", 0)
    pausing_writes = _does(client, "CLIENT", "PAUSE", 0, "WRITE")
    names = ("min-replicas-to-write", "min-slaves-to-write")
    setting = next(name for name in names if client.config_get(name))
    client.config_set(setting, 1)
    lua = "return redis.call('set', KEYS[1], 'x')"
    run = _does(client, "EVAL", lua, 1, "key")
    behind = "counted" if not pausing else "paused"
    if pausing_writes:
        held_off = "CLIENT PAUSE WRITE"
    else:
        held_off = "CLIENT PAUSE" if pausing else "the setting"
    return Facts(
        "yes" if into else "refused",
        str(int.from_bytes(payload[-10:-8], "little")),
        held_off,
        setting,
        behind if run else "refused",
        "yes" if _does(client, "FUNCTION", "LIST") else "",
        "yes" if _does(client, "HPTTL", "none", "FIELDS", 1, "f") else "",
    )


def table() -> str:
    """The table, as Markdown."""
    return "\n".join(_lines()) + "\n"


def parsed(text: str) -> Version:
    """A release's version; what it does not say is 0."""
    major, minor, patch = (*map(int, text.split(".")), 0, 0)[:3]
    return major, minor, patch


def _lines() -> Iterator[str]:
    yield f"| {' | '.join(HEADS)} |"
    yield "|---" * len(HEADS) + "|"
    assert len(HEADS) == len(fields(Facts)) + 2
    for flavour, series, tried in SERVERS:
        facts = promised(flavour, parsed(tried or series))
        cells = (f"{flavour.capitalize()} {series}", tried or "–", *astuple(facts))
        yield f"| {' | '.join(cells)} |"


def _does(client: redis.Redis, *command: str | int | bytes) -> bool:
    try:
        client.execute_command(*command)
    except redis.ResponseError:
        return False
    return True


if __name__ == "__main__":
    print(table(), end="")
