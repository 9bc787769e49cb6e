"""The scenario of a test: two servers, what lies between them and the engine, and a migration.

    def test_a_link_that_is_cut(scenario: NewScenario) -> None:
        s = scenario("redis-7.0", "valkey-9", proxies="both")
        s.load(keys=10_000)
        with s.clients() as clients, s.migration(cut_over_timeout=5.0) as run:
            run.following()
            s.links["source"].cut_now()
            clients.goes_on()
            run.cut_over()
        s.assert_migrated()

The fixture `scenario` starts servers, clusters (`source_shards=3`), proxies and engines, and ends
them. A migration is run by any face: `s.migration("cli")`, "verbs" or "http" instead of the library
in the test's process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from benches.support.clusters import Cluster
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server, binaries
from tests.support import faces, library
from tests.support.comparison import assert_settled
from tests.support.faces import Face, OperatedMigration, Worker
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Counters, Retrying

EndName = Literal["source", "target"]
Fill = Callable[..., object]
"""Called with a server's URL and the number of keys, by name as `n` (`benches.datasets`)."""


@dataclass
class Scenario:
    """See the module. `links` has the proxy before an end, by "source" and "target", `clusters` the
    cluster that an end is: then `source` or `target` is its first node."""

    source: Server
    target: Server
    links: dict[EndName, Proxy]
    state: str
    folder: Path
    seed: str
    clusters: dict[EndName, Cluster] = field(default_factory=dict)
    _counters: list[Counters] = field(default_factory=list)
    _clients: list[Retrying] = field(default_factory=list)

    # --- Before it ---

    def load(self, fill: Fill | None = None, keys: int = 300) -> None:
        """Put keys into the source: by `fill`, or `key:0`, `key:1` … with their numbers."""
        if fill is not None:
            fill(self.source.url, n=keys)
        elif "source" in self.clusters:
            with self.clusters["source"].client() as client:
                client.mset_nonatomic({f"key:{n}": n for n in range(keys)})
        elif keys:
            self.source.client().mset({f"key:{n}": n for n in range(keys)})

    # --- The migration ---

    def migration(self, face: Face = "library", **settings: Any) -> OperatedMigration:
        """A migration for a `with` block; `settings` are `TransferSettings`.

        The library in the test's process also takes what `library.migrating` takes, as
        `checkpoints`, and has more to look at: `running`. One whose engine can be killed: `worker`.
        """
        if face == "library":
            return self.running(**settings)
        return self.worker(face, **settings)

    def running(self, **options: Any) -> library.Run:
        """A migration by the library in the test's process."""
        return library.migrating(self._end("source"), self._end("target"), **options)

    def worker(self, face: Face = "verbs", **settings: Any) -> Worker:
        """A migration whose engine is a process of its own, and may be killed."""
        return faces.worker(
            face,
            self._end("source"),
            self._end("target"),
            server=self.source,
            state=self.state,
            folder=self.folder,
            seed=self.seed,
            settings=settings,
        )

    def _end(self, name: EndName) -> Server | Proxy | Cluster:
        return self.links.get(name) or self.whole(name)

    def whole(self, name: EndName) -> Server | Cluster:
        """The server, or the cluster."""
        return self.clusters.get(name) or (self.source if name == "source" else self.target)

    # --- Beside it ---

    @contextlib.contextmanager
    def counters(self) -> Iterator[Counters]:
        """Count at the source; `assert_migrated` looks for each count on the target."""
        with Counters(self.source) as counters:
            self._counters.append(counters)
            yield counters

    @contextlib.contextmanager
    def clients(self, **options: Any) -> Iterator[Retrying]:
        """Clients that repeat what is not acknowledged; `assert_migrated` looks for each write."""
        with Retrying(self.whole("source"), **options) as clients:
            self._clients.append(clients)
            yield clients

    def link(self, end: EndName) -> Proxy:
        """The proxy before an end."""
        return self.links[end]

    # --- Behind it ---

    def assert_migrated(self, seconds: float = 5.0) -> None:
        """Both ends hold the same, what was acknowledged is on the target, nothing of ours is left.

        Raises `AssertionError` with what differs, key by key.
        """
        assert_settled(self.whole("source"), self.whole("target"), seconds)
        for written in (*self._counters, *self._clients):
            found = cast("list[str]", written.check(self.whole("target")))
            assert not found, found
        assert_tidy(self.whole("target"))


NewScenario = Callable[..., Scenario]


@contextlib.contextmanager
def scenarios(
    server_factory: ServerFactory, state: str, folder: Path, seed: str
) -> Iterator[NewScenario]:
    """What the fixture `scenario` gives: builds scenarios, and ends their proxies.

    It is called with the releases of both ends (`known`; without one the machine's first server),
    and by name `proxies` ("source", "target", "both"), `source_options` and `target_options` of the
    servers, `source_shards` and `target_shards`: the primaries of a cluster, 0 for one server, each
    with so many `replicas`.
    """
    with contextlib.ExitStack() as stack:

        def build(
            source: str = "",
            target: str = "",
            *,
            proxies: EndName | Literal["both", ""] = "",
            source_options: tuple[str, ...] = (),
            target_options: tuple[str, ...] = (),
            source_shards: int = 0,
            target_shards: int = 0,
            replicas: int = 0,
        ) -> Scenario:
            wanted: dict[EndName, tuple[str, tuple[str, ...], int]] = {
                "source": (source, source_options, source_shards),
                "target": (target, target_options, target_shards),
            }
            clusters = _clusters(
                {
                    name: (known(release) if release else binaries()[0], options, shards)
                    for name, (release, options, shards) in wanted.items()
                    if shards
                },
                replicas,
                stack,
            )
            ends: dict[EndName, Server] = {
                name: clusters[name].nodes[0]
                if name in clusters
                else server_factory(known(release) if release else None, *options)
                for name, (release, options, _) in wanted.items()
            }
            links = {
                name: stack.enter_context(Proxy(server.host, server.port))
                for name, server in ends.items()
                if proxies in (name, "both")
            }
            return Scenario(ends["source"], ends["target"], links, state, folder, seed, clusters)

        yield build


def _clusters(
    wanted: dict[EndName, tuple[Binary, tuple[str, ...], int]],
    replicas: int,
    stack: contextlib.ExitStack,
) -> dict[EndName, Cluster]:
    """Started side by side: nodes take two seconds to be sure of each other."""
    if not wanted:
        return {}
    with ThreadPoolExecutor(len(wanted)) as pool:
        begun = {
            name: pool.submit(Cluster.start, binary, *options, primaries=shards, replicas=replicas)
            for name, (binary, options, shards) in wanted.items()
        }
    found = {name: each.result() for name, each in begun.items() if each.exception() is None}
    for cluster in found.values():
        stack.callback(cluster.close)
    return {name: each.result() for name, each in begun.items()}
