"""Which server takes the source's writes: the primary at the head of its chain of replication.

A replica may be followed as well as a primary: its stream is its primary's, byte for byte and by
the same offsets (from Redis 4.0 on), under the same replid. But the writes are blocked at the
head, and the offset that counts is told there.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from engine.errors import (
    AuthError,
    LinkError,
    ProtocolFault,
    ServerError,
    TransferFailed,
    UsageError,
)
from engine.model.endpoint import Endpoint
from engine.model.replication import Replication, parse_replication
from engine.model.server import ServerInfo
from engine.transfer.control_connections import Endpoints
from engine.wire.control_connection import Admin, admin

# A chain that is longer is taken for one without a head.
HOPS_MOST = 8
_WITHOUT_IT = (
    "--fence hook or --fence none, and complete-migration --skip-verification, with what the "
    "replica has"
)


@dataclass(frozen=True, slots=True)
class Head:
    """The primary at the head. `address` is its `host:port`, as the replica below it names it, or
    empty where it is the source itself; `chain` are the run ids from the source to the head."""

    endpoint: Endpoint
    info: ServerInfo
    address: str
    chain: tuple[str, ...]

    @property
    def primary(self) -> Endpoint | None:
        """Where the writes are taken; None: it is the source itself. (One that is looked up is
        named all the same: its name may lead to another server in a moment.)"""
        return self.endpoint if self.address else None

    @property
    def is_above(self) -> bool:
        """Whether the source is a replica of it, and so answers while all clients of the head are
        paused."""
        return len(self.chain) > 1


class Heads:
    """Walks up from the source. Keeps its connections; not for two tasks at once."""

    def __init__(self, ends: Endpoints) -> None:
        self._ends = ends
        self._stack = contextlib.AsyncExitStack()
        self._dialled: dict[str, Admin] = {}

    async def find(self) -> Head:
        """The head of the source's chain.

        Raises `TransferFailed` with the reason: a server on the way cannot be reached or asked, a
        replica has lost its primary, or there is no head, or its offsets are not the source's.
        """
        chain: list[str] = []
        first: ServerInfo | None = None
        async for address, info in self._up(chain):
            first = first or info
            if not info.is_replica:
                self._check_one_stream(first, info, address)
                if not address and self._ends.source.looked_up:
                    # The server itself: another one may be named in a moment.
                    address = self._dialled[""].endpoint.address
                return Head(self._ends.beside_source(address), info, address, tuple(chain))
            if not info.primary_link_up:
                here = address or self._ends.source.address
                raise self._failed(
                    f"{here} is a replica of {info.primary} and has lost its link to it: what is "
                    "written there does not arrive"
                )
        raise AssertionError("a walk ends at a primary")

    async def chain(self) -> tuple[str, ...]:
        """The run ids from the source upwards, as far as they can be learnt. Raises nothing."""
        chain: list[str] = []
        with contextlib.suppress(TransferFailed):
            async for _ in self._up(chain):
                pass
        return tuple(chain)

    async def ask(self, address: str, below: str = "") -> ServerInfo:
        """What the server at `address` says of itself; the source where it is empty.

        `below`: the address of its replica, for messages. Raises `TransferFailed`.
        """
        return await self._ask(address, below)

    async def replication(self, head: Head) -> Replication | None:
        """What the head says of its replicas, over the connection by which it was found; None where
        it does not. Raises `LinkError`, `AuthError`, `ServerError`."""
        # (The source's own connection leads elsewhere when another server is named: it is kept by
        # no address.)
        end = self._dialled.get(head.address) or self._dialled[""]
        return parse_replication(await end.call("INFO", "replication"))

    async def _up(self, chain: list[str]) -> AsyncIterator[tuple[str, ServerInfo]]:
        """(address, INFO) of the source, its primary, and so on up to a primary. Each run id joins
        `chain` before. Raises `TransferFailed`."""
        address = below = ""
        while len(chain) <= HOPS_MOST:
            info = await self._ask(address, below)
            if info.run_id and info.run_id in chain:
                raise self._failed(f"the source's chain of replication is a circle at {address}")
            chain.append(info.run_id)
            yield address, info
            if not info.is_replica:
                return
            below = address or self._ends.source.address
            if not info.primary:
                raise self._failed(f"{below} is a replica and does not name its primary")
            address = info.primary
        raise self._failed(f"the source is a replica of more than {HOPS_MOST} servers in a chain")

    async def close(self) -> None:
        """Let go of the connections."""
        self._dialled.clear()
        await self._stack.aclose()

    async def _ask(self, address: str, below: str) -> ServerInfo:
        try:
            end = self._dialled.get(address)
            if end is None:
                if len(self._dialled) > HOPS_MOST:
                    # Of chains that are no more.
                    await self.close()
                end = self._dialled[address] = await self._stack.enter_async_context(
                    admin(
                        self._ends.beside_source(address),
                        timeout=self._ends.settings.connect_timeout,
                        fault="source",
                        # What a server says is its primary is that one, and not the server which
                        # is followed in its place since an earlier failover.
                        straight=bool(address),
                    )
                )
            return await end.info()
        except (LinkError, AuthError, ServerError, ProtocolFault, UsageError) as exc:
            # What it is dialled by may lead elsewhere the next time.
            self._dialled.pop(address, None)
            if not address:
                raise self._failed(f"the source's role is not known: {exc.message}") from None
            raise TransferFailed(
                f"{below} is a replica of {address}, which cannot be asked: {exc.message}",
                remedy="Writes are blocked at that primary. Make it reachable from here, with "
                f"credentials for its host; or choose {_WITHOUT_IT}.",
                fault="source",
            ) from None

    def _check_one_stream(self, source: ServerInfo, head: ServerInfo, address: str) -> None:
        if not address:
            return
        if not (source.replid and head.replid):
            raise self._failed(
                f"the source is a replica of {address}, and does not say whether their offsets are "
                "one stream's (before Redis 4.0 they are not)"
            )
        if source.replid != head.replid:
            raise self._failed(
                f"the source is a replica of {address}, and has another replication history than it"
            )

    def _failed(self, message: str) -> TransferFailed:
        remedy = f"Name the primary as the source; or choose {_WITHOUT_IT}."
        if self._ends.source.from_replica:
            remedy = (
                "Another replica, or the primary, is read in a moment: then repeat the command."
            )
        return TransferFailed(message, remedy=remedy, fault="source")
