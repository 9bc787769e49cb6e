"""Whether the target can do what `--durability` asks for, by the check's name."""

from __future__ import annotations

from engine.errors import AuthError, ServerError
from engine.model.settings import TransferSettings
from engine.transfer.checks.check_result import Check, failed, passed, warned
from engine.wire.control_connection import Admin


async def check_durability(target: Admin, settings: TransferSettings) -> Check | None:
    """None where no replica is asked for. Raises `EngineError` where it cannot be asked."""
    name = "durability"
    wanted = settings.target_replicas
    if not wanted:
        return None
    address = target.endpoint.address
    try:
        await target.call("WAIT", 0, 1)
    except (AuthError, ServerError) as error:
        return failed(
            name,
            f"{address} refuses WAIT, which no cut-over goes without: {error.message}",
            "Grant its user +wait, or leave out --durability.",
        )
    found = (await target.info()).replicas_in_step
    if found is not None and found >= wanted:
        return passed(name, f"{address} has {found} replicas in step, {wanted} are asked for")
    has = "does not say how many replicas it has" if found is None else f"has {found} replicas"
    in_step = "" if found is None else " in step"
    return warned(
        name,
        f"{address} {has}{in_step}, {wanted} are asked for: no cut-over comes to its end before",
        "Attach them (REPLICAOF) by then, or ask for fewer: --durability replicas=N.",
    )
