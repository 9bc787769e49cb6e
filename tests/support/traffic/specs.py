"""What a server's write commands are, and what arguments they take, as the server says itself.

`COMMAND` names the commands and their flags (sub-commands have rows of their own), `COMMAND DOCS`
has each command's tree of arguments. Servers before 7.0 have no DOCS: theirs are the 7.0 server's,
from `arguments-7.0.json`, less what came after their version (every node says since when it is).

`python -m tests.support.traffic.specs PATH` writes that table anew from the first Redis 7.0 of the
machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benches.support.servers import Server, binaries

TABLE = Path(__file__).with_name("arguments-7.0.json")

Version = tuple[int, ...]

LEFT_OUT = {
    "migrate": "writes to a server of its own; what it does here is a DEL, and others do that",
    "cluster|flushslot": "answers only where there is a cluster",
}
"""Commands with the flag `write` that no traffic issues, each with the reason."""

LEFT_OUT_FLAGS = {"module": "a module's command: its types are the module's own"}

MODULE_PREFIXES = ("json.", "ft.", "ts.", "bf.", "cf.", "cms.", "topk.", "tdigest.", "graph.")
"""Commands of modules which some builds bundle without the flag."""

MAY_REPLICATE = (
    "eval",
    "evalsha",
    "fcall",
    "script|load",
    "script|flush",
    "publish",
    "spublish",
    "pfcount",
)
"""No flag `write`, but a replica is sent what they do, or they themselves."""


@dataclass(frozen=True, slots=True)
class Arg:
    """A node of a command's tree of arguments, named and typed as `COMMAND DOCS` does."""

    name: str
    kind: str
    token: str | None = None
    optional: bool = False
    multiple: bool = False
    token_each: bool = False
    since: Version = ()
    parts: tuple[Arg, ...] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """A command: `name` as COMMAND has it (`xgroup|create`), `group` as DOCS has it (`stream`)."""

    name: str
    group: str
    parts: tuple[Arg, ...]


@dataclass(frozen=True, slots=True)
class Specs:
    """The commands of one server: `write` are those that it flags so and that may be issued."""

    version: Version
    write: dict[str, Spec]
    others: dict[str, Spec]
    left_out: dict[str, str]

    def all(self) -> dict[str, Spec]:
        """Every command that traffic can be made of."""
        return {**self.write, **self.others}


def read_specs(client: redis.Redis) -> Specs:
    """Ask a server. `client` must speak RESP2; its reply callbacks are taken from it."""
    client.response_callbacks.clear()
    info = client.execute_command("INFO", "server").decode()
    facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    # Valkey goes on calling itself Redis 7.2.4 here, and says what it is beside it.
    version = _version(facts.get("valkey_version", facts["redis_version"]))
    flags = dict(_commands(client.execute_command("COMMAND")))
    if version >= (7, 0):
        docs = _documented(client.execute_command("COMMAND", "DOCS"))
    else:
        docs = _from_table(version, flags.keys())
    write: dict[str, Spec] = {}
    left_out: dict[str, str] = {}
    for name, of in flags.items():
        if "write" not in of:
            continue
        why = LEFT_OUT.get(name) or next(
            (LEFT_OUT_FLAGS[f] for f in of & LEFT_OUT_FLAGS.keys()), None
        )
        if why is None and name.lower().startswith(MODULE_PREFIXES):
            why = LEFT_OUT_FLAGS["module"]
        if why is not None:
            left_out[name] = why
            continue
        # Before 7.0 a container has one row: its sub-commands are those of the table.
        found = [each for each in docs if each == name or each.startswith(f"{name}|")]
        if not found:
            raise LookupError(f"no tree of arguments for the write command {name}")
        write |= {each: docs[each] for each in found}
    others = {name: docs[name] for name in MAY_REPLICATE if name in docs}
    return Specs(version, write, others, left_out)


def table_specs(version: Version) -> Specs:
    """What `read_specs` would say of a Redis of this version, which is not asked: all flags taken
    for `write`."""
    known = {name.split("|")[0] for name in json.loads(TABLE.read_text())}
    found = _from_table(version, known)
    others = {name: spec for name, spec in found.items() if name in MAY_REPLICATE}
    write = {name: spec for name, spec in found.items() if name not in MAY_REPLICATE}
    return Specs(version, write, others, {})


def _version(text: str) -> Version:
    return tuple(int(part) for part in text.strip().split(".")[:3])


def _commands(rows: list[Any]) -> Iterator[tuple[str, frozenset[str]]]:
    for row in rows:
        yield row[0].decode(), frozenset(flag.decode() for flag in row[2])
        if len(row) > 9:
            yield from _commands(row[9])


def _documented(reply: list[Any]) -> dict[str, Spec]:
    found: dict[str, Spec] = {}
    for name, rest in zip(reply[::2], reply[1::2], strict=True):
        facts = dict(zip(rest[::2], rest[1::2], strict=True))
        if b"subcommands" in facts:
            found |= _documented(facts[b"subcommands"])
            continue
        parts = tuple(_arg(each) for each in facts.get(b"arguments", []))
        found[name.decode()] = Spec(name.decode(), facts[b"group"].decode(), parts)
    return found


def _arg(row: list[Any]) -> Arg:
    facts = dict(zip(row[::2], row[1::2], strict=True))
    flags = facts.get(b"flags", [])
    return Arg(
        # 7.0 wrote some of the names with underscores.
        facts[b"name"].decode().replace("_", "-"),
        facts[b"type"].decode(),
        facts[b"token"].decode() if b"token" in facts else None,
        b"optional" in flags,
        b"multiple" in flags,
        b"multiple_token" in flags,
        _version(facts[b"since"].decode()) if b"since" in facts else (),
        tuple(_arg(each) for each in facts.get(b"arguments", [])),
    )


# ---------------------------------------------------------------------------------------------
# The table for servers before 7.0


def _from_table(version: Version, known: Any) -> dict[str, Spec]:
    found: dict[str, Spec] = {}
    for name, (group, since, rows) in json.loads(TABLE.read_text()).items():
        if name.split("|")[0] in known and tuple(since) <= version:
            parts = tuple(_without_later(_unpacked(row), version) for row in rows)
            found[name] = Spec(name, group, tuple(each for each in parts if each is not None))
    return found


def _unpacked(row: list[Any]) -> Arg:
    name, kind, token, flags, since, parts = row
    return Arg(
        name,
        kind,
        token,
        "o" in flags,
        "m" in flags,
        "t" in flags,
        tuple(since),
        tuple(_unpacked(each) for each in parts),
    )


def _without_later(arg: Arg, version: Version) -> Arg | None:
    if arg.since > version:
        return None
    kept = tuple(_without_later(each, version) for each in arg.parts)
    parts = tuple(each for each in kept if each is not None)
    if arg.parts and not parts:
        return None  # every choice of it came later
    return Arg(
        arg.name,
        arg.kind,
        arg.token,
        arg.optional,
        arg.multiple,
        arg.token_each,
        arg.since,
        parts,
    )


def _packed(arg: Arg) -> list[Any]:
    flags = "o" * arg.optional + "m" * arg.multiple + "t" * arg.token_each
    parts = [_packed(each) for each in arg.parts]
    return [arg.name, arg.kind, arg.token, flags, list(arg.since), parts]


def write_table(path: Path) -> None:
    """Make the table from a Redis 7.0: a line a command, so that it can be read and compared."""
    binary = next(each for each in binaries() if each.flavour == "redis" and each.version[0] == 7)
    with Server.start(binary) as server:
        client = server.client(protocol=2)
        specs = read_specs(client).all()
        since = _since(client.execute_command("COMMAND", "DOCS"))
    lines = [
        f"{json.dumps(name)}: "
        + json.dumps([spec.group, since[name], [_packed(each) for each in spec.parts]])
        for name, spec in sorted(specs.items())
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _since(reply: list[Any]) -> dict[str, Version]:
    found: dict[str, Version] = {}
    for name, rest in zip(reply[::2], reply[1::2], strict=True):
        facts = dict(zip(rest[::2], rest[1::2], strict=True))
        found[name.decode()] = _version(facts[b"since"].decode())
        found |= _since(facts.get(b"subcommands", []))
    return found


if __name__ == "__main__":
    write_table(Path(sys.argv[1]))
