"""The counters of a transfer, fed from acknowledged batches alone."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from engine.model.carried_with_loss import NAMED_LIMIT, WORDS, CarriedWithLoss
from engine.model.checkpoint import Checkpoint
from engine.model.evictions import Evictions
from engine.model.joined_sentences import without_arguments
from engine.model.modules import TELEMETRY_LEFT
from engine.model.online_checkpoint import OnlineCheckpoint
from engine.model.position import ScanPosition
from engine.model.report import NAMED_KEYS_LIMIT, NotCarried, key_of, printable_key
from engine.model.server import ServerInfo
from engine.targets.base import Acknowledged
from engine.transfer.restore_errors import explain_refusal

# Keys per second are taken over about this long, in seconds.
_RATE_SECONDS = 5.0
# A line that says what was not carried names so many keys, each with so many characters, and their
# reasons.
_NAMED_IN_A_LINE = 3
_NAME_MOST = 80
_REASON_MOST = 300
_TELEMETRY_NAMED = 100


@dataclass(frozen=True, slots=True)
class _Mark:
    """The counters at a moment; of the names only how many there were."""

    keys: int
    bytes: int
    skipped: int
    vanished: int
    named: int
    not_carried_total: int
    beyond: tuple[tuple[str, int], ...]
    losses: tuple[CarriedWithLoss, ...]


class TransferStats:
    """Keys and bytes that arrived, and the names of those that did not.

    A run that goes on from a checkpoint counts on from there; `keys_before` of its keys are those
    of earlier runs.
    """

    def __init__(self, before: Checkpoint | None = None) -> None:
        self.keys_before = 0
        self.keys = 0
        self.arrived = before is not None and before.keys > 0
        """Whether the target has acknowledged any key, though it may be counted again since."""
        self.bytes = 0
        self.skipped = 0
        self.vanished = 0
        self.expired = 0
        """Keys of a file whose time was over. They never were in any database that we asked."""
        self.not_carried: list[NotCarried] = []
        self.not_carried_total = 0
        self.evictions = Evictions()
        """Keys that the target has evicted since the first write (`transfer.target_monitor`)."""
        self.telemetry: dict[tuple[int, str], None] = {}
        """Streams of FalkorDB's that were left to each server."""
        self.on_telemetry: Callable[[str], None] = lambda _: None
        """Told of the first of them."""
        self.on_loss: Callable[[str], None] = lambda _: None
        """Told of the first value that was carried with a kind of loss."""
        self._losses: dict[str, CarriedWithLoss] = {}
        self._named: set[tuple[int, str]] = set()
        self._beyond: Counter[str] = Counter()
        self._rate: deque[tuple[float, int]] = deque()
        self._mark: tuple[ScanPosition | OnlineCheckpoint, _Mark] | None = None
        if before is not None:
            self.keys_before = self.keys = before.keys
            self.bytes = before.bytes
            self.skipped = before.skipped
            self.vanished = before.vanished
            self.not_carried = list(before.not_carried)
            self._name_again()
            self.not_carried_total = before.not_carried_total
            self.telemetry = dict.fromkeys(before.telemetry)
            self._beyond.update(dict(before.beyond))
            self._losses = {each.kind: each for each in before.losses}
            self.evictions = before.evictions
            self.mark(before.position)

    def mark(self, position: ScanPosition | OnlineCheckpoint) -> None:
        """Everything counted so far lies before `position`, which is acknowledged."""
        counts = _Mark(
            self.keys,
            self.bytes,
            self.skipped,
            self.vanished,
            len(self.not_carried),
            self.not_carried_total,
            tuple(self._beyond.items()),
            self.losses,
        )
        self._mark = (position, counts)

    def start_anew(self) -> None:
        """Forget everything: it is copied again from the start, over whatever was evicted."""
        self.evictions = Evictions()
        self.keys_before = self.keys = self.bytes = self.skipped = self.vanished = 0
        self.not_carried = []
        self._name_again()
        self.not_carried_total = 0
        self.telemetry.clear()
        self._beyond.clear()
        self._losses.clear()
        self._rate.clear()
        self._mark = None

    def rewind(self) -> None:
        """Back to the last mark: what was counted since is going to be counted again."""
        if self._mark is None:
            self.start_anew()
            return
        _, counts = self._mark
        self.keys, self.bytes = counts.keys, counts.bytes
        self.skipped, self.vanished = counts.skipped, counts.vanished
        del self.not_carried[counts.named :]
        self._name_again()
        self.not_carried_total = counts.not_carried_total
        self._beyond = Counter(dict(counts.beyond))
        self._losses = {each.kind: each for each in counts.losses}
        self._rate.clear()

    def checkpoint(self, target_identity: str) -> Checkpoint | None:
        """The last position marked, with the counters as they stood then.

        `target_identity`: the data set that acknowledged it.
        """
        if self._mark is None:
            return None
        position, counts = self._mark
        return Checkpoint(
            position,
            target_identity,
            keys=counts.keys,
            bytes=counts.bytes,
            skipped=counts.skipped,
            vanished=counts.vanished,
            not_carried=tuple(self.not_carried[: counts.named]),
            not_carried_total=counts.not_carried_total,
            beyond=counts.beyond,
            evictions=self.evictions,
            telemetry=tuple(self.telemetry),
            losses=counts.losses,
        )

    def checkpoint_at(self, position: OnlineCheckpoint, target_identity: str) -> Checkpoint:
        """The counters as they stand, with `position`."""
        self.mark(position)
        checkpoint = self.checkpoint(target_identity)
        assert checkpoint is not None
        return checkpoint

    def count(self, acknowledged: Acknowledged, target: ServerInfo) -> None:
        """Add what one batch brought to `target`."""
        batch = acknowledged.batch
        self.keys += acknowledged.carried
        self.arrived = self.arrived or acknowledged.carried > 0
        self.skipped += acknowledged.existing
        self.vanished += batch.vanished
        self.bytes += batch.value_bytes
        for key, reason in batch.errors:
            self.refuse(batch.db, key, f"the source refused it: {reason}")
        for key, reason in batch.withheld:
            self.refuse(batch.db, key, reason)
        for key in batch.telemetry:
            self.leave(batch.db, key)
        for index, message in acknowledged.errors:
            self.bytes -= batch.value_size(index)
            reason = explain_refusal(message, batch.value_type(index), target)
            self.refuse(batch.db, batch.key(index), reason)
        if batch.lossy:
            refused = [index for index, _ in acknowledged.errors]
            for loss, count, keys in batch.losses(refused, NAMED_LIMIT):
                self._lose(WORDS[loss], count, batch.db, keys)

    def lose(self, db: int, key: bytes, lost: int) -> None:
        """A value was carried with losses (bits of `model.carried_with_loss`)."""
        for loss, kind in WORDS.items():
            if lost & loss:
                self._lose(kind, 1, db, [key])

    def _lose(self, kind: str, count: int, db: int, keys: list[bytes]) -> None:
        before = self._losses.get(kind)
        if before is None:
            before = CarriedWithLoss(kind, 0, ())
            self.on_loss(f"migrated with a loss: {kind}; the first: {printable_key(keys[0])}")
        named = (*before.keys, *((db, printable_key(key)) for key in keys))
        named = tuple(dict.fromkeys(named))[:NAMED_LIMIT]
        self._losses[kind] = CarriedWithLoss(kind, before.count + count, named)

    @property
    def losses(self) -> tuple[CarriedWithLoss, ...]:
        """What was carried with a loss."""
        return tuple(self._losses.values())

    def refuse(self, db: int, key: bytes, reason: str) -> None:
        """A key that was not carried. Named once, up to a bound, then counted by its reason."""
        name, reason = (db, printable_key(key)), without_arguments(reason)
        if name in self._named:
            return
        self.not_carried_total += 1
        if len(self.not_carried) < NAMED_KEYS_LIMIT:
            self.not_carried.append(NotCarried(*name, reason))
            self._named.add(name)
        else:
            self._beyond[reason] += 1

    def leave(self, db: int, key: bytes) -> None:
        """A key that every server makes for itself: named up to a bound."""
        if not self.telemetry:
            self.on_telemetry(f"not migrated: {TELEMETRY_LEFT}: {printable_key(key)}")
        if len(self.telemetry) < NAMED_KEYS_LIMIT:
            self.telemetry[db, printable_key(key)] = None

    def carried(self, db: int, key: bytes) -> None:
        """A key that was not carried is, by now. One too many to be named stays counted."""
        name = db, printable_key(key)
        if name in self._named:
            self._named.remove(name)
            self.not_carried = [each for each in self.not_carried if (each.db, each.key) != name]
            self.not_carried_total -= 1

    def named_keys(self) -> list[tuple[int, bytes]]:
        """Database and name of every key that was not carried and is named."""
        return [(each.db, key_of(each.key)) for each in self.not_carried]

    def lost_words(self) -> str:
        """Which keys were not migrated, in one line with the first names and the reasons of these;
        empty: none."""
        total, some = self.not_carried_total, self.not_carried[:_NAMED_IN_A_LINE]
        if not total:
            return ""
        words = "1 key was not migrated" if total == 1 else f"{total:,} keys were not migrated"
        if not some:
            return words
        by_reason: dict[str, list[str]] = {}
        for each in some:
            name = f"'{each.key[:_NAME_MOST]}' (database {each.db})"
            by_reason.setdefault(each.reason[:_REASON_MOST].removesuffix("."), []).append(name)
        reasons = "; ".join(f"{', '.join(names)}: {why}" for why, names in by_reason.items())
        return f"{words}: {reasons}" if total == len(some) else f"{words}, such as {reasons}"

    def left_words(self) -> list[str]:
        """A line for the keys that every server makes for itself; none if there are none."""
        if not self.telemetry:
            return []
        some = list(self.telemetry)[:_TELEMETRY_NAMED]
        names = ", ".join(f"{key[:_NAME_MOST]} (database {db})" for db, key in some)
        more = len(self.telemetry) - len(some)
        names += f" and {more:,} more" if more else ""
        return [f"{TELEMETRY_LEFT}: {names}"]

    def _name_again(self) -> None:
        self._named = {(each.db, each.key) for each in self.not_carried}

    @property
    def not_carried_words(self) -> str:
        """Why keys that were not carried keep a cut-over from beginning, in one line; there has to
        be one."""
        words = self.lost_words()
        if self.beyond():
            return f"{words}; too many to be kept track of: only another full sync clears them"
        return f"{words}; a key leaves this list once it is deleted on the source or stored"

    def beyond(self) -> list[str]:
        """One line for each reason whose keys were too many to be named."""
        return [f"{count:,} more keys not migrated: {why}" for why, count in self._beyond.items()]

    def rate(self, now: float) -> float:
        """Keys per second over the last seconds; call it a few times a second."""
        self._rate.append((now, self.keys))
        while len(self._rate) > 2 and now - self._rate[0][0] > _RATE_SECONDS:
            self._rate.popleft()
        began, keys = self._rate[0]
        return (self.keys - keys) / (now - began) if now > began else 0.0
