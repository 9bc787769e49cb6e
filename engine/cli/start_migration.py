"""start-migration: a worker process begins to move the source's data."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from engine.cli import log_options
from engine.cli.check_table import warnings
from engine.cli.common_options import (
    EndpointsOption,
    GroupOption,
    OutputOption,
    StateOption,
    WaitOption,
    endpoints,
)
from engine.cli.log_options import LogFormatOption, LogLevelOption, VerboseOption
from engine.cli.transfer_options import with_transfer_options
from engine.cli.verb_runner import respond
from engine.cli.wait_option import as_shown, follow, how_to_go_on
from engine.model.settings import TransferSettings

if TYPE_CHECKING:
    from engine.front.engine import Engine


@with_transfer_options
def start_migration(
    replication_group_id: GroupOption,
    customer_node_endpoint_list: EndpointsOption,
    wanted: TransferSettings,
    wait: WaitOption = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    verbose: VerboseOption = 0,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Start a migration, in a worker process.

    The checks of test-migration come first, and nothing starts if one fails. Returns at once; with
    --wait when it can be completed. complete-migration comes next.
    """
    nodes = endpoints(customer_node_endpoint_list)
    log_options.hand_on(log_level, log_format, verbose)
    started = False

    async def start(engine: Engine) -> dict[str, Any]:
        nonlocal started
        response = await engine.start_migration(replication_group_id, nodes, settings=wanted)
        started = True
        for warning in warnings(response["Checks"]):
            print(warning, file=sys.stderr)
        return await follow(engine, replication_group_id, "in-sync") if wait else response

    respond(
        state,
        output,
        start,
        as_shown=as_shown,
        on_interrupt=lambda: how_to_go_on(replication_group_id, state) if started else "",
    )
