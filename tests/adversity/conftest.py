"""What adversity tests may ask for beside servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benches.support.engines import Cli, Migration


@pytest.fixture
def migration(
    state_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Migration]:
    """A group under the command line; what it has started is ended."""
    found = Migration(Cli(state_url, tmp_path), seed=request.node.name)
    yield found
    found.close()
