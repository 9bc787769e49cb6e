"""Seeded random write traffic, over every write command that a server has, against real servers.

with Traffic(server, seed=7) as traffic, Counters(server) as counters:
    ...
assert not counters.check(target)
"""

from tests.traffic.counters import Counters
from tests.traffic.retrying import Retrying
from tests.traffic.sequence import Sequence, Unit
from tests.traffic.setup import prepare
from tests.traffic.writer import Traffic

__all__ = ["Counters", "Retrying", "Sequence", "Traffic", "Unit", "prepare"]
