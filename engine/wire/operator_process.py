"""What a command of the operator's that the engine runs is given of the engine's environment."""

from __future__ import annotations

import os

_OURS = "STARTMIGRATION_"


def environment() -> dict[str, str]:
    """Our environment without what is ours: credentials and the state's URL hold secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
