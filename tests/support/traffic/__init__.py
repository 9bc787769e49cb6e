"""Seeded random write traffic, over every write command that a server has, against real servers.

with Traffic(server, seed=7) as traffic, Counters(server) as counters:
    ...
assert not counters.check(target)
"""

from tests.support.traffic.counters import Counters
from tests.support.traffic.retrying import Retrying
from tests.support.traffic.sequence import Sequence, Unit
from tests.support.traffic.setup import prepare
from tests.support.traffic.writer import Traffic

__all__ = ["Counters", "Retrying", "Sequence", "Traffic", "Unit", "prepare"]
