"""Extended expire times of hash fields, set back at the end of an append-only file.

A server that loads its file lets no field expire meanwhile, as it does with keys. So what the file
holds of such expire times is extended by as much as those of keys (`ext/aof.pxi`,
`ext/field_ttls.pxi`), and a script on the target sets them back, a page of a hash at a time. Where
the hashes' names are not known every hash is looked through.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine._native import ExtendedNames
from engine.errors import AuthError, ServerError
from engine.model.online_checkpoint import EXTEND_MS
from engine.transfer.extended_ttls import VALID_SECONDS, ExtendedTtls
from engine.wire.control_connection import Admin, Arg

_HASHES = 500
_ROUNDS = 16
_FAR_MS = EXTEND_MS // 2
# KEYS: hashes; what counts as extended (ms since the epoch), by how much it is, until when the
# script is valid (s, on the target's clock), and HSCAN's cursor for each hash. Returns what is not
# done: hashes and cursors, in turn. A field whose expire time has passed goes with this.
_RESTORE_TTLS = """
if tonumber(redis.call('TIME')[1]) > tonumber(ARGV[3]) then
  return redis.error_reply('ERR this script comes too late')
end
local far, lift = tonumber(ARGV[1]), tonumber(ARGV[2])
local left = {}
for place, key in ipairs(KEYS) do
  if redis.call('TYPE', key).ok == 'hash' then
    local page = redis.call('HSCAN', key, ARGV[3 + place], 'COUNT', 500, 'NOVALUES')
    for at = 1, #page[2], 500 do
      local fields = {unpack(page[2], at, math.min(at + 499, #page[2]))}
      local back = {}
      for n, due in ipairs(redis.call('HPEXPIRETIME', key, 'FIELDS', #fields, unpack(fields))) do
        if due > far then
          local moment = string.format('%.0f', due - lift)
          back[moment] = back[moment] or {}
          table.insert(back[moment], fields[n])
        end
      end
      for moment, names in pairs(back) do
        redis.call('HPEXPIREAT', key, moment, 'FIELDS', #names, unpack(names))
      end
    end
    if page[1] ~= '0' then
      left[#left + 1] = key
      left[#left + 1] = page[1]
    end
  end
end
return left
"""


async def restore_fields(target: Admin, names: ExtendedNames) -> None:
    """Set the expire times back of the fields of these hashes; of all if the names are not known.

    Raises `LinkError`, `ServerError`, and `AuthError` where the user may not run it.
    """
    if not await _knows_field_ttls(target):
        return
    restored = _Restored(target)
    if names.known:
        for portion in names.pages(_HASHES * _ROUNDS):
            by_db: dict[int, list[bytes]] = {}
            for db, key in portion:
                by_db.setdefault(db, []).append(key)
            for db, keys in by_db.items():
                await target.select(db)
                await restored.all(keys)
        return
    for entry in (await target.info()).keyspace:
        await target.select(entry.db)
        cursor: Arg = 0
        while True:
            cursor, keys = await target.call("SCAN", cursor, "COUNT", 1000, "TYPE", "hash")
            await restored.all(keys)
            if cursor == b"0":
                break


class _Restored:
    def __init__(self, target: Admin) -> None:
        self._target = target
        self._clock = ExtendedTtls(target)

    async def all(self, keys: Sequence[bytes]) -> None:
        """Of these hashes of the database that is selected."""
        waiting: list[tuple[bytes, bytes]] = [(key, b"0") for key in keys]
        while waiting:
            portion, waiting = waiting[: _HASHES * _ROUNDS], waiting[_HASHES * _ROUNDS :]
            commands = [
                await self._command(portion[at : at + _HASHES])
                for at in range(0, len(portion), _HASHES)
            ]
            for left in await self._target.pipeline(commands, raise_on_error=True):
                waiting += zip(left[::2], left[1::2], strict=True)

    async def _command(self, hashes: Sequence[tuple[bytes, bytes]]) -> tuple[Arg, ...]:
        now = await self._clock.now_ms()
        valid = now // 1000 + int(VALID_SECONDS) - 1
        keys, cursors = [key for key, _ in hashes], [cursor for _, cursor in hashes]
        return ("EVAL", _RESTORE_TTLS, len(keys), *keys, now + _FAR_MS, EXTEND_MS, valid, *cursors)


async def _knows_field_ttls(target: Admin) -> bool:
    try:
        await target.call("HPEXPIRETIME", "startmigration:no-such-key", "FIELDS", 1, "f")
    except AuthError:
        raise
    except ServerError:
        return False
    return True
