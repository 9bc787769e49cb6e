"""What an online migration leaves while it runs: its mark in the state, keys on the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.model.slots import SlotSet, slot_tag, slot_tags

OWN_PREFIX = b"startmigration:"
"""Keys of this name on a target are the engine's own."""
POSITION_KEY = OWN_PREFIX + b"position"
POSITION_DB = 0
"""The target's database that holds the engine's own keys."""
_ASIDE = OWN_PREFIX + b"rebuild:"
LEFT_KEY = OWN_PREFIX + b"left"
"""What the position key becomes where a migration ends without a cut-over, and leaves keys."""
EXTEND_MS = 100 * 365 * 86_400_000
"""By so much near expire times are later on the target while a migration is under way: a hundred
years, for no TTL of an application is so long."""


def kind_of(key: bytes) -> bytes:
    """`position` of `startmigration:{tag}:position:LANE`; empty for what is not the engine's."""
    if not key.startswith(OWN_PREFIX):
        return b""
    rest = key.removeprefix(OWN_PREFIX)
    if rest.startswith(b"{"):
        rest = rest.partition(b"}:")[2]
    return rest.partition(b":")[0]


@dataclass(frozen=True, slots=True)
class OnlineCheckpoint:
    """How far an online migration has gone, for the next process that takes it up.

    `token` names the migration on the target. `begun`: something may have been written there;
    `held_before`: it had keys of its own before that, or other lanes write to it as well, so that
    it is not to be emptied; `had_keys`: in this case, whether it had keys of its own before any of
    them. `promoting`: the position at which the target
    is being promoted, as the position key holds it, and `process` the target's process then
    (`ServerInfo.identity`); the target alone tells whether it was promoted (`transfer.promotion`).
    `timed`: the fence before that promotion ends by itself; the promotion counts only once `opened`
    says that its answer came in time. `opened`: it was, so that the target is its users', and
    nothing may be written to it any more; `tidied`: nothing of ours is left there. `tuned`: the
    source's own `rdbcompression`, to be put back; empty if it was not touched. `fenced`: a fence
    may stand at the source, or writers wait to be let go after the promotion; `sealed`: the
    settings that the write block changes there, as they were (`transfer.write_block`); `fenced_at`:
    the `host:port` of the primary where that is, empty for the source itself; `closed_before`: the
    setting by which it refused writes before the fence, empty: it accepted them; `lets_scripts`: it
    refuses writes then, but not what scripts write (before 6.2); `scripts` and `writes`: how many
    scripts and commands that write it had run when that fence was put up, and `scripts_run` and
    `writes_run` how many it ran until the clients that waited were let go
    (`transfer.scripts_behind_cut_over`; None: it refuses their writes, or does not tell),
    `lost_writes`: what was lost of them, or may be, a sentence; `held`: where it runs any, its
    clients are paused behind the cut-over (`transfer.hold_source`). `head`: the address of the
    primary that took the writes last, where the source was its replica. `followed`: the
    address of the server that is followed in the source's place, after a failover; empty: the
    source itself. `siblings`: the address of every
    other server of its replication that was heard of. `claimed_at`: the target's process (its run
    id) in which our claim stood last. `handed_over`: behind `opened`, clients may have been led to
    the target; `came_back`: why it was found older then, so that nothing goes on before the
    operator resumes it; empty: it was not. `switched`: what points the applications' name to the
    target was run. `released`: the target may have expire times of its own, which a link that
    breaks can let pass too early. `lifted`: expire times on the target may be extended.
    `loss_accepted`: the next full sync may empty the target although the source has lost data.
    `taken_over`: the token of another migration that had the target. `compare_all`: why every key
    is to be compared before the cut-over; empty: not so. `answered`: of an append-only file, up to
    this byte the target's answers were read. `begun_at`: when the last full sync did, or when all
    near expire times of the target were extended since, in seconds since the epoch; a target
    that comes back with an offset up to `extended_at` may lack that. `search_names`: those of the
    source's search aliases and dictionaries, printable (`model.report`). `lost`: what
    the target lacks that is no key (`MigrationContext.lost`). `audit`: the slots of which every key
    is to be read again (`transfer.slot_reread`); `audited`: those of which it was since the last
    full sync, which a target that comes back with an offset up to `audited_at` may lack. The
    counters are those of all its engines. The exact position is on the target itself.
    """

    token: str
    begun: bool = False
    held_before: bool = False
    had_keys: bool = False
    promoting: str = ""
    process: str = ""
    timed: bool = False
    opened: bool = False
    handed_over: bool = False
    came_back: str = ""
    tidied: bool = False
    released: bool = False
    lifted: bool = False
    begun_at: float = 0.0
    extended_at: int = -1
    loss_accepted: bool = False
    taken_over: str = ""
    tuned: str = ""
    fenced: bool = False
    sealed: str = ""
    switched: bool = False
    compare_all: str = ""
    fenced_at: str = ""
    closed_before: str = ""
    lets_scripts: bool = False
    scripts: int | None = None
    writes: int | None = None
    scripts_run: int | None = None
    writes_run: int | None = None
    lost_writes: str = ""
    held: bool = False
    head: str = ""
    followed: str = ""
    siblings: tuple[str, ...] = ()
    claimed_at: str = ""
    partial_syncs: int = 0
    full_syncs: int = 0
    repaired_keys: int = 0
    answered: int = 0
    search_names: tuple[str, ...] = ()
    lost: tuple[tuple[str, str], ...] = ()
    audit: str = ""
    audited: str = ""
    audited_at: int = 0

    def accepted(self) -> OnlineCheckpoint:
        """The same once the operator wants a target that came back older to be brought up to date:
        what was done at the source after its promotion is undone."""
        return replace(self, came_back="", handed_over=False, fenced=True)

    def at_source(self) -> dict[str, Any]:
        """The members of a `Report` that tell what the cut-over has left at the source."""
        return {
            "sealed": self.sealed,
            "sealed_at": self.fenced_at if self.sealed else "",
            "closed_before": self.closed_before,
            "closed_at": self.fenced_at if self.closed_before else "",
            "lets_scripts": self.lets_scripts,
            "scripts_before": self.scripts,
            "scripts_run": self.scripts_run,
            "writes_before": self.writes,
            "writes_run": self.writes_run,
            "lost_writes": self.lost_writes,
            "held": self.held,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OnlineCheckpoint:
        """Inverse of `to_dict`."""
        names, lost = data.get("search_names", ()), data.get("lost", ())
        pairs = tuple((what, why) for what, why in lost)
        siblings = tuple(data.get("siblings", ()))
        return cls(**{**data, "search_names": tuple(names), "lost": pairs, "siblings": siblings})


def left_at_sources(marks: Sequence[OnlineCheckpoint]) -> dict[str, Any]:
    """The members of a `Report` that tell what a cut-over has left at its sources, of which each
    lane's checkpoint has its own: of the first where that is anything, and beside it the others
    that refuse writes (`Report.sealed_too`)."""
    found = [mark.at_source() for mark in marks]
    first = next((each for each in found if each["sealed"] or each["closed_before"]), found[0])
    others = {
        each["sealed_at"]: (each["sealed_at"], each["sealed"])
        for each in found
        if each["sealed"] and each["sealed_at"] != first["sealed_at"]
    }
    lost = "; ".join(dict.fromkeys(each["lost_writes"] for each in found if each["lost_writes"]))
    held = any(each["held"] for each in found)
    return {**first, "lost_writes": lost, "held": held, "sealed_too": tuple(others.values())}


@dataclass(frozen=True, slots=True)
class OwnKeys:
    """The names of the keys that the migration called `token` has in the target's database 0, for
    its lane of that name, which is empty for the only one.

    `tag`: the hash tag that they all have, so that they are in one slot of a cluster's node, and a
    transaction may take all of them. Empty: the target is no cluster, and they have none.
    """

    token: str
    lane: str = ""
    tag: str = ""

    @property
    def position(self) -> bytes:
        """Holds the position.

        All migrations have the same: a lane's target has one at a time, and one look at the key
        tells whose it is. A second engine, of whichever state, is refused by the WATCH on it.
        """
        return self._named(POSITION_KEY)

    @property
    def dirty(self) -> bytes:
        """The set with the names of keys which are to be read again."""
        return self._named(OWN_PREFIX + b"dirty:" + self.token.encode())

    @property
    def left(self) -> bytes:
        """What the position becomes where a migration ends without a cut-over, and leaves keys:
        one of all lanes to a target."""
        return self._tagged(LEFT_KEY)

    @property
    def wait(self) -> bytes:
        """Written and removed before the target's replicas are waited for."""
        return self._named(OWN_PREFIX + b"wait:" + self.token.encode())

    def aside(self, key: bytes) -> bytes:
        """Where a value is put together that becomes that of `key`: in the key's slot, and in its
        database, whichever that is."""
        if not self.tag:
            return self._named(_ASIDE + self.token.encode())
        # The core is not loaded where nothing is moved.
        from engine._native import key_slot

        return self._aside_at(slot_tag(key_slot(key)))

    def asides(self, slots: SlotSet) -> list[bytes]:
        """All of those, of keys of `slots`."""
        if not self.tag:
            return [self.aside(b"")]
        return [self._aside_at(tag) for tag in slot_tags(slots).values()]

    def _aside_at(self, tag: str) -> bytes:
        return replace(self, tag=tag)._named(_ASIDE + self.token.encode())

    @property
    def all(self) -> tuple[bytes, ...]:
        """Those that there may be while it runs."""
        return self.position, self.dirty

    def of(self, token: str) -> OwnKeys:
        """Those that another migration has in the same place."""
        return replace(self, token=token)

    def _named(self, name: bytes) -> bytes:
        name = self._tagged(name)
        return name + b":" + self.lane.encode() if self.lane else name

    def _tagged(self, name: bytes) -> bytes:
        if not self.tag:
            return name
        return OWN_PREFIX + b"{" + self.tag.encode() + b"}:" + name.removeprefix(OWN_PREFIX)


def dirty_key(token: str) -> bytes:
    """The set of names of a migration with one lane, to a target that is no cluster."""
    return OwnKeys(token).dirty
