"""What a migration under traffic has to have come to."""

from __future__ import annotations

from benches.support.clusters import Cluster
from benches.support.servers import Server
from tests.support.comparison import assert_settled
from tests.support.own_keys import assert_tidy
from tests.support.traffic import Retrying


def assert_carried(there: Server | Cluster, here: Server | Cluster, clients: Retrying) -> None:
    """Both ends are equal, no write of clients that go on at the target is lost or doubled, and
    nothing of the engine is left there."""
    assert_settled(there, here, 5)
    clients.move_to(here)
    clients.goes_on()
    clients.stop()
    assert clients.check(here) == [], clients.describe()
    assert_tidy(here)
