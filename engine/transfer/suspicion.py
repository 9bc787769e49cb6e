"""When what an outage may have cost is known for certain to be mended.

Lifted deadlines (`transfer.deadlines`) and import mode keep keys from expiring on a target that is
behind. Where neither holds for some keys (a deadline that was far when it was given is near by now;
a cut-over that was refused had set them back; the target was restarted and has forgotten its import
mode) an outage leaves the target *suspect*: a key may have expired there whose deadline the source
has put off in the meantime. A suspect target's follower has every key read again that a command
names. When may it stop?

Let t be a moment from which on no key of the target expires by itself: import mode is on, or all
near deadlines have been lifted by a pass over the target (what is given or read from then on is
lifted as ever, and far deadlines stay far for an hour, by which time there was another pass). Let K
be a key that expired on the target, at d <= t, and lives on at the source. The source ran a command
that put its deadline off before d, so before t: its offset is at most O, the source's offset when
asked after t. That command names K, and is applied before O is passed, so K is read again. A key
that expired at both ends is deleted by the source's DEL. Hence: *behind O the target is not suspect
any more*, however much is being written.

So that there is seldom anything to be suspected, the pass does not wait for an outage: it is made
as soon as deadlines may be near.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from engine.errors import AuthError, LinkError, ServerError


class Suspicion:
    """Ends a target's being suspect.

    `keep_all` returns when no key of the target expires by itself any more (t above);
    `source_offset` asks the source, None: it cannot be asked just now.
    """

    def __init__(
        self,
        keep_all: Callable[[], Awaitable[None]],
        source_offset: Callable[[], Awaitable[int | None]],
    ) -> None:
        self._keep_all = keep_all
        self._source_offset = source_offset
        self._pass: asyncio.Task[None] | None = None
        self._until: int | None = None
        self._outages = 0
        self.refused = False
        """The target does not let us keep its keys: nothing proves the end."""

    def begin(self) -> None:
        """There was an outage just now: the offset is to be asked for anew."""
        self._until = None
        self._outages += 1

    @property
    def busy(self) -> bool:
        """Whether a pass is under way."""
        return self._pass is not None and not self._pass.done()

    def is_kept(self) -> bool:
        """Whether no key of the target expires by itself any more: enough, where there was no
        outage meanwhile. Call it now and then; `done` says that it has served.

        Raises `EngineError` that no later call would mend.
        """
        if self._pass is None:
            self._pass = asyncio.ensure_future(self._keep_all())
        if not self._pass.done():
            return False
        error = None if self._pass.cancelled() else self._pass.exception()
        if isinstance(error, LinkError):
            self._pass = None
            return False
        if isinstance(error, AuthError | ServerError):
            self.refused = True
            return False
        if error is not None:
            raise error
        return True

    def done(self) -> None:
        """The next time there may be near deadlines again."""
        self._pass = self._until = None

    async def is_over(self, applied: int) -> bool:
        """Whether everything up to the offset `applied` is enough after an outage. As `is_kept`."""
        if not self.is_kept():
            return False
        if self._until is None:
            outages = self._outages
            asked = await self._source_offset()
            if outages == self._outages:
                self._until = asked
        return self._until is not None and applied >= self._until

    async def close(self) -> None:
        """Let go of a pass that is under way."""
        if self._pass is not None and not self._pass.done():
            self._pass.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._pass
