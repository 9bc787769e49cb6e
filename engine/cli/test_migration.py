"""test-migration: the preflight, without moving anything."""

from __future__ import annotations

from typing import Any

from engine.cli.check_table import checks_table
from engine.cli.common_options import (
    EndpointsOption,
    GroupOption,
    OutputOption,
    StateOption,
    endpoints,
)
from engine.cli.error_output import show
from engine.cli.output_format import as_json
from engine.cli.transfer_options import with_transfer_options
from engine.cli.verb_runner import fail, perform
from engine.model.settings import TransferSettings


@with_transfer_options
def preflight(
    replication_group_id: GroupOption,
    customer_node_endpoint_list: EndpointsOption,
    wanted: TransferSettings,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Check whether a migration could start.

    Reach, versions, memory, permissions and more; nothing is moved. Exits with 1 if it could not.
    """
    nodes = endpoints(customer_node_endpoint_list)
    try:
        response = perform(
            state,
            lambda engine: engine.test_migration(replication_group_id, nodes, settings=wanted),
        )
    except Exception as error:
        checks = getattr(error, "checks", None)
        result: dict[str, Any] | None = None
        if checks:
            result = {"Checks": list(checks)}
            if output == "text":
                show(checks_table(checks))
        fail(error, output, result=result)
    if output == "json":
        show(as_json(response))
    else:
        show(checks_table(response["Checks"]))
