"""`--durability replicas=N`: nothing is promoted that the target's replicas do not have."""

from __future__ import annotations

import pytest

from benches.support.compare import assert_equal
from engine.errors import UsageError
from engine.model.settings import TransferSettings
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known


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


@pytest.mark.parametrize("words", ["2", "replicas", "replicas=", "replicas=-1", "fsync=1"])
def test_other_words_are_refused(words: str) -> None:
    with pytest.raises(UsageError, match="expected replicas=N"):
        TransferSettings(durability=words)
