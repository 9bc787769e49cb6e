"""What a comparison found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

# A verification names this many differences, and counts the rest …
NAMED_LIMIT = 1000
# … up to this many: then the answer is clear, and it stops.
STOP_AT = 10_000


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that is not the same at both ends. `key` is printable (`model.report`)."""

    db: int
    key: str
    what: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The result; `reason` is one sentence for people, whatever the result.

    `keys_source` and `keys_target` are the servers' own counts of the databases compared;
    `compared` counts the source's keys that were looked at. `different` is the number of
    differences, of which the first `NAMED_LIMIT` are named; at `STOP_AT` the work ends. `unknown`
    are keys of types that cannot be compared: no difference, and no proof either. `counted` tells
    whether the counts could be held against each other.
    """

    ok: bool
    reason: str
    keys_source: int = 0
    keys_target: int = 0
    compared: int = 0
    different: int = 0
    differences: tuple[Difference, ...] = ()
    unknown: tuple[Difference, ...] = ()
    counted: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Verification:
        """Inverse of `to_dict`."""
        data = dict(data)
        for name in ("differences", "unknown"):
            data[name] = tuple(Difference(**each) for each in data[name])
        return cls(**data)
