"""The one write of a preflight: a tiny string goes over as the transfer's keys would.

It has a random name of ours and a time to live, is read back, and deleted again.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
import time
from collections.abc import Awaitable, Callable

from engine._native import crc64
from engine.errors import AuthError, EngineError, ServerError
from engine.model.server import ServerInfo
from engine.model.transient_errors import remedies
from engine.transfer.checks.check_result import Check, failed, passed, warned
from engine.transfer.checks.permission_keys import UNKNOWN, SampleKeys
from engine.wire.control_connection import Admin

PREFIX = "startmigration:probe:"
# If our DEL is lost with the link, the key goes by itself.
_PROBE_SECONDS = 60
_VALUE = b"probe"
# RDB_TYPE_STRING, its length in six bits, its bytes (rdbSaveRawString).
_STRING = bytes([0, len(_VALUE)]) + _VALUE
# A string has looked like this since the first RDB version.
_LOWEST = 1
_SKEW_SECONDS = 1.0

_REMEDIES = remedies("write")


async def check_probe(
    target: Admin,
    source_info: ServerInfo,
    target_info: ServerInfo,
    sample: Callable[[], Awaitable[SampleKeys]] | None = None,
    *,
    tag: str = "",
) -> Check:
    """RESTORE a probe as the transfer would, read it back, delete it.

    A user of some keys alone may touch no name of ours: the probe's is then put behind one of
    those that `sample` gives, which is not asked before. `tag`: a hash tag whose slot the target
    has.
    """
    name = "probe"
    tagged = PREFIX.replace(":", f":{{{tag}}}:", 1) if tag else PREFIX
    own = f"{tagged}{secrets.token_hex(8)}".encode()
    key = own
    version = _LOWEST
    if target_info.capabilities.accepts_footer_of(source_info.capabilities):
        version = source_info.capabilities.rdb_version
    expire_at = round((time.time() + _PROBE_SECONDS) * 1000)
    keys = UNKNOWN
    began = time.perf_counter()
    try:
        try:
            read = await _restored(target, key, expire_at, version, own=True)
        except AuthError as refusal:
            if not refusal.of_key:
                raise
            if sample is not None:
                keys = await sample()
            key = keys.beside(own)
            read = await _restored(target, key, expire_at, version, own=False)
        seconds = time.perf_counter() - began
    except AuthError as error:
        if error.of_key and not keys.sure:
            return warned(
                name,
                f"not tried: {error.message}",
                f"ACL SETUSER {target.endpoint.username or 'default'} ~{PREFIX}*, to have it "
                "tried.",
            )
        user = target.endpoint.username or "default"
        rule = f"~{PREFIX}*" if error.of_key else "+restore"
        return failed(name, error.message, f"ACL SETUSER {user} {rule}, or give another user.")
    except ServerError as error:
        remedy = _REMEDIES.get(error.code, "The target must take RESTORE; see its documentation.")
        return failed(name, error.message, remedy)
    return _read_back(f"RESTORE with RDB version {version}", seconds, *read)


async def _restored(
    target: Admin, key: bytes, expire_at: int, version: int, *, own: bool
) -> tuple[object, object, object]:
    """RESTORE the probe, in one go with what reads it back, and delete it; the replies to that.
    `own`: the name is a random one, which nothing else has: then all goes at once. Raises as
    `Admin.call`, for RESTORE: then what has another name is not the probe, and stays."""
    restore = ("RESTORE", key, expire_at, dump(version), "ABSTTL")
    delete = ("DEL", key)
    behind = [("GET", key), ("PTTL", key), *([delete] if own else [])]
    taken, *read = await target.pipeline([restore, *behind])
    if isinstance(taken, EngineError):
        # A server that is busy is asked again for a while.
        await target.call(*restore)
        read = await target.pipeline(behind)
    if not own:
        read += await target.pipeline([delete])
    value, left, deleted = read
    return value, left, deleted


def dump(version: int) -> bytes:
    """The probe's payload as DUMP would give it (createDumpPayload, cluster.c)."""
    body = _STRING + struct.pack("<H", version)
    return body + struct.pack("<Q", crc64(body))


def _read_back(what: str, seconds: float, value: object, left: object, deleted: object) -> Check:
    name = "probe"
    if isinstance(deleted, EngineError):
        return warned(
            name,
            f"{what} was taken, but the probe could not be deleted again",
            f"It expires within {_PROBE_SECONDS} s.",
        )
    if isinstance(value, EngineError):  # write-only users are rare, and enough for a transfer
        return passed(name, f"{what} was taken in {seconds * 1000:.1f} ms (reading it is denied)")
    if value is None:
        return failed(
            name,
            f"{what} was answered OK, but the key was not there",
            "Is the target's clock ahead, or does something delete or evict keys there?",
        )
    if value != _VALUE:
        return failed(name, f"{what} came back with another value", "Is the target a proxy?")
    if isinstance(left, int) and left < 0:
        return failed(name, f"{what} came back without its expire time", "Is the target a proxy?")
    return passed(name, f"{what}, read back and deleted in {seconds * 1000:.1f} ms")


async def check_clocks(source: Admin, target: Admin) -> Check:
    """Expire times are absolute, so a clock that is ahead lets keys expire early."""

    async def ask(end: Admin) -> tuple[object, float, float]:
        before = time.time()
        (reply,) = await end.pipeline([("TIME",)])
        return reply, before, time.time()

    skews = []
    ends = source, target
    replies = await asyncio.gather(*map(ask, ends))
    for end, (reply, before, after) in zip(ends, replies, strict=True):
        if not isinstance(reply, list):
            return warned(
                "clocks",
                f"{end.name} does not say its time (TIME denied)",
                "Make sure that both clocks are set (NTP): expire times are absolute.",
            )
        skews.append(skew(int(reply[0]) + int(reply[1]) / 1e6, before, after))
    return judge_clocks(skews[1] - skews[0])


async def check_clock(target: Admin) -> Check:
    """The same where the source is a file: by this machine's clock its keys are over or not."""
    before = time.time()
    (reply,) = await target.pipeline([("TIME",)])
    after = time.time()
    if not isinstance(reply, list):
        return passed("clocks", "the target does not say its time (TIME denied)")
    return judge_clocks(
        skew(int(reply[0]) + int(reply[1]) / 1e6, before, after), other="this machine"
    )


def skew(there: float, before: float, after: float) -> float:
    """How far a server's clock is ahead of ours, in seconds, asked between `before` and `after`."""
    return there - (before + after) / 2


def judge_clocks(ahead: float, *, other: str = "the source") -> Check:
    """`ahead` is how many seconds the target's clock is ahead of the other one's."""
    name = "clocks"
    if abs(ahead) <= _SKEW_SECONDS:
        return passed(name, f"{abs(ahead) * 1000:.0f} ms apart")
    effect = "expire early" if ahead > 0 else "live longer"
    way = "ahead of" if ahead > 0 else "behind"
    return warned(
        name,
        f"the target is {abs(ahead):.1f} s {way} {other}: keys with a TTL {effect}",
        "Set both clocks (NTP) before starting.",
    )
