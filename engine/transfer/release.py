"""The seal's end, on the operator's word: the source takes writes again, which nobody carries."""

from __future__ import annotations

from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.transfer import seal
from engine.wire.admin import admin


async def release(source: Endpoint, before: str, settings: TransferSettings) -> str:
    """Put back what the seal has changed at the source, whose settings were `before`.

    Returns what was done, a sentence: nothing, if they are no longer the seal's. Raises
    `LinkError`, `ServerError`, `AuthError`, `ProtocolFault`.
    """
    async with admin(source, timeout=settings.connect_timeout, fault="source") as end:
        done = await seal.put_back(end, before)
    if done:
        return (
            f"the source {source.address} takes writes again, which nobody carries: "
            f"{seal.remedy(before)}"
        )
    return (
        f"nothing was to be done: the source {source.address} does not refuse writes any more as "
        "the cut-over left it (it was released before, or restarted, or somebody has set it)"
    )
