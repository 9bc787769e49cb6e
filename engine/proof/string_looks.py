"""Keys that are strings: asked for by MGET, of a cluster's node by GET.

DUMP has a server try to compress a string, and sum it up; these do neither. Where no key of a
database has an expire time, as its server says before and behind a run of keys between which
nothing was written, these are not asked for either: an expire time comes by a write.

What is settled so is that a key is equal: a string at both ends, of the same bytes, with the same
expire time. Every other key is asked for by DUMP, and what it is, and differs in, hangs on that
alone. So this is left where it settles few: of keys of other types, or while they differ, and where
values are long, or a server does not answer it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

from engine._native import KeyNames, LookComparer, Looks
from engine.proof.asked_server import AskedServer, Question, question_of_strings
from engine.proof.deployment import written_in

# Both are asked for where less than this share of the keys is settled.
_SHARE = 0.5
# The share is that of about so many of the last runs.
_MEAN_RUNS = 4
# Bytes of a reply: those of one MGET are about 1 MiB at the most.
_LONG_BYTES = 16 << 10
# Runs for which a way that did not do is left; doubled from failure to failure.
_REST_MOST = 256
_UNEXPIRING = (("INFO", "keyspace"), ("INFO", "persistence"))


class _Rests:
    """A way that is taken while it does: behind a failure it is left for some runs, and twice as
    many each time."""

    def __init__(self) -> None:
        self._left, self._next = 0, 1

    def take(self) -> bool:
        """Whether the next run takes it."""
        self._left -= self._left > 0
        return not self._left

    def failed(self) -> None:
        # Several runs that were under way may have failed for one reason.
        if not self._left:
            self._left, self._next = self._next + 1, min(2 * self._next, _REST_MOST)

    def did(self) -> None:
        self._next = 1


class _End:
    """A server: what it is asked, and whether the expire times are among it."""

    def __init__(self, server: AskedServer, may_prove: bool) -> None:
        self.server = server
        # A fork's counts, and their order, are not those of the servers that this hangs on.
        self._may_prove = may_prove and not server.info.fork
        self._without_ttls = _Rests()
        self._plain = question_of_strings(server.info)
        self._proven = question_of_strings(server.info, _UNEXPIRING)

    def question(self, db: int) -> Question:
        # (As it was when it was dialled.)
        told = any(each.db == db and not each.expires for each in self.server.info.keyspace)
        if self._may_prove and told and self._without_ttls.take():
            return self._proven
        return self._plain

    def expire_times_told(self, looks: Looks, db: int) -> bool:
        """Whether those of a run are known: they were asked for, or there was none."""
        if not looks.texts:
            return True
        before, behind = (_unexpiring(looks.texts[at : at + 2], db) for at in (0, 2))
        proven = before is not None and before == behind
        if proven:
            self._without_ttls.did()
        else:
            self._without_ttls.failed()
        return proven


class StringLooks:
    """Asks one server of the source, and those of the target, about the keys of a database.
    `comparer()` counts those that are equal. `may_prove`: expire times may be left out where no key
    has one; where a server is written to all the while that would be in vain."""

    def __init__(
        self,
        db: int,
        source: AskedServer,
        targets: Sequence[AskedServer],
        comparer: Callable[[], LookComparer],
        *,
        may_prove: bool = True,
    ) -> None:
        self.db = db
        self._source = _End(source, may_prove)
        self._targets = [_End(each, may_prove) for each in targets]
        self._comparer = comparer
        self._share = 1.0
        self._rests = _Rests()
        self.refused = False
        """A server does not answer it: the user may not ask it, or there is no such command."""

    def take(self) -> bool:
        """Whether the next run of keys is asked for so."""
        return not self.refused and self._share >= _SHARE and self._rests.take()

    def ask(
        self, part: int, names: KeyNames, first: int, last: int
    ) -> Sequence[asyncio.Future[Looks]]:
        """Ask both ends."""
        return [
            each.server.looks(names, first, last, each.question(self.db))
            for each in (self._source, self._targets[part])
        ]

    def settle(
        self, part: int, names: KeyNames, first: int, looks: Sequence[Looks]
    ) -> KeyNames | None:
        """Count those that are equal; the names of the others, None: there are none."""
        one, other = looks
        count = len(one)
        ends = self._source, self._targets[part]
        told = [end.expire_times_told(each, self.db) for end, each in zip(ends, looks, strict=True)]
        if any(each.refused == count for each in looks):
            self.refused = True
        if not all(told):
            return names.some(first, first + count)
        left = self._comparer().sift(names, first, one, other)
        settled = count - (len(left) if left is not None else 0)
        if self._saw(settled, count, looks) < _SHARE:
            self._rests.failed()
        else:
            self._rests.did()
        return left

    def saw(self, looks: Sequence[Looks]) -> None:
        """Keys were asked for by DUMP: what would have come of asking so."""
        self._saw(looks[0].strings, len(looks[0]), looks)

    def _saw(self, settled: int, count: int, looks: Sequence[Looks]) -> float:
        long = max(each.nbytes for each in looks) > count * _LONG_BYTES
        share = 0.0 if long else settled / count
        self._share += (share - self._share) / _MEAN_RUNS
        return share


def _unexpiring(told: Sequence[bytes | None], db: int) -> object | None:
    """What stays as it is while nothing is written, if no key of the database has an expire time;
    None: one has, or the server does not tell."""
    keyspace, persistence = told
    if keyspace is None:
        return None
    found = re.search(rb"^db%d:(\S*)" % db, keyspace, re.MULTILINE)
    if found is None or b"expires=0" not in found[1].split(b","):
        return None
    return written_in(persistence)
