"""Waits until replicas of the target have what was written to it (`--durability replicas=N`).

WAIT counts what its own connection has written: from Redis 8.0 on, and in Valkey, one that has
written nothing is answered at once. So a key of the engine's own is written and removed first; all
that the target was sent before lies in front of that in what its replicas get.
"""

from __future__ import annotations

from engine.errors import EngineError, ProtocolFault
from engine.transfer.control_connections import Endpoints
from engine.transfer.cut_over_barrier import Refused

# Should the engine die between the two, the key ends by itself.
_ENDS_MS = 60_000
# From the end of a WAIT to the end of waiting for its answer, in seconds.
_ANSWER_SECONDS = 0.5


class TargetReplicas:
    """The replicas of one lane's target."""

    def __init__(self, ends: Endpoints) -> None:
        self._ends = ends

    async def wait(self, token: str, seconds: float) -> None:
        """Wait until as many as are asked for have everything. Raises `Refused` where they have not
        within `seconds`, and `EngineError`."""
        wanted = self._ends.settings.target_replicas
        if not wanted:
            return
        key = self._ends.own_keys(token).wait
        bound = min(seconds, self._ends.settings.io_timeout) - _ANSWER_SECONDS
        milliseconds = max(int(bound * 1000), 1)
        async with self._ends.admin("target") as end:
            replies = await end.pipeline(
                [
                    ("SET", key, "1", "PX", _ENDS_MS),
                    ("DEL", key),
                    ("WAIT", wanted, milliseconds),
                ]
            )
            for reply in replies:
                if isinstance(reply, EngineError):
                    raise reply
            found = replies[-1]
            if not isinstance(found, int):
                raise ProtocolFault(f"{end.name} answered WAIT without a number", fault="target")
            if found < wanted:
                raise Refused(
                    f"{found} of the {wanted} replicas of {end.name} that are asked for "
                    f"(--durability) have everything within {milliseconds / 1000:.1f} s"
                )
