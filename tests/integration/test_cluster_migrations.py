"""Whole migrations between deployments of different shapes, with every command under way: one
server, a cluster of so many primaries, a primary that Sentinels watch. Compared key by key.
"""

from __future__ import annotations

import pytest

from benches.support.sentinels import sentinels, url
from tests.support.comparison import assert_settled
from tests.support.library import migrating
from tests.support.own_keys import assert_tidy
from tests.support.servers import ServerFactory, known
from tests.support.traffic import Retrying, Traffic

RATE = 1500.0


@pytest.mark.parametrize("back", [False, True])
def test_sentinels(back: bool, server_factory: ServerFactory) -> None:
    """From the primary that they watch to a server, and back."""
    binary = known("redis-7.0")
    primary, replica, single = (server_factory(binary) for _ in range(3))
    replica.client().execute_command("REPLICAOF", primary.host, primary.port)
    with sentinels(binary, primary) as group:
        ends = [single, url(group)] if back else [url(group), single]
        source, target = (single, primary) if back else (primary, single)
        traffic = Traffic(ends[0], "meanwhile", rate=RATE, without=("flushall",))
        with Retrying(ends[0], clients=2) as clients:
            with traffic, migrating(*ends) as run:
                run.following()
                before = traffic.commands
                run.wait_for(lambda: traffic.commands > before + 700, "traffic")
                traffic.stop()
                clients.goes_on()
                run.cut_over(source)
            assert run.report.status == "done", (run.report.errors, run.events)
            assert_settled(source, target, 5)
            clients.move_to(ends[1])
            clients.goes_on()
            clients.stop()
            assert clients.check(target) == [], clients.describe()
    assert_tidy(target)
