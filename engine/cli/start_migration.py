"""start-migration: a worker process begins to move the source's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.cli.follow import as_told, follow, how_to_go_on
from engine.cli.options import (
    DatabaseOption,
    EndpointsOption,
    GroupOption,
    IfExistsOption,
    MatchOption,
    OutputOption,
    SourceTypeOption,
    StateOption,
    TypeOption,
    WaitOption,
    endpoints,
    settings,
)
from engine.cli.session import respond

if TYPE_CHECKING:
    from engine.front.engine import Engine


def start_migration(
    replication_group_id: GroupOption,
    customer_node_endpoint_list: EndpointsOption,
    source_type: SourceTypeOption = "scan",
    match: MatchOption = None,
    key_type: TypeOption = None,
    db: DatabaseOption = None,
    if_exists: IfExistsOption = "replace",
    wait: WaitOption = False,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Start a migration, in a worker process.

    Returns at once; with --wait when every key has been copied. complete-migration comes next.
    """
    nodes = endpoints(customer_node_endpoint_list)
    wanted = settings(source_type, match, key_type, db, if_exists)
    started = False

    async def start(engine: Engine) -> dict[str, Any]:
        nonlocal started
        response = await engine.start_migration(replication_group_id, nodes, settings=wanted)
        started = True
        return await follow(engine, replication_group_id, "copied") if wait else response

    respond(
        state,
        output,
        start,
        as_told=as_told,
        on_interrupt=lambda: how_to_go_on(replication_group_id, state) if started else "",
    )
