"""unblock-source: the write block of a cut-over is taken off the source again."""

from __future__ import annotations

from engine.errors import LinkError
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.retry import Deadline, retry
from engine.model.settings import TransferSettings
from engine.transfer import hold_source, write_block
from engine.wire.control_connection import admin

_AGAIN_SECONDS = 0.5


async def unblock(
    source: Endpoint,
    sealed_at: str,
    before: str,
    settings: TransferSettings,
    credentials: Credentials,
    *,
    script_pause: bool = False,
) -> str:
    """Put back what the write block has changed, where the settings were `before`.

    That is at the server `sealed_at` (`host:port`, the primary of a source that is a replica), or
    at the source where it is empty. `script_pause`: its clients may be paused
    (`transfer.hold_source`), and we with them, until the last pause has run out. Returns what was
    done, a sentence: nothing, if the settings are no longer the write block's. Raises `LinkError`,
    `ServerError`, `AuthError`, `ProtocolFault`, `UsageError`.
    """
    at = credentials.beside(source, sealed_at) if sealed_at else source
    done = await _put_back(at, before, settings.connect_timeout, script_pause)
    name = f"the source's primary {at.address}" if sealed_at else f"the source {at.address}"
    if done:
        return (
            f"{name} accepts writes again; they are no longer replicated to the target: "
            f"{write_block.remedy(before)}"
        )
    return (
        f"nothing was done: {name} accepts writes already (unblock-source was run before, or the "
        "server was restarted, or another client has changed the setting)"
    )


async def _put_back(at: Endpoint, before: str, timeout: float, script_pause: bool) -> bool:
    """As `write_block.put_back`, over a connection of its own."""
    # The process that pauses the clients does not know yet that it is over.
    deadline = Deadline(2 * hold_source.SECONDS if script_pause else 0.0, _AGAIN_SECONDS)

    async def once() -> bool:
        async with admin(at, timeout=timeout + deadline.left, fault="source") as end:
            return await write_block.put_back(end, before)

    return await retry(once, deadline, lambda error: isinstance(error, LinkError))
