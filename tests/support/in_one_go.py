"""`migrate`, the library's verb in one go, in this process: of servers, and of files."""

from __future__ import annotations

from typing import Any

from engine.front.engine import Engine
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.report import Report
from engine.model.settings import TransferSettings
from engine.wire.event_loop import run


def migrate(state: str, source: str, target: str, **settings: Any) -> tuple[Report, list[str]]:
    """Migrate in this process; the report and what was said."""
    told: list[str] = []

    async def main() -> Report:
        engine = Engine(state, credentials=Credentials(()))
        try:
            return await engine.migrate(
                Endpoint.parse(source),
                Endpoint.parse(target),
                settings=TransferSettings(**settings),
                on_event=told.append,
                on_progress=lambda progress: told.append(progress.reason),
            )
        finally:
            engine.close()

    return run(main()), told
