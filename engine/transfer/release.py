"""The seal's end, on the operator's word: the source takes writes again, which nobody carries."""

from __future__ import annotations

from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.settings import TransferSettings
from engine.transfer import seal
from engine.wire.admin import admin


async def release(
    source: Endpoint,
    sealed_at: str,
    before: str,
    settings: TransferSettings,
    credentials: Credentials,
) -> str:
    """Put back what the seal has changed, where the settings were `before`.

    That is at the server `sealed_at` (`host:port`, the primary of a source that is a replica), or
    at the source where it is empty. Returns what was done, a sentence: nothing, if the settings are
    no longer the seal's. Raises `LinkError`, `ServerError`, `AuthError`, `ProtocolFault`,
    `UsageError`.
    """
    at = credentials.beside(source, sealed_at) if sealed_at else source
    async with admin(at, timeout=settings.connect_timeout, fault="source") as end:
        done = await seal.put_back(end, before)
    name = f"the source's primary {at.address}" if sealed_at else f"the source {at.address}"
    if done:
        return f"{name} takes writes again, which nobody carries: {seal.remedy(before)}"
    return (
        f"nothing was to be done: {name} does not refuse writes any more as the cut-over left it "
        "(it was released before, or restarted, or somebody has set it)"
    )
