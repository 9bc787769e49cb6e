"""What a lost link, or one that does not come about, is due to, and what to do."""

from __future__ import annotations

import asyncio
import socket
import ssl

from engine.model.endpoint import Endpoint


def diagnose(error: BaseException, endpoint: Endpoint, answered: bool) -> tuple[str, str]:
    """What went wrong with the link, and what to do: (problem, remedy). `answered`: over this
    connection the server had answered before."""
    from redis.exceptions import TimeoutError as RedisTimeout

    cause = root(error)
    if isinstance(cause, ssl.SSLError):
        return _tls(cause)
    if isinstance(cause, socket.gaierror):
        return (
            f"the name {endpoint.host} cannot be resolved ({cause.strerror})",
            "Check the name, and the resolver of this machine.",
        )
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused", "Is the server running there, and bound to this address?"
    if isinstance(cause, FileNotFoundError):
        return "there is no such socket", "Check the path, and `unixsocket` in the server's file."
    if isinstance(cause, TimeoutError | RedisTimeout):
        if answered:
            return (
                "no answer in time",
                "It answered before: is it stopped, busy, or cut off by the network?",
            )
        return (
            "no answer in time",
            f"Check the address and the firewalls; {_other_protocol(endpoint)}",
        )
    if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, ConnectionError):
        return cause.strerror, "Check the address and the network."
    if answered:
        return (
            "the server closed the connection",
            "It answered before: was it restarted, or the connection ended (CLIENT KILL, timeout)?",
        )
    return (
        "the server closed the connection",
        f"It may have too many clients, or be in protected mode; {_other_protocol(endpoint)}",
    )


def _other_protocol(endpoint: Endpoint) -> str:
    if endpoint.tls is None:
        return "a port that speaks TLS needs rediss://."
    return "a port without TLS needs redis://, one that checks clients cert_file=… and key_file=…."


def _tls(error: ssl.SSLError) -> tuple[str, str]:
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its TLS certificate is not to be trusted ({error.verify_message})",
            "Set ca_file=… (the authority), server_name=… (the certificate's), or verify=no.",
        )
    if reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"):
        return "the port does not speak TLS", "Use redis:// there, or the server's tls-port."
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return (
            f"the TLS handshake was refused ({reason.lower().replace('_', ' ')})",
            "The server may want a client certificate: cert_file=… and key_file=….",
        )
    what = reason.lower().replace("_", " ") or "no reason given"
    return f"TLS failed ({what})", "Check the TLS settings of both sides."


def root(error: BaseException) -> BaseException:
    """The first exception of the chain: redis-py raises its own in its place."""
    seen = error
    while (inner := seen.__cause__ or seen.__context__) is not None:
        if isinstance(inner, asyncio.CancelledError):  # how asyncio.timeout ends what it times
            break
        seen = inner
    return seen
