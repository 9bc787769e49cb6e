"""Scripts and functions for the traffic: each writes, several to more than one key.

Servers before 7.0 replicate a script itself, later ones what it did. Some fail half-way: what they
wrote until then stays, and is replicated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

Script = tuple[bytes, int, str]
"""(text, how many keys, the letters of their names); every script takes two arguments."""

SCRIPTS: tuple[Script, ...] = (
    (b"return redis.call('INCR', KEYS[1])", 1, "n"),
    (
        b"redis.call('SET', KEYS[1], ARGV[1]); redis.call('LPUSH', KEYS[2], ARGV[2]); return 2",
        2,
        "sl",
    ),
    (
        (
            b"for i = 1, 5 do redis.call('HSET', KEYS[1], 'f' .. i, ARGV[1]) end "
            b"redis.call('SADD', KEYS[2], ARGV[1], ARGV[2]) return redis.call('DEL', KEYS[3])"
        ),
        3,
        "hes",
    ),
    # Nothing is written.
    (b"return redis.call('EXISTS', KEYS[1])", 1, "s"),
    # An error after a write, and one that is caught.
    (b"redis.call('SADD', KEYS[1], ARGV[1]); return redis.call('INCR', KEYS[1])", 1, "e"),
    (
        (
            b"redis.pcall('LPUSH', KEYS[1], ARGV[1]); redis.call('ZADD', KEYS[2], 1, ARGV[2]) "
            b"return redis.error_reply('ERR meant')"
        ),
        2,
        "sz",
    ),
    # What it writes hangs on the clock and on chance: replicas must be sent its effects.
    (
        (
            b"redis.replicate_commands(); local t = redis.call('TIME') "
            b"redis.call('SET', KEYS[1], t[2]); redis.call('SPOP', KEYS[2]) "
            b"return redis.call('PEXPIRE', KEYS[1], 3600000)"
        ),
        2,
        "se",
    ),
    (b"return redis.call('EXPIRE', KEYS[1], 3600)", 1, "s"),
)


def scripts(databases: Sequence[int]) -> tuple[Script, ...]:
    """`SCRIPTS`, and where there are two databases one that writes to both."""
    if len(databases) < 2:
        return SCRIPTS
    across = (
        b"redis.call('SELECT', %d); redis.call('INCR', KEYS[1]); redis.call('SELECT', %d) "
        b"return redis.call('APPEND', KEYS[2], ARGV[1])"
    )
    return (*SCRIPTS, (across % (databases[1], databases[0]), 2, "ns"))


def sha(script: Script) -> str:
    """A script's name for EVALSHA."""
    return hashlib.sha1(script[0]).hexdigest()


LIBRARIES = 3
FUNCTIONS: tuple[tuple[bytes, bytes, int, str], ...] = (
    (
        b"incr",
        b"function(keys, args) redis.call('INCR', keys[1]) return redis.call('INCR', keys[2]) end",
        2,
        "nn",
    ),
    (
        b"push",
        b"function(keys, args) return redis.call('RPUSH', keys[1], args[1], args[2]) end",
        1,
        "l",
    ),
    (
        b"move",
        (
            b"function(keys, args) redis.call('HSET', keys[1], args[1], args[2]) "
            b"redis.call('ZADD', keys[2], 7, args[1]) return 1 end"
        ),
        2,
        "hz",
    ),
)
"""(name, body, how many keys, the letters of their names)."""


def library(number: int, edition: int) -> bytes:
    """A library's code; of each library there are several editions, which differ."""
    lines = [b"#!lua name=lib%d" % number, b"-- edition %d" % edition]
    lines += [
        b"redis.register_function('lib%d_%s', %s)" % (number, name, body)
        for name, body, _, _ in FUNCTIONS
    ]
    return b"\n".join(lines)
