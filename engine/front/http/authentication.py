"""Authentication: the signature and the role of a request, or the loopback alone."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from engine.errors import UsageError
from engine.front.access_keys import AccessKeys, Role
from engine.front.http import sigv4
from engine.front.http.access_key_limits import Throttle, Used
from engine.front.http.common_errors import AccessDenied, ServiceUnavailable


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller: the key's id (empty without authentication), its role, and the signature with the
    time (seconds since the epoch) after which it is worth nothing."""

    key_id: str
    role: Role
    signature: str = ""
    until: float = 0.0


class Authenticator:
    """Checks requests against `keys`; None admits every client on this machine."""

    def __init__(self, keys: AccessKeys | None) -> None:
        self._keys = keys
        self._throttle = Throttle()
        self._used = Used()

    @property
    def open(self) -> bool:
        """Whether requests are not authenticated."""
        return self._keys is None

    def admit(self, request: sigv4.Signed) -> Caller:
        """The caller. Raises the faults of `sigv4.verify`, `Throttling`, and `ServiceUnavailable`
        while the keys cannot be read."""
        if self._keys is None:
            _check_local(request)
            return Caller("", Role.ADMIN)
        try:
            key, said = sigv4.verify(request, self._keys.find, datetime.now(UTC))
        except UsageError as error:
            raise ServiceUnavailable("The access keys cannot be read.") from error
        self._throttle.take(key.id)
        life = sigv4.SKEW.total_seconds() if said.expires is None else said.expires
        return Caller(key.id, key.role, said.signature, said.at.timestamp() + life)

    def allow(self, caller: Caller, needed: Role, what: str) -> None:
        """Raise `AccessDenied` unless the caller's role is enough."""
        if not caller.role.allows(needed):
            raise AccessDenied(
                f"The access key {caller.key_id} has the role {caller.role}, and is not authorized "
                f"to perform {what}, which needs {needed}."
            )

    def still_good(self, caller: Caller) -> bool:
        """Whether the caller's key is there yet, with the same role: for what goes on for long."""
        if self._keys is None:
            return True
        try:
            key = self._keys.find(caller.key_id)
        except UsageError:
            return False
        return key is not None and key.role is caller.role

    def was_used(self, caller: Caller) -> bool:
        """Whether the caller's signature made a change already."""
        return self._keys is not None and caller.signature in self._used

    @contextmanager
    def once(self, caller: Caller) -> Iterator[None]:
        """Around a change: raises `RequestExpired` for a signature that made one already."""
        if self._keys is None:
            yield
            return
        with self._used.once(caller.signature, caller.until):
            yield


def sha256(body: bytes) -> str:
    """The hash of a body as signatures have it."""
    return hashlib.sha256(body).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether a host, as in a URL, is this machine, and does not lead to another."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def bearer_fits(headers: Sequence[tuple[str, str]], token: bytes | None) -> bool:
    """Whether the request carries the token `Authorization: Bearer …`."""
    if token is None:
        return False
    given = dict(headers).get("authorization", "").encode()
    return hmac.compare_digest(given, b"Bearer " + token)


def _check_local(request: sigv4.Signed) -> None:
    """Without authentication any web page could have the user's browser ask: by its own
    origin, or by a name of its own that stands for 127.0.0.1. And so could a link in a mail."""
    given = dict(request.headers)
    host = given.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
        origin = urlsplit(given["origin"]).netloc if "origin" in given else host
    except ValueError:
        name, origin = "", ""
    cross = given.get("sec-fetch-site", "none") not in ("none", "same-origin")
    opened = given.get("sec-fetch-mode") == "navigate" and any(
        n == "Action" for n, _ in request.query
    )
    if not is_loopback(name) or origin != host or cross or opened:
        raise AccessDenied(
            "Without access keys this server answers only requests to a loopback address, and "
            "none that another web page or a link has made. Use "
            "http://127.0.0.1, or create access keys."
        )
