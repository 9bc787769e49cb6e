"""The HTTP API as its clients meet it: a process of its own, or the application alone.

with Serving(tmp_path, state_url) as api:
    client = api.client("admin")
    ...
"""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from benches.support.waiting import SECONDS, wait_for
from engine.front.access_keys import Role, create
from engine.front.http.botocore_model import model
from engine.groups.registry import Registry

REGION = "us-east-1"
NAMESPACE = f"{{{model().namespace}}}"


@dataclass(frozen=True)
class Answer:
    """What the application answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def xml(self) -> ElementTree.Element:
        """The document."""
        return ElementTree.fromstring(self.body)

    @property
    def code(self) -> str:
        """The error's code, empty for an answer."""
        return self.xml.findtext(f"{NAMESPACE}Error/{NAMESPACE}Code", "")

    @property
    def message(self) -> str:
        """The error's message."""
        return self.xml.findtext(f"{NAMESPACE}Error/{NAMESPACE}Message", "")


async def ask(
    app: Any,
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/",
    query: bytes = b"",
    headers: Sequence[tuple[str, str]] = (("host", "localhost:8321"),),
    pieces: int = 1,
) -> Answer:
    """Ask the application as the server would; the body comes in so many pieces."""
    size = max(len(body) // pieces, 1)
    chunks = [body[n : n + size] for n in range(0, len(body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": n < len(chunks)}
        for n, chunk in enumerate(chunks, 1)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8321),
        "state": {},
    }
    await app(scope, receive, send)
    start, *rest = sent
    return Answer(
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in rest),
    )


def fetch(
    url: str, headers: dict[str, str] | None = None, context: ssl.SSLContext | None = None
) -> Answer:
    """What a GET of this URL is answered with."""
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as got:
            return Answer(got.status, dict(got.headers), got.read())
    except urllib.error.HTTPError as refused:
        with refused:
            return Answer(refused.code, dict(refused.headers), refused.read())


class Serving:
    """`python -m engine serve`, with keys of all roles; ended, with a look at its log, at exit."""

    def __init__(self, folder: Path, state: str, *options: str, log_level: str = "debug") -> None:
        self.state = state
        self.file = folder / "keys"
        self.keys: dict[str, dict[str, str]] = {}
        self.log: list[str] = []
        self._options = options
        self._log_level = log_level
        self._clients: list[Any] = []
        self._environment = {
            **{
                k: v for k, v in os.environ.items() if not k.startswith(("STARTMIGRATION_", "AWS_"))
            },
            "XDG_CONFIG_HOME": str(folder),
            "XDG_STATE_HOME": str(folder),
        }
        for role in Role:
            key = create(self.file, role)
            self.keys[role] = {"AccessKeyId": key.id, "SecretAccessKey": key.secret}
        self.start()

    def start(self, listen: str = "127.0.0.1:0") -> None:
        """Start the server (anew), and wait until it listens."""
        options = self._options or ("--credentials", str(self.file))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine", "serve", "--listen", listen, "--state", self.state,
             "--log-level", self._log_level, *options],
            env=self._environment,
            start_new_session=True,  # as a service manager does
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        begun = len(self.log)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        found = wait_for(
            lambda: (
                re.search(r"listening on (\S+)", "".join(self.log[begun:]))
                or self.process.poll() is not None
            ),
            "the server listens",
        )
        assert isinstance(found, re.Match), "".join(self.log)
        self.url = found[1]
        self.address = self.url.partition("//")[2]

    def client(self, role: str = "admin", **options: Any) -> Any:
        """boto3's client, with the key of this role."""
        key = self.keys[role]
        config = Config(
            retries={"max_attempts": 0}, connect_timeout=5, read_timeout=20, max_pool_connections=50
        )
        client = boto3.client(
            "elasticache",
            **{
                "endpoint_url": self.url,
                "region_name": REGION,
                "aws_access_key_id": key["AccessKeyId"],
                "aws_secret_access_key": key["SecretAccessKey"],
                "config": config,
                **options,
            },
        )
        self._clients.append(client)
        return client

    def worker(self, group: str) -> int:
        """The pid of the worker that has the group's migration."""
        registry = Registry(self.state)
        try:
            _, transfer = registry.get(group)
        finally:
            registry.store.close()
        assert transfer is not None
        assert transfer.worker is not None
        return int(transfer.worker.shown["Pid"])

    def signed(self, path: str, role: str) -> dict[str, str]:
        """The headers of a GET, signed with the key of this role."""
        key = self.keys[role]
        request = AWSRequest(method="GET", url=self.url + path)
        credentials = Credentials(key["AccessKeyId"], key["SecretAccessKey"])
        SigV4Auth(credentials, "elasticache", REGION).add_auth(request)
        return dict(request.prepare().headers)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.end(signal.SIGKILL)
        log = "".join(self.log)
        if error is not None:
            print(log, file=sys.stderr)
            return
        assert "a bug" not in log
        assert not any(key["SecretAccessKey"] in log for key in self.keys.values())


def percent(group: dict[str, Any]) -> float | None:
    """How far a group's migration is, where the model has a place for it."""
    pending = group.get("PendingModifiedValues", {})
    found: float | None = (
        pending.get("Resharding", {}).get("SlotMigration", {}).get("ProgressPercentage")
    )
    return found
