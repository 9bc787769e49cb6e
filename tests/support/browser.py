"""Headless Chromium for tests, driven over its DevTools protocol on two pipes.

    with Browser.start() as browser:
        page = browser.open("http://127.0.0.1:8321/", width=360)
        page.click("#sign-in-button")
        page.wait("document.title.startsWith('Follow')")

The pipes need no client library, no port and no driver of a fitting version; a browser whose pipes
close ends by itself, however the tests end.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
# To its first answer, which on a busy machine with cold disks comes after its whole start.
START_SECONDS = 120.0
ANSWER_SECONDS = 60.0
WAIT_SECONDS = 30.0
STOP_SECONDS = 5.0
_LOOK_SECONDS = 0.05
_POLL_SECONDS = 0.5

# --remote-debugging-pipe reads from descriptor 3 and writes to 4.
_WITH_PIPES = """
import os, sys
reads, writes = (os.dup(int(each)) for each in sys.argv[1:3])
for mine, theirs in ((reads, 3), (writes, 4)):
    os.dup2(mine, theirs)
    # Where the two are one, dup2 has done nothing.
    os.set_inheritable(theirs, True)
os.execv(sys.argv[3], sys.argv[3:])
"""


class BrowserError(AssertionError):
    """The browser says no, or not within the time."""


def find() -> str | None:
    """The path of this machine's Chromium, None without one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One running browser. `close` ends it, and removes its profile."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int, home: Path) -> None:
        """Not for callers: `Browser.start` is."""
        self._process, self._write, self._home = process, write, home
        self._ids = itertools.count(1)
        self._answers: dict[int, SimpleQueue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._reader = threading.Thread(target=self._listen, args=(read,), daemon=True)
        self._reader.start()

    @classmethod
    def start(cls) -> Self:
        """Start Chromium without a window. Raises `BrowserError` if there is none."""
        path = find()
        if path is None:
            raise BrowserError("no Chromium on this machine")
        home = Path(tempfile.mkdtemp(prefix="sm-browser-", dir="/tmp"))
        options = [
            "--headless",
            "--remote-debugging-pipe",
            f"--user-data-dir={home}",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--hide-scrollbars",
            "--no-first-run",
            # A name for this machine that is no secure context, as an address on a LAN is none.
            "--host-resolver-rules=MAP lan.test 127.0.0.1",
        ]
        if os.geteuid() == 0:
            options.append("--no-sandbox")
        reads, write = os.pipe()
        read, writes = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", _WITH_PIPES, str(reads), str(writes), path, *options],
                pass_fds=(reads, writes),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(reads)
            os.close(writes)
        browser = cls(process, write, read, home)
        try:
            browser.call("Browser.getVersion", seconds=START_SECONDS)
        except BaseException:
            browser.close()
            raise
        return browser

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A new tab, with nothing in its session, at `url`."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        self._pages[attached["sessionId"]] = page
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.resize(width, height)
        page.go(url)
        return page

    def call(
        self,
        method: str,
        session: str | None = None,
        seconds: float | None = None,
        **params: Any,
    ) -> dict[str, Any]:
        """One command of the protocol; its result. Raises `BrowserError`, also when there is no
        answer for `seconds` (by default `ANSWER_SECONDS`) or the browser has ended."""
        number = next(self._ids)
        answer = self._answers[number] = SimpleQueue()
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        seconds = ANSWER_SECONDS if seconds is None else seconds
        try:
            while data:
                data = data[os.write(self._write, data) :]
            found = self._answered(answer, seconds)
        except Empty:
            raise BrowserError(f"{method}: no answer from the browser in {seconds:g} s") from None
        except BrokenPipeError:
            raise BrowserError(f"{method}: the browser has ended") from None
        finally:
            del self._answers[number]
        if "error" in found:
            raise BrowserError(f"{method}: {found['error'].get('message')}")
        result: dict[str, Any] = found["result"]
        return result

    def _answered(self, answer: SimpleQueue[dict[str, Any]], seconds: float) -> dict[str, Any]:
        """The answer. Raises `Empty` after so long, `BrokenPipeError` once the browser is gone."""
        deadline = time.monotonic() + seconds
        while True:
            over = self._process.poll() is not None or time.monotonic() > deadline
            try:
                return answer.get(timeout=0 if over else _POLL_SECONDS)
            except Empty:
                if self._process.poll() is not None:
                    raise BrokenPipeError from None
                if over:
                    raise

    def close(self) -> None:
        """End the browser."""
        os.close(self._write)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_SECONDS)
        shutil.rmtree(self._home, ignore_errors=True)

    def _listen(self, read: int) -> None:
        with open(read, "rb", buffering=0) as stream:
            rest = b""
            while chunk := stream.read(1 << 16):
                *messages, rest = (rest + chunk).split(b"\0")
                for each in messages:
                    self._take(json.loads(each))

    def _take(self, message: dict[str, Any]) -> None:
        answer = self._answers.get(message.get("id", 0))
        if answer is not None:
            answer.put(message)
        elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page.heard(message["method"], message["params"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Page:
    """One tab. `complaints` are its uncaught errors, and what its policy kept out; `sent` are its
    requests, with all their headers, as JSON."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.complaints: list[str] = []
        self.sent: list[str] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol to this tab."""
        return self._browser.call(method, self._session, **params)

    def go(self, url: str) -> None:
        """Load `url`, and wait until it is there."""
        self.call("Page.navigate", url=url)
        self.wait(
            f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'"
        )

    def resize(self, width: int, height: int) -> None:
        """Be a window of this size (CSS pixels)."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )

    def eval(self, script: str) -> Any:
        """The value of an expression; a promise is waited for. Raises `BrowserError`."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            details = found["exceptionDetails"]
            told = details.get("exception", {}).get("description") or details.get("text")
            raise BrowserError(f"{script}: {told}")
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = WAIT_SECONDS) -> Any:
        """Wait until an expression is true, at most so long; its value."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                found = self.eval(condition)
            except BrowserError as error:
                # Between two documents there is nothing to ask.
                if "context" not in str(error) or time.monotonic() > deadline:
                    raise
                found = None
            if found:
                return found
            if time.monotonic() > deadline:
                raise BrowserError(f"not within {seconds:g} s: {condition}\n{self.text()}")
            time.sleep(_LOOK_SECONDS)

    def text(self) -> str:
        """What a person can read."""
        return str(self.eval("document.body.innerText"))

    def sees(self, text: str, seconds: float = WAIT_SECONDS) -> None:
        """Wait until a person can read `text`."""
        self.wait(f"document.body.innerText.includes({json.dumps(text)})", seconds)

    def buttons(self) -> list[str]:
        """The words on the buttons that can be seen."""
        found: list[str] = self.eval(
            "[...document.querySelectorAll('button')].filter((b) => b.checkVisibility())"
            ".map((b) => b.textContent)"
        )
        return found

    def click(self, selector: str) -> None:
        """Click with the mouse in the middle of an element, wherever it has to be scrolled to."""
        at = self.wait(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            " if (!found?.checkVisibility()) return null;"
            " found.scrollIntoView({block: 'center'});"
            " const box = found.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1
            )

    def press(self, text: str) -> None:
        """Click the button that says `text`."""
        self.wait(
            f"(() => {{ const found = [...document.querySelectorAll('button')].filter((b) =>"
            f" b.checkVisibility() && b.textContent === {json.dumps(text)}).at(-1);"
            " document.querySelector('[data-press]')?.removeAttribute('data-press');"
            " found?.setAttribute('data-press', ''); return Boolean(found); })()"
        )
        self.click("[data-press]")

    def write(self, selector: str, text: str) -> None:
        """Replace what stands in a field, as typing does."""
        self.click(selector)
        self.eval(f"document.querySelector({json.dumps(selector)}).select()")
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Save what is seen, or the whole document, as a PNG."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def heard(self, method: str, params: dict[str, Any]) -> None:
        """An event of the protocol."""
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            told = details.get("exception", {}).get("description") or details.get("text")
            self.complaints.append(str(told))
        elif method.startswith("Network.requestWillBeSent"):
            self.sent.append(json.dumps(params))
        elif method == "Log.entryAdded":
            entry = params["entry"]
            # That a request failed is what some tests are about.
            if entry["level"] == "error" and entry["source"] != "network":
                self.complaints.append(entry["text"])
