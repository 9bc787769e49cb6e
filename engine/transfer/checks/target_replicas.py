"""Whether the target has as many replicas as `--durability` asks for, by the check's name."""

from __future__ import annotations

from engine.model.settings import TransferSettings
from engine.transfer.checks.check_result import Check, failed, passed
from engine.wire.control_connection import Admin


async def check_durability(target: Admin, settings: TransferSettings) -> Check | None:
    """None where no replica is asked for, or the target does not say how many it has. Raises
    `EngineError` where it cannot be asked."""
    name = "durability"
    wanted = settings.target_replicas
    if not wanted:
        return None
    reply = await target.call("INFO", "replication")
    if not isinstance(reply, bytes):
        return None
    attached = sum(
        line.startswith(b"slave") and b"state=online" in line for line in reply.splitlines()
    )
    figure = f"{target.endpoint.address} has {attached} replicas in step, {wanted} are asked for"
    if attached >= wanted:
        return passed(name, figure)
    return failed(
        name,
        f"{figure}: no cut-over would be through",
        "Attach them (REPLICAOF), or ask for fewer: --durability replicas=N.",
    )
