"""What a comparison of both ends found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from engine.model import silent_commands
from engine.model.db_key import DbKey

# A verification names this many differences, and counts the rest …
NAMED_LIMIT = 1000
# … up to this many: then the answer is clear, and it stops.
STOP_AT = 10_000


LENGTH_UNKNOWN = "a length that neither end gives"
"""Of a key that is not read behind the fence, in the place of its bytes."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One key that is not the same at both ends. `key` is printable (`model.report`)."""

    db: int
    key: str
    what: str


@dataclass(frozen=True, slots=True)
class Compared:
    """What one comparison of some keys of a source that is written to came to.

    `differ`: what differs, of keys that were not written to meanwhile. `unsure`: the same of keys
    that may have been written to between the two readings. `unknown`: how many keys of each type
    cannot be compared; `unknown_keys`: which, with their types.
    """

    keys: int = 0
    differ: Mapping[DbKey, str] = field(default_factory=dict)
    unsure: Mapping[DbKey, str] = field(default_factory=dict)
    unknown: Mapping[str, int] = field(default_factory=dict)
    unknown_keys: Mapping[DbKey, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Counts:
    """Both ends' counts of keys, the engine's own left out, at one offset of the stream.

    `wrong` says what differs and is not explained; empty: nothing is. `expired`: by how many keys
    they differ that have expired at one end, and are still counted at the other. `fields`:
    {database: by how many keys the source has more, or less, than the target}, which hashes of
    which every field has expired may explain, and lost keys as well. `lanes`: of so many lanes
    together, which share an end. `stray`: so many keys of slots that their node does not own are
    left out, of both ends.
    """

    source: int
    target: int
    wrong: str = ""
    fields: Mapping[int, int] = field(default_factory=dict)
    expired: int = 0
    lanes: int = 1
    stray: int = 0

    @property
    def words(self) -> str:
        """`5 keys on the source, 3 on the target (…)`: why they may differ is in the brackets."""
        text = f"{self.source:,} keys on the source, {self.target:,} on the target"
        if self.lanes > 1:
            text += f", of {self.lanes} lanes together"
        hashes = sum(abs(more) for more in self.fields.values())
        why = []
        if self.expired:
            why.append(f"{self.expired:,} with a TTL have expired at one end, and still count")
        if hashes:
            what = "1 hash has" if hashes == 1 else f"{hashes:,} hashes have"
            still = "counts" if hashes == 1 else "count"
            why.append(f"{what} no field left that has not expired, and still {still}")
        if self.stray:
            what = "1 key of a slot" if self.stray == 1 else f"{self.stray:,} keys of slots"
            why.append(f"without {what} that the node that holds it does not own")
        return f"{text} ({'; '.join(why)})" if why and not self.wrong else text


@dataclass(frozen=True, slots=True)
class AtFence:
    """What one look has shown while the source's writers are paused.

    `counts` is None where counts say nothing. `differ`: {key: what differs}; `lost`: {`library
    NAME`: what is wrong}; `compared` keys were read, of which `unknown` (by type) say nothing.
    `silent_calls`: see
    `model.silent_commands`; None where they are not known.
    """

    counts: Counts | None
    differ: Mapping[DbKey, str]
    lost: Mapping[str, str]
    compared: int
    unknown: Mapping[str, int]
    silent_calls: silent_commands.Calls | None = None


@dataclass(frozen=True, slots=True)
class Besides:
    """What the source holds beside keys: `count` libraries and search indexes, the libraries' code
    by name; `lost`: {`library NAME`: what is wrong with the target's}; `denied`: what an end's user
    may not be asked with, so that it was not compared."""

    count: int
    code: Mapping[str, bytes]
    lost: Mapping[str, str]
    denied: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verification:
    """The result; `reason` is one sentence for people, whatever the result.

    `keys_source` and `keys_target` are the servers' own counts of the databases compared;
    `compared` counts the source's keys whose values were compared. `different` is the number of
    differences, of which the first `NAMED_LIMIT` are named; at `STOP_AT` the work ends. `unknown`
    are keys of types that cannot be compared: no difference, and no proof either. `counted` tells
    whether the counts could be compared.

    `not_compared` is how many keys of each type could not be compared; `libraries` are the function
    libraries and search indexes that were compared; `lost` names those that the target lacks or has
    otherwise. Of a source that is followed also: `over_budget` names keys that are no difference as
    far as is known, and that were not compared while the source's writers waited, each with why:
    its value is too long for that, it may change without a command in the stream, or it is written
    to all the time; `repaired` are keys that differed, were read again from the source and were
    equal then. `counted_lanes`: the counts are those of so many lanes together. `full`: every key
    was compared behind the last command that names it, but for what `not_compared` counts.
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
    not_compared: tuple[tuple[str, int], ...] = ()
    over_budget: tuple[Difference, ...] = ()
    repaired: int = 0
    libraries: int = 0
    lost: tuple[str, ...] = ()
    counted_lanes: int = 1
    full: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Verification:
        """Inverse of `to_dict`; an earlier version's lacks some members."""
        data = dict(data)
        for name in ("differences", "unknown", "over_budget"):
            data[name] = tuple(Difference(**each) for each in data.get(name, ()))
        data["not_compared"] = tuple((kind, n) for kind, n in data.get("not_compared", ()))
        data["lost"] = tuple(data.get("lost", ()))
        return cls(**data)


def not_compared_words(kinds: Mapping[str, int]) -> str:
    """`3 keys of the type vectorset not compared`; empty if there are none."""
    return "; ".join(
        f"{count:,} keys of the type {kind} not compared" for kind, count in sorted(kinds.items())
    )


def full_words(compared: int, unknown: Mapping[str, int]) -> str:
    """`5,039,662 of 5,039,662 keys compared, none differs`: where every key was."""
    return f"{compared:,} of {compared + sum(unknown.values()):,} keys compared, none differs"


def total(lanes: Sequence[tuple[str, Verification]]) -> Verification:
    """What the comparisons of several lanes, by their names, have shown together: that of the first
    lane that differs; the sums, if none does."""
    for name, found in lanes:
        if not found.ok:
            return replace(found, reason=f"lane {name}: {found.reason}" if name else found.reason)
    every = [found for _, found in lanes]
    if len(every) == 1:
        return every[0]
    # Lanes that were counted together have the same counts.
    source = round(sum(each.keys_source / each.counted_lanes for each in every))
    there = round(sum(each.keys_target / each.counted_lanes for each in every))
    compared = sum(each.compared for each in every)
    counted = all(each.counted for each in every)
    unknown: dict[str, int] = {}
    for each in every:
        for kind, count in each.not_compared:
            unknown[kind] = unknown.get(kind, 0) + count
    counts = f"{source:,} keys on the source, {there:,} on the target"
    name, first = lanes[0]
    full = all(each.full for each in every)
    words = f"{compared:,} keys compared, 0 differ"
    if full:
        if counted:
            # (Each lane has told a rounded part of what they have together.)
            compared = source - sum(unknown.values())
        words = full_words(compared, unknown)
    return Verification(
        ok=True,
        reason=f"in sync on all {len(every)} lanes; {counts if counted else 'not counted'}; "
        f"{words}. Lane {name}: {first.reason}",
        keys_source=source,
        keys_target=there,
        compared=compared,
        counted=counted,
        not_compared=tuple(sorted(unknown.items())),
        over_budget=tuple(key for each in every for key in each.over_budget)[:NAMED_LIMIT],
        repaired=sum(each.repaired for each in every),
        libraries=max(each.libraries for each in every),
        full=full,
    )
