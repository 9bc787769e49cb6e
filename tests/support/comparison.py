"""Have two ends come to hold the same? Waits, compares key by key, and says what differs.

    findings = settle(source, target, timeout=20)
    assert findings.equal, findings.describe()

The comparing is `benches.support.compare`'s (10,000 keys of 38 MB: 0.8 s): this adds the wait,
leaves out the engine's own keys on the target, and looks at functions and scripts as well.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import redis

from benches.support.clusters import Cluster
from benches.support.compare import TTL_BOUND_MS, Comparison, Difference, compare
from benches.support.servers import Server
from tests.support.own_keys import OWN_PREFIX
from tests.support.servers import servers_of

POLL_SECONDS = 0.1

End = Server | Cluster | str

# What a server answers while it is not ready to be compared.
_NOT_NOW = ("LOADING", "MASTERDOWN", "BUSY")


@dataclass(frozen=True, slots=True)
class Findings:
    """What differs: keys (`keys`), function libraries and cached scripts (a line each).

    `rounds` comparisons were made, in `seconds` all together.
    """

    keys: Comparison
    functions: list[str]
    scripts: list[str]
    rounds: int
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.keys.equal and not self.functions and not self.scripts

    @property
    def differences(self) -> list[str]:
        """Each finding as a line."""
        lines = [str(each) for each in self.keys.different]
        lines += [f"db{db} {key!r}: missing on the target" for db, key in self.keys.missing]
        lines += [f"db{db} {key!r}: on the target alone" for db, key in self.keys.extra]
        return lines + self.functions + self.scripts

    def describe(self) -> str:
        """The counts and the first findings."""
        head = self.keys.describe()
        return "\n".join([head, *(f"  {line}" for line in (*self.functions, *self.scripts))])


def settle(
    source: End,
    target: End,
    timeout: float = 20.0,
    *,
    scripts: Sequence[str] = (),
    databases: Iterable[int] | None = None,
    ttl_bound_ms: int = TTL_BOUND_MS,
    failed_over: bool = False,
) -> Findings:
    """Compare until nothing differs, or for `timeout` seconds; returns the last comparison.

    The source must be at rest by now; what is still under way to the target is waited for. A
    server that loads, or is away, is waited for too. `scripts` are SHA1s: those which the source
    has cached the target must have as well. (Servers before 7.0 replicate SCRIPT LOAD, and what an
    EVAL wrote; one that wrote nothing is cached at the source alone. Later ones replicate none.)
    With `failed_over` the source is a replica that took over: it was not told either what the
    primary before it did not tell (see `_untold`), and the target may know more.
    Raises redis-py's error when an end can't be asked at the end of the time.
    """
    wanted = None if databases is None else list(databases)
    started = time.monotonic()
    rounds = 0
    while True:
        late = time.monotonic() - started > timeout
        try:
            keys = compare(_url(source), _url(target), dbs=wanted, ttl_bound_ms=ttl_bound_ms)
            with contextlib.ExitStack() as stack:
                # Each shard of the target has what every shard of the source has.
                there, *_ = _clients(source, stack)
                keys = counted(keys, there, failed_over)
                functions, missing = [], []
                for here in _clients(target, stack):
                    functions += _functions(there, here)
                    missing += _scripts(there, here, scripts)
        except (redis.ConnectionError, redis.TimeoutError):
            if late:
                raise
        except redis.ResponseError as error:
            if late or not str(error).startswith(_NOT_NOW):
                raise
        else:
            rounds += 1
            found = Findings(keys, functions, missing, rounds, time.monotonic() - started)
            if found.equal or late:
                return found
        time.sleep(POLL_SECONDS)


def assert_settled(source: End, target: End, timeout: float = 20.0, **options: Any) -> Findings:
    """`settle`, and raise `AssertionError` with the findings unless both ends hold the same."""
    found = settle(source, target, timeout, **options)
    if not found.equal:
        raise AssertionError(found.describe())
    return found


def counted(found: Comparison, source: redis.Redis, either: bool) -> Comparison:
    """Without the engine's own keys, and without what no server tells its replicas."""
    extra = [(db, key) for db, key in found.extra if not key.startswith(OWN_PREFIX)]
    silent = {b"consumers"}
    if any(each.what == "stream groups" for each in found.different) and _is_redis_7_0(source):
        silent.add(b"entries-read")  # told by LASTID of its XCLAIM only, which has no such count
    different = [each for each in found.different if not _untold(each, silent, either)]
    return replace(found, extra=extra, different=different)


def _is_redis_7_0(client: redis.Redis) -> bool:
    text: bytes = client.execute_command("INFO", "server")
    return b"redis_version:7.0." in text and b"valkey_version" not in text


def _untold(difference: Difference, silent: set[bytes], either: bool) -> bool:
    """Whether it is about consumers without pending entries, that the source (or either) has alone.

    From 7.2 on XREADGROUP makes its consumer even where it finds nothing to read; before, NOACK and
    XCLAIM without anything to claim do. None of them is replicated. `silent` names facts
    of a group that may differ.
    """
    if difference.what == "stream groups":
        there, here = _dicts(difference)
        return there.keys() == here.keys() and all(
            all(there[name][fact] == here[name][fact] for fact in there[name].keys() - silent)
            and (either or there[name][b"consumers"] >= here[name][b"consumers"])
            for name in there
        )
    if difference.what == "stream consumers":
        there, here = _dicts(difference)
        return all(
            there[group].get(name) == here[group].get(name)
            or (name not in here[group] and there[group][name] == 0)
            or (either and name not in there[group] and here[group][name] == 0)
            for group in there
            for name in there[group].keys() | here[group].keys()
        )
    return False


def _dicts(difference: Difference) -> tuple[dict[bytes, Any], dict[bytes, Any]]:
    assert isinstance(difference.source, dict)
    assert isinstance(difference.target, dict)
    return difference.source, difference.target


def _functions(source: redis.Redis, target: redis.Redis) -> list[str]:
    there, here = _libraries(source), _libraries(target)
    if here is None and there:
        return [f"functions: the target knows none, the source has {sorted(there)}"]
    there, here = there or {}, here or {}
    return [
        f"function library {name!r}: source {there.get(name)!r:.80}, target {here.get(name)!r:.80}"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]


def _libraries(client: redis.Redis) -> dict[bytes, bytes] | None:
    """Each library's code by its name; None where the server has no functions."""
    try:
        reply = client.execute_command("FUNCTION", "LIST", "WITHCODE")
    except redis.ResponseError as error:
        if "unknown command" in str(error):
            return None
        raise
    tables = (dict(zip(row[::2], row[1::2], strict=True)) for row in reply)
    return {table[b"library_name"]: table[b"library_code"] for table in tables}


def _scripts(source: redis.Redis, target: redis.Redis, shas: Sequence[str]) -> list[str]:
    if not shas:
        return []
    there, here = (client.execute_command("SCRIPT", "EXISTS", *shas) for client in (source, target))
    return [
        f"script {sha}: not cached on the target"
        for sha, source_has, target_has in zip(shas, there, here, strict=True)
        if source_has and not target_has
    ]


def _url(end: End) -> str:
    return end if isinstance(end, str) else end.url


def _clients(end: End, stack: contextlib.ExitStack) -> list[redis.Redis]:
    """A client of the server, or of each primary; replies come as they are."""
    if isinstance(end, str):
        found = [redis.Redis.from_url(end, protocol=2)]
    else:
        found = [server.client(protocol=2) for server in servers_of(end)]
    for client in found:
        client.response_callbacks.clear()
        stack.enter_context(client)
    return found
