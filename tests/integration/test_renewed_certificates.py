"""A client's certificate that is renewed on disk: what dials takes the files as they are then."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benches.support.servers import Server, binaries, make_tls_files, supports_tls
from engine.errors import UsageError
from engine.model.endpoint import Endpoint
from engine.wire.control_connection import admin
from engine.wire.dial import dial
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.servers import ServerFactory


def test_renewed_while_a_source_is_followed(server_factory: ServerFactory, tmp_path: Path) -> None:
    """The server takes certificates of another authority by then, and the key is renewed a moment
    behind the certificate."""
    able = next((each for each in binaries() if supports_tls(each)), None)
    if able is None:
        pytest.skip("no server of this machine speaks TLS")
    before, after = make_tls_files(tmp_path / "before"), make_tls_files(tmp_path / "after")
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    shutil.copy(before.client_cert, cert)
    shutil.copy(before.client_key, key)
    source = server_factory(able, "--tls-auth-clients", "yes", tls=before)
    target = server_factory(binaries()[0])
    source.client().mset({f"key:{n}": n for n in range(500)})
    url = f"{source.url}&cert_file={cert}&key_file={key}"
    own = source.client()
    with migrating(url, target, retry_for=60.0) as run:
        run.following()
        own.config_set("tls-ca-cert-file", str(after.ca))
        shutil.copy(after.client_cert, cert)
        _cut(source, own)
        run.wait_for(lambda: "it was of use before" in (run.progress.reason or ""), "the reason")
        shutil.copy(after.client_key, key)
        source.tls = replace(before, client_cert=after.client_cert, client_key=after.client_key)
        source.client().set("late", "1")
        run.cut_over(source)
    source.client().config_set("tls-auth-clients", "no")  # for what compares
    assert_settled(source, target, 5.0)


def _cut(server: Server, own: object) -> None:
    for kind in ("replica", "normal"):
        own.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")  # type: ignore[attr-defined]


async def test_a_connection_for_commands_that_is_dialled_anew(
    server_factory: ServerFactory, tmp_path: Path
) -> None:
    able = next((each for each in binaries() if supports_tls(each)), None)
    if able is None:
        pytest.skip("no server of this machine speaks TLS")
    before, after = make_tls_files(tmp_path / "before"), make_tls_files(tmp_path / "after")
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"
    server = server_factory(able, "--tls-auth-clients", "yes", tls=before)
    own = server.client()
    at = Endpoint.parse(f"{server.url}&cert_file={cert}&key_file={key}")
    with pytest.raises(UsageError, match="cannot be read"):
        await dial(at, fault="source", timeout=20)
    shutil.copy(before.client_cert, cert)
    shutil.copy(before.client_key, key)
    async with admin(at, timeout=20) as side:
        assert await side.call("PING") == b"PONG"
        own.config_set("tls-ca-cert-file", str(after.ca))
        shutil.copy(after.client_cert, cert)
        shutil.copy(after.client_key, key)
        await side.close()
        assert await side.call("PING") == b"PONG"
