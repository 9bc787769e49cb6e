"""The `host` of a credentials entry: a pattern of hosts and a port, or of unix sockets' paths.

An entry that fits no server is refused where it is read, with what to write: it was taken without a
word, and the server it was meant for was then asked without a password.
"""

from __future__ import annotations

import ipaddress
import re
from fnmatch import translate

from engine.errors import UsageError
from engine.model import host_pattern_check, socket_path_pattern
from engine.model.endpoint import check_host

# A bracket with a colon inside is an IPv6 address; one without is a character class of fnmatch.
_BRACKETED = re.compile(r"\[(?P<host>[^\]]*:[^\]]*)\](?::(?P<port>.+))?")
_WITH_COLONS = re.compile(r"[0-9A-Fa-f:.*?\[\]!-]+")
_EXPECTED = "Expected HOST, HOST:PORT, [IPV6]:PORT or /PATH; a * stands for any part of a name."


def read(text: str, where: str) -> str:
    """The pattern, in its shortest form. `where` names the entry in errors.

    Raises `UsageError`; what may hold a password is not repeated.
    """
    problem = f"{where}: host "
    if text == "*":
        return text
    if text.startswith("/") or text.lower().startswith(socket_path_pattern.SCHEME):
        path = text if text.startswith("/") else text[len(socket_path_pattern.SCHEME) :]
        try:
            return socket_path_pattern.read(socket_path_pattern.SCHEME + path)
        except UsageError as error:
            raise UsageError(f"{where}: host: {error.message}", remedy=error.remedy) from None
    if "://" in text or "@" in text:
        meant = host_pattern_check.of_url(text)
        kind = "is a URL" if "://" in text else "names a user"
        raise UsageError(
            problem + kind,
            remedy=f"Write host = {meant!r}, and the user as username."
            if meant is not None
            else _EXPECTED,
        )
    if re.search(r"[,;\s]", text):
        raise UsageError(
            f"{problem}{text!r} is more than one, or none",
            remedy="Write an entry for each of them.",
        )
    if "/" in text:
        raise UsageError(
            f"{problem}{text!r} is neither a host nor a path",
            remedy="Write a pattern (10.*) for a network, and a socket's path from the / on.",
        )
    host, port = split(text)
    if port is not None and not _some_port(port):
        raise UsageError(f"{problem}{text!r} fits no port within 1 to 65535", remedy=_port(port))
    _check(host, f"{problem}{text!r} fits no host")
    return text


def split(pattern: str) -> tuple[str, str | None]:
    """A host pattern's host and port parts; a bare IPv6 address has colons, but no port."""
    if bracketed := _BRACKETED.fullmatch(pattern):
        return bracketed["host"], bracketed["port"]
    if pattern.count(":") == 1:
        host, port = pattern.split(":")
        return host, port
    return pattern, None


def _some_port(pattern: str) -> bool:
    fits = re.compile(translate(pattern)).match
    return any(fits(str(port)) for port in range(1, 65536))


def _port(pattern: str) -> str:
    if re.fullmatch(r"\d+-\d+", pattern):
        return (
            "A range is for --allow-endpoint: write an entry for each port, a pattern (:63*), or "
            ":* for every port."
        )
    return "Expected a port, a pattern of ports (:63*), or :* for every port."


def _check(host: str, problem: str) -> None:
    """Raise `UsageError` for a pattern (without its port) that fits no host."""
    if ":" in host:
        address = host.partition("%")[0]
        if host_pattern_check.wild(host):
            known = _WITH_COLONS.fullmatch(host) and host[0] != "[" and _closed(host)
        else:
            known = _is_address(address)
        if not known:
            raise UsageError(
                problem, remedy="An IPv6 address with a port is [ADDRESS]:PORT, as [::1]:6379."
            )
        return
    if re.fullmatch(r"\[[^\]]*\.[^\]]*\]", host):
        raise UsageError(problem, remedy=f"Brackets are for IPv6: write {host[1:-1]}.")
    try:
        if host_pattern_check.wild(host):
            host_pattern_check.check_names(host)
        else:
            check_host(host)
    except UsageError as error:
        raise UsageError(problem, remedy=error.remedy or _EXPECTED) from None


def _closed(pattern: str) -> bool:
    return pattern.count("[") == pattern.count("]")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
