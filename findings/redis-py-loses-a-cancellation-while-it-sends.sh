#!/usr/bin/env bash
# redis-py (asyncio) with a socket_timeout loses a task's cancellation that comes while it sends.
#
# Seen with redis-py 8.1.0 on Python 3.11. A task that asks a server again and again is cancelled,
# once, after so many turns of the event loop that the cancellation falls into
# Connection.send_packed_command. Expected, as for every coroutine: CancelledError comes out of the
# call, and the task ends. Seen: at some of the moments nothing is raised, the command is sent and
# answered as if nothing had been, and the task goes round for ever; its cancelling() is 1.
#
# Why: with a socket_timeout the sending goes through asyncio.wait_for. Up to Python 3.11 that one
# returns its result, and drops the cancellation, where both come in one turn of the loop; and the
# sending of a short command is always done in the first turn. Without a socket_timeout each
# cancellation ends the task. From Python 3.12 on wait_for is written otherwise.
#
# Whoever cancels a task that speaks through redis-py (a supervisor, a TaskGroup, a shutdown), and
# waits for its end, may wait for ever. What helps: socket_timeout=None, and asyncio.timeout around.
#
# It fails if that changes: if no cancellation is lost with a socket_timeout (3.11), if one is lost
# from 3.12 on, or without a socket_timeout.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3}
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q redis==8.1.0
cat > "$folder/look.py" <<'PY'
import asyncio
import sys

import redis.asyncio


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A peer that answers +OK to every command of redis-py, and nothing else."""
    try:
        while line := await reader.readline():
            for _ in range(int(line[1:])):
                length = int((await reader.readline())[1:])
                await reader.readexactly(length + 2)
            writer.write(b"+OK\r\n")
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
        pass
    finally:
        writer.close()


async def lost(port: int, timeout: float | None) -> list[int]:
    """At which turns of the loop a cancellation does not end the task."""
    found = []
    for turns in range(1, 12):
        connection = redis.asyncio.Connection(port=port, socket_timeout=timeout)
        await connection.connect()

        async def ask() -> None:
            while True:
                await connection.send_command("PING")
                await connection.read_response()

        task = asyncio.create_task(ask())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=2)
        if not task.done():
            found.append(turns)
            # A second one meets another moment.
            while not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=0.01)
        await connection.disconnect()
    return found


async def main() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    timed, untimed = await lost(port, 30.0), await lost(port, None)
    print(f"Python {sys.version.split()[0]}, redis-py {redis.__version__}")
    print(f"with socket_timeout=30: cancellations lost at the turns {timed}")
    print(f"without: {untimed}")
    old = sys.version_info < (3, 12)
    assert bool(timed) is old, "that has changed"
    assert not untimed, "that has changed"


asyncio.run(main())
PY
"$folder/venv/bin/python" "$folder/look.py"
echo "as described"
