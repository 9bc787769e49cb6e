"""`python -m benches.verify`: every key of two servers compared, beside what the servers give.

Both servers hold the same strings; with `--mixed` the keys of `datasets.mixed`, of every type and
encoding. In turn: `raw`, both are asked for the TTL and DUMP of each key in pipelines of the same
length, a process each, and what they answer is thrown away; `verify`, by the library; and a loop
with redis-py that compares DUMPs of fewer keys, by its rate. Medians of `--rounds`; the CPU of the
engine is that of its process. Where other work has the machine's cores the rates say little: what
either way costs in CPU does. `bound` is how many times the loop `verify` could be at the most, were
there a core for each process: the loop waits for its own work and for each server in turn, `verify`
for the busier server alone. `verify` asks for strings by MGET, and for no TTLs where there are
none: it may take less than the raw DUMPs do. With `--timed` one more key has a TTL, and so those of
all are asked for.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import socket
import statistics
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from operator import sub

import redis

from benches import datasets
from benches.support.servers import Server, named
from benches.support.waiting import wait_for
from engine import Endpoint, Engine
from engine._native import KeyNames, encode_command

RAW_GOAL, LOOP_GOAL, CPU_GOAL = 0.85, 10.0, 1.5
VALUE_BYTES = 100
RUN_KEYS = 512
UNDER_WAY = 3
LOOP_KEYS = 50_000
TIMED = "timed"
MARK = b"behind a run"


def name(n: int) -> bytes:
    """A key's."""
    return b"key:%012d" % n


def load(server: Server, keys: int) -> None:
    """Store them."""
    client = socket.create_connection((server.host, server.port))
    with client:
        for first in range(0, keys, 1000):
            words: list[bytes] = []
            for n in range(first, min(first + 1000, keys)):
                # Nothing that could be compressed: then all answers have one length.
                words += [name(n), random.Random(n).randbytes(VALUE_BYTES)]
            client.sendall(encode_command(b"MSET", *words))
            client.recv(1 << 16)


def mix(servers: Sequence[Server], keys: int) -> None:
    """Store keys of every type; the one server has those of the other, with their TTLs."""
    here, there = servers
    datasets.mixed(here.url, n=keys)
    client = there.client()
    client.replicaof(here.host, here.port)

    def up() -> bool:
        return bool(client.info("replication")["master_link_status"] == "up")

    wait_for(up, "what the other server has", seconds=600)
    client.replicaof("NO", "ONE")


def requests(keys: Sequence[bytes]) -> list[bytes]:
    """What asks for the keys, in runs."""
    found = []
    for first in range(0, len(keys), RUN_KEYS):
        names = KeyNames(list(keys[first : first + RUN_KEYS]))
        found.append(bytes(names.request((b"PEXPIRETIME", b"DUMP"), 0, len(names))))
    return found


def lengths(server: Server, asked: Sequence[bytes]) -> list[int]:
    """Of the answers to each run."""
    found = []
    behind = b"$%d\r\n%b\r\n" % (len(MARK), MARK)
    with socket.create_connection((server.host, server.port)) as client:
        for each in asked:
            client.sendall(each + encode_command(b"ECHO", MARK))
            got, end = 0, b""
            while end != behind:
                part = client.recv(1 << 20)
                got += len(part)
                end = (end + part)[-len(behind) :]
            found.append(got - len(behind))
    return found


def drain(
    host: str, port: int, asked: Sequence[bytes], answers: Sequence[int], ready: Barrier
) -> None:
    """Ask, and throw the answers away, which have these lengths."""
    with socket.create_connection((host, port)) as client:
        room = bytearray(1 << 20)
        owed: list[int] = []
        unsent = iter(zip(asked, answers, strict=True))
        ready.wait()
        while True:
            while len(owed) < UNDER_WAY and (run := next(unsent, None)) is not None:
                client.sendall(run[0])
                owed.append(run[1])
            if not owed:
                return
            got = client.recv_into(room)
            while got:
                part = min(got, owed[0])
                owed[0] -= part
                got -= part
                if not owed[0]:
                    owed.pop(0)


def raw(
    servers: Sequence[Server], asked: Sequence[bytes], answers: Sequence[Sequence[int]]
) -> float:
    """Seconds for both at once."""
    ready = multiprocessing.Barrier(len(servers) + 1)
    asking = [
        multiprocessing.Process(target=drain, args=(each.host, each.port, asked, of_it, ready))
        for each, of_it in zip(servers, answers, strict=True)
    ]
    for process in asking:
        process.start()
    ready.wait()
    began = time.perf_counter()
    for process in asking:
        process.join()
    return time.perf_counter() - began


def verify(servers: Sequence[Server], keys: int) -> tuple[float, float]:
    """Seconds, and µs of CPU a key."""
    ends = [Endpoint.parse(each.url) for each in servers]
    used, began = _cpu(), time.perf_counter()
    report = Engine().sync.verify(*ends)
    took = time.perf_counter() - began
    if report.outcome != "equal" or report.compared != keys:
        raise SystemExit(f"not equal: {report.sentence}")
    return took, (_cpu() - used) / keys * 1e6


def loop(servers: Sequence[Server], keys: Sequence[bytes], same: bool) -> float:
    """Keys a second of redis-py, a thousand to a pipeline. Not the `same` bytes: each server has
    its own order of large sets and hashes, and such a loop would take them for different."""
    ours, theirs = (redis.Redis(each.host, each.port) for each in servers)
    began = time.perf_counter()
    for first in range(0, len(keys), 1000):
        pipes = [each.pipeline(transaction=False) for each in (ours, theirs)]
        for pipe in pipes:
            for each in keys[first : first + 1000]:
                pipe.pttl(each)
                pipe.dump(each)
        one, other = (pipe.execute() for pipe in pipes)
        if one != other and same:
            raise SystemExit("not equal")
    return len(keys) / (time.perf_counter() - began)


def _cpu_of(servers: Sequence[Server]) -> list[float]:
    """CPU seconds of each."""
    return [each.cpu_seconds() for each in servers]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, and keep nothing."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benches.verify")
    parser.add_argument("--keys", type=int)
    parser.add_argument("--few", action="store_true", help="a tenth of the keys")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mixed", action="store_true", help="of all types, 500,000 of them")
    parser.add_argument("--timed", action="store_true", help="a key more, which has a TTL")
    parser.add_argument("--server", default="redis-7.0", help="the server's name's beginning")
    given = parser.parse_args(arguments)
    wanted = given.keys or (500_000 if given.mixed else 2_000_000)
    keys = wanted // 10 if given.few else wanted
    binary = named(given.server)
    shares, cpu_shares, rates, used, loops, bounds = [], [], [], [], [], []
    with Server.start(binary) as here, Server.start(binary) as there:
        servers = here, there
        if given.mixed:
            mix(servers, keys)
        for server in servers if not given.mixed else ():
            load(server, keys)
            if given.timed:
                redis.Redis(server.host, server.port).set(TIMED, "x", exat=4_000_000_000)
        # (The time that is left of a TTL is another one at each moment.)
        match = None if given.mixed else "key:*"
        # In the order of SCAN, which is none to the servers' memory.
        names = list(redis.Redis(here.host, here.port).scan_iter(match=match, count=1000))
        asked = requests(names)
        answers = [lengths(each, asked) for each in servers]
        for _ in range(given.rounds):
            before = _cpu_of(servers)
            bound = raw(servers, asked, answers)
            between = _cpu_of(servers)
            took, cpu = verify(servers, keys + given.timed)
            after = _cpu_of(servers)
            cpu_shares.append(
                max(map(sub, between, before)) / max(max(map(sub, after, between)), 0.01)
            )
            own = _cpu()
            by_loop = loop(servers, names[:LOOP_KEYS], not given.mixed)
            in_turn = _cpu() - own + sum(map(sub, _cpu_of(servers), after))
            busier = max(map(sub, after, between)) / keys
            bounds.append(in_turn / min(LOOP_KEYS, keys) / max(busier, 1e-9))
            shares.append(bound / took)
            rates.append(keys / took)
            used.append(cpu)
            loops.append(keys / took / by_loop)
            print(
                f"raw {keys / bound:,.0f} keys/s, verify {keys / took:,.0f}, redis-py "
                f"{by_loop:,.0f}; {cpu:.2f} µs of CPU a key, of the servers "
                f"{' and '.join(f'{each / keys * 1e6:.2f}' for each in map(sub, after, between))}",
                flush=True,
            )
    print(
        f"{binary}: {keys:,} keys, {statistics.median(rates):,.0f} keys/s: "
        f"{statistics.median(shares):.2f} of raw DUMPs (goal {RAW_GOAL}; "
        f"{statistics.median(cpu_shares):.2f} by the CPU of the busier server), "
        f"{statistics.median(loops):.1f} times redis-py (goal {LOOP_GOAL:.0f}; bound by the CPU "
        f"{statistics.median(bounds):.1f}), "
        f"{statistics.median(used):.2f} µs of CPU a key"
        f"{'' if given.mixed else f' (goal {CPU_GOAL})'}; "
        f"medians of {given.rounds}"
    )


if __name__ == "__main__":
    main()
