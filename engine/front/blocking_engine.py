"""The sync face: each operation on an event loop of its own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from engine import fleet
from engine.errors import UsageError
from engine.front.engine import Engine

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(
    method: Callable[Concatenate[Engine, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[BlockingEngine, P], T]:
    def call(self: BlockingEngine, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return fleet.run(method(self.engine, *args, **kwargs))
        raise UsageError(
            f"Engine.sync.{method.__name__} was called where an event loop runs",
            remedy=f"Await Engine.{method.__name__} instead.",
        )

    return functools.update_wrapper(call, method)


class BlockingEngine:
    """`Engine`'s operations, blocking; each has the parameters, result and errors of its namesake.

    Where an event loop runs already they raise `UsageError`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    register_replication_group = _blocking(Engine.register_replication_group)
    test_migration = _blocking(Engine.test_migration)
    start_migration = _blocking(Engine.start_migration)
    complete_migration = _blocking(Engine.complete_migration)
    unblock_source = _blocking(Engine.unblock_source)
    release_source = _blocking(Engine.release_source)
    disconnect_clients = _blocking(Engine.disconnect_clients)
    set_migration_rate = _blocking(Engine.set_migration_rate)
    pause_migration = _blocking(Engine.pause_migration)
    continue_migration = _blocking(Engine.continue_migration)
    resume_migration = _blocking(Engine.resume_migration)
    verify_replication_group = _blocking(Engine.verify_replication_group)
    describe_replication_groups = _blocking(Engine.describe_replication_groups)
    describe_events = _blocking(Engine.describe_events)
    page_events = _blocking(Engine.page_events)
    delete_replication_group = _blocking(Engine.delete_replication_group)
    wait = _blocking(Engine.wait)
    migrate = _blocking(Engine.migrate)
    verify = _blocking(Engine.verify)
