"""The table of docs/options.md, from what is declared of each setting (`model.setting`):

    python -m engine.cli.options_page docs/options.md

puts it into the page; a test holds the page against this.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from engine.cli.transfer_options import KINDS
from engine.model.setting import Setting
from engine.model.settings import SETTINGS

HEAD = "| option | default | what it says | field |\n|---|---|---|---|\n"
"""The table begins so."""


def table() -> str:
    """The table, from its head to its last row."""
    return HEAD + "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in _rows())


def with_table(page: str) -> str:
    """`page` with this table in the place of its own. Raises `ValueError` if it has none."""
    found = re.subn(rf"(?m){re.escape(HEAD)}(\|.*\n)*", lambda _: table(), page, count=1)
    if not found[1]:
        raise ValueError("the page has no table of options")
    return found[0]


def row(each: Setting) -> tuple[str, str, str, str]:
    """The row of one setting: option, default, what it says, and the field where its name is not
    the option's."""
    if not each.option:
        return "(library)", each.shown, each.row, f"`{each.name}`"
    plain = each.flag.removeprefix("--").replace("-", "_") == each.name
    field = "" if plain else f"`{each.name}`"
    return _option(each.flag, _value(each)), _default(each), each.row, field


def _rows() -> Iterator[tuple[str, str, str, str]]:
    told = [each for each in SETTINGS if each.row]
    for each in sorted(told, key=lambda each: not each.option):
        yield row(each)
        if (short := each.shorthand) is not None:
            yield _option(short.option, short.metavar), "none", short.row, ""


def _option(name: str, value: str) -> str:
    return f"`{name}{value and ' '}{value}`".replace("|", "\\|")


def _value(each: Setting) -> str:
    if each.kind == "yes-no":
        return "yes|no"
    return "|".join(each.words) or each.metavar or ""


def _default(each: Setting) -> str:
    if each.shown or each.default in (None, ()):
        return each.shown or "none"
    if each.kind == "flag":
        return "on" if each.default else "off"
    (text,) = KINDS[each.kind].write(each.default)
    return f"`{text:g}`" if isinstance(text, float) else f"`{text}`"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        file = Path(name)
        file.write_text(with_table(file.read_text()))
