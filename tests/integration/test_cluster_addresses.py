"""Clusters whose nodes announce addresses that mean nothing here, and that ask for a password."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from benches.support.clusters import Cluster
from benches.support.proxy import Proxy
from benches.support.servers import Binary, Server, TlsFiles, free_port, supports_tls
from benches.support.waiting import wait_for
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.servers import ServerFactory, known

KEYS = 300


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


def test_tls(tls_files: TlsFiles, server_factory: ServerFactory) -> None:
    """To a client that comes by TLS a node announces another port, and that one is dialled. (Before
    7.2 nodes tell each other one of the two alone, that of `tls-cluster`.)"""
    binary, single = known("redis-8.0"), server_factory(known("redis-8.0"))
    if not supports_tls(binary):
        pytest.skip("built without TLS")
    files = "--tls-cert-file", tls_files.cert, "--tls-key-file", tls_files.key
    options = *files, "--tls-ca-cert-file", tls_files.ca, "--tls-auth-clients", "no"

    def with_both(binary: Binary, *more: str, **settings: Any) -> Server:
        own = "--tls-port", str(free_port()), *map(str, options)
        return Server.start(binary, *more, *own, **settings)

    with Cluster.start(binary, primaries=2, replicas=1, make=with_both) as cluster:
        with cluster.client() as client:
            for n in range(KEYS):
                client.set(f"k{n}", n)
        ports = {node.client().config_get("tls-port")["tls-port"] for node in cluster.nodes}
        first = cluster.nodes[0].client().config_get("tls-port")["tls-port"]
        url = f"rediss://127.0.0.1:{first}?ca_file={tls_files.ca}"
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
