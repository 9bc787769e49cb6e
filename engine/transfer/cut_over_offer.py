"""A lane that could be cut over, as the migration borrows it for the time of a cut-over."""

from __future__ import annotations

import asyncio


class Offer:
    """A lane that could be cut over, until what it does breaks; lent while a cut-over goes on.

    `followed`: what its follower is, and as long as that is the same one, equal; None: a snapshot
    has ended, and nothing is followed.
    """

    def __init__(self, followed: object) -> None:
        loop = asyncio.get_running_loop()
        self.followed = followed
        self.wanted: asyncio.Future[None] = loop.create_future()
        """Done when the migration wants it."""
        self.lent: asyncio.Future[None] = loop.create_future()
        """Done when nothing else is done with it; cancelled where the lane broke before."""
        self._back: asyncio.Future[bool] = loop.create_future()

    @property
    def returned(self) -> bool:
        """Whether it was given back, or withdrawn."""
        return self._back.done()

    @property
    def borrowed(self) -> bool:
        """Whether the migration has it just now."""
        return self.lent.done() and not self.lent.cancelled() and not self.returned

    def want(self) -> None:
        """Ask for it."""
        if not self.wanted.done():
            self.wanted.set_result(None)

    def give_back(self, *, over: bool) -> None:
        """The cut-over has come to its end; `over`: the target is open."""
        if not self._back.done():
            self._back.set_result(over)

    def fail(self, cause: Exception) -> None:
        """The cut-over has come to its end by `cause`, which is the lane's to deal with."""
        if not self._back.done():
            self._back.set_exception(cause)

    def withdraw(self) -> None:
        """The lane has come to its end, or has broken."""
        self.lent.cancel()
        self._back.cancel()

    async def lend(self) -> bool:
        """Let the migration have it; whether the target is open then. Raises as `fail` says."""
        self.lent.set_result(None)
        return await self._back


class TakenUpAnew(Exception):
    """A cut-over broke on another lane when this one had stopped to follow."""
