"""TCP keep-alive: how long a peer that is gone without a word may seem to be there."""

from __future__ import annotations

import socket

# Idle seconds before the first probe, seconds between probes, probes until it is dead.
_OPTIONS = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel probe `sock`'s peer; options that this machine does not have are left out."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
