"""How long the machine stood still, for bounds of how long clients wait.

    with Standstill() as stood:
        ...
    assert longest < 1.0 + stood.seconds

A machine that other machines share stops now and then, and all that runs there with it: that is no
wait of the product's making. What counts is looked at by a process of its own, so that nothing that
the test's process does is taken for it.
"""

from __future__ import annotations

from tests.support.reporting_process import ReportingProcess

# Late by less than this is a busy machine, which is within every bound.
_WATCH = """
import sys, threading, time
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
print("going", flush=True)
total, last = 0.0, time.monotonic()
while not over.wait(0.02):
    now = time.monotonic()
    late, last = now - last - 0.02, now
    total += late if late > 0.1 else 0.0
now = time.monotonic()
print(total + max(now - last - 0.1, 0.0))
"""


class Standstill(ReportingProcess):
    """For a `with` block."""

    def __init__(self) -> None:
        super().__init__("-I", "-S", "-c", _WATCH)

    @property
    def seconds(self) -> float:
        """All of it that the machine stood still, once the block has ended."""
        return float(self.said)
