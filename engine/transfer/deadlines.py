"""Near deadlines, lifted until the cut-over.

A key that goes over with its deadline can expire on the target before the stream's command that
extends it arrives: gone on the target, alive on the source, and nobody has said a word. It takes no
more than a link that is down for a second. So where the target has no import mode, near deadlines
(`hold_horizon`) are lifted by `LIFT_MS`, in the snapshot and in the stream, and the source's own
DELs remove what really expires, as on a replica. What was far when it was given may be near some
day: from then on an engine that has to catch up reads every key anew that is named meanwhile
(`OnlineMark.released`).

Before the cut-over the lifted deadlines are set back. A lifted deadline says of itself that it is
one, and what it was, whatever key it was renamed or copied to and whichever engine lifted it; so a
script on the target does it, a page of keys at a time, each atomically. Those that are due within
`NEAR_MS` stay lifted until the source's writers are held off and everything is applied.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

from engine.errors import AuthError, ServerError
from engine.wire.admin import Admin

LIFT_MS = 100 * 365 * 86_400_000
"""A hundred years: nobody's own deadline is so far off."""
NEAR_MS = 5_000
_FAR_MS = LIFT_MS // 2
_PAGE = 1000
# Keys; what counts as lifted, by how much it is, how near is too near (all ms). Returns the keys
# that stay lifted. Servers before 7.0 have PTTL alone; a script sees one moment's clock throughout.
_SCRIPT = """
local far, lift, near, exact = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local left = {}
for _, key in ipairs(KEYS) do
  local ttl = redis.call('PTTL', key)
  if ttl > far then
    if ttl - lift < near then
      left[#left + 1] = key
    elseif exact == '1' then
      local at = redis.call('PEXPIRETIME', key) - lift
      redis.call('PEXPIREAT', key, string.format('%.0f', at))
    else
      redis.call('PEXPIRE', key, string.format('%.0f', ttl - lift))
    end
  end
end
return left
"""
# The other way: deadlines nearer than so many ms are lifted. What is lifted is not near.
_LIFT_SCRIPT = """
local lift, within, exact = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
for _, key in ipairs(KEYS) do
  local ttl = redis.call('PTTL', key)
  if ttl >= 0 and ttl < within then
    if exact == '1' then
      local at = redis.call('PEXPIRETIME', key) + lift
      redis.call('PEXPIREAT', key, string.format('%.0f', at))
    else
      redis.call('PEXPIRE', key, string.format('%.0f', ttl + lift))
    end
  end
end
return {}
"""

DbKey = tuple[int, bytes]


class Lifted:
    """The lifted deadlines of one target, over one connection of the control plane.

    Raises `LinkError`, and `AuthError` where the user may not run scripts.
    """

    def __init__(self, target: Admin) -> None:
        self._target = target
        self._exact: bool | None = None
        self.near: list[DbKey] = []
        """Keys that were left lifted."""

    async def release_all(self) -> None:
        """Set the deadlines of every key, but for those that are due soon: they go to `near`.

        Keys that move while this runs may be missed: whoever applies the stream knows of them.
        """
        async for db, keys in self._pages():
            left = await self._run(keys, NEAR_MS)
            self.near.extend((db, key) for key in left)

    async def lift_all(self, within: int) -> None:
        """Lift every deadline that is nearer than `within` ms. Of keys that move the same holds."""
        async for _, keys in self._pages():
            await self._lift(keys, within)

    async def lift(self, keys: Iterable[DbKey], within: int) -> None:
        """Lift the deadlines of these keys, if they are nearer than `within` ms."""
        async for names in self._named(keys):
            await self._lift(names, within)

    async def release(self, keys: Iterable[DbKey]) -> None:
        """Set the deadlines of these keys, however near: what is due by now goes."""
        async for names in self._named(keys):
            await self._run(names, -2 * LIFT_MS)

    async def _pages(self) -> AsyncGenerator[tuple[int, list[bytes]], None]:
        """Every key, a page at a time, with its database, which is selected."""
        for entry in (await self._target.info()).keyspace:
            if not entry.expires:
                continue
            await self._target.select(entry.db)
            cursor: bytes | int = 0
            while True:
                cursor, keys = await self._target.call("SCAN", cursor, "COUNT", _PAGE)
                if keys:
                    yield entry.db, keys
                if cursor == b"0":
                    break

    async def _named(self, keys: Iterable[DbKey]) -> AsyncGenerator[list[bytes], None]:
        """These keys, a page at a time; their database is selected."""
        by_db: dict[int, list[bytes]] = {}
        for db, key in keys:
            by_db.setdefault(db, []).append(key)
        for db, names in by_db.items():
            await self._target.select(db)
            for at in range(0, len(names), _PAGE):
                yield names[at : at + _PAGE]

    async def _run(self, keys: list[bytes], near: int) -> list[bytes]:
        left = await self._target.call(
            "EVAL", _SCRIPT, len(keys), *keys, _FAR_MS, LIFT_MS, near, await self._how()
        )
        return [key for key in left if isinstance(key, bytes)]

    async def _lift(self, keys: list[bytes], within: int) -> None:
        await self._target.call(
            "EVAL", _LIFT_SCRIPT, len(keys), *keys, LIFT_MS, within, await self._how()
        )

    async def _how(self) -> str:
        if self._exact is None:
            self._exact = await self._knows_pexpiretime()
        return "1" if self._exact else "0"

    async def _knows_pexpiretime(self) -> bool:
        try:
            await self._target.call("PEXPIRETIME", "startmigration:no-such-key")
        except AuthError:
            raise
        except ServerError:
            return False
        return True
