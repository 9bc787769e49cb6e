"""The table of codes that say "not now", and that it is the only one."""

from __future__ import annotations

import ast
from pathlib import Path

from engine.model.transient_errors import DIAL_AGAIN, TRANSIENT_ERRORS, remedies, transient

ENGINE = Path(__file__).parents[2] / "engine"
CODES = {each.code for each in TRANSIENT_ERRORS}


def test_the_table() -> None:
    assert len(CODES) == len(TRANSIENT_ERRORS)
    assert transient("answer") < transient("psync") < transient("psync") | transient("write")
    assert remedies("write").keys() == transient("write")
    assert all(remedy.endswith(".") for remedy in remedies("write").values())
    assert CODES >= DIAL_AGAIN


def test_no_other_list_of_such_codes() -> None:
    found = []
    for path in ENGINE.rglob("*.py"):
        if path.name == "transient_errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Set | ast.List | ast.Tuple):
                members: list[ast.expr | None] = list(node.elts)
            elif isinstance(node, ast.Dict):
                members = list(node.keys)
            else:
                continue
            codes = [
                each.value
                for each in members
                if isinstance(each, ast.Constant) and each.value in CODES
            ]
            if len(codes) > 1:
                found.append(f"{path.relative_to(ENGINE)}:{node.lineno}: {codes}")
    assert not found
