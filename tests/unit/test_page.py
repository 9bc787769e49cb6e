"""What the page is given as, what it may do, and the figures that are told to it alone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest

from benches.support.api import Answer, ask
from engine.fleet.process_identity import ProcessId
from engine.front import client_disconnection, response_shapes
from engine.front.engine import Engine
from engine.front.http.app import Api
from engine.front.http.authentication import Authenticator
from engine.front.http.metrics import Metrics
from engine.front.http.metrics_history import GROUPS_MOST, ROWS_MOST, SAMPLE_SECONDS, History
from engine.front.page_details import details, gates, shards
from engine.groups.lease import Lease
from engine.groups.records import GroupRecord, LaneRecord, TransferRecord
from engine.groups.states import Request, TransferStatus
from engine.model.clients_after_cut_over import SourceClients
from engine.model.credentials import Credentials
from engine.model.lane_plan import PlannedEnd, PlannedLane
from engine.model.progress import Phase, Progress
from engine.model.report import NotCarried, Report, Step
from engine.model.settings import TransferSettings
from engine.model.slots import SlotSet

HOST = ("host", "127.0.0.1:8321")
BROWSER = (HOST, ("accept", "text/html,application/xhtml+xml,*/*;q=0.8"))
FILES = {each.name: each for each in (resources.files("engine.front") / "page").iterdir()}


@pytest.fixture
def api(state_url: str) -> Iterator[Api]:
    """The application, on a state of its own, without authentication."""
    engine = Engine(state_url, credentials=Credentials())
    yield Api(engine, Authenticator(None))
    engine.close()


async def get(api: Api, path: str = "/", headers: Any = BROWSER, **more: Any) -> Answer:
    return await ask(api.app, method="GET", path=path, headers=headers, **more)


async def test_the_page_is_for_browsers(api: Api) -> None:
    answer = await get(api)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.body.startswith(b"<!doctype html>")
    # Clients of the API are answered as ever.
    for headers in ((HOST,), (HOST, ("accept", "*/*")), (*BROWSER, ("authorization", "x"))):
        assert (await get(api, headers=headers)).code == "MissingAction"
    assert (await get(api, query=b"Version=1")).code == "MissingAction"
    assert (await ask(api.app, headers=BROWSER)).code == "MissingAction"


async def test_every_part_is_there_and_no_other(api: Api) -> None:
    parts = set(FILES) - {"index.html"}
    assert {"app.js", "page.css", "icon.svg"} <= parts
    for name in parts:
        answer = await get(api, f"/page/{name}")
        assert answer.status == 200
        assert answer.body == FILES[name].read_bytes()
    for name in ("index.html", "none.js", "..", "../http/app.py", "%2e%2e/app.py", ""):
        assert (await get(api, f"/page/{name}")).code == "MalformedQueryString"


async def test_the_page_is_not_read_twice(api: Api) -> None:
    answer = await get(api, "/page/app.js")
    tag = answer.headers["etag"]
    again = await get(api, "/page/app.js", headers=(*BROWSER, ("if-none-match", tag)))
    assert (again.status, again.body) == (304, b"")
    assert answer.headers["cache-control"] == "no-cache"


async def test_the_policy(api: Api) -> None:
    for path in ("/", "/page/app.js"):
        headers = (await get(api, path)).headers
        policy = dict(
            each.partition(" ")[::2] for each in headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_from_elsewhere_and_no_markup_from_data(name: str) -> None:
    text = FILES[name].read_text()
    outside = set(re.findall(r"https?://[^\s\"'`)]+", text))
    assert outside <= {"http://www.w3.org/2000/svg"}
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|setAttribute\(.style"
    assert not re.search(sinks, text)
    assert not re.search(r"\s(style|on\w+)=", text) or not name.endswith(".html")


# --- What a watcher is told beyond the API ---

GROUP = GroupRecord("g", "", "migrating", False, "redis://10.0.0.2:6379", 1.0)
SETTINGS = TransferSettings(source_type="replica")
HEARD = {"link": "up", "source_heard_seconds": 0.0, "target_heard_seconds": 0.0}


def transfer(phase: Phase = Phase.FOLLOW, *, held: bool = True, **progress: Any) -> TransferRecord:
    now = time.time()
    shown = Progress(phase=phase, source_type="replica", total_keys=9, **progress)
    lease = Lease(1, 1, ProcessId.here().worker, now, age=0.0, left=30.0, ended=False)
    return TransferRecord(
        id=1,
        group_id="g",
        status=TransferStatus.RUNNING if held else TransferStatus.STOPPED,
        source_urls=("redis://10.0.0.1:6379",),
        target_url="redis://10.0.0.2:6379",
        settings_data=SETTINGS.to_dict(),
        held_before=None,
        report=None,
        changed_at=now,
        created_at=now,
        request=Request.NONE,
        refusal="",
        lanes=(LaneRecord(1, "0", "redis://10.0.0.1:6379", "", "0-16383", shown, lease),),
    )


@pytest.mark.parametrize(
    ("phase", "progress", "expected"),
    [
        (Phase.CONNECT, {}, [True, None, None, None, None, None, True, None]),
        (
            Phase.SNAPSHOT,
            {"keys": 3, "link": "up"},
            [True, None, None, None, None, None, True, None],
        ),
        (
            Phase.CATCH_UP,
            HEARD | {"lag_bytes": 5},
            [True, True, True, True, None, True, True, None],
        ),
        (
            Phase.CATCH_UP,
            HEARD | {"lag_bytes": 1 << 20},
            [True, True, True, True, None, True, True, None],
        ),
        (
            Phase.FOLLOW,
            HEARD | {"lag_bytes": 2 << 20},
            [True, True, True, True, True, False, True, None],
        ),
        (
            Phase.FOLLOW,
            HEARD | {"lag_bytes": 0, "not_carried": 2},
            [True, True, True, True, True, True, False, None],
        ),
        (
            Phase.FOLLOW,
            HEARD | {"link": "silent"},
            [True, True, False, True, True, False, True, None],
        ),
        (
            Phase.FOLLOW,
            HEARD | {"lag_bytes": 0, "target_heard_seconds": 3.0},
            [True, True, True, False, True, True, True, None],
        ),
        (
            Phase.FOLLOW,
            HEARD | {"lag_bytes": 0, "evicted_keys": 2},
            [True, True, True, True, True, True, True, False],
        ),
        (
            Phase.FOLLOW,
            HEARD | {"lag_bytes": 0, "evicted_keys": 0},
            [True, True, True, True, True, True, True, True],
        ),
        (Phase.STOPPED, {"lag_bytes": 0}, [False, None, None, None, None, None, True, None]),
        # While the target alone is what is waited for.
        (
            Phase.FOLLOW,
            HEARD | {"link": "", "lag_bytes": None},
            [True, True, None, True, True, False, True, None],
        ),
    ],
)
def test_gates(phase: Phase, progress: dict[str, Any], expected: list[bool | None]) -> None:
    found = gates(transfer(phase, held=phase is not Phase.STOPPED, **progress))
    names = [
        "worker",
        "snapshot",
        "source heard",
        "target heard",
        "caught up",
        "lag",
        "everything migrated",
    ]
    names.append("nothing evicted")
    assert [gate["Name"] for gate in found] == names
    assert [gate["Open"] for gate in found] == expected
    assert all(gate["Figure"] for gate in found)


def test_what_is_known_while_no_process_works_on_it() -> None:
    stopped = transfer(Phase.STOPPED, held=False, **HEARD, lag_bytes=0, lag_seconds=0.0, keys=9)
    shape = response_shapes.migration(stopped)
    unknown = "LagBytes", "LagSeconds", "SourceLink", "SourceHeardSeconds", "TargetHeardSeconds"
    assert [shape[name] for name in unknown] == [None] * 5
    assert shape["Keys"] == 9
    done = response_shapes.migration(replace(stopped, status=TransferStatus.DONE))
    assert [done[name] for name in unknown] == [0, 0.0, None, None, None]


@pytest.mark.parametrize(
    ("age", "ended", "scripts", "connected"),
    [(1.0, "", 3, 1), (30.0, "", None, None), (1.0, "the time set for it is over", None, 1)],
)
def test_clients_of_a_source_that_is_not_looked_at(
    age: float, ended: str, scripts: int | None, connected: int | None
) -> None:
    """By a process that was stopped, say, or as the source gives no answer. Once clients are no
    longer disconnected nothing counts what scripts do there."""
    now = time.time()
    found = SourceClients(
        now + 60, connected=1, looked_at=now - age, lets_scripts=True, scripts=3, ended=ended
    )
    found = replace(found, writes=3)
    told = client_disconnection.shape(found, "g")
    assert told["Scripts"] == told["Writes"] == scripts
    assert told["Connected"] == connected
    page = Metrics().page([], {}, {"g": found}, {}).decode()
    assert ('startmigration_source_scripts{group="g"} 3.0' in page) is (scripts is not None)
    assert ('startmigration_source_clients{group="g"} 1.0' in page) is (connected is not None)
    assert told["LookedAt"] is not None


def test_gates_of_a_scan() -> None:
    record = transfer(Phase.COPIED, keys=9)
    (lane,) = record.lanes
    scanned = replace(lane, progress=replace(lane.progress, source_type="scan"))
    record = replace(record, lanes=(scanned,))
    assert [(gate["Name"], gate["Open"]) for gate in gates(record)] == [
        ("worker", True),
        ("snapshot", True),
        ("everything migrated", True),
        ("nothing evicted", None),
    ]


def test_details() -> None:
    assert details("available", None) is None
    told = details("migrating", transfer())
    assert told is not None
    assert told["Source"] == {"Address": "10.0.0.1", "Port": 6379}
    assert told["AutoCutOver"] is False
    assert "Status" not in told


def test_shards() -> None:
    """The slowest first: what stands, what is copied least, what is not known, what is behind."""
    record = transfer()
    (whole,) = record.lanes
    assert shards(record) == []
    states = {
        "behind": Progress(Phase.FOLLOW, lag_bytes=900, lag_seconds=2.0, commands=7, link="up"),
        "in sync": Progress(Phase.FOLLOW, lag_bytes=0, lag_seconds=0.0, link="up"),
        "unheard": Progress(Phase.FOLLOW, link="down"),
        "half": Progress(Phase.SNAPSHOT, keys=5, total_keys=10, keys_per_second=3.5),
        "a tenth": Progress(Phase.SNAPSHOT, keys=1, total_keys=10),
        "stands": Progress(Phase.STOPPED, reason="the link is lost"),
    }
    server = PlannedEnd()
    lanes = [whole]
    for at, (name, progress) in enumerate(states.items()):
        slots = SlotSet(((at * 10, at * 10 + 9),))
        target = PlannedEnd("10.0.1.1", 7000 + at, (f"{at}" * 40,), slots)
        plan = PlannedLane(name, slots, server, target)
        lanes.append(replace(whole, id=at + 2, name=name, progress=progress, plan=plan))
    record = replace(record, lanes=tuple(lanes))
    found = shards(record)
    order = ["stands", "a tenth", "half", "unheard", "behind", "in sync"]
    named = [f"10.0.1.1:{7000 + list(states).index(each)}" for each in order]
    assert [each["Name"] for each in found] == named
    assert found[4] == {
        "Name": named[4],
        "Source": "10.0.0.1:6379",
        "Target": "10.0.1.1:7000",
        "Slots": "0-9",
        "Phase": "FOLLOW",
        "Keys": 0,
        "TotalKeys": None,
        "KeysPerSecond": 0.0,
        "Commands": 7,
        "LagBytes": 900,
        "LagSeconds": 2.0,
        "Link": "up",
        "Reason": "",
    }
    told = details("migrating", record)
    assert told is not None
    assert told["Shards"] == found
    # While no process works on it nothing is heard.
    still = replace(record, status=TransferStatus.STOPPED)
    assert {each["LagBytes"] for each in shards(still)} == {None}


def test_details_of_a_migration_that_is_over() -> None:
    lost = tuple(NotCarried(0, f"key{n}", "too new") for n in range(30))
    report = Report(
        "failed", keys=5, not_carried=lost, not_carried_total=31, steps=(Step("snapshot", 2.5, 5),)
    )
    over = replace(transfer(Phase.FAILED), status=TransferStatus.FAILED, report=report)
    told = details("available", over)
    assert told is not None
    assert (told["Status"], told["Phase"], told["Keys"]) == ("failed", "FAILED", 5)
    assert told["NotCarried"] == 31
    assert told["NotCarriedKeys"][0] == {"Db": 0, "Key": "key0", "Reason": "too new"}
    assert len(told["NotCarriedKeys"]) == 20
    assert told["Steps"] == [{"Name": "snapshot", "Seconds": 2.5, "Keys": 5, "Bytes": 0}]
    # A worker that never said a word has no report.
    assert details("available", replace(over, report=None)) is not None


def rows(history: History) -> dict[str, list[list[Any]]]:
    name, data, end = history.event().decode().split("\n", 2)
    assert (name, end) == ("event: history", "\n")
    found: dict[str, list[list[Any]]] = json.loads(data.removeprefix("data: "))
    return found


def test_history() -> None:
    history = History()
    assert rows(history) == {}
    record = transfer(keys=1, bytes=2, commands=3, applied_offset=4, lag_bytes=5, spool_bytes=6)
    history.note([(GROUP, record)], 1000.04)
    history.note([(GROUP, record)], 1000.04 + SAMPLE_SECONDS / 2)
    assert rows(history) == {"g": [[1000.0, 1, 2, 3, 4, 5, None, 6]]}
    history.note([], 1000.04 + SAMPLE_SECONDS)
    assert len(rows(history)["g"]) == 1
    # A clock that is set back does not silence it.
    history.note([(GROUP, record)], 500.0)
    assert [row[0] for row in rows(history)["g"]] == [1000.0, 500.0]
    # Another migration of the group begins anew.
    history.note([(GROUP, replace(record, id=2))], 2000.0)
    assert [row[0] for row in rows(history)["g"]] == [2000.0]


def test_history_is_bounded() -> None:
    history = History()
    for n in range(ROWS_MOST + 5):
        history.note([(GROUP, transfer())], 10.0 * n)
    assert [row[0] for row in rows(history)["g"]][:2] == [50.0, 60.0]
    assert len(rows(history)["g"]) == ROWS_MOST
    others = [(replace(GROUP, id=f"g{n}"), transfer()) for n in range(GROUPS_MOST)]
    history.note(others, 1e6)
    assert set(rows(history)) == {group.id for group, _ in others}
