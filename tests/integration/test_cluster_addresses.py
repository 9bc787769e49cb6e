"""Clusters whose nodes announce addresses that mean nothing here, names or nothing, or are reached
by TLS, and that ask for a password. With ENGINE_SOAK=1 on more releases."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

from benches.support.clusters import Cluster, slot_of
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server, TlsFiles, free_port, supports_tls
from benches.support.waiting import wait_for
from tests.support.command_line import Cli
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known

KEYS = 300
SOAK = bool(os.environ.get("ENGINE_SOAK"))


@pytest.fixture
def elsewhere(server_factory: ServerFactory) -> Iterator[tuple[Cluster, tuple[str, ...]]]:
    """A cluster behind forwarded ports: what it announces answers nothing; and the map to it."""
    binary = known("redis-7.0")
    with Cluster.start(binary, primaries=2, replicas=1, password="p") as cluster:
        gone = [server_factory(binary) for _ in cluster.nodes]
        for other in gone:
            other.kill()
        pairs = list(zip(cluster.nodes, gone, strict=True))
        with cluster.client() as client:
            for n in range(KEYS):
                client.set(f"k{n}", n)
        for node, other in pairs:
            node.client().config_set("cluster-announce-port", other.port)

        def known_everywhere() -> bool:
            return all(
                str(other.port) in str(node.client().execute_command("CLUSTER NODES"))
                for node in cluster.nodes
                for other in gone
            )

        wait_for(known_everywhere, "gossip", 30)
        yield (
            cluster,
            tuple(f"{other.host}:{other.port}={node.host}:{node.port}" for node, other in pairs),
        )


def keys_of(nodes: list[Server]) -> int:
    return sum(
        len([key for key in node.client().scan_iter() if key.startswith(b"k")]) for node in nodes
    )


def test_a_source_behind_forwarded_ports(
    elsewhere: tuple[Cluster, tuple[str, ...]], server_factory: ServerFactory
) -> None:
    """Each node is found by the map, also the one that a shard has failed over to."""
    cluster, pairs = elsewhere
    target = server_factory(known("redis-7.0"))
    with migrating(cluster.nodes[1].url, target, address_map=pairs) as run:
        run.following()
        new = cluster.nodes[2]
        new.client().execute_command("CLUSTER FAILOVER")
        run.wait_for(
            lambda: any(f"the cluster names 127.0.0.1:{new.port}" in e for e in run.events),
            "a failover",
        )
        run.wait_for(lambda: run.progress.can_complete, "in sync", 60)
        run.complete()
        run.wait_for(lambda: run.ended or bool(run.refusals), "an end", 60)
    assert run.report.status == "done", (run.report.errors, run.events)
    assert target.client().dbsize() == KEYS


def test_a_target_behind_forwarded_ports(
    elsewhere: tuple[Cluster, tuple[str, ...]], server_factory: ServerFactory
) -> None:
    cluster, pairs = elsewhere
    for node in cluster.nodes[:2]:
        node.client().flushall()
    source = server_factory(known("redis-7.0"))
    source.client().mset({f"k{n}": n for n in range(KEYS)})
    with migrating(source, cluster.nodes[0].url, address_map=pairs) as run:
        run.cut_over()
    assert run.report.status == "done", (run.report.errors, run.events)
    assert keys_of(cluster.nodes[:2]) == KEYS


@pytest.mark.parametrize("side", ["source", "target"])
def test_an_address_that_leads_to_another_cluster(side: str, server_factory: ServerFactory) -> None:
    """Nothing is read there, and nothing written, for as long as that is so."""
    binary = known("redis-7.0")
    single, another = server_factory(binary), server_factory(binary, cluster=True)
    another.add_slots()
    another.client().set("another's", "1")
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster.start(binary, primaries=2))
        node, beside = cluster.primaries
        proxy = stack.enter_context(Proxy(node.host, node.port))
        pairs = (f"{node.host}:{node.port}={proxy.host}:{proxy.port}",)
        is_source = side == "source"
        writer: Any = stack.enter_context(cluster.client()) if is_source else single.client()
        ends = (beside.url, single) if is_source else (single, beside.url)
        for n in range(KEYS):
            writer.set(f"k{n}", n)
        with migrating(*ends, address_map=pairs, retry_for=60.0) as run:
            run.wait_for(lambda: run.progress.can_complete, "in sync", 60)
            proxy.lead_to(another.host, another.port)
            proxy.cut_now()
            for n in range(KEYS):
                writer.set(f"k{n}", n + 1)
            run.wait_for(
                lambda: "which the cluster names there" in f"{run.progress.reason} {run.events}",
                "it is noticed",
            )
            assert not run.progress.can_complete
            proxy.lead_to(node.host, node.port)
            proxy.cut_now()
            run.wait_for(lambda: run.progress.can_complete, "in sync once more", 60)
            run.complete()
            run.wait_for(lambda: run.ended or bool(run.refusals), "an end", 60)
        assert run.report.status == "done", (run.report.errors, run.events)
        assert run.report.full_syncs == 2
        assert another.client().keys() == [b"another's"]
        assert_settled(*((cluster, single) if is_source else (single, cluster)))


@pytest.mark.parametrize(
    ("name", "announced"),
    [
        ("valkey-9.1", ("hostname", "unknown-endpoint")),
        *([("redis-7.0", ("unknown-endpoint", "hostname"))] if SOAK else []),
    ],
)
def test_names_and_no_address_at_all(
    name: str, announced: tuple[str, str], server_factory: ServerFactory
) -> None:
    """Nodes that announce a name are found by it, and those that announce none (`?`) where the one
    that told of them was reached."""
    with contextlib.ExitStack() as stack:
        source, target = (
            stack.enter_context(
                Cluster.start(
                    known(name),
                    *("--cluster-announce-hostname", "localhost"),
                    *("--cluster-preferred-endpoint-type", kind),
                    primaries=primaries,
                    make=server_factory,
                )
            )
            for kind, primaries in zip(announced, (2, 3), strict=True)
        )
        # (redis-py's client of a cluster follows no `?`.)
        nodes = {slot: node for node in source.nodes for slot in source.slots_of(node)}
        for n in range(KEYS):
            nodes[slot_of(f"k{n}")].client().set(f"k{n}", n)
        with migrating(source, target) as run:
            run.following()
            for n in range(KEYS):
                nodes[slot_of(f"k{n}")].client().set(f"k{n}", n + 1)
            run.cut_over()
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_settled(source, target, 5)
        assert_tidy(target)


def tls_cluster(binary: Binary, files: TlsFiles, primaries: int, **settings: Any) -> Cluster:
    """A cluster with a replica for each primary, that takes clients by TLS at another port."""
    own = "--tls-cert-file", files.cert, "--tls-key-file", files.key
    options = *own, "--tls-ca-cert-file", files.ca, "--tls-auth-clients", "no"

    def with_both(binary: Binary, *more: str, **settings: Any) -> Server:
        own = "--tls-port", str(free_port()), *map(str, options)
        return Server.start(binary, *more, *own, **settings)

    return Cluster.start(binary, primaries=primaries, replicas=1, make=with_both, **settings)


def tls_port(node: Server) -> str:
    port: str = node.client().config_get("tls-port")["tls-port"]
    return port


@pytest.mark.parametrize("name", ["redis-8.0", *(["valkey-9.1"] if SOAK else [])])
def test_tls_and_a_password_at_both_ends(name: str, tls_files: TlsFiles, cli: Cli) -> None:
    """By the command line, which is given a replica of either end."""
    binary = known(name)
    if not supports_tls(binary):
        pytest.skip("built without TLS")
    with contextlib.ExitStack() as stack:
        source, target = (
            stack.enter_context(tls_cluster(binary, tls_files, primaries, password=password))
            for primaries, password in ((3, "p"), (2, "q"))
        )
        with source.client() as client:
            for n in range(KEYS):
                client.set(f"k{n}", n)
        there, here = (
            f"rediss://:{end.nodes[-1].password}@127.0.0.1:{tls_port(end.nodes[-1])}"
            f"?ca_file={tls_files.ca}"
            for end in (source, target)
        )
        done = cli("migrate", "--source", there, "--target", here, "--output", "json")
        assert done.code == 0, done.err
        assert (done.json["status"], done.json["keys"]) == ("done", KEYS)
        assert_settled(source, target, 5)
        assert_tidy(target)


def test_tls(tls_files: TlsFiles, server_factory: ServerFactory) -> None:
    """To a client that comes by TLS a node announces another port, and that one is dialled. (Before
    7.2 nodes tell each other one of the two alone, that of `tls-cluster`.)"""
    binary, single = known("redis-8.0"), server_factory(known("redis-8.0"))
    if not supports_tls(binary):
        pytest.skip("built without TLS")
    with tls_cluster(binary, tls_files, 2) as cluster:
        with cluster.client() as client:
            for n in range(KEYS):
                client.set(f"k{n}", n)
        ports = {tls_port(node) for node in cluster.nodes}
        url = f"rediss://127.0.0.1:{tls_port(cluster.nodes[0])}?ca_file={tls_files.ca}"
        with migrating(url, single) as run:
            run.following()
            cluster.fail_over(cluster.nodes[2])
            run.wait_for(lambda: any("the cluster names " in e for e in run.events), "a failover")
            (named,) = (each for each in run.events if "the cluster names " in each)
            assert any(f"127.0.0.1:{port} as the primary" in named for port in ports), named
            run.wait_for(lambda: run.progress.can_complete, "in sync", 60)
            run.complete()
            run.wait_for(lambda: run.ended or bool(run.refusals), "an end", 60)
        assert run.report.status == "done", (run.report.errors, run.events)
        assert single.client().dbsize() == KEYS
