"""The documentation names what there is: files, tests, options, places within its own pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from engine.cli import options_page, transfer_options
from engine.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "findings/README.md"])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# A file below the folders that the pages speak of, with or without its first folder.
FILE = re.compile(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|pxi|pyx|pyi|md|js|sh|1|service))(?:::(\w+))?`")
PARENTS = ("", "engine/", "engine/front/", "docs/", "tests/")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")
VERB = re.compile(r"(?:^|[\s`(])(?:startmigration )([a-z][a-z-]+)", re.MULTILINE)
# Options of other programs that a page shows.
FURTHER = {
    "--query", "--endpoint-url", "--primary-cluster-id", "--port", "--source-type", "--output",
    "--replication-group-description", "--source-identifier", "--retain-primary-cluster",
    "--strict", "--sets", "--runs", "--smoke", "--keys", "--scale", "--compare", "--help",
    "--version", "--cluster", "--mixed",
}  # fmt: skip


def anchors(text: str) -> set[str]:
    """The places within a page that a link can lead to, as they are made of its headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", text), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", head.lower()) for head in heads)
    return {head.replace(" ", "-") for head in plain}


@cache
def options() -> set[str]:
    """Every option of every verb."""
    group = typer.main.get_command(app)
    verbs = group.commands.values()  # type: ignore[attr-defined]
    return {
        option
        for verb in verbs
        for parameter in verb.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }


def functions_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    for link in LINK.findall(page.read_text()):
        if "://" in link:
            continue
        path, _, place = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), link
        assert there.is_relative_to(ROOT), link
        if place:
            assert place in anchors(there.read_text()), link


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_files_and_tests_that_are_named_are_there(name: str) -> None:
    for path, test in FILE.findall((ROOT / name).read_text()):
        found = [ROOT / (parent + path) for parent in PARENTS if (ROOT / (parent + path)).exists()]
        assert found, path
        if test:
            assert test in functions_of(found[0]), f"{path}::{test}"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_options_and_verbs_that_are_named_are_there(name: str) -> None:
    text = (ROOT / name).read_text()
    assert set(OPTION.findall(text)) - options() - FURTHER == set()
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {verb for verb in VERB.findall(text) if "-" in verb} - set(verbs) == set()


def test_every_option_of_a_migration_is_explained() -> None:
    """Else: python -m engine.cli.options_page docs/options.md"""
    page = (ROOT / "docs/options.md").read_text()
    assert options_page.with_table(page) == page
    rows = re.findall(r"^\| `(--[a-z-]+)", page, re.MULTILINE)
    group = typer.main.get_command(app)
    given = group.commands["start-migration"].params  # type: ignore[attr-defined]
    ours = {
        parameter.opts[0] for parameter in given if parameter.name in transfer_options.PARAMETERS
    }
    assert len(ours) > 20
    assert ours - set(rows) == set()


def test_every_finding_is_listed() -> None:
    text = (ROOT / "findings/README.md").read_text()
    for script in (ROOT / "findings").glob("*.sh"):
        assert f"]({script.name})" in text, script.name
