"""What is declared in one place, and looked for in all others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = "engine/model/server_capabilities.py"


def python_files() -> Iterator[tuple[str, ast.Module]]:
    """Each file of the engine, as (path in the project, its tree)."""
    for path in sorted((ROOT / "engine").rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


# --- Versions of servers ---


def _is_release(node: ast.AST) -> bool:
    """Whether it is a release as it is written: (7, 0, 0)."""
    return isinstance(node, ast.Tuple) and (
        len(node.elts) == 3
        and all(isinstance(each, ast.Constant) and type(each.value) is int for each in node.elts)
    )


def compared_versions(tree: ast.AST) -> Iterator[int]:
    """The lines on which a server's version is held against another, or its flavour asked for."""
    releases = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and any(map(_is_release, ast.walk(node.value)))
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Compare):
            continue
        orders = any(isinstance(each, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for each in node.ops)
        for operand in (node.left, *node.comparators):
            named = isinstance(operand, ast.Name) and operand.id in releases
            attribute = operand.attr if isinstance(operand, ast.Attribute) else ""
            if attribute == "flavour" or (
                # `version` of an IP address is compared for equality alone.
                orders and (named or attribute == "version" or _is_release(operand))
            ):
                yield node.lineno


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("if info.version >= (7, 0, 0): ...", True),
        ("if (7, 0, 0) > info.version: ...", True),
        ("old = self._source.info.version < since", True),
        ("if info.flavour != 'redis': ...", True),
        ("_SINCE = (6, 2, 0)\nold = told < _SINCE", True),
        ("since = (9, 0, 0) if valkey else (7, 4, 0)\nnew = told >= since", True),
        ("if info.capabilities.streams: ...", False),
        ("if address.version == 4: ...", False),
        ("right = (1, 2, 3)\nfew = left < 3", False),
    ],
)
def test_a_comparison_is_known(text: str, found: bool) -> None:
    assert bool(list(compared_versions(ast.parse(text)))) is found


def test_versions_are_compared_in_one_place() -> None:
    """Whoever wants to know what a server can do asks its `capabilities`."""
    # A file of RDB versions, not of servers.
    elsewhere = {"engine/model/newer_rdb_features.py"}
    found = [
        f"{path}:{line}"
        for path, tree in python_files()
        if path != CAPABILITIES and path not in elsewhere
        for line in compared_versions(tree)
    ]
    assert not found
    assert list(compared_versions(ast.parse((ROOT / CAPABILITIES).read_text())))


# --- Trying again ---

ERRORS = {"LinkError", "ServerError", "EngineError", "OSError", "ConnectionError", "Exception"}
# These loops are no retries: they go on whether or not the last round failed.
PERIODIC = {
    "engine/front/http/feed.py": "looks at the state each second, for as long as somebody watches",
    "engine/front/http/tls_handshake_limits.py": "accepts one connection after another",
    "engine/front/migration_keeper.py": "looks at every migration each second",
    "engine/sources/source_monitor.py": "asks the source twice a second",
    "engine/transfer/sentinel_monitor.py": "listens to one Sentinel after another",
}


def retries(tree: ast.AST) -> Iterator[int]:
    """The loops that catch a failure, and wait."""
    for loop in ast.walk(tree):
        if not isinstance(loop, ast.While | ast.For | ast.AsyncFor):
            continue
        inside = [each for part in loop.body for each in ast.walk(part)]
        catches = any(
            isinstance(name, ast.Name)
            and (name.id in ERRORS or name.id.endswith(("Error", "Fault")))
            for each in inside
            if isinstance(each, ast.ExceptHandler) and each.type is not None
            for name in ast.walk(each.type)
        )
        waits = any(
            isinstance(each, ast.Call)
            and isinstance(each.func, ast.Attribute)
            and each.func.attr == "sleep"
            for each in inside
        )
        if catches and waits:
            yield loop.lineno


def test_a_retry_is_known() -> None:
    body = "    try:\n        dial()\n    except LinkError:\n        pass\n"
    assert list(retries(ast.parse(f"while True:\n{body}    time.sleep(1)"))) == [1]
    assert list(retries(ast.parse(f"for _ in range(3):\n{body}    await asyncio.sleep(1)"))) == [1]
    assert not list(retries(ast.parse(f"while True:\n{body}")))
    assert not list(retries(ast.parse("while look():\n    time.sleep(1)")))


def test_what_failed_is_tried_again_in_one_place() -> None:
    """`model.retry` is that place."""
    found = {path: list(retries(tree)) for path, tree in python_files()}
    with_loops = {path for path, lines in found.items() if lines}
    assert with_loops == set(PERIODIC)


def test_what_waits_between_tries_is_asked_in_one_place() -> None:
    """`Patience.failed` is called by `Attempts`, and where a try is a step of another machine."""
    machines = {
        # A transaction, and a window of records, are looked at before and behind the pause.
        "engine/targets/applier.py",
        "engine/targets/writer.py",
    }
    found = {
        path
        for path, tree in python_files()
        for each in ast.walk(tree)
        if isinstance(each, ast.Call)
        and isinstance(each.func, ast.Attribute)
        and each.func.attr == "failed"
        and "patience" in ast.unparse(each.func.value)
    }
    assert found == machines
