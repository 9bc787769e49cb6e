"""start-migration: a worker process begins to move the source's data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.cli.follow import as_told, follow, how_to_go_on
from engine.cli.options import (
    DEFAULTS,
    SPOOL_BYTES,
    CutOverTimeoutOption,
    DatabaseOption,
    EndpointsOption,
    FenceHookOption,
    FenceOption,
    GroupOption,
    IfExistsOption,
    MatchOption,
    OutputOption,
    SourceAfterOption,
    SourceTypeOption,
    SpoolBytesOption,
    SpoolDirectoryOption,
    StateOption,
    TuneSourceOption,
    TypeOption,
    UntilOption,
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
    source_type: SourceTypeOption = DEFAULTS.source_type,
    match: MatchOption = None,
    key_type: TypeOption = None,
    db: DatabaseOption = None,
    if_exists: IfExistsOption = DEFAULTS.if_exists,
    until: UntilOption = DEFAULTS.until,
    fence: FenceOption = DEFAULTS.fence,
    fence_hook: FenceHookOption = None,
    cut_over_timeout: CutOverTimeoutOption = DEFAULTS.cut_over_timeout,
    source_after: SourceAfterOption = DEFAULTS.source_after,
    spool_directory: SpoolDirectoryOption = None,
    spool_bytes: SpoolBytesOption = SPOOL_BYTES,
    tune_source: TuneSourceOption = False,
    wait: WaitOption = False,
    state: StateOption = None,
    output: OutputOption = "text",
) -> None:
    """Start a migration, in a worker process.

    Returns at once; with --wait when it can be completed. complete-migration comes next.
    """
    nodes = endpoints(customer_node_endpoint_list)
    wanted = settings(
        source_type=source_type,
        match=match,
        key_type=key_type,
        databases=db,
        if_exists=if_exists,
        until=until,
        fence=fence,
        fence_hook=fence_hook,
        cut_over_timeout=cut_over_timeout,
        source_after=source_after,
        spool_directory=spool_directory,
        spool_bytes=spool_bytes,
        tune_source=tune_source,
    )
    started = False

    async def start(engine: Engine) -> dict[str, Any]:
        nonlocal started
        response = await engine.start_migration(replication_group_id, nodes, settings=wanted)
        started = True
        return await follow(engine, replication_group_id, "in-sync") if wait else response

    respond(
        state,
        output,
        start,
        as_told=as_told,
        on_interrupt=lambda: how_to_go_on(replication_group_id, state) if started else "",
    )
