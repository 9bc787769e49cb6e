"""AWS's Signature Version 4, as a server checks it: in the header, and in the query string.

What is signed is the *canonical request*: method, path, query, the headers that the signer named,
and the SHA-256 of the body. The signature is an HMAC of it under a key derived from the secret,
the date, the region and the service.

Every request that can be understood costs the same: the key that is not known is given a secret
too, and the signature is compared in constant time before anything is said about key, signature
or date. (That a key is unknown is said, as the service does: a key's id is no secret.)
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from engine.front.access_keys import AccessKey
from engine.front.http.botocore_model import SERVICE
from engine.front.http.common_errors import (
    IncompleteSignature,
    InvalidClientTokenId,
    MissingAuthenticationToken,
    RequestExpired,
    SignatureDoesNotMatch,
)

SKEW = timedelta(minutes=15)
"""How far a request's date may be from ours, as at the service."""
EXPIRES_MOST = 7 * 86400
"""The longest life (seconds) of a request that is signed in its query string."""
ALGORITHM = "AWS4-HMAC-SHA256"
QUERY_MEMBERS = frozenset(
    {
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Date",
        "X-Amz-Expires",
        "X-Amz-SignedHeaders",
        "X-Amz-Signature",
        "X-Amz-Security-Token",
    }
)
"""The parameters that are the signature's, and not the action's."""
_HEADERS_MOST = 64
_DATE = re.compile(r"[0-9]{8}T[0-9]{6}Z", re.ASCII)
_SIGNATURE = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_SCOPE_PART = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_KEY_ID = re.compile(r"[A-Za-z0-9]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Signed:
    """A request as far as signatures go. `query` are its decoded pairs, `headers` have names in
    lower case, `body` is the SHA-256 of the body in hexadecimal."""

    method: str
    path: str
    query: Sequence[tuple[str, str]]
    headers: Sequence[tuple[str, str]]
    body: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says of itself: its signer, the time, and how it was signed. `expires` is
    seconds, None where the signature is in the header."""

    key_id: str
    scope: str
    region: str
    day: str
    at: datetime
    stamp: str
    signed_headers: tuple[str, ...]
    signature: str
    expires: int | None


def claim(request: Signed) -> Claim:
    """Read what the request says of itself.

    Raises `MissingAuthenticationToken` if that is nothing, `IncompleteSignature` if it cannot be
    understood, `InvalidClientTokenId` for a session token, which this server never gives.
    """
    headers = dict(request.headers)
    query = [pair for pair in request.query if pair[0] in QUERY_MEMBERS]
    in_header = "authorization" in headers
    in_query = any(name in ("X-Amz-Signature", "X-Amz-Algorithm") for name, _ in query)
    if not in_header and not in_query:
        raise MissingAuthenticationToken("The request is not signed.")
    if in_header and in_query:
        raise IncompleteSignature("The request is signed twice: in its header and in its query.")
    if "x-amz-security-token" in headers or any(n == "X-Amz-Security-Token" for n, _ in query):
        raise InvalidClientTokenId("Session tokens are not supported.")
    found = _from_header(request, headers) if in_header else _from_query(query)
    _check_coverage(found, headers)
    return found


def verify(
    request: Signed, find: Callable[[str], AccessKey | None], now: datetime
) -> tuple[AccessKey, Claim]:
    """Check the signature of the request.

    Raises the faults of `claim`, `InvalidClientTokenId` for a key that is not known,
    `SignatureDoesNotMatch`, and `RequestExpired`.
    """
    said = claim(request)
    key = find(said.key_id)
    secret = key.secret if key is not None else secrets.token_urlsafe(30)
    expected = signature(request, said, secret)
    # Everything is computed before anything is decided.
    same = hmac.compare_digest(expected.encode("ascii"), said.signature.encode("ascii"))
    if key is None:
        raise InvalidClientTokenId("The access key is not known here.")
    if not same:
        raise SignatureDoesNotMatch(
            "The signature is not that of this request by this access key.",
            remedy="Check the secret access key, and what signs.",
        )
    _check_date(said, now)
    return key, said


def signature(request: Signed, said: Claim, secret: str) -> str:
    """The signature that the request has if the owner of `secret` signed it, in hexadecimal."""
    digest = hashlib.sha256(canonical_request(request, said.signed_headers).encode()).hexdigest()
    to_sign = f"{ALGORITHM}\n{said.stamp}\n{said.scope}\n{digest}"
    derived = f"AWS4{secret}".encode()
    for part in (said.day, said.region, SERVICE, "aws4_request", to_sign):
        derived = hmac.digest(derived, part.encode(), "sha256")
    return derived.hex()


def canonical_request(request: Signed, signed_headers: Sequence[str]) -> str:
    """The text whose hash is signed."""
    joined: dict[str, list[str]] = {}
    for name, value in request.headers:
        joined.setdefault(name, []).append(" ".join(value.split()))
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in request.query
        if name != "X-Amz-Signature"
    )
    return "\n".join(
        (
            request.method,
            request.path,
            "&".join(f"{name}={value}" for name, value in pairs),
            *(f"{name}:{','.join(joined.get(name, []))}" for name in signed_headers),
            "",
            ";".join(signed_headers),
            request.body,
        )
    )


def _from_header(request: Signed, headers: dict[str, str]) -> Claim:
    if sum(name == "authorization" for name, _ in request.headers) > 1:
        raise IncompleteSignature("There is more than one Authorization header.")
    algorithm, _, rest = headers["authorization"].partition(" ")
    if algorithm != ALGORITHM:
        raise IncompleteSignature(f"The Authorization header does not begin with {ALGORITHM}.")
    # No regular expression: the caller is unknown yet, and a header may be as long as a head.
    parts = [part.strip().partition("=") for part in rest.split(",", 3)]
    given = {name: value for name, _, value in parts}
    wanted = {"Credential", "SignedHeaders", "Signature"}
    if set(given) != wanted or len(parts) != len(wanted):
        raise IncompleteSignature(
            "The Authorization header must have Credential, SignedHeaders and Signature."
        )
    stamp = headers.get("x-amz-date")
    if stamp is None:
        raise IncompleteSignature("The request has no X-Amz-Date header.")
    payload = headers.get("x-amz-content-sha256")
    if payload is not None and payload != request.body:
        raise SignatureDoesNotMatch("X-Amz-Content-Sha256 is not the SHA-256 of the body.")
    return _claim(given["Credential"], given["SignedHeaders"], given["Signature"], stamp, None)


def _from_query(query: Sequence[tuple[str, str]]) -> Claim:
    given = dict(query)
    if len(given) != len(query):
        raise IncompleteSignature("A parameter of the signature occurs more than once.")
    missing = QUERY_MEMBERS - set(given) - {"X-Amz-Security-Token"}
    if missing:
        raise IncompleteSignature(f"The query must have {', '.join(sorted(missing))}.")
    if given["X-Amz-Algorithm"] != ALGORITHM:
        raise IncompleteSignature(f"X-Amz-Algorithm is not {ALGORITHM}.")
    expires = given["X-Amz-Expires"]
    if not re.fullmatch("[0-9]{1,6}", expires, re.ASCII) or not 1 <= int(expires) <= EXPIRES_MOST:
        raise IncompleteSignature(f"X-Amz-Expires is not within 1 to {EXPIRES_MOST}.")
    return _claim(
        given["X-Amz-Credential"],
        given["X-Amz-SignedHeaders"],
        given["X-Amz-Signature"],
        given["X-Amz-Date"],
        int(expires),
    )


def _claim(
    credential: str, signed_headers: str, signature: str, stamp: str, expires: int | None
) -> Claim:
    key_id, *scope = credential.split("/")
    if len(scope) != 4 or scope[3] != "aws4_request" or not _KEY_ID.fullmatch(key_id):
        raise IncompleteSignature("Credential is not KEY/DATE/REGION/SERVICE/aws4_request.")
    day, region, service, _ = scope
    if service != SERVICE or not _SCOPE_PART.fullmatch(region):
        raise IncompleteSignature(f"Credential is not for the service {SERVICE}.")
    if not _DATE.fullmatch(stamp) or stamp[:8] != day:
        raise IncompleteSignature("X-Amz-Date is not a date like 20150830T123600Z, on that day.")
    try:
        at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise IncompleteSignature("X-Amz-Date is not a date.") from None
    names = tuple(signed_headers.split(";"))
    if len(names) > _HEADERS_MOST or not all(_HEADER.fullmatch(name) for name in names):
        raise IncompleteSignature("SignedHeaders is not a list of names in lower case.")
    if list(names) != sorted(set(names)):
        raise IncompleteSignature("SignedHeaders is not in order.")
    if not _SIGNATURE.fullmatch(signature):
        raise IncompleteSignature("Signature is not 64 hexadecimal digits.")
    return Claim(key_id, "/".join(scope), region, day, at, stamp, names, signature, expires)


def _check_coverage(said: Claim, headers: dict[str, str]) -> None:
    """What matters has to be signed, or it could be changed on the way."""
    if "host" not in said.signed_headers:
        raise IncompleteSignature("The header Host must be signed.")
    for name in headers:
        if name.startswith("x-amz-") and name not in said.signed_headers:
            raise IncompleteSignature("Every X-Amz header must be signed.")


def _check_date(said: Claim, now: datetime) -> None:
    life = SKEW if said.expires is None else timedelta(seconds=said.expires)
    if said.at > now + SKEW:
        raise RequestExpired(
            f"The date of the request, {said.stamp}, is more than 15 minutes ahead of "
            f"{now:%Y%m%dT%H%M%SZ}."
        )
    if said.at + life < now:
        raise RequestExpired(
            f"The request of {said.stamp} has expired; it is {now:%Y%m%dT%H%M%SZ}."
        )
