"""One rule of what may be dialled (`serve --allow-endpoint`); what to write where it is none."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from engine.errors import UsageError
from engine.model import host_pattern_check, socket_path_pattern
from engine.model.endpoint import check_host

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")
_PORTS = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?")
_BRACKETED = re.compile(r"\[(?P<host>[^\]]*)\](?::(?P<port>.+))?")
_EXPECTED = (
    "Expected NETWORK, ADDRESS or NAME, each with or without :PORT or :FROM-TO, or unix:PATH."
)


@dataclass(frozen=True, slots=True)
class Rule:
    """One `--allow-endpoint`: a network, a name (fnmatch) or a unix socket's path
    (`socket_path`), and the ports from `first` to `last`."""

    network: Network | None = None
    name: str | None = None
    path: str | None = None
    first: int = 1
    last: int = 65535

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `10.0.0.0/8`, `10.0.0.7:6379`, `[fd00::/8]:6379-6390`, `*.example.com:6379`, `*`, or
        `unix:/run/*.sock`. Raises `UsageError`, with what to write, also for what fits nothing."""
        if text.lower().startswith(socket_path_pattern.SCHEME):
            return cls(path=socket_path_pattern.read(text))
        _refuse_others(text)
        host, ports = _split(text)
        first, last = 1, 65535
        if ports is not None:
            found = _PORTS.fullmatch(ports)
            first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
            if not 1 <= first <= last <= 65535:
                raise _no_ports(text, host, ports)
        network = _network(host)
        if network is not None:
            return cls(network=network, first=first, last=last)
        _check_name(text, host)
        return cls(name=host.lower().removesuffix("."), first=first, last=last)


def check_sockets(rules: tuple[Rule, ...]) -> None:
    """Raise `UsageError` for a rule that names a folder of this machine as a socket."""
    for rule in rules:
        if rule.path is not None and os.path.isdir(rule.path):
            raise UsageError(
                f"'unix:{rule.path}' names a folder, not a socket",
                remedy=f"Write unix:{rule.path}/* for every socket in it.",
            )


def _refuse_others(text: str) -> None:
    """Raise `UsageError` for what is no rule at all. A password in it is not repeated."""
    if "://" in text or "@" in text:
        meant = host_pattern_check.of_url(text)
        raise UsageError(
            "a URL is not a rule" if "://" in text else "a rule names no user",
            remedy=_EXPECTED if meant is None else f"Write {meant}.",
        )
    if re.match(r"(rdb|aof):", text, re.IGNORECASE):
        raise UsageError(f"{text!r} is a file: rules are for servers", remedy=_EXPECTED)
    if re.search(r"[,;\s]", text):
        raise UsageError(
            f"{text!r} is more than one rule, or none",
            remedy="Give --allow-endpoint once for each of them.",
        )
    if re.match(r"\.{0,2}/", text):
        raise UsageError(
            f"{text!r} is only a path", remedy="A server's socket is unix:PATH, from the / on."
        )


def _no_ports(text: str, host: str, ports: str) -> UsageError:
    if re.fullmatch(r"[0-9A-Fa-f]{1,4}", host) and ports == "*":
        remedy = f"A network is written as {host_pattern_check.network_of(text)}."
    elif ports == "*":
        remedy = f"A rule without a port is for all of them: write {host}."
    else:
        remedy = "Expected :PORT or :FROM-TO."
    return UsageError(
        f"{text!r}: its port is not a number or a range from 1 to 65535", remedy=remedy
    )


def _network(host: str) -> Network | None:
    """The network or address that `host` is; None: it may be a name. Raises `UsageError`."""
    if "%" in host:
        raise UsageError(
            f"{host!r} names an interface, which a rule cannot do",
            remedy=f"Write {re.sub('%[^/]*', '', host)}.",
        )
    try:
        network = ipaddress.ip_network(host)
    except ValueError:
        if "/" not in host:
            return None
        try:
            meant = f"Write {ipaddress.ip_network(host, strict=False)}, or only the address."
        except ValueError:
            meant = "Expected one as 10.0.0.0/8 or fd00::/8."
        raise UsageError(f"{host!r} is not a network", remedy=meant) from None
    # What is dialled is judged as `allowed.plain` has it, so that these would fit nothing.
    if network.num_addresses == 1 and network.network_address.is_unspecified:
        local, everything = ("127.0.0.1", "0.0.0.0/0") if network.version == 4 else ("::1", "::/0")
        raise UsageError(
            f"{host!r} stands for any address, not for a server",
            remedy=f"Write {local} for this machine, {everything} for all addresses.",
        )
    if isinstance(network, ipaddress.IPv6Network) and (inner := _inner(network)) is not None:
        raise UsageError(
            f"{host!r} is a network of IPv4 addresses in their IPv6 form: they are checked as IPv4",
            remedy=f"Write {inner}.",
        )
    return network


def _inner(network: ipaddress.IPv6Network) -> ipaddress.IPv4Network | None:
    """The network of IPv4 that one of IPv6 stands for."""
    for outer, length in ((_MAPPED, 96), (NAT64, 96), (_SIX_TO_FOUR, 16)):
        if network.subnet_of(outer):
            inner = int(network.network_address) >> (96 - length) & 0xFFFFFFFF
            bits = min(network.prefixlen - length, 32)
            return ipaddress.IPv4Network((inner, bits))
    return None


def _check_name(text: str, host: str) -> None:
    if ":" in host and host.count("[") != host.count("]"):
        raise UsageError(
            f"{text!r} is no endpoint",
            remedy="An address with a port is [ADDRESS]:PORT, as [::1]:6379.",
        )
    if host_pattern_check.wild(host):
        if host_pattern_check.of_addresses(host):
            hint = "" if ":" in host else f", and as a name it would fit {_example(host)} too"
            raise UsageError(
                f"{text!r} is not a network{hint}",
                remedy=f"Write {host_pattern_check.network_of(host)}.",
            )
        host_pattern_check.check_names(host)
        return
    if host.startswith("."):
        host_pattern_check.check_names(host)
    try:
        check_host(host)
    except UsageError:
        remedy = _EXPECTED if host.isascii() else "Write the name as xn--…."
        raise UsageError(f"{text!r} is no endpoint", remedy=remedy) from None


def _example(pattern: str) -> str:
    """A name that a pattern of addresses fits as well."""
    return f"{pattern.split('*', 1)[0]}example.com" if "*" in pattern else "other hosts"


def _split(text: str) -> tuple[str, str | None]:
    """A rule's host and ports; a bare IPv6 address or network has colons, but no port."""
    if bracketed := _BRACKETED.fullmatch(text):
        return bracketed["host"], bracketed["port"]
    if text.count(":") == 1:
        host, port = text.split(":")
        return host, port
    return text, None
