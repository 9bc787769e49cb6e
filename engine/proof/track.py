"""How far each walk is, so that one that was cut off goes on there: behind a lost link, or in a
later process (`saved_proof`).

A walk is marked between two pages, once all keys of the pages before are compared or in doubt: a
mark holds its cursor, its sums, and its keys that are in doubt. A cursor says something to the
process of the server that gave it, and what was compared says something of the servers that it was
compared at: where one of them is another one by now (a restart, a failover, other slots) the walk
begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine._native import LookComparer

MARK_SECONDS = 2.0
"""A walk is marked so often, and what was marked is saved so often."""
SUM = 1 << 128
"""Digests are added up below this."""
COMPARED, NAMED, LOOKED_FOR, REPAIRED = "compared", "named", "other", "repaired"
"""What a walk does (`key_walks`); the last one is over the keys that a repair has stored."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What a walk has come to.

    `named`: names on its pages; `count` of them were of the share, with the digest `names`; `own`
    were the engine's. `equal`: keys that are equal, by the number of the run that compared them;
    `values`: bytes of theirs; `resolved` of them seemed to differ at first. `source` and `target`
    are the digests of what was compared at either end.
    """

    named: int = 0
    count: int = 0
    names: int = 0
    own: int = 0
    values: int = 0
    resolved: int = 0
    source: int = 0
    target: int = 0
    equal: Mapping[int, int] = field(default_factory=dict)

    def __add__(self, other: Sums) -> Sums:
        equal = dict(self.equal)
        for run, count in other.equal.items():
            equal[run] = equal.get(run, 0) + count
        return Sums(
            self.named + other.named,
            self.count + other.count,
            (self.names + other.names) % SUM,
            self.own + other.own,
            self.values + other.values,
            self.resolved + other.resolved,
            (self.source + other.source) % SUM,
            (self.target + other.target) % SUM,
            equal,
        )


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a walk is. `servers` says which servers it has asked; `cursor` is that of its next
    page, None behind the last one; `doubts` are its keys in doubt, with the size of their
    values."""

    servers: str
    cursor: int | None
    sums: Sums
    doubts: tuple[tuple[bytes, int], ...] = ()


@dataclass(frozen=True, slots=True)
class FoundKey:
    """A key that differs, or of which that cannot be told (`reason`), as it is saved: what is shown
    of either end, and the number of the run that found it."""

    db: int
    key: bytes
    kinds: tuple[str, ...]
    source: str
    target: str
    reason: str
    run: int


class Doubts(Protocol):
    """The keys in doubt (`second_looks`)."""

    def doubts_of(self, track: Track) -> Iterable[tuple[bytes, int]]:
        """Those of a walk."""

    def drop(self, track: Track) -> None:
        """Forget those of a walk."""

    def add(self, db: int, key: bytes, track: Track, size: int = ...) -> None:
        """One of them."""


class Saved(Protocol):
    """What an earlier process has saved, and where this one saves (`saved_proof`)."""

    @property
    def run(self) -> int:
        """The number of this run."""

    def marks(self) -> Mapping[str, Mark]:
        """Those of the earlier runs, by the walks' labels."""

    def found(self, label: str) -> Iterable[FoundKey]:
        """What a walk had found by its mark."""

    def forget(self, label: str) -> None:
        """Forget a walk, which begins anew."""

    def save(self, marks: Mapping[str, tuple[Mark, Sequence[FoundKey]]]) -> None:
        """Keep marks, each with what was found since the one before; all of them or none."""


class Track:
    """One walk, which does `what`, over the server of the number `part`: from where it has begun,
    and what has come of it since then. `comparer` counts its keys that are equal, and `found` those
    that were found since its last mark."""

    def __init__(
        self, what: str, db: int, part: int, run: int, comparer: Callable[[], LookComparer]
    ) -> None:
        self.what = what
        self.db = db
        self.label = f"{db} {what} {part}"
        """Its name where it is saved."""
        self.resolved = 0
        self.named = 0
        self.earlier = 0
        self.of_both = False
        """Its names are taken for those of both ends: there may be no walk over the other one."""
        self.doubted = False
        """A key of it has seemed to differ."""
        self.found: list[FoundKey] = []
        self.marked: Mark | None = None
        self._run = run
        self._make = comparer
        self._servers = ""
        self._names = 0, 0, 0
        self._began = Sums()
        self._due = 0.0
        self.comparer = self._made()

    @property
    def sums(self) -> Sums:
        """Of all of it."""
        comparer = self.comparer
        source, target = (int.from_bytes(each, "little") for each in comparer.digests)
        count, names, own = self._names
        equal = {self._run: comparer.equal} if comparer.equal else {}
        return self._began + Sums(
            self.named,
            count,
            names,
            own,
            comparer.values,
            self.resolved,
            source,
            target,
            equal,
        )

    @property
    def named_in_all(self) -> int:
        """Names on all of its pages."""
        return (self._began.named + self.named) * (2 if self.of_both else 1)

    @property
    def due(self) -> bool:
        """It is to be marked behind this page."""
        return time.monotonic() >= self._due

    def begin(self, servers: str, again: Doubts) -> int | None:
        """Begin at its mark, if it has asked the same servers, else at its beginning: the cursor of
        the page to ask for; None: it was at its end."""
        again.drop(self)
        if self.marked is not None and (not servers or self.marked.servers != servers):
            self.marked = None
        mark = self.marked or Mark(servers, 0, Sums())
        if self._servers == "":
            self.earlier = mark.sums.named
        self._servers = servers
        self._began = mark.sums
        self.resolved, self.named, self._names = 0, 0, (0, 0, 0)
        self.comparer = self._made()
        for key, size in mark.doubts:
            again.add(self.db, key, self, size)
        self._due = time.monotonic() + MARK_SECONDS
        return mark.cursor

    def at(self, count: int, names: int, own: int) -> None:
        """So many names of the share have come since it has begun, with this digest, and so many
        of the engine's own."""
        self._names = count, names, own

    def mark(self, cursor: int | None, again: Doubts) -> None:
        """Mark it in front of the page of this cursor; None: behind the last one."""
        self.marked = Mark(self._servers, cursor, self.sums, tuple(again.doubts_of(self)))
        self._due = time.monotonic() + MARK_SECONDS

    def ended_at(self, servers: str) -> bool:
        """Whether it is at its end, and has asked these."""
        mark = self.marked
        return bool(servers) and mark is not None and (mark.servers, mark.cursor) == (servers, None)

    def proven(self, like: Track, servers: str, again: Doubts) -> None:
        """It would come to the names that another one has come to: so it is at its end."""
        sums = like.sums
        self._servers = servers
        self._began = Sums(sums.named, sums.count, sums.names)
        self.mark(None, again)

    def mark_again(self, again: Doubts) -> None:
        """Mark it where it was marked: what was in doubt is known by now."""
        if self.marked is not None:
            self.mark(self.marked.cursor, again)

    def _made(self) -> LookComparer:
        comparer = self._make()
        comparer.db = self.db
        return comparer


class Tracks:
    """All walks of a comparison. `on_restored` is told what the earlier runs had found."""

    def __init__(
        self,
        saved: Saved | None,
        comparer: Callable[[], LookComparer],
        on_restored: Callable[[FoundKey], None],
    ) -> None:
        self._saved = saved
        self._comparer = comparer
        self._on_restored = on_restored
        self._of_before = dict(saved.marks()) if saved is not None else {}
        self._tracks: dict[tuple[str, int, int], Track] = {}
        self._unsaved: dict[str, tuple[Mark, list[FoundKey]]] = {}
        self._due = time.monotonic() + MARK_SECONDS

    @property
    def run(self) -> int:
        """The number of this run, from 0."""
        return self._saved.run if self._saved is not None else 0

    @property
    def dbs(self) -> set[int]:
        """The databases of the marks that were saved."""
        return {int(label.split()[0]) for label in self._of_before}

    @property
    def named(self) -> int:
        """Names that have come, of the walks that look at each key of an end once."""
        return sum(each.named_in_all for each in self._once)

    @property
    def earlier(self) -> int:
        """Those of them that had come before this run."""
        return sum(each.earlier for each in self._once)

    @property
    def _once(self) -> Iterable[Track]:
        return (each for each in self._tracks.values() if each.what != LOOKED_FOR)

    def track(self, what: str, db: int, part: int) -> Track:
        """The walk that does this in a database, over the server of this number."""
        found = self._tracks.get((what, db, part))
        if found is None:
            found = Track(what, db, part, self.run, self._comparer)
            found.marked = self._of_before.get(found.label)
            self._tracks[what, db, part] = found
        return found

    def begin(self, track: Track, servers: str, again: Doubts) -> int | None:
        """`Track.begin`; with what an earlier run has found on the way to the mark."""
        cursor = track.begin(servers, again)
        if self._saved is not None and self._of_before.pop(track.label, None) is not None:
            if track.marked is None:
                self._saved.forget(track.label)
            else:
                for each in self._saved.found(track.label):
                    self._on_restored(each)
        return cursor

    def found(self, track: Track, found: FoundKey) -> None:
        """A key of this walk is known by now."""
        if self._saved is not None:
            track.found.append(found)

    def mark(self, track: Track, cursor: int | None, again: Doubts) -> None:
        """`Track.mark`; saved now and then."""
        track.mark(cursor, again)
        self._put(track)
        if time.monotonic() >= self._due:
            self.save()

    def proven(self, track: Track, like: Track, servers: str, again: Doubts) -> None:
        """`Track.proven`; saved with the others."""
        track.proven(like, servers, again)
        self._put(track)

    def mark_all(self, again: Doubts) -> None:
        """Mark all walks where they were marked, and save them."""
        for each in self._tracks.values():
            if each.marked is not None:
                each.mark_again(again)
                self._put(each)
        self.save()

    def save(self) -> None:
        """Save what was marked."""
        if self._saved is not None:
            self._saved.save(self._unsaved)
        self._unsaved = {}
        self._due = time.monotonic() + MARK_SECONDS

    def save_marked(self) -> None:
        """Save what was marked, if anything was."""
        if self._unsaved:
            self.save()

    def sums(self, what: str | None = None) -> Sums:
        """Of all walks, or of those that do this."""
        chosen = (each.sums for each in self._tracks.values() if what in (None, each.what))
        return sum(chosen, Sums())

    def _put(self, track: Track) -> None:
        if self._saved is None:
            return
        assert track.marked is not None
        _, found = self._unsaved.get(track.label, (None, []))
        self._unsaved[track.label] = track.marked, found + track.found
        track.found = []
