"""What traffic needs of the server before it begins: the commands' trees, functions, payloads."""

from __future__ import annotations

from typing import Any

from tests.support.traffic.link import Address
from tests.support.traffic.scripts import LIBRARIES, library
from tests.support.traffic.specs import Specs, read_specs

SCRATCH = b"traffic:scratch"
LATER_MS = 4_000_000_000_000  # the year 2096

_MANY = [b"%d" % n for n in range(600)]

# Named by the letter of the keys that they are restored to. Nothing here whose order in a payload
# hangs on the server's hash seed, so that the same server version makes the same payloads.
_VALUES: dict[str, tuple[tuple[Any, ...], ...]] = {
    "s text": (("SET", SCRATCH, b"restored"),),
    "s long": (("SET", SCRATCH, bytes(range(256)) * 12),),
    "n": (("SET", SCRATCH, 1234),),
    "l short": (("RPUSH", SCRATCH, b"m1", b"m2", b"3", b"m1"),),
    "l long": (("RPUSH", SCRATCH, *_MANY, b"x" * 9000),),
    "e numbers": (("SADD", SCRATCH, 5, 6, 7),),
    "e text": (("SADD", SCRATCH, b"m5"),),
    "z short": (("ZADD", SCRATCH, 1, b"m1", 2.5, b"m2", "-inf", b"m3"),),
    "z long": (("ZADD", SCRATCH, *(word for n in _MANY for word in (n, b"m" + n))),),
    "h": (("HSET", SCRATCH, b"f1", b"restored", b"c1", 5, b"d1", 2.25),),
    "h expiring": (
        ("HSET", SCRATCH, b"f1", b"restored", b"f2", b"stays"),
        ("HPEXPIREAT", SCRATCH, LATER_MS, "FIELDS", 1, b"f1"),
    ),
    "x": (
        *(("XADD", SCRATCH, f"0-{n}", b"f1", b"v") for n in range(1, 6)),
        ("XGROUP", "CREATE", SCRATCH, b"g0", 0),
    ),
    "p": (("PFADD", SCRATCH, *_MANY),),
    "b": (("SETBIT", SCRATCH, 999, 1),),
    "g": (("GEOADD", SCRATCH, 13.4, 52.5, b"m1", 2.35, 48.86, b"m2"),),
}


def prepare(address: Address, tag: bytes = b"") -> tuple[Specs, dict[str, bytes]]:
    """Ask for the commands, load the functions, and have values dumped; nothing else is left.

    The payloads are named as `_VALUES` is, and `functions` is FUNCTION DUMP's. `tag`: of a
    cluster's node, a hash tag that is its own.
    """
    scratch = SCRATCH + b"{%b}" % tag if tag else SCRATCH
    with address.client() as client:
        specs = read_specs(client)
        payloads: dict[str, bytes] = {}
        for name, commands in _VALUES.items():
            if name == "h expiring" and "hpexpireat" not in specs.write:
                continue
            client.execute_command("DEL", scratch)
            for command in commands:
                client.execute_command(*(scratch if word == SCRATCH else word for word in command))
            payloads[name] = client.execute_command("DUMP", scratch)
        client.execute_command("DEL", scratch)
        if "function|load" in specs.write:
            client.execute_command("FUNCTION LOAD", "REPLACE", library(0, 0))
            # Of one library: the order of several hangs on the server's hash seed.
            payloads["functions"] = client.execute_command("FUNCTION DUMP")
            for number in range(1, LIBRARIES):
                client.execute_command("FUNCTION LOAD", "REPLACE", library(number, 0))
        client.connection_pool.disconnect()
    return specs, payloads
