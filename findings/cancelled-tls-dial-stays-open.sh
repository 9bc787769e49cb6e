#!/usr/bin/env bash
# asyncio and uvloop: a TLS connection whose dialling is cancelled as the handshake ends stays open.
#
# Seen with uvloop 0.23.0 and with asyncio's own loop, on Python 3.11. A task awaits
# asyncio.open_connection(ssl=…) and is cancelled in the turn of the loop in which the handshake has
# just been done (the protocol knows its transport, the one who dials does not yet). Expected: what
# is cancelled leaves nothing open, as a cancelled dialling without TLS does. Seen: CancelledError is
# raised, and the socket stays open until the peer has said goodbye (close_notify) too, or for the
# ssl_shutdown_timeout of 30 s. Nobody has a handle by which it could be closed sooner.
#
# Whoever dials several servers at once and gives up when the first one fails (a TaskGroup, a
# timeout) has such connections left, and a loop that is closed meanwhile warns of them; where
# warnings are errors, uvloop's close() fails with EBUSY. What helps: create_connection with a
# protocol of one's own that keeps the transport from connection_made on, and transport.abort()
# where the dialling raises.
#
# It fails if that changes: if the socket is closed within a second. Needs openssl, for a certificate.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3}
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q uvloop==0.23.0
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \
    -keyout "$folder/key.pem" -out "$folder/certificate.pem" 2>/dev/null
cat > "$folder/look.py" <<'PY'
import asyncio
import os
import socket
import ssl
import sys
import threading

import uvloop

CERTIFICATE, KEY = sys.argv[1:]


def answer(listener: socket.socket, over: threading.Event) -> None:
    """A peer that does the handshake, and says nothing more."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, KEY)
    raw, _ = listener.accept()
    with context.wrap_socket(raw, server_side=True):
        over.wait(20)


def sockets_to(port: int) -> int:
    """Sockets of this process whose other end is that port."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as each:
                if each.family == socket.AF_INET and each.getpeername()[1] == port:
                    found += 1
        except OSError:
            pass
    return found


class Protocol(asyncio.StreamReaderProtocol):
    """Cancels the one who dials as soon as the handshake is done."""

    dialling: "asyncio.Task[object]"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.dialling.cancel()


async def left_open(port: int, context: "ssl.SSLContext | None") -> int:
    """How many sockets are there a second behind the cancellation."""
    loop = asyncio.get_running_loop()
    protocol = Protocol(asyncio.StreamReader(loop=loop), loop=loop)
    name = "localhost" if context is not None else None
    protocol.dialling = asyncio.ensure_future(
        loop.create_connection(
            lambda: protocol, "127.0.0.1", port, ssl=context, server_hostname=name
        )
    )
    try:
        await protocol.dialling
    except asyncio.CancelledError:
        await asyncio.sleep(1)
        return sockets_to(port)
    raise SystemExit("it was not cancelled")


trusting = ssl.create_default_context(cafile=CERTIFICATE)
print(f"Python {sys.version.split()[0]}, uvloop {uvloop.__version__}")
for name, new in (("asyncio", asyncio.new_event_loop), ("uvloop", uvloop.new_event_loop)):
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener, over), daemon=True).start()
        loop = new()
        with_tls = loop.run_until_complete(left_open(listener.getsockname()[1], trusting))
        over.set()
        # So that the connection ends.
        loop.run_until_complete(asyncio.sleep(0.5))
        loop.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        loop = new()
        without = loop.run_until_complete(left_open(listener.getsockname()[1], None))
        loop.close()
    print(f"{name}: sockets open a second after the cancellation: {with_tls} with TLS, {without} without")
    assert with_tls == 1, "that has changed"
    assert without == 0, "that has changed"
PY
"$folder/venv/bin/python" "$folder/look.py" "$folder/certificate.pem" "$folder/key.pem"
echo "as described"
