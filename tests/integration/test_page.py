"""The page in a real browser, on real migrations through a real server."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from benches.support.api import REGION, Serving, fetch
from benches.support.clusters import Cluster
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.groups.registry import Registry
from engine.model.endpoint import Endpoint
from tests.support import browser as chromium
from tests.support.browser import Browser, BrowserError, Page
from tests.support.servers import ServerFactory, known

pytestmark = pytest.mark.skipif(
    chromium.find() is None, reason="no Chromium on this machine (Debian: apt install chromium)"
)

KEYS = 20_000
# A busy machine starts a migration of two clusters, by a server that is nice to others.
BUSY_SECONDS = 180.0
# Microseconds a key: a snapshot that takes long enough to be looked at.
SLOW = (
    *("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"),
    *("--rdb-key-save-delay", "60"),
)
ACTIONS = {"Test", "Start migration", "Register", "Delete…"}
WORDS = {"Complete…", "Complete without verification…", "Abort (Force)…"}
SPEED = {"Set rate", "Pause"}
ACTIONS |= WORDS | SPEED | {"Continue"}
TRY_NOW = """
[...document.querySelectorAll("button")].find((each) => each.textContent === "Try now")?.click()
"""
# What the chart says of how far the target is behind.
LAG = """
[...document.querySelectorAll("svg.plot")].map((each) => each.getAttribute("aria-label") ?? "")
  .find((each) => each.startsWith("Lag, "))
""".strip()
# What a person reads off the page, at each change of it.
NOTE = """
globalThis.noted = {phases: [], keys: new Set(), rates: new Set(), verdicts: new Set()};
new MutationObserver(() => {
  const text = (selector) => document.querySelector(selector)?.textContent ?? "";
  const phase = text("[aria-current=step] .label");
  if (phase && noted.phases.at(-1) !== phase) noted.phases.push(phase);
  noted.keys.add(text(".keys strong"));
  noted.rates.add(text(".legend strong"));
  noted.verdicts.add(text(".verdict"));
}).observe(document.body, {subtree: true, childList: true, characterData: true, attributes: true});
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests; each opens tabs that know nothing of each other."""
    with Browser.start() as found:
        yield found


@pytest.fixture
def api(tmp_path: Path, state_url: str) -> Iterator[Serving]:
    """A server, with a key of each role."""
    with Serving(tmp_path, state_url) as serving:
        yield serving


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server for tests of the page's own parts, which change nothing on it."""
    folder = tmp_path_factory.mktemp("idle")
    with Serving(folder, f"sqlite:///{folder / 'state.sqlite'}") as serving:
        yield serving


def in_place_of_chromium(monkeypatch: pytest.MonkeyPatch, path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(chromium, "NAMES", (str(path),))


def test_a_browser_that_starts_slowly_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its first answer has a time of its own: it comes after the whole start."""
    monkeypatch.setattr(chromium, "ANSWER_SECONDS", 0.5)
    in_place_of_chromium(monkeypatch, tmp_path / "slow", f'sleep 1; exec "{chromium.find()}" "$@"')
    Browser.start().close()


def test_a_browser_that_ends_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_place_of_chromium(monkeypatch, tmp_path / "none", "exit 1")
    with pytest.raises(BrowserError, match="the browser has ended"):
        Browser.start()


def sign_in(page: Page, key: dict[str, str]) -> None:
    page.write("#key-id", key["AccessKeyId"])
    page.write("#secret", key["SecretAccessKey"])
    page.press("Sign in")


def register(api: Serving, target: Server, name: str = "cache") -> None:
    api.client("admin").create_replication_group(
        ReplicationGroupId=name,
        ReplicationGroupDescription="the new home",
        PrimaryClusterId=f"127.0.0.1:{target.port}",
    )


def start(page: Page, source: Server | None, port: int = 0) -> None:
    page.write("#source-host", "127.0.0.1")
    page.write("#source-port", str(source.port if source is not None else port))
    page.press("Start migration")


def noted(page: Page) -> dict[str, list[str]]:
    found: dict[str, list[str]] = page.eval(
        "Object.fromEntries(Object.entries(noted).map(([name, all]) => [name, [...all]]))"
    )
    return found


def actions(page: Page) -> set[str]:
    """What the page offers to do."""
    return ACTIONS & set(page.buttons())


def fits(page: Page) -> bool:
    """Whether nothing has to be scrolled sideways to be read."""
    return bool(page.eval("document.documentElement.scrollWidth <= innerWidth"))


def test_a_migration(api: Serving, browser: Browser, server_factory: ServerFactory) -> None:
    """From signing in to the cut-over, beside a phone whose key may only look."""
    source, target = server_factory(None, *SLOW), server_factory()
    source.client().mset({f"key:{n}": "x" * 100 for n in range(KEYS)})
    register(api, target)

    # 1. A wrong key is refused in the API's words, a right one is let in.
    page = browser.open(api.url)
    page.sees("Sign in")
    sign_in(page, {"AccessKeyId": "SMIGAAAAAAAAAAAAAAAA", "SecretAccessKey": "no"})
    page.sees("InvalidClientTokenId: The access key is not known here.")
    key = api.keys["migrate"]
    sign_in(page, {**key, "SecretAccessKey": "wrong"})
    page.sees("SignatureDoesNotMatch")
    assert not page.eval("sessionStorage.length")
    sign_in(page, key)
    page.sees("no migration yet")
    assert actions(page) == {"Test", "Start migration"}
    phone = browser.open(api.url, width=360, height=740, dark=True)
    sign_in(phone, api.keys["read"])
    phone.sees("no migration yet")
    assert actions(phone) == set()
    assert fits(phone)

    # 2. The API's errors are told as they are; a test tells what it found.
    start(page, target)
    page.sees("InvalidParameterValue: ")
    page.write("#source-port", str(source.port))
    page.write("#skip-checks", "memory, databaes")
    page.press("Test")
    page.sees("no check 'databaes' to skip")
    page.write("#skip-checks", "memory")
    page.press("Test")
    page.sees("Nothing stands in the way")
    page.sees("source-reachable")
    # What another migration has begun there: it is to lose the target.
    target.client().set("startmigration:position", "v2 another engine")
    page.press("Test")
    page.sees("is the target of another migration, another")
    page.eval("document.querySelector('#take-over').click()")
    page.press("Test")
    page.sees("Nothing stands in the way")
    page.write("#retry-for", "0")
    page.press("Start migration")
    page.sees("InvalidParameterValue: Invalid value for RetryFor")
    page.write("#retry-for", "77")
    assert page.eval("document.querySelectorAll('.checks [data-open=pass]').length") > 10

    # 3. Phase and figures move by themselves.
    for each in (page, phone):
        each.eval(NOTE)
    page.press("Start migration")
    phone.wait("document.querySelector('[aria-current=step] .label')?.textContent === 'Snapshot'")
    assert fits(phone)
    page.wait("document.querySelector('.verdict')?.dataset.tone === 'good'", 30)
    for each in (page, phone):
        each.wait("document.title.startsWith('Follow')", 30)
        seen = noted(each)
        assert [p for p in seen["phases"] if p in ("Snapshot", "Follow")] == ["Snapshot", "Follow"]
        # The state is written twice a second.
        assert len(seen["keys"]) > 3
        assert len(seen["rates"]) > 3
        assert any(verdict.startswith("Not now: ") for verdict in seen["verdicts"])
    page.sees(f"{KEYS:,}")
    gates = page.eval(
        "[...document.querySelectorAll('[aria-label=Cut-over] .gates li')]"
        ".map((gate) => [gate.querySelector('.gate').textContent, gate.dataset.open])"
    )
    names = ["worker", "snapshot", "source heard", "target heard", "caught up", "lag"]
    names += ["everything migrated", "nothing evicted"]
    assert gates == [[name, "pass"] for name in names]
    assert actions(page) == WORDS | SPEED
    page.write("#rate-keys", "50000")
    page.press("Set rate")
    page.sees("at most 50,000 keys a second")
    page.press("Pause")
    page.sees("Not now: paused by the operator")
    page.press("Continue")
    page.wait("document.querySelector('.verdict')?.dataset.tone === 'good'", 30)
    assert actions(phone) == set()
    # Writes show without anybody's doing.
    source.client().mset({f"later:{n}": "y" for n in range(100)})
    page.wait(
        "[...document.querySelectorAll('dt')].find((dt) => dt.textContent === 'Commands applied')"
        ".nextSibling.textContent !== '0'"
    )
    page.wait("document.querySelectorAll('.plot path.line').length >= 4")

    # 4. Force, and a cut-over that is not verified, want the group's name; Complete wants a yes.
    page.press("Complete without verification…")
    page.sees("Both ends are not compared")
    assert page.eval("document.querySelector('dialog .danger').disabled")
    page.press("Cancel")
    page.press("Abort (Force)…")
    page.sees("The source keeps accepting writes")
    page.write("#typed", "cach")
    assert page.eval("document.querySelector('dialog .danger').disabled")
    page.write("#typed", "cache")
    assert not page.eval("document.querySelector('dialog .danger').disabled")
    page.press("Cancel")
    page.press("Complete…")
    page.press("Complete")
    for each in (page, phone):
        each.sees("Last migration: completed")
        each.wait("document.querySelector('.hero .badge').textContent === 'available'")
        events = each.eval("[...document.querySelectorAll('.events li')].map((e) => e.innerText)")
        # Behind it stands at the most that the source's clients are disconnected.
        assert any("migration completed" in event for event in events[:2])
        assert "registered" in events[-1]
        assert fits(each)
        assert each.complaints == []
    assert actions(page) == {"Test", "Start migration"}
    assert target.client().dbsize() >= KEYS + 100

    # 5. The secret has gone nowhere.
    assert len(page.sent) > 10
    assert not any(key["SecretAccessKey"] in each for each in page.sent)
    assert key["SecretAccessKey"] not in page.text()
    page.press("Sign out")
    page.sees("Secret access key")
    assert not page.eval("sessionStorage.length + localStorage.length")


def test_what_can_be_done_with_one_that_has_stopped_or_ended(
    api: Serving, browser: Browser, server_factory: ServerFactory
) -> None:
    """It is resumed, its verification is read, and its source is released, all from the page."""
    source, target = server_factory(), server_factory()
    source.client().mset({f"key:{n}": n for n in range(100)})
    register(api, target)
    page = browser.open(api.url)
    sign_in(page, api.keys["migrate"])
    page.sees("After the cut-over the source refuses writes")
    start(page, source)
    page.wait("document.querySelector('.verdict')?.dataset.tone === 'good'", 30)
    # 1. A worker that was told to stop is gone on from.
    assert "Resume…" not in page.buttons()
    os.kill(api.worker("cache"), signal.SIGTERM)
    page.sees("stopped: ")
    page.press("Resume…")
    page.press("Resume")
    page.sees("The migration goes on.")
    page.wait("document.querySelector('.verdict')?.dataset.tone === 'good'", 30)
    # 2. What the comparison has shown is part of the result.
    page.press("Complete…")
    page.press("Complete")
    page.sees("Last migration: completed")
    page.sees("Verification")
    page.sees("0 differ")
    page.sees("Clients at the source")
    # 3. The source accepts writes again.
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client().set("key:1", "new")
    page.press("Unblock source…")
    page.write("#typed", "cache")
    page.press("Unblock source")
    page.sees("The source accepts writes again.")
    assert source.client().set("key:1", "new")
    page.sees("no longer disconnected: the source accepts writes again")
    # 4. One that has failed, or was aborted, stays readable.
    start(page, source)
    page.wait("document.querySelector('.verdict')?.dataset.tone === 'good'", 30)
    page.press("Abort (Force)…")
    page.write("#typed", "cache")
    page.press("Abort")
    page.sees("Last migration: aborted")
    page.sees("Both ends were not compared.")
    track = page.eval("document.querySelector('.track').innerText")
    assert "(now)" not in track
    assert "(ended here)" in track
    group = api.client().describe_replication_groups(ReplicationGroupId="cache")
    assert group["ReplicationGroups"][0]["Status"] == "available"
    metrics = fetch(api.url + "/metrics", api.signed("/metrics", "read")).body.decode()
    for outcome, count in {"done": 1, "failed": 0, "forced": 1}.items():
        assert f'startmigration_migrations_ended{{outcome="{outcome}"}} {count}.0' in metrics
    assert page.complaints == []


def test_a_silent_source_and_a_cut_over_without_the_comparison(
    api: Serving, browser: Browser, server_factory: ServerFactory
) -> None:
    """While a stopped source is silent nothing is green, and how far behind it is is not known;
    afterwards it is green by itself. A cut-over that is to compare nothing is carried out so."""
    source, target = server_factory(), server_factory()
    source.client().mset({f"key:{n}": n for n in range(100)})
    register(api, target)
    page = browser.open(api.url)
    sign_in(page, api.keys["migrate"])
    start(page, source)
    page.wait(f"{LAG} === 'Lag, now: behind 0 B'", 60)
    page.wait("document.querySelector('.verdict').dataset.tone === 'good'")
    # 1. The source stops. Pushed to the page, and not asked for.
    source.freeze()
    try:
        page.wait("document.querySelector('.verdict').dataset.tone !== 'good'")
        page.sees("the source has not answered for")
        page.wait(f"{LAG} === 'Lag, now: behind –'")
        verdict = page.eval("document.querySelector('.verdict').innerText")
        assert verdict.startswith("Not now: ")
        assert "in sync" not in verdict
        for gate in ("source heard", "lag"):
            page.wait(
                "[...document.querySelectorAll('[aria-label=Cut-over] .gates [data-open=fail]')]"
                f".some((each) => each.querySelector('.gate').textContent === {json.dumps(gate)})"
            )
        for button in ("Complete…", "Complete without verification…"):
            assert (
                page.eval(
                    "[...document.querySelectorAll('button')]"
                    f".find((b) => b.textContent === {json.dumps(button)}).ariaDisabled"
                )
                == "true"
            )
    finally:
        source.thaw()
    page.wait("document.querySelector('.verdict').dataset.tone === 'good'", 60)
    page.wait(f"{LAG} === 'Lag, now: behind 0 B'")
    # 2. A difference that a comparison would find, and that is not looked for.
    target.client().set("key:7", "another")
    page.press("Complete without verification…")
    page.write("#typed", "cache")
    page.press("Complete without verification")
    page.sees("Last migration: completed", 60)
    page.sees("Both ends were not compared.")
    page.sees("migration completed: cut over without the comparison, as asked")
    assert target.client().get("key:7") == b"another"
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        source.client().set("key:1", "new")
    group = api.client().describe_replication_groups(ReplicationGroupId="cache")
    assert group["ReplicationGroups"][0]["Status"] == "available"
    assert page.complaints == []


def test_all_groups_and_a_groups_own_events(api: Serving, browser: Browser, state_url: str) -> None:
    """However many there are, and however much happened elsewhere since."""
    registry = Registry(state_url)
    for number in range(130):
        registry.register(f"g-{number:03}", Endpoint("127.0.0.1", 1000 + number))
    for number in range(120):
        registry.add_event("g-000", f"of its own: {number}")
    for number in range(150):
        registry.add_event("g-001", f"of another: {number}")
    registry.store.close()
    page = browser.open(api.url + "/#g-000")
    sign_in(page, api.keys["read"])
    page.wait("document.querySelectorAll('.groups li').length === 130")
    page.wait("document.querySelectorAll('.view .events li').length === 121")
    page.sees("of its own: 0")
    page.sees("of its own: 119")
    assert "of another" not in page.text()
    assert page.complaints == []


def test_a_refusal_is_red_until_something_comes_behind_it(
    api: Serving, browser: Browser, state_url: str
) -> None:
    registry = Registry(state_url)
    registry.register("cache", Endpoint("127.0.0.1", 1000))
    registry.add_event("cache", "completion refused: not in sync yet")
    page = browser.open(api.url + "/#cache")
    sign_in(page, api.keys["read"])
    tone = """[...document.querySelectorAll('.view .events li')]
        .find((each) => each.innerText.includes('refused')).dataset.tone"""
    page.sees("completion refused: not in sync yet")
    assert page.eval(tone) == "bad"
    registry.add_event("cache", "completion requested")
    registry.store.close()
    page.sees("completion requested")
    page.wait(f"{tone} === 'plain'")
    assert page.complaints == []


def test_a_server_that_is_gone(
    api: Serving, browser: Browser, server_factory: ServerFactory
) -> None:
    """What is old is said to be old, at once; and what comes back is live without a hand."""
    source, target = server_factory(), server_factory()
    source.client().mset({f"key:{n}": n for n in range(100)})
    register(api, target)
    page = browser.open(api.url)
    sign_in(page, api.keys["admin"])
    start(page, source)
    page.wait("document.querySelector('.verdict')?.dataset.tone === 'good'", 30)
    assert not page.eval("document.querySelector('#lost').checkVisibility()")
    for number in (signal.SIGKILL, signal.SIGTERM):
        api.end(number)
        page.wait("document.querySelector('#lost').checkVisibility()", 2)
        page.sees("Connection lost.")
        page.sees("The figures below are those of ")
        assert page.eval("getComputedStyle(document.querySelector('#watch')).opacity") == "0.5"
        assert (
            page.eval("document.querySelector('[aria-label=Cut-over] .primary').ariaDisabled")
            == "true"
        )
        assert page.eval("document.title").startswith("Connection lost")
        api.start(api.address)
        # Unless it has come back by itself meanwhile.
        page.eval(TRY_NOW)
        page.wait("document.body.dataset.connection === 'live'")
        assert not page.eval("document.querySelector('#lost').checkVisibility()")
    # A reload asks for nothing again, and the server remembers the figures.
    page.call("Page.reload")
    page.wait("performance.getEntriesByType('navigation')[0].type === 'reload'")
    page.wait("document.querySelector('.verdict')?.dataset.tone === 'good'")
    # A key that is revoked meanwhile is asked for.
    api.file.write_text("")
    api.end()
    api.start(api.address)
    page.sees("InvalidClientTokenId")
    page.sees("Sign in")
    assert page.complaints == []


def test_without_authentication(
    tmp_path: Path, state_url: str, browser: Browser, server_factory: ServerFactory
) -> None:
    """Nobody is asked who they are; a target is registered from the page."""
    target = server_factory()
    with Serving(tmp_path, state_url, "--no-auth") as api:
        page = browser.open(api.url)
        page.sees("No replication groups")
        assert not page.eval("document.querySelector('#sign-in').checkVisibility()")
        page.write("#new-id", "Home")
        page.write("#new-primary", "nobody@nowhere:x")
        page.press("Register")
        page.sees("InvalidParameterValue: ")
        page.write("#new-primary", f"127.0.0.1:{target.port}")
        page.press("Register")
        page.sees(f"127.0.0.1:{target.port}")
        page.wait("document.querySelector('.view h2')?.textContent === 'home'")
        wait_for(lambda: page.eval("location.hash") == "#home", "the new group is looked at")
        assert actions(page) == {"Test", "Start migration", "Delete…"}
        page.press("Delete…")
        page.write("#typed", "home")
        page.press("Delete")
        page.sees("No replication groups")
        page.sees("home deleted")
        assert page.complaints == []


# --- What signs ---


def requests(count: int) -> list[dict[str, Any]]:
    """Requests with all sorts of characters."""
    pick = random.Random(4)
    letters = "abcXYZ019 -_.~!*'()/?:&=+%\"äß€😀\t"

    def text(most: int) -> str:
        return "".join(pick.choice(letters) for _ in range(pick.randint(0, most)))

    return [
        {
            "method": pick.choice(["GET", "POST"]),
            "path": pick.choice(["/", "/watch"]),
            "query": [[f"q{n}{text(3)}", text(6)] for n in range(pick.randint(0, 4))],
            "headers": {"Content-Type": "text/plain", "X-Amz-Meta-A": f"a  {text(4).strip()}"}
            if pick.random() < 0.5
            else {},
            "host": "10.0.0.1:8321",
            "body": text(200),
        }
        for _ in range(count)
    ]


def signed_by_botocore(request: dict[str, Any], key: dict[str, str]) -> dict[str, str]:
    asked = AWSRequest(
        method=request["method"],
        url=f"http://{request['host']}{request['path']}",
        params=dict(request["query"]),
        headers={**request["headers"], "Host": request["host"]},
        data=request["body"].encode(),
    )
    credentials = Credentials(key["id"], key["secret"])
    SigV4Auth(credentials, "elasticache", REGION).add_auth(asked)
    return {name: asked.headers[name] for name in ("X-Amz-Date", "Authorization")}


def test_the_signer_signs_as_botocore_does(idle: Serving, browser: Browser) -> None:
    key = {"id": "SMIGABCDEFGHIJKLMNOP", "secret": "se/cret+" * 9}
    asked = requests(150)
    # Headers of text that no browser can send are no part of it.
    for each in asked:
        each["headers"] = {
            n: v.encode("ascii", "ignore").decode() for n, v in each["headers"].items()
        }
    expected = [signed_by_botocore(each, key) for each in asked]
    dated = [[a, e["X-Amz-Date"]] for a, e in zip(asked, expected, strict=True)]
    for url, own in ((idle.url, False), (idle.url.replace("127.0.0.1", "lan.test"), True)):
        page = browser.open(url)
        assert page.eval("globalThis.crypto.subtle === undefined") is own
        found = page.eval(
            f"""(async () => {{
              const {{sign}} = await import("/page/sigv4.js");
              const date = (t) => new Date(t.replace(
                /(....)(..)(..)T(..)(..)(..)Z/, "$1-$2-$3T$4:$5:$6Z"));
              const made = [];
              for (const [request, stamp] of {json.dumps(dated)})
                made.push(await sign(request, {json.dumps(key)}, date(stamp)));
              return made;
            }})()"""
        )
        for request, ours, theirs in zip(asked, found, expected, strict=True):
            assert {name: ours[name] for name in theirs} == theirs, request
    # And where there is no WebCrypto, signing in works.
    sign_in(page, idle.keys["read"])
    page.sees("No replication groups")
    assert page.complaints == []


def test_our_own_hashes(idle: Serving, browser: Browser) -> None:
    pick = random.Random(5)
    messages = [pick.randbytes(n) for n in (*range(140), 1000, 65_537)]
    keys = [pick.randbytes(pick.randint(0, 100)) for _ in messages]
    page = browser.open(idle.url)
    found = page.eval(
        f"""(async () => {{
          const {{sha256, hmac}} = await import("/page/sha256.js");
          const bytes = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (b) => parseInt(b, 16));
          const hex = (b) => Array.from(b, (x) => x.toString(16).padStart(2, "0")).join("");
          return {json.dumps([[m.hex(), k.hex()] for m, k in zip(messages, keys, strict=True)])}
            .map(([m, k]) => [hex(sha256(bytes(m))), hex(hmac(bytes(k), bytes(m)))]);
        }})()"""
    )
    expected = [
        [hashlib.sha256(m).hexdigest(), hmac.digest(k, m, "sha256").hex()]
        for m, k in zip(messages, keys, strict=True)
    ]
    assert found == expected


def test_events_cut_anywhere(idle: Serving, browser: Browser) -> None:
    page = browser.open(idle.url)
    stream = ': hello\n\nevent: state\ndata: {"a":"ä\\n"}\n\n: still here\n\nevent: b\ndata: 2\n\n'
    found = page.eval(
        f"""(async () => {{
          const {{events}} = await import("/page/feed.js");
          const all = [];
          const text = {json.dumps(stream)};
          for (let size = 1; size <= text.length; size++) {{
            const heard = [];
            const take = events((name, data) => heard.push([name, data]));
            for (let at = 0; at < text.length; at += size) take(text.slice(at, at + size));
            all.push(heard);
          }}
          return all;
        }})()"""
    )
    assert found == [[["state", {"a": "ä\n"}], ["b", 2]]] * len(stream)


def test_what_is_not_known_and_what_has_ended(idle: Serving, browser: Browser) -> None:
    """A total that is not known is no zero, and no phase of what has ended is "now"."""
    page = browser.open(idle.url)
    found = page.eval(
        """(async () => {
          const {Keys} = await import("/page/figures.js");
          const {Track} = await import("/page/track.js");
          const keys = new Keys(), track = new Track();
          const figures = {Keys: 0, TotalKeys: null, CanComplete: false, Phase: "CONNECT"};
          const counts = [null, 0, 9].map((total) => {
            keys.update({...figures, EtaSeconds: null, TotalKeys: total});
            return keys.node.querySelector("p").textContent.trim();
          });
          const standing = [
            ["FOLLOW"],
            ["FOLLOW", "replica", "FOLLOW", true],
            ["STOPPED", "replica", "FOLLOW"],
            ["FAILED", "replica", "SNAPSHOT", true],
            ["DONE", "replica", "DONE", true],
          ].map((at) => {
            track.update(...at);
            return Array.from(track.node.children, (step) => step.lastChild.textContent);
          });
          return [counts, standing];
        })()"""
    )
    assert found[0] == [
        "0 keys, of how many is not known yet",
        "0 of about 0 keys · 0 %",
        "0 of about 9 keys · 0 %",
    ]
    past = "(done)"
    assert found[1] == [
        [past, past, past, "(now)", "", ""],
        [past, past, past, "(ended here)", "", ""],
        [past, past, past, "(stopped here)", "", ""],
        [past, "(ended here)", "", "", "", ""],
        [past] * 6,
    ]


def test_the_shards_of_a_cluster(api: Serving, browser: Browser) -> None:
    """A migration of three shards into two: a row for each pair whose slots meet."""
    with (
        Cluster.start(known("redis-7.0"), primaries=3) as source,
        Cluster.start(known("valkey-8.1"), primaries=2) as target,
    ):
        register(api, target.nodes[0])
        page = browser.open(api.url)
        sign_in(page, api.keys["migrate"])
        page.sees("no migration yet")
        start(page, source.nodes[1])
        rows = "[...document.querySelectorAll('.shards tbody tr')].map((row) => row.innerText)"
        page.wait(f"{rows}.filter((row) => row.includes('Follow')).length === 4", BUSY_SECONDS)
        found = page.eval(rows)
        ports = [f"127.0.0.1:{node.port}" for node in (*source.nodes, *target.nodes)]
        pairs = [(0, 3, "0-5460"), (1, 3, "5461-8191"), (1, 4, "8192-10921"), (2, 4, "10922-16383")]
        for one, other, slots in pairs:
            (row,) = [row for row in found if slots in row]
            assert ports[one] in row
            assert ports[other] in row
        page.sees("4 lanes: 4 × Follow")
        assert page.complaints == []


def test_a_hundred_shards(idle: Serving, browser: Browser) -> None:
    """Totals above, a row each in the order of the server, a rate between two states; nothing has
    to be scrolled sideways, on a phone either."""
    for width in (1280, 360):
        page = browser.open(idle.url, width=width)
        found = page.eval(
            """(async () => {
              const {Shards} = await import("/page/shards.js");
              const shards = new Shards();
              document.querySelector("main").replaceChildren(shards.node);
              shards.update(null, 0);
              const hidden = shards.node.hidden;
              const of = (n, commands) => ({
                Name: `lane-${n}`, Source: `10.0.0.${n}:6379`, Target: `10.0.1.${n}:6379`,
                Slots: `${n * 163}-${n * 163 + 162}, 16300-16301 and 12 more`,
                Phase: n === 0 ? "SNAPSHOT" : "FOLLOW", Keys: 123456, TotalKeys: 200000,
                KeysPerSecond: n === 0 ? 51234.5 : 0, Commands: commands, Reason: "",
                LagBytes: 1000, LagSeconds: 0.02, Link: n === 99 ? "down" : "up",
              });
              const all = (commands) => Array.from({length: 100}, (_, n) => of(n, commands));
              shards.update({Shards: all(0)}, 1000);
              shards.update({Shards: all(500)}, 3000);
              const rows = Array.from(shards.node.querySelectorAll("tbody tr"));
              const wide = document.documentElement.scrollWidth - innerWidth;
              const box = shards.node.querySelector(".scrolled");
              return [
                hidden, rows.length, rows[0].innerText, rows[1].innerText, rows[99].dataset.tone,
                shards.node.querySelector("p").textContent, wide, box.scrollWidth - box.clientWidth,
              ];
            })()"""
        )
        hidden, count, first, second, tone, totals, wide, too_wide = found
        assert hidden
        assert count == 100
        assert "Snapshot" in first
        assert "61.7 %" in first
        assert "51.2k keys/s" in first
        assert "250 commands/s" in second
        assert "1.00 kB, 20 ms" in second
        assert tone == "bad"
        assert totals == (
            "100 lanes: 1 × Snapshot, 99 × Follow · 100 kB behind · 51.2k keys/s · 25.0k commands/s"
        )
        assert wide <= 0
        assert too_wide <= 0
        assert page.complaints == []
