"""The house's plan, held to: who may import whom, and what lives in one place only.

The table is the one of docs/architecture.md. A file imports from lower ranks or from its own
package; packages of one rank are strangers to each other. What a file imports for type checking
only counts as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

RANKS = {
    "errors": 0,
    "logs": 0,
    "_native": 0,
    "model": 1,
    "wire": 2,
    "groups": 2,
    "sources": 3,
    "targets": 3,
    "transfer": 4,
    "verify": 4,
    "inspect": 4,
    "proof": 4,
    "fleet": 5,
    "front": 6,
    "cli": 7,
    # The library's face and the way in: they may import everything, and nothing imports them.
    "__init__": 8,
    "__main__": 8,
}

# What the ranks alone would allow.
NEVER = {
    "sources": {"targets"},
    "targets": {"sources"},
    "transfer": {"groups", "front", "cli"},
    "front": {"_native", "wire", "sources", "targets"},
    # It shares no reading code with what it checks.
    "proof": {"sources", "targets"},
}

# But for these parts: what a comparison repairs is written as a migration writes it.
BUT = {("proof", "targets"): {"rebuilt_values"}}

# Top-level modules that are imported in these rooms and nowhere else.
ONE_HOME = {
    "sqlalchemy": {"groups"},
    # The state; and what a comparison that is cut off goes on with.
    "sqlite3": {"groups", "proof"},
    "redis": {"wire"},
    # The loop's policy is the wire's; a worker process of the fleet runs on that loop.
    "uvloop": {"wire", "fleet"},
    "ray": {"fleet"},
    "typer": {"cli"},
    "rich": {"cli"},
    "xml": {"front"},
    # The HTTP face: the service model's shapes are data. The wire: tokens that AWS takes.
    "botocore": {"front", "wire"},
    "prometheus_client": {"front"},
    "starlette": {"front"},
    "uvicorn": {"front"},
}

# What the faces may import of the fleet: its functions, what chooses a launcher, and the one of the
# calling process. Which kinds there are else, and what a worker is, they do not know.
FLEET_FACE = {"launcher", "inline"}
FLEET_PARTS = {path.stem for path in (ROOT / "engine" / "fleet").glob("*.py")} - {"__init__"}

# Workers are processes for the fleet alone.
PROCESSES = re.compile(r"\bProcessId\b|\bos\.kill\b|\bwaitpid\b|\bposix_spawn\b|\bPopen\b")

# The core parses and encodes; sockets live one layer up.
SOCKETS = re.compile(
    r"sys/(?:socket|epoll)\.h|netinet/|arpa/inet\.h|\b(?:import|cimport)\s+(?:socket|select|asyncio)\b"
    r"|\bfrom\s+(?:socket|select|asyncio|posix\.\w*socket)\b"
    r"|\b(?:socket|getaddrinfo|setsockopt|epoll_\w+|recv(?:from|msg)?|send(?:to|msg|file))\s*\("
)


def room_of(path: Path) -> str:
    """The name in `RANKS` for a file given relative to engine/: wire/dial.py is `wire`."""
    return path.parts[0].removesuffix(".py")


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import; `from a import b` gives a.b.

    `path` is relative to engine/, and resolves relative imports.
    """
    package = ["engine", *path.parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            # Level 1 is the file's own package, each one more is a package further up.
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{stem}.{alias.name}"


def violations(source: str, path: Path) -> list[str]:
    """What `source`, the text of the file engine/`path`, imports against the plan."""
    room = room_of(path)
    if room not in RANKS:
        return [f"engine/{path}: the room {room!r} is not in the table"]
    found = []
    for line, name in imports(ast.parse(source), path):
        where = f"engine/{path}:{line}"
        top, _, rest = name.partition(".")
        if top != "engine":
            if room not in ONE_HOME.get(top, {room}):
                homes = ", ".join(sorted(ONE_HOME[top]))
                found.append(f"{where}: {top} is at home in {homes}, not in {room}")
            continue
        # `from engine import Engine` names no room: it is the face that is imported.
        other = rest.partition(".")[0]
        other = other if other in RANKS else "__init__"
        if other == room:
            continue
        part = rest.split(".")[1] if rest.count(".") else ""
        if other == "fleet" and part in FLEET_PARTS - FLEET_FACE:
            found.append(f"{where}: {room} knows nothing of fleet.{part}")
        elif other in NEVER.get(room, set()) and part not in BUT.get((room, other), set()):
            found.append(f"{where}: {room} never imports {other}")
        elif RANKS[other] == RANKS[room]:
            found.append(f"{where}: {room} and {other} are of one rank, and strangers")
        elif RANKS[other] > RANKS[room]:
            found.append(f"{where}: {room} imports upwards, from {other}")
    return found


def code_of(source: str) -> str:
    """Cython source without its docstrings and comments (near enough for a search)."""
    source = re.sub(r'"""(?s:.*?)"""', lambda text: "\n" * text[0].count("\n"), source)
    return re.sub(r"#(?!\s*include).*", "", source)


def sockets_in(source: str) -> list[str]:
    """The socket calls in Cython source, with their lines."""
    lines = code_of(source).splitlines()
    return [f"{n}: {line.strip()}" for n, line in enumerate(lines, 1) if SOCKETS.search(line)]


ENGINE_FILES = sorted(path.relative_to(ROOT / "engine") for path in ROOT.glob("engine/**/*.py"))
CORE_FILES = sorted(path for path in (ROOT / "ext").iterdir() if path.suffix in {".pyx", ".pxi"})


def test_there_is_something_to_check() -> None:
    assert ENGINE_FILES
    assert CORE_FILES


@pytest.mark.parametrize("path", ENGINE_FILES, ids=str)
def test_imports_follow_the_plan(path: Path) -> None:
    assert violations((ROOT / "engine" / path).read_text(), path) == []


def test_workers_are_processes_for_the_fleet_alone() -> None:
    found = [
        f"{path}: {line.strip()}"
        for path in ENGINE_FILES
        if room_of(path) in ("groups", "front", "cli")
        for line in (ROOT / "engine" / path).read_text().splitlines()
        if PROCESSES.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: path.name)
def test_the_core_knows_no_sockets(path: Path) -> None:
    assert sockets_in(path.read_text()) == []


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("model/key.py", "from engine.wire import dial", "upwards"),
        ("model/key.py", "from engine import Engine", "upwards"),
        ("model/key.py", "import engine", "upwards"),
        ("errors.py", "import engine._native", "strangers"),
        ("wire/dial.py", "from engine.groups.store import Store", "strangers"),
        ("wire/dial.py", "from ..groups import store", "strangers"),
        ("sources/scan.py", "from engine.targets.base import Target", "never"),
        ("targets/writer.py", "from engine.sources import base", "never"),
        ("targets/writer.py", "from .. import sources", "never"),
        ("transfer/run.py", "def f():\n    from engine.groups import store", "2: transfer never"),
        ("transfer/run.py", "import engine.cli", "never"),
        ("transfer/run.py", "from engine.verify import digest", "strangers"),
        ("proof/walk.py", "from engine.transfer.copy import Copy", "strangers"),
        ("proof/walk.py", "from engine.sources.scan import ScanSource", "never"),
        ("front/ops.py", "from engine import _native", "never"),
        ("front/ops.py", "from engine.wire.control_connection import Admin", "never"),
        ("front/ops.py", "import sqlalchemy as sa", "at home in groups"),
        ("cli/show.py", "import redis.asyncio", "at home in wire"),
        ("cli/show.py", "from redis import Redis", "at home in wire"),
        ("fleet/pool.py", "from rich.console import Console", "at home in cli"),
        ("front/ops.py", "from engine.fleet import local", "nothing of fleet.local"),
        (
            "cli/show.py",
            "from engine.fleet.process_identity import ProcessId",
            "nothing of fleet.process_identity",
        ),
        ("cellar/wine.py", "", "not in the table"),
        (
            "sources/scan.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import engine.transfer.run",
            "3: sources imports upwards",
        ),
    ],
)
def test_the_checker_complains(path: str, source: str, complaint: str) -> None:
    found = violations(source, Path(path))
    assert len(found) == 1
    assert complaint in found[0]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("transfer/run.py", "from engine.sources.base import Source\nimport engine.targets.base"),
        ("transfer/run.py", "from . import phases\nfrom .phases import MOVES\nimport asyncio"),
        ("wire/dial.py", "import uvloop, redis\nfrom engine.errors import EngineError"),
        ("wire/dial.py", "from engine import _native, errors"),
        ("__init__.py", "from engine.front import ops"),
        ("__main__.py", "from engine.cli.app import app"),
        ("cli/__main__.py", "from engine.fleet import pool\nimport typer"),
        ("front/ops.py", "from engine.fleet.launcher import launcher\nfrom engine import fleet"),
    ],
)
def test_the_checker_is_content(path: str, source: str) -> None:
    assert violations(source, Path(path)) == []


@pytest.mark.parametrize(
    "line",
    [
        'cdef extern from "<sys/socket.h>":',
        "import socket",
        "    got = recv(fd, buf, size, 0)",
        "from asyncio import Protocol",
    ],
)
def test_sockets_are_found(line: str) -> None:
    assert sockets_in(f"cdef int x\n{line}\n") == [f"2: {line.strip()}"]


def test_words_about_sockets_are_not_sockets() -> None:
    assert (
        sockets_in('"""Bytes of a recv() call.\n\nsocket(2)\n"""\n# send() them: sendmsg(\n') == []
    )


def test_benchmarks_import_nothing_of_the_tests() -> None:
    """What both need lies in benches/support."""
    for path in sorted((ROOT / "benches").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(each.split(".")[0] == "tests" for each in names), path
