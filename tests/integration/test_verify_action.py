"""`VerifyReplicationGroup`: asked for over HTTP, done by a process of its own, and told of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from xml.etree import ElementTree

import pytest

from benches.support.api import Serving, fetch
from benches.support.servers import Server
from benches.support.waiting import wait_for
from engine.fleet import verifier
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.groups import schema, store, verifications
from engine.model.endpoint import Endpoint
from engine.model.proof import ProofReport
from tests.integration.test_verify_resumed import compared
from tests.support.servers import ServerFactory, known, url_of

KEYS = 30_000


@pytest.fixture
def api(tmp_path: Path, state_url: str) -> Iterator[Serving]:
    """A server, with a key of each role."""
    with Serving(tmp_path, state_url) as serving:
        yield serving


@pytest.fixture
def pair(server_factory: ServerFactory, api: Serving) -> tuple[Server, Server]:
    """A source and a target that are equal but for one key; the target is the group "g"."""
    here, there = server_factory(known("redis-7.0")), server_factory(known("redis-7.0"))
    for server in (here, there):
        pipe = server.client().pipeline(transaction=False)
        for n in range(KEYS):
            pipe.set(f"key:{n}", "x" * 100)
        pipe.execute()
    there.client().set("key:7", "<other>")
    api.client().create_replication_group(
        ReplicationGroupId="g",
        ReplicationGroupDescription="",
        PrimaryClusterId=there.host,
        Port=there.port,
    )
    return here, there


def call(api: Serving, role: str, action: str, members: dict[str, Any]) -> tuple[int, Any]:
    """The status and the answer."""
    form = {"Action": action, "Version": "2015-02-02", "ReplicationGroupId": "g"} | members
    path = f"/?{urlencode(form)}"
    answer = fetch(api.url + path, api.signed(path, role))
    # (Without the namespace.)
    return answer.status, ElementTree.fromstring(answer.body.decode().replace("xmlns=", "ns="))


def ask(api: Serving, role: str = "migrate", **members: Any) -> tuple[int, Any]:
    """Call the action."""
    return call(api, role, "VerifyReplicationGroup", members)


def told(api: Serving) -> dict[str, str]:
    """The group's `Verification`."""
    _, xml = call(api, "read", "DescribeReplicationGroups", {})
    (found,) = xml.iter("Verification")
    return {each.tag: "".join(each.itertext()) for each in found}


def ended(api: Serving) -> dict[str, str]:
    """The same, at its end."""
    wait_for(lambda: told(api)["Status"] != "running", "the end", told=lambda: told(api))
    return told(api)


def source(server: Server) -> dict[str, Any]:
    name = "CustomerNodeEndpointList.member.1"
    return {f"{name}.Address": server.host, f"{name}.Port": server.port}


def fault(answer: tuple[int, Any]) -> str:
    status, xml = answer
    assert status in (400, 403, 404)
    return str(next(xml.iter("Code")).text)


def test_a_group_is_verified(api: Serving, pair: tuple[Server, Server], tmp_path: Path) -> None:
    here, there = pair
    assert fault(ask(api, role="read", **source(here))) == "AccessDenied"
    assert fault(ask(api)) == "InvalidParameterValue"
    assert fault(ask(api, **source(there))) == "InvalidParameterValue"
    assert fault(ask(api, Mode="some", **source(here))) == "InvalidParameterValue"
    assert fault(ask(api, Stop="true", Resume="true")) == "InvalidParameterCombination"
    assert fault(ask(api, ReplicationGroupId="no")) == "ReplicationGroupNotFoundFault"
    status, xml = ask(api, **source(here))
    assert status == 200
    assert next(xml.iter("Verification")).find("Status") is not None
    found = ended(api)
    assert (found["Status"], found["Outcome"], found["Different"]) == ("done", "different", "1")
    assert found["Compared"] == str(KEYS)
    assert found["Reason"].startswith(f"Different: {KEYS:,} keys compared, 1 differ.")
    assert "key:7" in found["Differences"]
    # What is in it is for who may read the report.
    assert "other" not in found["Differences"]
    events = api.client("read").describe_events(SourceIdentifier="g", Duration=60)["Events"]
    assert [each["Message"].partition(":")[0] for each in events[-2:]] == [
        "verification started",
        "verification",
    ]
    (report,) = tmp_path.rglob("verification-g.jsonl")
    last = json.loads(report.read_text().splitlines()[-1])["result"]
    assert (last["different"], last["compared"]) == (1, KEYS)


def test_a_verification_that_is_stopped_and_one_that_is_killed(
    api: Serving, pair: tuple[Server, Server], state_url: str, tmp_path: Path
) -> None:
    here, _ = pair
    ask(api, Rate="700000", Match="key:*", **source(here))
    wait_for(lambda: int(told(api)["Keys"]) > 5_000, "some keys", told=lambda: told(api))
    assert fault(ask(api, **source(here))) == "InvalidReplicationGroupState"
    ask(api, Stop="true")
    found = ended(api)
    assert (found["Status"], "Outcome" in found) == ("stopped", False), found
    # What is not given is as it was.
    status, _ = ask(api, Resume="true")
    assert status == 200
    wait_for(lambda: compared(tmp_path / "verification-g.jsonl.state"), "a save")
    registry = open_registry(state_url)

    def worker() -> Any:
        with registry.store.read() as connection:
            return connection.execute(schema.verifications.select()).one().process

    number = wait_for(lambda: (worker() or {}).get("shown"), "a process", told=worker)["Pid"]
    registry.store.close()
    os.kill(number, signal.SIGKILL)
    found = ended(api)
    assert (found["Status"], "Outcome" in found) == ("gone", False)
    status, answer = ask(api, Rate="0", Resume="true")
    assert status == 200, ElementTree.tostring(answer)
    found = ended(api)
    assert found["Status"] == "done", found
    assert (found["Outcome"], found["Compared"]) == ("different", str(KEYS))
    assert "and not again since then" in found["Reason"]
    status, answer = ask(api, Match="none*", **source(here))
    assert status == 200, ElementTree.tostring(answer)
    found = ended(api)
    assert found["Outcome"] == "equal", found


def test_it_is_a_change(api: Serving, pair: tuple[Server, Server]) -> None:
    """A request that was listened to starts nothing a second time, and who has changed something
    is told of it at once."""
    form = {"Action": "VerifyReplicationGroup", "Version": "2015-02-02", "ReplicationGroupId": "g"}
    path = f"/?{urlencode(form | {'Match': 'none*'} | source(pair[0]))}"
    signed = api.signed(path, "migrate")
    assert fetch(api.url + path, signed).status == 200
    began = told(api)["StartTime"]
    assert ended(api)["Outcome"] == "equal"
    assert "RequestExpired" in fetch(api.url + path, signed).body.decode()
    assert told(api)["StartTime"] == began
    status, _ = ask(api, **source(pair[0]))
    assert (status, told(api)["Status"]) == (200, "running")


def test_a_state_that_is_locked(
    server_factory: ServerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its progress nor its end need it at once."""
    monkeypatch.setattr(store, "BUSY_TIMEOUT", 0.05)
    monkeypatch.setattr(verifier, "_TELL_SECONDS", 0.05)
    here, there = server_factory(), server_factory()
    registry = open_registry(str(tmp_path / "state.db"))
    registry.register("g", Endpoint.parse(url_of(there)))
    asked = {"mode": "full", "match": None, "rate": 0, "resume": True}
    # (There is none to go on with.)
    for _ in range(2):
        verifications.begin(registry.store, "g", url_of(here), asked)
        gone = verifications.claim(registry.store, "g", ProcessId.of(1 << 30).worker)
        assert gone is not None
    gone.end({"status": "stopped"}, "")
    verifications.begin(registry.store, "g", url_of(here), asked)
    claimed = verifications.claim(registry.store, "g", ProcessId.here().worker)
    assert claimed is not None
    report = verifications.report_paths(registry.store, "g").report

    async def verified() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "state.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            work = asyncio.create_task(verifier._Verifier(registry, claimed).run())
            await asyncio.to_thread(wait_for, report.exists, "the report")
            await asyncio.wait([work], timeout=0.5)
            assert not work.done()
        await work

    asyncio.run(verified())
    found = registry.get("g")[0].verification
    assert found is not None
    assert found.result is not None
    assert found.result["outcome"] == "equal"
    assert "nothing was saved: it began anew" in registry.list_events("g")[-1].message
    registry.store.close()


def test_what_is_kept_of_a_result_is_bounded() -> None:
    """However many errors a server has words for."""
    reasons = {f"ERR {n} {'x' * 1_000}": n for n in range(1_000)}
    made = ProofReport("unknown", {}, (), (), 0.0, 1.0, reasons=reasons, left_out=tuple(reasons))
    told = verifier._told(made)
    assert len(json.dumps(told)) < 20_000
    assert len(told["reasons"]) == len(told["left_out"]) == 21
    assert sum(told["reasons"].values()) == sum(reasons.values())
