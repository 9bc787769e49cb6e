"""Patterns of hosts (fnmatch), and what is wrong with one that fits none, or more than is meant."""

from __future__ import annotations

import re
from itertools import takewhile
from urllib.parse import urlsplit

from engine.errors import UsageError
from engine.model.endpoint import DEFAULT_PORT

_WILD = re.compile(r"[*?[\]]")
_NUMERIC = re.compile(r"(?=.*[*?[])(?=\d|.*\d.*\.|.*\..*\d)[\d.*?[\]!-]+")
_LABEL = re.compile(r"[A-Za-z0-9_*?[\]!-]+")
_GROUP = re.compile(r"[0-9A-Fa-f]{1,4}")


def of_addresses(pattern: str) -> bool:
    """Whether a pattern with wildcards (`10.*`) means addresses, and no names."""
    return ":" in pattern or _NUMERIC.fullmatch(pattern) is not None


def network_of(pattern: str) -> str:
    """The network that a pattern of addresses means (`10.*`: 10.0.0.0/8), else an example."""
    if ":" in pattern:
        groups = list(takewhile(_GROUP.fullmatch, pattern.split(":")))
        if 1 <= len(groups) <= 7:
            return f"{':'.join(groups)}::/{16 * len(groups)}"
        return "fd00::/8"
    octets = list(
        takewhile(lambda octet: octet.isdecimal() and int(octet) < 256, pattern.split("."))
    )
    if 1 <= len(octets) <= 3:
        return f"{'.'.join([*octets, *['0'] * (4 - len(octets))])}/{8 * len(octets)}"
    return "10.0.0.0/8"


def check_names(pattern: str) -> None:
    """Raise `UsageError` for a pattern with wildcards that no host's name fits."""
    shown = repr(pattern)
    if not pattern.isascii():
        raise UsageError(f"{shown} is not a host name", remedy="Write it as xn--….")
    labels = pattern.removesuffix(".").split(".")
    if labels[0] == "" and len(labels) > 1:
        raise UsageError(
            f"{shown} fits no host", remedy=f"Write *{pattern} for the names below it."
        )
    if not all(map(_LABEL.fullmatch, labels)) or pattern.count("[") != pattern.count("]"):
        raise UsageError(f"{shown} fits no host", remedy="Expected a name, as *.cache.example.com.")


def wild(pattern: str) -> bool:
    """Whether a pattern has wildcards."""
    return _WILD.search(pattern) is not None


def of_url(text: str) -> str | None:
    """`host:port` of a URL, without the rest of it; None: it is none, or has none."""
    if "://" not in text:
        return None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        return None
    if not host:
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
