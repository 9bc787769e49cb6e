"""Near expire times, extended until the cut-over.

A key that goes over with its expire time can expire on the target before the stream's command that
extends it arrives: gone on the target, alive on the source, and no command says so. It takes no
more than a link that is down for a second. So where the target has no import mode, near expire
times (`extend_horizon`) are extended by `EXTEND_MS`, in the snapshot and in the stream, and the
source's own DELs remove what really expires, as on a replica.

Before the cut-over the extended expire times are set back. An extended expire time says of itself
that it is one, and what it was, whatever key it was renamed or copied to and whichever engine
extended it; so a script on the target does it, a page of keys at a time, each atomically. The
engine that extends them keeps their names, up to a bound (`ExtendedNames`), so that it takes as
long as their number asks for. Where the names are not known (there were too many, another engine
has extended them, two databases were swapped, or an old source sends scripts that may move a key),
all keys are walked through.

Invariant. No expire time on the target that is not extended is due, and so nothing can expire there
before its time, however far the target is behind:

- The snapshot and the stream extend what is nearer than the horizon: what is left is due later than
  that. Long before the horizon is over everything that has become near is extended (`extend_all`).
- What is set back before the cut-over is due later than the cut-over can end (`restore_all` is told
  when that is); the rest stays extended, and is set back behind the fence, with everything applied.
- A cut-over that did not come off extends everything again.

Where it takes too long to extend them, because the target is stalled, say, or the engine was killed
in between, the target is *exposed* (`Doubt.EXPOSED`). Whatever the stream names from then
on is read again from the source (`transfer.stream_trust`), until the stream has passed the moment
when the invariant holds again.

A script is told until when it is valid, on the target's clock: one that was under way when its link
was lost must not set back what has been extended since, nor the other way round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from engine._native import ExtendedNames, key_slot
from engine.errors import AuthError, EngineError, ServerError
from engine.model.db_key import DbKey
from engine.model.lane_keys import KeysOfLane
from engine.model.online_checkpoint import EXTEND_MS
from engine.model.slots import SlotSet
from engine.model.transient_errors import OF_SLOT
from engine.wire.control_connection import Admin, Arg

_FAR_MS = EXTEND_MS // 2
_EVERY_MS = 2 * EXTEND_MS
_PAGE = 1000
_PAGES = 16
# What setting expire times back may take, in seconds: this, and so long for each key that has one.
_RESTORE_SECONDS = 5.0
_RESTORE_SECONDS_A_KEY = 1e-5
VALID_SECONDS = 3.0
"""How long a script may be under way."""
# Both scripts: keys; what counts as extended, by how much it is (ms), whether the server knows
# PEXPIRETIME (7.0), a bound (ms), until when it is valid (s). A script sees one moment's clock
# throughout.
_PROLOGUE = """
local time = redis.call('TIME')
if tonumber(time[1]) > tonumber(ARGV[5]) then
  return redis.error_reply('ERR this script comes too late')
end
local far, lift, exact = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local bound = tonumber(ARGV[4])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function left(key)
  local at
  if exact then
    at = redis.call('PEXPIRETIME', key)
    -- The server's own moment decides what has passed; it may be a little before TIME's.
    if at < 0 then return at end
    if at - now > 1000 and math.abs(at - now - lift) > 1000 then return at - now, at end
  end
  return redis.call('PTTL', key), at
end
local function move(key, ttl, at, by)
  if exact then
    redis.call('PEXPIREAT', key, string.format('%.0f', at + by))
  else
    redis.call('PEXPIRE', key, string.format('%.0f', ttl + by))
  end
end
"""
# Returns how many keys ended, and those that stay extended: they are due within the bound. An
# expire time that has passed deletes its key at once, which not every server counts as expired
# (`ServerCapabilities.counts_past_ttls`).
_RESTORE_TTLS = (
    _PROLOGUE
    + """
local lifted, ended = {}, 0
for _, key in ipairs(KEYS) do
  local ttl, at = left(key)
  if ttl > far then
    if ttl - lift < bound then
      lifted[#lifted + 1] = key
    else
      move(key, ttl, at, -lift)
      if ttl <= lift then ended = ended + 1 end
    end
  end
end
return {ended, lifted}
"""
)
# Extends what is due within the bound, and returns the keys; none of them ends.
_EXTEND = (
    _PROLOGUE
    + """
local lifted = {}
for _, key in ipairs(KEYS) do
  local ttl, at = left(key)
  if ttl >= 0 and ttl < bound then
    move(key, ttl, at, lift)
    lifted[#lifted + 1] = key
  end
end
return {0, lifted}
"""
)


class ExtendedTtls:
    """The extended expire times of one target, over one connection of the control plane.

    Raises `LinkError`, `ServerError`, and `AuthError` where the user may not run scripts. Keys that
    are renamed, copied or moved while all are gone through may be missed: what applies the
    stream knows of them.

    `slots`: the target is a cluster's node, where a script takes keys of one slot; keys of others
    than these are another lane's. None: a script takes all keys. `of`: of a target that others
    write to as well these keys are meant; no other one is touched.
    """

    def __init__(
        self, target: Admin, slots: SlotSet | None = None, *, of: KeysOfLane | None = None
    ) -> None:
        self._target = target
        self._slots = slots
        self._of = of or KeysOfLane()
        self.ended = 0
        """So many keys ended when their expire times were set back, which had passed."""
        self._exact: bool | None = None
        # The target's clock less the loop's, in seconds.
        self._skew: float | None = None

    async def prepare(self) -> None:
        """Learn what every script is told, so that a script costs one round trip from here on."""
        clock, known = await self._target.pipeline(
            [("TIME",), ("PEXPIRETIME", "startmigration:no-such-key")]
        )
        if isinstance(known, AuthError):
            raise known
        # Another node's slot is no answer to that.
        self._exact = not isinstance(known, ServerError) or known.code in OF_SLOT
        if isinstance(clock, EngineError):
            raise clock
        self._read_clock(clock)

    async def seconds(self, names: ExtendedNames) -> float:
        """What `restore_known` may take."""
        keys = len(names)
        if not names.known:
            keyspace = (await self._target.info()).keyspace
            keys = sum(each.keys for each in keyspace if each.expires)
        return _RESTORE_SECONDS + _RESTORE_SECONDS_A_KEY * keys

    async def now_ms(self) -> int:
        """What the target's clock shows, in ms since the epoch."""
        if self._skew is None:
            self._read_clock(await self._target.call("TIME"))
            assert self._skew is not None
        return int((asyncio.get_running_loop().time() + self._skew) * 1000)

    def _read_clock(self, reply: Any) -> None:
        seconds, micros = reply
        self._skew = int(seconds) + int(micros) / 1e6 - asyncio.get_running_loop().time()

    async def restore_known(self, names: ExtendedNames, due_by: float | None = None) -> list[DbKey]:
        """As `restore_all`, by the names of what is extended, if they are known."""
        found: list[DbKey] = []
        if names.known:
            for portion in names.pages(_PAGE * _PAGES):
                found += await self._some(_RESTORE_TTLS, portion, _until(due_by))
        # They may have become too many meanwhile.
        return found if names.known else await self.restore_all(due_by)

    async def restore_all(self, due_by: float | None = None) -> list[DbKey]:
        """Set every expire time back but those that are due before `due_by` (the loop's clock).

        None: however near, and what is due by now goes. Returns the keys that stay extended.
        """
        found: list[DbKey] = []
        await self._all(
            _RESTORE_TTLS,
            lambda: _until(due_by),
            lambda db, keys: found.extend((db, key) for key in keys),
        )
        return found

    async def restore(self, keys: Iterable[DbKey], due_by: float | None = None) -> list[DbKey]:
        """The same of these keys."""
        return await self._some(_RESTORE_TTLS, keys, _until(due_by))

    async def extend_all(self, horizon: float, names: ExtendedNames | None = None) -> None:
        """Extend every expire time that is nearer than `horizon` seconds; their keys go to
        `names`."""

        def note(db: int, keys: list[bytes]) -> None:
            if names is not None:
                for key in keys:
                    names.add(db, key)

        await self._all(_EXTEND, lambda: int(horizon * 1000), note)

    async def extend(self, keys: Iterable[DbKey], horizon: float) -> None:
        """Extend the TTLs of those of these keys."""
        await self._some(_EXTEND, keys, int(horizon * 1000))

    async def _all(
        self,
        script: str,
        bound: Callable[[], int],
        take: Callable[[int, list[bytes]], None],
    ) -> None:
        """Walk through the databases that have expire times; `take` is given what a page
        returns."""
        for entry in (await self._target.info()).keyspace:
            if not entry.expires or not self._of.takes_db(entry.db):
                continue
            await self._target.select(entry.db)
            cursor, keys = await self._target.call("SCAN", 0, "COUNT", _PAGE)
            while keys or cursor != b"0":
                # The next page comes with the answer about this one.
                pages = self._pages(self._of.among(entry.db, keys))
                commands = [await self._command(script, page, bound()) for page in pages]
                if cursor != b"0":
                    commands.append(("SCAN", cursor, "COUNT", _PAGE))
                if not commands:
                    break
                replies = await self._target.pipeline(commands, raise_on_error=True)
                for reply in replies[: len(pages)]:
                    take(entry.db, self._touched(reply))
                cursor, keys = replies[-1] if cursor != b"0" else (b"0", [])

    async def _some(self, script: str, keys: Iterable[DbKey], bound: int) -> list[DbKey]:
        """Up to `_PAGES` pages of keys in a round trip, of whichever databases."""
        by_db: dict[int, list[bytes]] = {}
        for db, key in keys:
            by_db.setdefault(db, []).append(key)
        pages = [
            (db, page)
            for db, names in by_db.items()
            for page in self._pages(self._of.among(db, names))
        ]
        found: list[DbKey] = []
        at_once = _PAGES if self._slots is None else _PAGE
        for first in range(0, len(pages), at_once):
            portion = pages[first : first + at_once]
            commands: list[tuple[Arg, ...]] = []
            for db, page in portion:
                commands += [("SELECT", db), await self._command(script, page, bound)]
            replies = await self._target.pipeline(commands, raise_on_error=True)
            for (db, _), left in zip(portion, replies[1::2], strict=True):
                found += [(db, key) for key in self._touched(left)]
        return found

    def _pages(self, names: list[bytes]) -> list[list[bytes]]:
        """The keys that a script is given at once."""
        groups = [names]
        if self._slots is not None:
            slots: dict[int, list[bytes]] = {}
            for name in names:
                slots.setdefault(key_slot(name), []).append(name)
            groups = [page for slot, page in slots.items() if slot in self._slots]
        return [group[at : at + _PAGE] for group in groups for at in range(0, len(group), _PAGE)]

    def _touched(self, reply: tuple[int, list[bytes]]) -> list[bytes]:
        """The keys that a script names; those that it ended are counted."""
        ended, keys = reply
        self.ended += ended
        return keys

    async def _command(self, script: str, keys: list[bytes], bound: int) -> tuple[Arg, ...]:
        if self._exact is None:
            await self.prepare()
        exact = "1" if self._exact else "0"
        valid = await self.now_ms() // 1000 + int(VALID_SECONDS) - 1
        return ("EVAL", script, len(keys), *keys, _FAR_MS, EXTEND_MS, exact, bound, valid)


def _until(moment: float | None) -> int:
    if moment is None:
        return -_EVERY_MS
    return max(int((moment - asyncio.get_running_loop().time()) * 1000), 0)
