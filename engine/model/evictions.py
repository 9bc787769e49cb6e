"""Keys that the target has evicted while it was filled: they are missing there, without a word."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.model.server import ServerInfo


@dataclass(frozen=True, slots=True)
class Evictions:
    """What `evicted_keys` of INFO stats has said since the migration's first write.

    `base` is what the process called `run_id` had counted before that write (None: it was not
    asked yet, or does not tell). `before` are those counted until the counter began anew, with
    another process or by CONFIG RESETSTAT; `count` are all of them. `policy` is the target's
    `maxmemory-policy` as it was found last.
    """

    base: int | None = None
    run_id: str = ""
    before: int = 0
    count: int = 0
    policy: str = ""

    def after(self, info: ServerInfo) -> Evictions:
        """The same after another look at the target."""
        evicted = info.evicted_keys
        if evicted is None:
            return self
        if self.base is None:
            return Evictions(evicted, info.run_id, policy=info.maxmemory_policy)
        here = self
        if info.run_id != self.run_id or evicted < self.base:
            here = replace(self, base=0, run_id=info.run_id, before=self.count)
        elif evicted - self.base + self.before < self.count:
            # The counter was set back, and has come up to the base again.
            here = replace(self, base=0, before=self.count)
        assert here.base is not None
        count = here.before + evicted - here.base
        return replace(here, count=count, policy=info.maxmemory_policy)

    @property
    def known(self) -> int | None:
        """`count`; None while nothing was written, or where the target does not tell."""
        return None if self.base is None else self.count

    @property
    def words(self) -> str:
        """Why the target must not be opened, and what to do; empty if nothing was evicted."""
        text = self.words_in_one_go
        return text and f"{text}, then abort (complete-migration --force) and start again"

    @property
    def words_in_one_go(self) -> str:
        """The same where the migration, once it is resumed, copies everything again by itself."""
        if not self.count:
            return ""
        policy = f" (maxmemory-policy {self.policy})" if self.policy else ""
        return (
            f"the target has evicted {self.count:,} keys since the start{policy}: set noeviction "
            "there or give it more memory"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evictions:
        """Inverse of `to_dict`."""
        return cls(**data)
