"""Which worker runs a migration: a lease, which ends unless its worker renews it.

A lease covers one lane or several, and is one row. Its *term* counts the workers that it was given
to: each write of a worker names the term, so a worker that was replaced finds its term over and
changes nothing (`claimed`). A lease is live while less time than it was given for has passed since
it was renewed. Both moments are taken by the database's clock, and so is the one at which it is
read: the clocks of two hosts may differ by any amount. What passes after the reading is measured by
the reader's monotonic clock.

Where a worker runs, and what a launcher knows of it beyond its lease (a process of this machine can
be looked up: one that was killed is known to be gone at once), is the launcher's own. The state
keeps it unread, in `Worker.detail`, and asks a `Witness`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LEASE_SECONDS = 30.0
"""A lease ends so long after it was last renewed. A worker renews it each second, and has given up
long before (fleet.state_thread)."""
LAUNCH_SECONDS = 15.0
"""A worker that was asked for but is not named by then counts as gone."""


@dataclass(frozen=True, slots=True)
class Worker:
    """What has a lease.

    `name` and `host` are for people, and so is `shown`: what is told of it where workers are
    listed. `detail` is the launcher's. Of two workers at least one of these differs.
    """

    name: str
    host: str
    shown: Mapping[str, Any] = field(default_factory=dict)
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """What is told of it, as a part of a sentence: "pid 4711"."""
        return ", ".join(f"{name.lower()} {value}" for name, value in self.shown.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        shown, detail = dict(self.shown), dict(self.detail)
        return {"name": self.name, "host": self.host, "shown": shown, "detail": detail}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Worker:
        """Inverse of `to_dict`."""
        return cls(**data)


Witness = Callable[[Worker], bool]
"""Whether a worker is known to have ended. One that cannot be looked up is not."""


def no_witness(_worker: Worker) -> bool:
    """Nothing is known of any worker: its lease alone tells."""
    return False


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as it was read.

    `worker`: None before one is named. `renewed_at` is seconds since the epoch by the database's
    clock. `age` and `left` are seconds at the reading: since it was renewed, until it ends.
    `ended`: the worker is known to have ended. `read_at` is of this process's monotonic clock.
    """

    id: int
    term: int
    worker: Worker | None
    renewed_at: float
    age: float = field(compare=False)
    left: float = field(compare=False)
    ended: bool
    read_at: float = field(default_factory=time.monotonic, compare=False)

    @property
    def live(self) -> bool:
        """Whether a worker has it, or one is just starting, as far as is known."""
        return not self.ended and self._passed() < self.left

    @property
    def seconds(self) -> float:
        """Since it was renewed, by now."""
        return max(self.age + self._passed(), 0.0)

    def _passed(self) -> float:
        return time.monotonic() - self.read_at
