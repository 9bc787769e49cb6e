"""--wait: stay with a migration that a worker process carries out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from engine.cli import report_summary
from engine.cli.error_output import lost_writes
from engine.cli.output_format import as_text
from engine.cli.program_name import command
from engine.cli.progress_display import display
from engine.errors import EngineError
from engine.model.report import Report

if TYPE_CHECKING:
    from engine.front.engine import Engine


async def follow(
    engine: Engine, replication_group_id: str, until: Literal["in-sync", "available"]
) -> dict[str, Any]:
    """Show the migration's progress until it is there; return the group as it then is, and the
    `Report` if the migration has ended.

    Raises what the migration failed with.
    """
    with display() as shown:
        end = await engine.wait(
            replication_group_id,
            until=until,
            on_progress=shown.update,
            on_event=shown.note,
            supervise=True,
        )
    answer = await engine.describe_replication_groups(replication_group_id)
    response: dict[str, Any] = {"ReplicationGroup": answer["ReplicationGroups"][0]}
    if isinstance(end, Report):
        response["Report"] = end.to_dict()
    return response


def as_shown(response: dict[str, Any]) -> str:
    """The group, and the report as a table, if there is one."""
    shown = {name: each for name, each in response.items() if name not in ("Report", "Checks")}
    text = as_text(shown)
    if "Report" in response:
        text += f"\n\n{report_summary.as_text(Report.from_dict(response['Report']))}"
    return text


def lacking(response: dict[str, Any]) -> EngineError | None:
    """What the source has acknowledged behind the cut-over; None: nothing that is known."""
    if "Report" not in response:
        return None
    return lost_writes(Report.from_dict(response["Report"]))


def how_to_go_on(replication_group_id: str, state: str | None) -> str:
    """What to say when a user stops waiting: the worker does not stop with us."""
    options = (("--replication-group-id", replication_group_id), ("--state", state))
    look = command("describe-replication-groups", *options)
    stop = command("complete-migration", *options)
    return (
        f"The migration goes on in its worker process.\n"
        f"To look at it:  {look}\n"
        f"To abort it (no cut-over):  {stop} --force"
    )
