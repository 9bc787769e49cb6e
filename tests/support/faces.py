"""A migration whose engine is a process of its own, by each of the faces that an operator has.

`OperatedMigration` is what a test does and sees, whichever the face: the library in this process
(`tests.support.library.Run` has the same words), the verbs of the command line, those of the
library, the API over HTTP. `Worker` adds what only an engine in another process can have: its
death, and its resumption.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from benches.support.api import Serving
from benches.support.engines import SECONDS, Cli, Done, Migration
from benches.support.servers import Server
from engine.front.engine import Engine
from engine.model.settings import TransferSettings
from tests.support.servers import End, offset_of, url_of

Face = Literal["library", "cli", "verbs", "http"]
"""The library in this process; `python -m engine`; the library's verbs; the API over HTTP."""

GROUP = "g"


class OperatedMigration(Protocol):
    """A migration as its operator has it; ended by its `with` block."""

    @property
    def events(self) -> list[str]:
        """All that it told so far, oldest first."""
        ...

    def following(self) -> None:
        """Wait until the source is followed."""
        ...

    def in_sync(self) -> None:
        """Wait until what is written by now is on the target, and it can be completed."""
        ...

    def cut_over(self) -> None:
        """Once in sync, give the word, and wait for the end."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...


class Worker:
    """One migration by a worker process, its verbs given by one of the faces.

    `run` is `benches.support.engines.Migration`, which describes it, kills its engine and tells its
    story. Raises `AssertionError` where a verb fails.
    """

    def __init__(
        self, run: Migration, source: End, target: End, server: Server, settings: dict[str, Any]
    ) -> None:
        self.run = run
        self._source, self._target = source, target
        self._server = server
        self._settings = settings

    # --- What each face does in its own way ---

    def _register(self, url: str) -> None:
        raise NotImplementedError

    def _start(self, host: str, port: int) -> None:
        raise NotImplementedError

    def _complete(self) -> None:
        """Give the word, and wait for the end."""
        raise NotImplementedError

    # --- The same for all ---

    @property
    def events(self) -> list[str]:
        """See `OperatedMigration`."""
        with closing(Engine(self.run.cli.state)) as engine:
            told = engine.sync.describe_events(self.run.group)
        return [each["Message"] for each in told["Events"]]

    def following(self) -> None:
        """See `OperatedMigration`."""
        self.run.wait_for(lambda found: found["Phase"] == "FOLLOW")

    def in_sync(self) -> None:
        """See `OperatedMigration`."""
        offset = offset_of(self._server)
        self.run.wait_for(
            lambda found: found["CanComplete"] and (found["AppliedOffset"] or 0) >= offset
        )

    def cut_over(self) -> None:
        """See `OperatedMigration`. Again where it was in sync, and is not when the word comes: the
        machine stood still meanwhile, and neither end had been heard."""
        for left in range(4, -1, -1):
            self.in_sync()
            try:
                self._complete()
                break
            except Exception as refused:
                if not left or "cannot complete" not in str(refused):
                    raise
        assert self.run.describe()["Status"] == "available", self.run.story()

    def kill(self, within: float = 0.0) -> None:
        """SIGKILL the engine, at a seeded moment of the next `within` seconds."""
        self.run.kill(within)

    def resume(self) -> None:
        """Have another engine go on."""
        self.run.resume(verb=False)

    def __enter__(self) -> Self:
        assert not isinstance(self._source, str)
        try:
            self._register(url_of(self._target))
            self._start(self._source.host, self._source.port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.run.close()


class ByCli(Worker):
    """`python -m engine`, a process for each verb."""

    def _verb(self, verb: str, *arguments: str) -> Done:
        return self.run.cli(verb, "--replication-group-id", self.run.group, *arguments)

    def _register(self, url: str) -> None:
        done = self._verb("register-replication-group", "--primary-endpoint", url)
        assert done.code == 0, done.err

    def _start(self, host: str, port: int) -> None:
        options = [part for name, value in self._settings.items() for part in _option(name, value)]
        node = f"Address={host},Port={port}"
        done = self._verb("start-migration", "--customer-node-endpoint-list", node, *options)
        assert done.code == 0, done.err

    def _complete(self) -> None:
        done = self._verb("complete-migration", "--wait")
        assert done.code == 0, f"{done.err}\n{self.run.story()}"


class ByVerbs(Worker):
    """The library's verbs, with workers."""

    def _register(self, url: str) -> None:
        with closing(Engine(self.run.cli.state)) as engine:
            engine.sync.register_replication_group(self.run.group, url)

    def _start(self, host: str, port: int) -> None:
        node = {"Address": host, "Port": port}
        with closing(Engine(self.run.cli.state)) as engine:
            settings = TransferSettings(**self._settings)
            engine.sync.start_migration(self.run.group, [node], settings=settings)

    def _complete(self) -> None:
        with closing(Engine(self.run.cli.state)) as engine:
            engine.sync.complete_migration(self.run.group)
            engine.sync.wait(self.run.group, until="available", timeout=SECONDS)


class ByHttp(Worker):
    """boto3 with the API, at a server of its own; its model has no settings with a start."""

    _serving: Serving | None = None

    def _register(self, url: str) -> None:
        folder = Path(self.run.cli.environment["XDG_STATE_HOME"])
        folder.mkdir(parents=True, exist_ok=True)
        self._serving = Serving(folder, self.run.cli.state)
        self._client = self._serving.client()
        self._client.create_replication_group(
            ReplicationGroupId=self.run.group,
            ReplicationGroupDescription="",
            PrimaryClusterId=url.partition("//")[2],
        )

    def _start(self, host: str, port: int) -> None:
        assert not self._settings, "boto3 sends no settings with a start"
        self._client.start_migration(
            ReplicationGroupId=self.run.group,
            CustomerNodeEndpointList=[{"Address": host, "Port": port}],
        )

    def _complete(self) -> None:
        self._client.complete_migration(ReplicationGroupId=self.run.group)
        self.run.until(lambda: self.run.describe()["Status"] == "available", "the end")

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if self._serving is not None:
            self._serving.__exit__(None, None, None)


_FACES: dict[Face, type[Worker]] = {"cli": ByCli, "verbs": ByVerbs, "http": ByHttp}


def worker(
    face: Face,
    source: End,
    target: End,
    *,
    server: Server,
    state: str,
    folder: Path,
    seed: int | str = 0,
    settings: dict[str, Any],
) -> Worker:
    """A migration by a worker process; `server` is the source itself, whatever lies before it."""
    run = Migration(Cli(state, folder), seed, GROUP)
    return _FACES[face](run, source, target, server, settings)


def _option(name: str, value: object) -> tuple[str, ...]:
    """A setting as the command line takes it."""
    option = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return (option,) if value else ()
    if isinstance(value, tuple | list):
        return option, ",".join(map(str, value))
    return option, f"{value:g}" if isinstance(value, float) else str(value)
