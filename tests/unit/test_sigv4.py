"""Signatures: those of botocore's own signer are right, and whatever was changed is not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import ApiFault
from engine.front.access_keys import AccessKey, Role
from engine.front.http import access_key_limits, sigv4
from engine.front.http.common_errors import (
    IncompleteSignature,
    InvalidClientTokenId,
    MissingAuthenticationToken,
    RequestExpired,
    SignatureDoesNotMatch,
    Throttling,
)
from engine.front.http.query import pairs
from engine.front.http.sigv4 import Signed, verify

KEY = AccessKey("SMIGAAAABBBBCCCCDDDD", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", Role.READ)
URL = "http://127.0.0.1:8321/"


def find(key_id: str) -> AccessKey | None:
    return KEY if key_id == KEY.id else None


def now() -> datetime:
    return datetime.now(UTC)


def signed(
    method: str = "POST",
    url: str = URL,
    body: bytes = b"Action=DescribeEvents",
    headers: dict[str, str] | None = None,
    *,
    key: AccessKey = KEY,
    region: str = "us-east-1",
    service: str = "elasticache",
    token: str | None = None,
    expires: int | None = None,
) -> Signed:
    """A request signed by botocore, as it would arrive."""
    request = AWSRequest(method=method, url=url, data=body, headers=headers or {})
    credentials = Credentials(key.id, key.secret, token)
    if expires is None:
        SigV4Auth(credentials, service, region).add_auth(request)
    else:
        SigV4QueryAuth(credentials, service, region, expires=expires).add_auth(request)
    prepared = request.prepare()
    parts = urlsplit(prepared.url)
    arrived = [(name.lower(), _text(value)) for name, value in prepared.headers.items()]
    if not any(name == "host" for name, _ in arrived):
        arrived.append(("host", parts.netloc))
    return Signed(
        method,
        parts.path,
        pairs(parts.query.encode()),
        arrived,
        hashlib.sha256(body).hexdigest(),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


# What botocore signs is accepted.

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
HEADER = st.text("abcXYZ019 \t,;=\"'/", max_size=20)


@settings(max_examples=150)
@given(
    method=st.sampled_from(["GET", "POST"]),
    # Hypothesis knows the constants of our source: a second signature is another test.
    query=st.lists(
        st.tuples(TEXT.filter(lambda name: name not in sigv4.QUERY_MEMBERS), TEXT), max_size=5
    ),
    body=st.binary(max_size=60),
    extra=st.dictionaries(st.sampled_from(["X-Amz-Foo", "Content-Type", "X-Other"]), HEADER),
    region=st.sampled_from(["us-east-1", "eu-central-1", "cn-north-1", "x"]),
    expires=st.none() | st.integers(1, 604800),
)
def test_what_botocore_signs_is_accepted(
    method: str,
    query: list[tuple[str, str]],
    body: bytes,
    extra: dict[str, str],
    region: str,
    expires: int | None,
) -> None:
    text = "&".join(f"{quote(n, safe='')}={quote(v, safe='')}" for n, v in query)
    # A query that is signed in the URL has no place for a body: botocore signs an empty one.
    body = body if expires is None else b""
    extra = extra if expires is None else {}
    request = signed(
        method, f"{URL}?{text}" if text else URL, body, extra, region=region, expires=expires
    )
    key, claim = verify(request, find, now())
    assert key is KEY
    assert (claim.region, claim.expires) == (region, expires)


def test_every_action_of_the_client_is_accepted() -> None:
    body = b"Action=StartMigration&CustomerNodeEndpointList.member.1.Address=a%20b+c"
    content = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    assert verify(signed(body=body, headers=content), find, now())[0] is KEY


# What was changed on the way is not.


def change(request: Signed, **members: Any) -> Signed:
    return Signed(**{**{n: getattr(request, n) for n in Signed.__slots__}, **members})


def header(request: Signed, name: str, edit: Callable[[str], str]) -> Signed:
    return change(request, headers=[(n, edit(v) if n == name else v) for n, v in request.headers])


def without(request: Signed, name: str) -> Signed:
    return change(request, headers=[pair for pair in request.headers if pair[0] != name])


def authorization(edit: Callable[[str], str]) -> Signed:
    return header(signed(), "authorization", edit)


def in_query(name: str, value: str | None) -> Signed:
    request = signed("GET", body=b"", expires=60)
    kept = [pair for pair in request.query if pair[0] != name]
    return change(request, query=kept if value is None else [*kept, (name, value)])


def flipped(text: str) -> str:
    return text[:-1] + ("0" if text[-1] != "0" else "1")


WRONG = {
    "body": (change(signed(), body="0" * 64), SignatureDoesNotMatch),
    "method": (change(signed(), method="GET"), SignatureDoesNotMatch),
    "path": (change(signed(), path="/watch"), SignatureDoesNotMatch),
    "query": (change(signed(), query=[("Action", "x")]), SignatureDoesNotMatch),
    "host": (header(signed(), "host", lambda _: "evil:8321"), SignatureDoesNotMatch),
    "signature": (authorization(flipped), SignatureDoesNotMatch),
    "date": (
        header(signed(), "x-amz-date", lambda v: flipped(v[:-1]) + "Z"),
        SignatureDoesNotMatch,
    ),
    "another header value": (
        change(
            signed(headers={"X-Amz-Foo": "a"}),
            headers=[*signed(headers={"X-Amz-Foo": "a"}).headers, ("x-amz-foo", "b")],
        ),
        SignatureDoesNotMatch,
    ),
    "payload hash": (
        signed(headers={"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}),
        SignatureDoesNotMatch,
    ),
    "wrong secret": (
        signed(key=AccessKey(KEY.id, "another secret of its own", Role.ADMIN)),
        SignatureDoesNotMatch,
    ),
    "unknown key": (
        signed(key=AccessKey("SMIGNOBODY", "x" * 40, Role.ADMIN)),
        InvalidClientTokenId,
    ),
    "session token": (signed(token="FwoGZXIvYXdzE"), InvalidClientTokenId),
    "session token in the query": (
        signed("GET", body=b"", token="FwoGZXIvYXdzE", expires=60),
        InvalidClientTokenId,
    ),
    "unsigned": (without(signed(), "authorization"), MissingAuthenticationToken),
    "another service": (signed(service="s3"), IncompleteSignature),
    "no date": (without(signed(), "x-amz-date"), IncompleteSignature),
    "a header that is not signed": (
        change(signed(), headers=[*signed().headers, ("x-amz-target", "x")]),
        IncompleteSignature,
    ),
    "host not signed": (
        authorization(lambda v: v.replace("SignedHeaders=host;", "SignedHeaders=")),
        IncompleteSignature,
    ),
    "signed twice": (
        change(signed(), query=[("X-Amz-Signature", "0" * 64)]),
        IncompleteSignature,
    ),
    "two authorizations": (
        change(signed(), headers=[*signed().headers, signed().headers[-1], ("authorization", "x")]),
        IncompleteSignature,
    ),
    "basic": (authorization(lambda _: "Basic dTpw"), IncompleteSignature),
    "empty": (authorization(lambda _: ""), IncompleteSignature),
    "no credential": (
        authorization(lambda v: v.replace("Credential=", "Credentials=")),
        IncompleteSignature,
    ),
    "no signature": (authorization(lambda v: v.split(", Sig")[0]), IncompleteSignature),
    "short signature": (authorization(lambda v: v[:-1]), IncompleteSignature),
    "capital signature": (authorization(lambda v: v[:-1] + "A"), IncompleteSignature),
    "scope": (authorization(lambda v: v.replace("/aws4_request", "")), IncompleteSignature),
    "terminator": (authorization(lambda v: v.replace("aws4_", "aws5_")), IncompleteSignature),
    "scope of another day": (
        authorization(lambda v: v.replace(f"/{now():%Y%m%d}/", "/20200101/")),
        IncompleteSignature,
    ),
    "header order": (
        authorization(lambda v: v.replace("host;x-amz-date", "x-amz-date;host")),
        IncompleteSignature,
    ),
    "a date that is none": (
        authorization(lambda v: v.replace(f"/{now():%Y%m%d}/", "/20201340/")),
        IncompleteSignature,
    ),
    "query: no expiry": (in_query("X-Amz-Expires", None), IncompleteSignature),
    "query: expiry of 0": (in_query("X-Amz-Expires", "0"), IncompleteSignature),
    "query: expiry beyond a week": (in_query("X-Amz-Expires", "604801"), IncompleteSignature),
    "query: another expiry": (in_query("X-Amz-Expires", "61"), SignatureDoesNotMatch),
    "query: algorithm": (in_query("X-Amz-Algorithm", "AWS4-ECDSA"), IncompleteSignature),
    "query: more": (in_query("Action", "DeleteReplicationGroup"), SignatureDoesNotMatch),
    "query: no signature": (in_query("X-Amz-Signature", None), IncompleteSignature),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_was_changed_is_refused(what: str) -> None:
    request, fault = WRONG[what]
    with pytest.raises(ApiFault) as caught:
        verify(request, find, now())
    assert type(caught.value) is fault, caught.value
    assert KEY.secret not in str(caught.value)


def test_a_member_of_the_query_that_comes_twice() -> None:
    request = signed("GET", body=b"", expires=60)
    doubled = change(request, query=[*request.query, ("X-Amz-Expires", "60")])
    with pytest.raises(IncompleteSignature, match="more than once"):
        verify(doubled, find, now())


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["authorization", "x-amz-date", "host", "x-amz-security-token", "date", "x"]
            ),
            st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=80)
            | st.sampled_from([signed().headers[-1][1], "AWS4-HMAC-SHA256 Credential=a/b/c/d/e"]),
        ),
        max_size=6,
    ),
    st.lists(
        st.tuples(st.sampled_from(sorted(sigv4.QUERY_MEMBERS)), st.text(max_size=20)), max_size=8
    ),
)
def test_nonsense_is_refused_with_a_documented_fault(
    headers: list[tuple[str, str]], query: list[tuple[str, str]]
) -> None:
    with pytest.raises(ApiFault):
        verify(Signed("POST", "/", query, headers, "0" * 64), find, now())


@pytest.mark.parametrize("junk", ["A", "=", ",", "A=", "A,", "A=B,", " ", "%", "/", ";"])
def test_a_long_header_is_refused_at_once(junk: str) -> None:
    """Whoever sends it is not known, and the event loop is everybody's."""
    long = f"{sigv4.ALGORITHM} {junk * (150_000 // len(junk))}"
    rest = [pair for pair in signed().headers if pair[0] != "authorization"]
    begun = time.process_time()
    with pytest.raises(IncompleteSignature):
        verify(change(signed(), headers=[*rest, ("authorization", long)]), find, now())
    assert time.process_time() - begun < 1


# Dates.


@pytest.mark.parametrize(
    ("off", "words"),
    [(timedelta(minutes=15, seconds=2), "expired"), (-timedelta(minutes=15, seconds=5), "ahead")],
)
def test_a_clock_that_is_too_far_off(off: timedelta, words: str) -> None:
    request = signed()
    assert verify(request, find, now() + off * 0.99)[0] is KEY
    with pytest.raises(RequestExpired, match=words):
        verify(request, find, now() + off)


def test_a_signed_url_lives_for_as_long_as_it_says() -> None:
    request = signed("GET", body=b"", expires=60)
    assert verify(request, find, now() + timedelta(seconds=58))[0] is KEY
    with pytest.raises(RequestExpired):
        verify(request, find, now() + timedelta(seconds=62))


def test_a_date_is_told_to_nobody_but_the_key_s_owner() -> None:
    late = now() + timedelta(days=1)
    with pytest.raises(SignatureDoesNotMatch):
        verify(authorization(flipped), find, late)
    with pytest.raises(InvalidClientTokenId):
        verify(signed(), lambda _: None, late)


def test_an_unknown_key_costs_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real = sigv4.signature

    def noted(request: Signed, said: sigv4.Claim, secret: str) -> str:
        done.append(secret)
        return real(request, said, secret)

    monkeypatch.setattr(sigv4, "signature", noted)
    with pytest.raises(InvalidClientTokenId):
        verify(signed(), lambda _: None, now())
    assert len(done) == 1
    assert done != [KEY.secret]


# Once, and not too often.


def test_a_signature_is_used_up_by_a_change_that_was_done() -> None:
    used = access_key_limits.Used()
    until = now().timestamp() + 60
    with pytest.raises(ZeroDivisionError), used.once("a", until):
        raise ZeroDivisionError
    with used.once("a", until), pytest.raises(RequestExpired), used.once("a", until):
        pass
    with pytest.raises(RequestExpired, match="answered before"), used.once("a", until):
        pass
    with used.once("b", now().timestamp() - 1):
        pass


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_key_limits, "REMEMBERED_MOST", 3)
    used = access_key_limits.Used()
    for n in range(5):
        with used.once(str(n), now().timestamp() + 60):
            pass
    with used.once("0", now().timestamp() + 60):
        pass
    with pytest.raises(RequestExpired), used.once("4", now().timestamp() + 60):
        pass


def test_one_with_a_long_life_is_not_forgotten_for_those_that_have_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access_key_limits, "REMEMBERED_MOST", 3)
    used = access_key_limits.Used()
    with used.once("a week", now().timestamp() + 604_800):
        pass
    for n in range(5):
        with used.once(str(n), now().timestamp() - 1):
            pass
    with pytest.raises(RequestExpired), used.once("a week", now().timestamp() + 604_800):
        pass


def test_a_key_has_a_rate() -> None:
    throttle = access_key_limits.Throttle(rate=1000.0, burst=3.0)
    slow = access_key_limits.Throttle(rate=0.001, burst=3.0)
    for _ in range(3):
        slow.take("a")
    with pytest.raises(Throttling):
        slow.take("a")
    slow.take("b")
    for _ in range(3):
        throttle.take("a")
    deadline = now() + timedelta(seconds=5)
    while now() < deadline:
        try:
            throttle.take("a")
        except Throttling:
            continue
        break
    assert now() < deadline


def test_a_plus_is_a_space_for_the_signature_and_for_the_action() -> None:
    """Or a signed %2B could be made a + on the way, and mean a space."""
    request = signed("GET", f"{URL}?a=x%2By", b"")
    changed = change(request, query=pairs(b"a=x+y"))
    with pytest.raises(SignatureDoesNotMatch):
        verify(changed, find, now())
    assert dict(parse_qsl("a=x+y")) == dict(pairs(b"a=x+y"))
