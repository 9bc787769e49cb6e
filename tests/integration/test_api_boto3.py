"""boto3 drives a migration, and meets the faults, of a server of its own process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import re
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from benches.support.api import Serving, fetch, percent
from benches.support.servers import Server, TlsFiles
from benches.support.waiting import wait_for
from engine.front.engine import Engine
from engine.front.http.botocore_model import API_VERSION
from engine.front.http.client_limits import CONNECTIONS_MOST, CONNECTIONS_OF_ONE
from engine.front.http.server import GRACE_SECONDS
from engine.front.http.tls_handshake_limits import HANDSHAKE_SECONDS
from tests.support.completing import word_given
from tests.support.servers import ServerFactory, known

KEYS = 2000


@pytest.fixture
def api(tmp_path: Path, state_url: str) -> Iterator[Serving]:
    """A server."""
    with Serving(tmp_path, state_url) as serving:
        yield serving


def node(server: Server) -> list[dict[str, Any]]:
    return [{"Address": "127.0.0.1", "Port": server.port}]


def register(client: Any, target: Server | str, name: str = "cache") -> None:
    client.create_replication_group(
        ReplicationGroupId=name,
        ReplicationGroupDescription="the new home",
        PrimaryClusterId=target if isinstance(target, str) else f"127.0.0.1:{target.port}",
    )


def group(client: Any, name: str = "cache") -> dict[str, Any]:
    found: dict[str, Any] = client.describe_replication_groups(ReplicationGroupId=name)
    return found["ReplicationGroups"][0]


def healthy(api: Serving) -> bool:
    return bool(json.loads(fetch(f"{api.url}/healthz").body) == {"status": "ok"})


def test_what_a_target_runs_is_told_at_once(api: Serving, server_factory: ServerFactory) -> None:
    """However often others describe the group while TestMigration asks the target."""
    source, over = server_factory(), threading.Event()
    client, others = api.client(), api.client()

    def describe(name: str) -> None:
        while not over.is_set():
            group(others, name)
            time.sleep(0.01)

    for n in range(3):
        target, name = server_factory(), f"group-{n}"
        register(client, target, name)
        over.clear()
        thread = threading.Thread(target=describe, args=(name,))
        thread.start()
        try:
            client.test_migration(ReplicationGroupId=name, CustomerNodeEndpointList=node(source))
            told = group(client, name)
        finally:
            over.set()
            thread.join()
        assert told.get("Engine") == target.binary.flavour


def test_a_whole_migration(api: Serving, server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    source.client().mset({f"key:{n}": n for n in range(KEYS)})
    admin, migrate = api.client("admin"), api.client("migrate")
    # 1. Register and test.
    register(admin, target)
    assert "Engine" not in group(migrate)
    nodes = node(source)
    tested = migrate.test_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=nodes)
    assert tested["ReplicationGroup"]["Status"] == "available"
    assert target.client().dbsize() == 0
    # The test has asked the target what it runs.
    assert tested["ReplicationGroup"]["Engine"] == target.binary.flavour
    assert group(migrate)["Engine"] == target.binary.flavour
    # 2. Start; the source goes on being written to.
    started = migrate.start_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=nodes)
    assert started["ReplicationGroup"]["Status"] == "migrating"
    with pytest.raises(migrate.exceptions.ReplicationGroupAlreadyUnderMigrationFault):
        migrate.start_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=nodes)
    with pytest.raises(admin.exceptions.InvalidReplicationGroupStateFault):
        admin.delete_replication_group(ReplicationGroupId="cache")
    source.client().set("late", "write")
    # What the target has told by now, and what the service's shape has beside it.
    shown = group(migrate)
    assert shown["Engine"] == target.binary.flavour
    assert shown["ARN"] == "arn:startmigration:elasticache:::replicationgroup:cache"
    assert (shown["ClusterMode"], shown["MultiAZ"]) == ("disabled", "disabled")
    assert shown["AutomaticFailover"] == "disabled"
    assert (shown["NetworkType"], shown["UserGroupIds"]) == ("ipv4", [])
    # 3. Describe until in sync.
    wait_for(lambda: percent(group(migrate)) == 100.0, "in sync")
    page = fetch(f"{api.url}/metrics", api.signed("/metrics", "read")).body.decode()
    # The late key is in the snapshot, or comes behind it.
    told = (f'startmigration_migration_keys{{group="cache"}} {n}.0' for n in (KEYS, KEYS + 1))
    assert any(each in page for each in told)
    assert 'startmigration_migration_phase{group="cache",phase="FOLLOW"} 1.0' in page
    assert 'startmigration_migration_lag_bytes{group="cache"}' in page
    assert 'startmigration_migration_checkpoint_age_seconds{group="cache"}' in page
    # 4. Complete; what polls is botocore's own waiter.
    word_given(
        lambda: migrate.complete_migration(ReplicationGroupId="cache"),
        lambda: percent(group(migrate)) == 100.0,
    )
    quick = {"Delay": 1, "MaxAttempts": 30}
    waiter = migrate.get_waiter("replication_group_available")
    waiter.wait(ReplicationGroupId="cache", WaiterConfig=quick)
    assert target.client().get("late") == b"write"
    assert target.client().dbsize() == KEYS + 1
    told = [each["Message"] for each in migrate.describe_events()["Events"]]
    assert any("migration completed" in message for message in told)
    # 5. And forget it.
    admin.delete_replication_group(ReplicationGroupId="cache", RetainPrimaryCluster=True)
    admin.get_waiter("replication_group_deleted").wait(
        ReplicationGroupId="cache", WaiterConfig=quick
    )
    with pytest.raises(migrate.exceptions.ReplicationGroupNotFoundFault):
        migrate.complete_migration(ReplicationGroupId="cache")


def test_it_cuts_over_by_itself_if_it_is_told_to(
    api: Serving, server_factory: ServerFactory
) -> None:
    source, target = server_factory(), server_factory()
    source.client().set("a", "b")
    client = api.client()
    register(client, target)
    client.start_migration(
        ReplicationGroupId="cache", CustomerNodeEndpointList=node(source), AutoCutover=True
    )
    wait_for(lambda: group(client)["Status"] == "available", "available")
    assert target.client().get("a") == b"b"


def test_the_faults_are_typed(api: Serving, server_factory: ServerFactory) -> None:
    target = server_factory()
    client = api.client()
    faults = client.exceptions
    register(client, target)
    with pytest.raises(faults.ReplicationGroupAlreadyExistsFault):
        register(client, target)
    name = {"ReplicationGroupId": "cache"}
    with pytest.raises(faults.InvalidParameterValueException, match="member of the target"):
        client.start_migration(**name, CustomerNodeEndpointList=node(target))
    with pytest.raises(faults.InvalidParameterValueException, match="the migration cannot start"):
        client.test_migration(
            **name, CustomerNodeEndpointList=[{"Address": "127.0.0.1", "Port": 1}]
        )
    with pytest.raises(faults.ReplicationGroupNotUnderMigrationFault):
        client.complete_migration(**name)
    with pytest.raises(faults.InvalidParameterCombinationException):
        client.create_replication_group(
            ReplicationGroupId="b", ReplicationGroupDescription="b", AuthToken="a secret of ours"
        )
    assert client.describe_events(SourceIdentifier="b")["Events"] == []


def test_what_fails_before_a_start(api: Serving, server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory(None, "--databases", "4")
    source.client(db=9).set("key", "value")
    client = api.client()
    register(client, target)
    asked = {"ReplicationGroupId": "cache", "CustomerNodeEndpointList": node(source)}
    with pytest.raises(client.exceptions.InvalidParameterValueException, match="databases: to be"):
        client.start_migration(**asked)
    assert group(client)["Status"] == "available"
    names = ["databases"]

    def skipping(params: dict[str, Any], **_: Any) -> None:
        params["body"].update({f"SkipChecks.member.{n}": name for n, name in enumerate(names, 1)})

    for operation in ("TestMigration", "StartMigration"):
        client.meta.events.register(f"before-call.elasticache.{operation}", skipping)
    names.append("databaes")
    with pytest.raises(client.exceptions.InvalidParameterValueException, match=r"Known: .*memory"):
        client.test_migration(**asked)
    names[1] = "memory"
    # As another migration's worker leaves it.
    target.client().set("startmigration:position", "v2 another engine")
    with pytest.raises(client.exceptions.InvalidParameterValueException, match="other-migration"):
        client.test_migration(**asked)

    def ours(params: dict[str, Any], **_: Any) -> None:
        params["body"].update(more)

    more = {"TakeOver": "true"}
    client.meta.events.register("before-call.elasticache.TestMigration", ours)
    client.meta.events.register("before-call.elasticache.StartMigration", ours)
    assert client.test_migration(**asked)["ReplicationGroup"]["Status"] == "available"
    more["RetryFor"] = "0"
    with pytest.raises(client.exceptions.InvalidParameterValueException, match="seconds above 0"):
        client.start_migration(**asked)
    more |= {"RetryFor": "77", "SourceNodes.member.1": "10.0.0.7"}
    with pytest.raises(client.exceptions.InvalidParameterValueException, match="SourceNodes"):
        client.start_migration(**asked)
    more["SourceNodes.member.1"] = "10.0.0.7:6379"
    assert client.start_migration(**asked)["ReplicationGroup"]["Status"] == "migrating"
    transfer = Engine(api.state).services.registry.get("cache")[1]
    assert transfer is not None
    settings = transfer.settings
    assert (settings.retry_for, settings.take_over) == (77.0, True)
    assert settings.source_nodes == ("10.0.0.7:6379",)
    client.complete_migration(ReplicationGroupId="cache", Force=True)
    wait_for(lambda: group(client)["Status"] == "available", "aborted")


def test_completion_is_refused_while_not_in_sync(
    api: Serving, server_factory: ServerFactory
) -> None:
    # Its snapshot begins late, so that there is time to stop it.
    late = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "10")
    source, target = server_factory(None, *late), server_factory()
    client = api.client()
    register(client, target)
    client.start_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=node(source))
    source.freeze()
    with pytest.raises(client.exceptions.InvalidReplicationGroupStateFault, match="cannot complet"):
        client.complete_migration(ReplicationGroupId="cache")
    assert group(client)["Status"] == "migrating"
    source.thaw()
    client.complete_migration(ReplicationGroupId="cache", Force=True)
    wait_for(lambda: group(client)["Status"] == "available", "aborted")
    told = [each["Message"] for each in client.describe_events()["Events"]]
    assert "abort requested (force): no cut-over, and no fence stays at the source" in told
    aborted = r"aborted by force, not cut over: .+; the source accepts writes"
    assert any(re.search(aborted, each) for each in told), told
    assert source.client().set("later", 1)


def test_a_cut_over_without_the_comparison(api: Serving, server_factory: ServerFactory) -> None:
    """SkipVerification is ours: a form names it, as any client of the Query protocol can."""
    source, target = server_factory(known("redis-7.0")), server_factory()
    source.client().set("a", "b")
    client = api.client()
    register(client, target)
    client.start_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=node(source))
    wait_for(lambda: percent(group(client)) == 100.0, "in sync")

    def without(params: dict[str, Any], **_: Any) -> None:
        params["body"]["SkipVerification"] = "true"

    client.meta.events.register("before-call.elasticache.CompleteMigration", without)
    with pytest.raises(botocore.exceptions.ClientError, match="InvalidParameterCombination"):
        client.complete_migration(ReplicationGroupId="cache", Force=True)
    client.complete_migration(ReplicationGroupId="cache")
    wait_for(lambda: group(client)["Status"] == "available", "available")
    told = [each["Message"] for each in client.describe_events()["Events"]]
    assert told[-1] == "migration completed: cut over without the comparison, as asked"
    assert target.client().get("a") == b"b"


def test_pages(api: Serving) -> None:
    client = api.client()
    for n in range(25):
        register(client, "127.0.0.1", f"g-{n:02}")
    settings = {"PageSize": 20}
    pages = client.get_paginator("describe_replication_groups").paginate(PaginationConfig=settings)
    names = [[each["ReplicationGroupId"] for each in page["ReplicationGroups"]] for page in pages]
    assert [len(page) for page in names] == [20, 5]
    assert list(itertools.chain(*names)) == [f"g-{n:02}" for n in range(25)]
    pages = client.get_paginator("describe_events").paginate(PaginationConfig=settings)
    assert [len(page["Events"]) for page in pages] == [20, 5]


def test_each_role_may_do_what_it_is_for(api: Serving) -> None:
    read, migrate, admin = (api.client(role) for role in ("read", "migrate", "admin"))
    denied = botocore.exceptions.ClientError
    nodes = [{"Address": "127.0.0.1", "Port": 1}]
    with pytest.raises(denied, match=r"AccessDenied.*elasticache:CreateReplicationGroup"):
        register(migrate, "127.0.0.1:2")
    register(admin, "127.0.0.1:2")
    assert group(read)["Description"] == "the new home"
    for operation in ("start_migration", "test_migration"):
        with pytest.raises(denied, match="AccessDenied"):
            getattr(read, operation)(ReplicationGroupId="cache", CustomerNodeEndpointList=nodes)
    with pytest.raises(denied, match="AccessDenied"):
        read.complete_migration(ReplicationGroupId="cache")
    with pytest.raises(denied, match="AccessDenied"):
        migrate.delete_replication_group(ReplicationGroupId="cache")
    # Revoked, at once.
    lines = api.file.read_text().splitlines(keepends=True)
    api.file.write_text(lines[0])
    with pytest.raises(denied, match="InvalidClientTokenId"):
        group(admin)
    assert group(read)["ReplicationGroupId"] == "cache"


def test_who_is_not_let_in(api: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(client: Any) -> str:
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            client.describe_replication_groups()
        return str(caught.value.response["Error"]["Code"])

    assert refused(api.client(aws_secret_access_key="x" * 40)) == "SignatureDoesNotMatch"
    assert refused(api.client(aws_access_key_id="SMIG" + "A" * 16)) == "InvalidClientTokenId"
    assert refused(api.client(aws_session_token="x")) == "InvalidClientTokenId"
    unsigned = botocore.config.Config(signature_version=botocore.UNSIGNED)
    assert refused(api.client(config=unsigned)) == "MissingAuthenticationToken"
    for path in ("/watch", "/metrics", "/"):
        answer = fetch(api.url + path)
        assert (answer.status, answer.code) == (403, "MissingAuthenticationToken")
    assert healthy(api)


def test_a_signed_url_works_once_it_changes_something(api: Serving) -> None:
    client = api.client()
    described = client.generate_presigned_url("describe_replication_groups", HttpMethod="GET")
    deleted = client.generate_presigned_url(
        "delete_replication_group", {"ReplicationGroupId": "cache"}, HttpMethod="GET"
    )
    register(client, "127.0.0.1")
    for url in (described, described, deleted):
        assert b"<Status>available</Status>" in fetch(url).body
    # What the state refuses anyway is told as always; what it does not, would be done twice.
    assert fetch(deleted).code == "ReplicationGroupNotFoundFault"
    register(client, "127.0.0.2")
    assert fetch(deleted).code == "RequestExpired"
    assert group(client)["Status"] == "available"


class Watcher:
    """A client of the feed; `states` are those that came."""

    def __init__(self, api: Serving) -> None:
        self.states: list[dict[str, Any]] = []
        url = f"{api.url}/watch"
        request = urllib.request.Request(url, headers=api.signed("/watch", "read"))
        self.response = urllib.request.urlopen(request, timeout=20)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        event = ""
        for line in self.response:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                event = value
            elif name == "data" and event == "state":
                self.states.append(json.loads(value))
        self.response.close()


def test_the_feed(api: Serving, server_factory: ServerFactory) -> None:
    source, target = server_factory(), server_factory()
    client = api.client()
    watcher = Watcher(api)
    assert watcher.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    wait_for(lambda: watcher.states == [{"groups": [], "events": []}], "the first state")
    register(client, target)
    client.start_migration(ReplicationGroupId="cache", CustomerNodeEndpointList=node(source))

    def migration() -> dict[str, Any]:
        # (The group is there before its migration is.)
        found: dict[str, Any] = watcher.states[-1]["groups"][0].get("Migration", {})
        return found

    wait_for(lambda: watcher.states[-1]["groups"], "the group")
    wait_for(lambda: migration().get("CanComplete"), "in sync")
    assert migration()["Phase"] == "FOLLOW"
    assert "migration from" in watcher.states[-1]["events"][-1]["Message"]
    late = Watcher(api)
    wait_for(lambda: late.states, "a state for who comes late")
    # It ends with the server, and does not hold it up.
    begun = time.monotonic()
    assert api.end() == 0
    assert time.monotonic() - begun < GRACE_SECONDS
    for each in (watcher, late):
        each.thread.join(30)
        assert not each.thread.is_alive()


@pytest.mark.parametrize("how", ["deleted", "another role", "the file is gone"])
def test_a_key_that_is_revoked_watches_no_longer(api: Serving, how: str) -> None:
    watcher = Watcher(api)
    wait_for(lambda: watcher.states, "the first state")
    lines = api.file.read_text().splitlines(keepends=True)
    if how == "deleted":
        api.file.write_text("".join(line for line in lines if '"read"' not in line))
    elif how == "another role":
        api.file.write_text("".join(lines).replace('"read"', '"migrate"'))
    else:
        api.file.unlink()
    # The next word would be its last chance: a state, or that the feed lives.
    watcher.thread.join(30)
    assert not watcher.thread.is_alive()


# What no client of AWS's would do.


def test_ten_megabytes_are_refused_quickly(api: Serving) -> None:
    body = b"&".join(b"a.%d=b" % n for n in range(1_000_000))
    assert len(body) > 10 << 20
    begun = time.monotonic()
    connection = http.client.HTTPConnection(api.address, timeout=20)
    connection.request("POST", "/", body)
    answer = connection.getresponse()
    assert answer.status == 400
    assert b"<Code>ValidationError</Code>" in answer.read()
    # The connection is still good.
    connection.request("GET", "/healthz")
    assert json.load(connection.getresponse()) == {"status": "ok"}
    connection.close()
    assert time.monotonic() - begun < 20


async def test_two_hundred_clients_at_once(api: Serving) -> None:
    url = api.client().generate_presigned_url("describe_replication_groups", HttpMethod="GET")
    host, port = api.address.split(":")
    head = f"GET {url.removeprefix(api.url)} HTTP/1.1\r\nHost: {api.address}\r\n\r\n".encode()
    everybody_is_there = asyncio.Barrier(200)

    async def one() -> bytes:
        reader, writer = await asyncio.open_connection(host, int(port))
        await everybody_is_there.wait()
        writer.write(head)
        answer = await reader.readuntil(b"</DescribeReplicationGroupsResponse>")
        writer.close()
        await writer.wait_closed()
        return answer[:15]

    async with asyncio.timeout(90):
        assert set(await asyncio.gather(*(one() for _ in range(200)))) == {b"HTTP/1.1 200 OK"}


def raw(api: Serving, data: bytes, seconds: float = 30.0) -> bytes:
    """What comes for these bytes, until the server closes or the time is over."""
    host, port = api.address.split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as link:
        link.sendall(data)
        got = b""
        try:
            while piece := link.recv(65536):
                got += piece
        except TimeoutError:
            pass
        return got


def test_heads_that_are_none(api: Serving) -> None:
    assert raw(api, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    huge = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (1 << 20)
    with contextlib.suppress(OSError):  # the server does not read it to its end
        assert raw(api, huge).startswith(b"HTTP/1.1 400")
    assert healthy(api)


def test_without_authentication(tmp_path: Path, state_url: str) -> None:
    with Serving(tmp_path, state_url, "--no-auth") as api:
        client = api.client(aws_access_key_id="any", aws_secret_access_key="any")
        register(client, "127.0.0.1")
        url = f"{api.url}/?Action=DescribeReplicationGroups&Version={API_VERSION}"
        assert b"<ReplicationGroupId>cache<" in fetch(url).body
        assert fetch(url, {"Origin": api.url}).code == ""
        assert fetch(url, {"Origin": "http://evil.example.com"}).code == "AccessDenied"


def test_tls_and_a_token_for_the_metrics(
    tmp_path: Path, state_url: str, tls_files: TlsFiles
) -> None:
    token = tmp_path / "token"
    token.touch(0o600)
    token.write_text("a token of 20 letters\n")
    with Serving(
        tmp_path, state_url, "--credentials", str(tmp_path / "keys"),
        "--tls-cert", str(tls_files.cert), "--tls-key", str(tls_files.key),
        "--metrics-token-file", str(token),
    ) as api:  # fmt: skip
        assert api.url.startswith("https://")
        client = api.client(verify=str(tls_files.ca))
        assert client.describe_replication_groups()["ReplicationGroups"] == []
        trusted = ssl.create_default_context(cafile=str(tls_files.ca))
        url, bearer = f"{api.url}/metrics", {"Authorization": "Bearer a token of 20 letters"}
        assert b"startmigration_api_calls_total" in fetch(url, bearer, trusted).body
        other = {"Authorization": "Bearer another token of ours"}
        assert fetch(url, other, trusted).code == "IncompleteSignature"


def test_handshakes_that_do_not_end(tmp_path: Path, state_url: str, tls_files: TlsFiles) -> None:
    """They are connections, of which there may be so many; files and the state are left alone."""
    with Serving(
        tmp_path, state_url, "--credentials", str(tmp_path / "keys"),
        "--tls-cert", str(tls_files.cert), "--tls-key", str(tls_files.key),
    ) as api, contextlib.ExitStack() as stack:  # fmt: skip
        trusted = ssl.create_default_context(cafile=str(tls_files.ca))
        host, port = api.address.split(":")
        descriptors = Path(f"/proc/{api.process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        for _ in range(CONNECTIONS_MOST + 200):
            stack.enter_context(socket.create_connection((host, int(port))))
        time.sleep(0.5)
        assert len(list(descriptors.iterdir())) <= before + CONNECTIONS_MOST + 10

        def served() -> bool:
            with contextlib.suppress(OSError):
                return fetch(f"{api.url}/healthz", context=trusted).status == 200
            return False

        wait_for(served, "room for others", HANDSHAKE_SECONDS + 5)
        stack.enter_context(socket.create_connection((host, int(port))))
        begun = time.monotonic()
        assert api.end() == 0
        assert time.monotonic() - begun < GRACE_SECONDS
        assert "Traceback" not in "".join(api.log)


def test_connections_that_ask_nothing(tmp_path: Path, state_url: str) -> None:
    """Two addresses that hold all of them shut no third one out."""
    with Serving(tmp_path, state_url) as api, contextlib.ExitStack() as stack:
        host, port = api.address.split(":")
        for own in ("127.0.0.2", "127.0.0.3"):
            for _ in range(CONNECTIONS_OF_ONE + 20):
                each = socket.create_connection((host, int(port)), source_address=(own, 0))
                stack.enter_context(each)
                with contextlib.suppress(OSError):
                    each.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n")
        assert fetch(f"{api.url}/healthz").status == 200
        told = "which has 256, gave way to one of 127.0.0.1"
        wait_for(lambda: any(told in line for line in api.log), "a line of the log")
        assert "Traceback" not in "".join(api.log)


def test_which_servers_may_be_meant(
    tmp_path: Path, state_url: str, server_factory: ServerFactory
) -> None:
    source, target = server_factory(), server_factory(unix=True)
    source.client().set("a", "b")
    (target.folder / "run").mkdir()
    closed = {"Address": "127.0.0.1", "Port": 1}
    far = {"Address": "169.254.169.254", "Port": 80}
    options = (
        "--credentials", str(tmp_path / "keys"), "--allow-endpoint", "127.0.0.1",
        "--allow-endpoint", f"unix:{target.folder}/run/*.sock",
    )  # fmt: skip
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Serving(tmp_path, state_url, *options) as api,
    ):
        admin, migrate = api.client("admin"), api.client("migrate")
        register(admin, target)
        fault = admin.exceptions.InvalidParameterValueException

        def refused(client: Any, end: dict[str, Any], ask: str = "test_migration") -> str:
            with pytest.raises(fault) as caught:
                getattr(client, ask)(ReplicationGroupId="cache", CustomerNodeEndpointList=[end])
            told = str(caught.value.response["Error"]["Message"])
            return told.replace(f"{end['Address']}:{end['Port']}", "HOST")

        # 1. One word for what is closed and what is no server, and it is in no event either.
        other = {"Address": "127.0.0.1", "Port": listener.getsockname()[1]}

        def greet() -> None:
            link, _ = listener.accept()
            link.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            link.close()

        greeting = threading.Thread(target=greet, daemon=True)
        greeting.start()
        word = refused(migrate, closed)
        assert "source HOST cannot be reached, or is not a Redis" in word
        assert refused(migrate, other) == word
        greeting.join(10)
        assert refused(migrate, closed, "start_migration") == word
        events = [each["Message"] for each in admin.describe_events()["Events"]]
        assert not any("connection refused" in each for each in events)
        assert not any(re.search(r"\.[;:](\s|$)|\.\.|\. →", each) for each in events)
        assert any("source 127.0.0.1:1: connection refused" in line for line in api.log)
        # 2. An admin may know.
        assert "connection refused" in refused(admin, closed)
        # 3. What was not allowed is not dialled.
        for each in (far, {"Address": "127.0.0.2", "Port": 2}):
            assert "may connect to" in refused(migrate, each)
        # (Nor a socket that `..` leads to.)
        admin.create_replication_group(
            ReplicationGroupId="outside", ReplicationGroupDescription="",
            PrimaryClusterId=f"unix://{target.folder}/run/../s.sock",
        )  # fmt: skip
        with pytest.raises(fault, match="may connect to"):
            migrate.test_migration(
                ReplicationGroupId="outside", CustomerNodeEndpointList=node(source)
            )
        admin.delete_replication_group(ReplicationGroupId="outside")
        # 4. What was allowed is, by a worker too.
        migrate.start_migration(
            ReplicationGroupId="cache", CustomerNodeEndpointList=node(source), AutoCutover=True
        )
        wait_for(lambda: group(admin)["Status"] == "available", "available")
    assert target.client().get("a") == b"b"
