"""A relay as `--connect-command` runs one: `python relay.py FOLDER HOST PORT`. While it runs its
process id is the name of a file in FOLDER; alone it imports nothing that is slow to import."""

from __future__ import annotations

import os
import select
import socket
import sys


def main() -> None:
    """Pass bytes on in both directions until one side ends."""
    folder, host, port = sys.argv[1:]
    mark = f"{folder}/{os.getpid()}"
    with open(mark, "w"):
        pass
    try:
        try:
            link = socket.create_connection((host, int(port)))
        except OSError as error:
            print(f"relay to {host}: {error.strerror}", file=sys.stderr)
            sys.exit(7)
        with link:
            while True:
                ready, _, _ = select.select([0, link], [], [])
                for one in ready:
                    data = os.read(0, 1 << 16) if one == 0 else link.recv(1 << 16)
                    if not data:
                        return
                    if one == 0:
                        link.sendall(data)
                    else:
                        _write(data)
    except BrokenPipeError:
        return
    finally:
        os.unlink(mark)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
