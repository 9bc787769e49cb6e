"""How a process begins and ends that does something for one group: its log, its exit code."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from engine import logs
from engine.errors import EngineError
from engine.fleet import run
from engine.logs import output as log_output


def main_of(
    module: str,
    what: str,
    work: Callable[..., Coroutine[Any, Any, int]],
    arguments: Sequence[str],
    numbers: Sequence[str] = (),
) -> int:
    """Do `work(group, number …)` as the `arguments` say; its exit code, 1 where it fails, 2 where
    they are not understood.

    `module` is what was run, `what` the process's name in sentences; `numbers` names the arguments
    behind the group, each of which may be left out with those that follow.
    """
    log = logs.logger(module)
    log_output.to_stderr(*log_output.from_environment())
    group, *rest = arguments or ("",)
    if not group or len(rest) > len(numbers) or not all(each.isdigit() for each in rest):
        optional = "".join(f" [{each}" for each in numbers) + "]" * len(numbers)
        log.error("usage: python -m %s GROUP%s", module, optional)
        return 2
    with logs.migration(group):
        try:
            return run(work(group, *map(int, rest)))
        except EngineError as error:
            log.error("%s: %s", type(error).__name__, error)
        except Exception:
            log.exception("The %s has a bug", what)
        return 1
