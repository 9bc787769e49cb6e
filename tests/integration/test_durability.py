"""`--durability replicas=N`: nothing is promoted that the target's replicas do not have."""

from __future__ import annotations

import os

import pytest

from benches.support.clusters import Cluster
from benches.support.compare import assert_equal
from engine.errors import UsageError
from engine.model.settings import TransferSettings
from tests.support.carried import assert_carried
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Retrying

SOAK = bool(os.environ.get("ENGINE_SOAK"))


# From 8.0 on, and in Valkey, WAIT counts what its own connection has written alone.
@pytest.mark.parametrize("name", ["redis-7.0", "redis-8.0", "valkey-9"])
def test_the_replicas_have_everything(server_factory: ServerFactory, name: str) -> None:
    """A replica that stands still keeps the target from being promoted, and the source open."""
    source, target, replica = (server_factory(known(name)) for _ in range(3))
    source.client().mset({f"key:{number}": number for number in range(1000)})
    with migrating(source, target, durability="replicas=1", cut_over_timeout=3.0) as run:
        run.following()
        run.wait_for(lambda: "0 of the 1 replicas" in run.progress.reason, "a closed gate")
        replica.client().execute_command("REPLICAOF", target.host, target.port)
        run.in_sync()
        replica.freeze()
        assert "0 of the 1 replicas of target" in run.refused()
        assert source.client().set("late", "1")
        replica.thaw()
        run.cut_over()
    assert run.report.status == "done"
    assert_equal(source.url, target.url)
    assert_equal(source.url, replica.url)
    assert_tidy(target)


@pytest.mark.parametrize("name", ["valkey-9.1", *(["redis-7.0", "redis-8.0"] if SOAK else [])])
def test_the_replicas_of_every_shard_have_everything(
    server_factory: ServerFactory, name: str
) -> None:
    """One that stands still keeps all shards from being promoted; and one that takes its shard over
    has all that clients were told."""
    source = server_factory(known(name))
    source.client().mset({f"key:{number}": number for number in range(1000)})
    with (
        Cluster.start(known(name), primaries=2, replicas=1, make=server_factory) as target,
        Retrying(source, clients=2) as clients,
    ):
        first, second = target.primaries
        settings = {"durability": "replicas=1", "cut_over_timeout": 3.0, "retry_for": 60.0}
        with migrating(source, target, **settings) as run:  # type: ignore[arg-type]
            run.following()
            run.in_sync()
            (replica,) = target.replicas_of(second)
            replica.freeze()
            assert f"0 of the 1 replicas of target {second.host}:{second.port}" in run.refused()
            clients.goes_on()
            replica.thaw()
            target.wait_until_whole()
            target.fail_over(target.replicas_of(first)[0])
            clients.goes_on()
            run.cut_over(again="")
        assert run.report.status == "done", (run.report.errors, run.events)
        assert_carried(source, target, clients)


@pytest.mark.parametrize("words", ["2", "replicas", "replicas=", "replicas=-1", "fsync=1"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(UsageError, match="expected replicas=N"):
        TransferSettings(durability=words)
