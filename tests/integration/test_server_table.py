"""What the documentation promises of each server is what a server of that version shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from benches.support.servers import Binary, binaries, extra_binaries
from tests.support.server_table import SERVERS, measured, parsed, promised, table
from tests.support.servers import ServerFactory

DOCUMENT = Path(__file__).parents[2] / "docs" / "servers.md"


@pytest.mark.parametrize("binary", [*binaries(), *extra_binaries()], ids=str)
def test_a_server_is_as_promised(binary: Binary, server_factory: ServerFactory) -> None:
    facts = measured(server_factory(binary))
    assert facts == promised(binary.flavour, binary.version)
    (promise,) = {
        promised(flavour, parsed(tried or series))
        for flavour, series, tried in SERVERS
        if flavour == binary.flavour and parsed(series)[:2] == binary.version[:2]
    }
    assert promise == facts


def test_the_document_has_the_table() -> None:
    """To bring it up to date: python -m tests.support.server_table."""
    assert table() in DOCUMENT.read_text()
