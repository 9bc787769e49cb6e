"""What a migration has to have come to: which values a target may be without, and what there is to
look at behind one under traffic."""

from __future__ import annotations

from benches.support.clusters import Cluster
from benches.support.servers import Server
from engine.model.server_capabilities import Flavour, ServerCapabilities, Version
from tests.reference import values
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


REWRITTEN = frozenset({16, 17, 18, 19, 20, 21, 26})
"""Types of value of which every one has an older form (RDB_TYPE_*)."""
WITH_FIELD_TTLS = frozenset({22, 24, 25})


def is_carried(payload: bytes, flavour: Flavour, version: Version) -> bool:
    """Whether a server of this release can be given the value of a DUMP, as it is or in a form that
    loses nothing that clients notice."""
    able = ServerCapabilities(flavour, version)
    if payload[0] in able.known_types or payload[0] in REWRITTEN:
        return True
    if payload[0] not in WITH_FIELD_TTLS:
        return False
    _, fields = values.decode(payload)
    return able.field_ttls or all(expire_at < 0 for *_, expire_at in fields)
