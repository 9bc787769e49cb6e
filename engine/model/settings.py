"""How one transfer is to run."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from engine.errors import UsageError
from engine.model import renamed_commands as names
from engine.model.check_names import check_skipped
from engine.model.endpoint import Endpoint

SourceType = Literal["auto", "replica", "scan"]
IfExists = Literal["replace", "skip", "fail"]
Until = Literal["snapshot", "in-sync", "cut-over"]
Fence = Literal["pause", "none", "hook"]
SourceAfter = Literal["refuse", "resume"]
Publish = Literal["pass", "drop"]
CHANGEABLE = ("retry_for", "source_nodes", "spool_bytes", "spool_directory")
"""Settings that may be others when a transfer is resumed: what is carried stays the same."""
_DETACHED = "=detached"
MIB = 1 << 20
GIB = 1 << 30

# A target is behind by as much whenever the machine is busy, in seconds.
_LEAST_LAG_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """Settings of one transfer; immutable, kept in the state, the same after a resume.

    `databases` None means every database; `match` a glob as SCAN's MATCH; `key_type` as SCAN's
    TYPE. Sizes are bytes, times seconds. Raises `UsageError` for a value that makes no sense, and
    for a choice of keys together with the source type "replica" (see `replica_objection`).
    """

    source_type: SourceType = "auto"
    """"replica": PSYNC, the snapshot and then every write. "scan": SCAN and DUMP, once. "auto": a
    replica where the source lets us be one and `replica_objection` has nothing against it."""
    match: str | None = None
    key_type: str | None = None
    databases: tuple[int, ...] | None = None
    if_exists: IfExists = "replace"
    batch_bytes: int = 1 * MIB
    """A batch is handed on when its records reach this many bytes."""
    window_bytes: int = 8 * MIB
    """Bytes sent to the target and not yet acknowledged; above it the source's reader pauses."""
    stream_above: int = 4 * MIB
    """A value longer than this goes through in pieces and is never in memory whole."""
    connect_timeout: float = 10.0
    io_timeout: float = 60.0
    """No byte from a server that owes us replies for this long: the link counts as lost."""
    retry_for: float = 6 * 3600.0
    """For how long without progress what passes by itself (a lost link, a server that restarts or
    loads, a target out of memory) is waited for. Behind it the transfer stops, and can be
    resumed."""
    until: Until = "cut-over"
    """Where the transfer ends: after the snapshot, once in sync, or with the cut-over."""
    fence: Fence = "pause"
    """What holds back writes to the source during the cut-over: "pause" (CLIENT PAUSE), "hook" (a
    command of the operator's), "none" (writers are known to have stopped)."""
    fence_hook: str | None = None
    """The command of the fence "hook". It is kept in the state: no place for a secret."""
    cut_over_timeout: float = 10.0
    """How long the fence may stand; a cut-over that is not through by then is undone."""
    source_after: SourceAfter = "refuse"
    """What becomes of the source once the target is open. "refuse": it refuses writes (until
    somebody sets its `min-replicas-to-write` back), and its clients are disconnected once.
    "resume": it accepts writes again, which are not replicated. The fence "pause" does it; with
    another one the source is the operator's."""
    publish: Publish = "pass"
    """What becomes of messages (PUBLISH, SPUBLISH) in the source's stream. "pass": the target's
    subscribers receive them. "drop": they do not. Sentinels' own messages are never passed on."""
    switch_hook: str | None = None
    """A command that is run once the target is promoted, before the source's clients are
    disconnected: it points their name for the server to the target. Both ends are in its
    environment (`transfer.operator_hook`). It is kept in the state: no place for a secret."""
    switch_timeout: float = 30.0
    """How long the switch hook may take; it is killed then, and the migration goes on."""
    disconnect_for: float = 600.0
    """For how long clients that come back to the source are disconnected again, each second,
    behind a cut-over with the fence "pause" and `source_after` "refuse". 0: they are disconnected
    once, at the cut-over."""
    keep_users: tuple[str, ...] = ()
    """ACL users of the source whose connections are not closed."""
    source_nodes: tuple[str, ...] = ()
    """Other servers of the source's replication, `host:port` each. Where the source cannot be
    reached, and one of them was promoted and goes on with its stream, that one is followed.
    `host:port=detached`: a copy that was detached on purpose; what is written there is not the
    source's, and holds no cut-over up."""
    search_names: tuple[str, ...] = ()
    """Names of the source's search aliases and dictionaries (RediSearch), which no command lists. A
    snapshot tells them; a scan carries those that are named here."""
    max_lag_bytes: int = 1 * MIB
    """A cut-over does not begin while the target is further behind than this, nor while what it is
    behind by may take longer than `max_lag_seconds`."""
    check_bytes: int = 1 * MIB
    """Bytes of values that are compared while the source's writers are paused; what is longer is
    compared before that."""
    check_seconds: float = 5.0
    """How long that comparison may take; a cut-over in which it takes longer is undone."""
    sweep_seconds: float = 600.0
    """How long the comparison before the fence may take; no writer waits for it."""
    spool_directory: str | None = None
    """Where the stream waits on disk while the target is slower: an absolute path; None: $TMPDIR,
    else /var/tmp."""
    spool_bytes: int = 10 * GIB
    """How much may wait there; above it the transfer stops, and the source is unharmed."""
    tune_source: bool = False
    """Whether the source's `rdbcompression` may be set to no for the time of the snapshot."""
    extend_horizon: float = 3600.0
    """TTLs nearer than this (seconds, 60 or more) are extended until the cut-over: such
    keys could expire on the target before the command that extends them is applied."""
    skip_checks: tuple[str, ...] = ()
    """Checks of the preflight (`model.check_names`) that are in the way of nothing if they fail."""
    command_names: tuple[str, ...] = ()
    """Commands that have another name at an end (`rename-command`): `[source:|target:]NAME=OTHER`
    each, for both ends without one (`model.renamed_commands`)."""
    take_over: bool = False
    """Whether another migration that has the target loses it: it is shut out, and the target gets
    a full sync (which empties it, if it was empty before that other migration). Keys of a migration
    that ended without a cut-over go as well, where the target was empty before it."""
    auto_cut_over: bool = False
    """Whether the server cuts over by itself as soon as the migration can be completed."""
    until_time: int | None = None
    """Of an append-only file: nothing is carried that was written later than this (seconds since
    the epoch). The file has to have timestamps."""
    aof_load_truncated: bool = True
    """Whether an append-only file may end inside a command or a transaction, which is left out
    then, as by a server with `aof-load-truncated yes`."""

    def __post_init__(self) -> None:
        if self.source_type not in get_args(SourceType):
            raise UsageError(
                f"source type {self.source_type!r} is not known",
                remedy=f"Known: {', '.join(get_args(SourceType))}.",
            )
        if self.if_exists not in get_args(IfExists):
            raise UsageError(f"--if-exists {self.if_exists!r}: expected replace, skip or fail")
        if self.databases is not None and any(db < 0 for db in self.databases):
            raise UsageError("a database number must be 0 or more")
        if self.until not in get_args(Until):
            raise UsageError(f"--until {self.until!r}: expected snapshot, in-sync or cut-over")
        if self.publish not in get_args(Publish):
            raise UsageError(f"--publish {self.publish!r}: expected pass or drop")
        check_skipped(self.skip_checks)
        names.read(self.command_names)
        for node in self.source_nodes:
            host, _, port = node.removesuffix(_DETACHED).rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise UsageError(
                    f"--source-node {node!r}: expected HOST:PORT, or HOST:PORT=detached"
                )
        self._check_fence()
        self._check_bounds()
        if self.source_type == "replica" and (objection := self.replica_objection()) is not None:
            raise UsageError(
                f"the source type replica does not do: {objection}",
                remedy="Use --source-type scan, or move everything.",
            )

    @property
    def named_nodes(self) -> tuple[str, ...]:
        """Those of `source_nodes` that may be followed."""
        return tuple(each for each in self.source_nodes if not each.endswith(_DETACHED))

    @property
    def detached_nodes(self) -> tuple[str, ...]:
        """Those that are no part of the source any more."""
        return tuple(
            each.removesuffix(_DETACHED) for each in self.source_nodes if each.endswith(_DETACHED)
        )

    def replica_objection(self) -> str | None:
        """Why what is asked for cannot be read as a replica, None if it can.

        A replica is sent every key and every write, and must apply each as it comes. With the
        source type "auto" an objection means that the source is scanned.
        """
        for value, option in (
            (self.match, "--match"),
            (self.key_type, "--type"),
            (self.databases, "--db"),
        ):
            if value is not None:
                return f"{option} chooses keys, and a replica is sent all of them"
        if self.if_exists != "replace":
            return f"--if-exists {self.if_exists} keeps keys that the source's writes are meant for"
        return None

    def named(self, side: names.Side, endpoint: Endpoint) -> Endpoint:
        """The endpoint of one end, with the other names that commands have there."""
        return replace(endpoint, command_names=names.read(self.command_names)[side])

    @property
    def stream_names(self) -> list[tuple[bytes, bytes, bytes]]:
        """Other names in the source's stream (`command_names.in_stream`)."""
        found = names.read(self.command_names)
        return names.in_stream(found["source"], found["target"])

    @property
    def chooses_keys(self) -> bool:
        """Whether not everything is wanted."""
        return not (self.match is None and self.key_type is None and self.databases is None)

    def file_objection(self) -> str | None:
        """Why what is asked for cannot be done with a source that is an RDB file, None if it can.

        A file is not written to, and cannot be asked what is in it: it is read from its first
        byte to its last, databases alone may be chosen.
        """
        if self.source_type != "auto":
            return f"--source-type {self.source_type} asks a server"
        if self.match is not None or self.key_type is not None:
            return (
                "a file is read whole, and --match and --type ask a server (load the file into one "
                "of its version, and scan that)"
            )
        if self.if_exists == "fail":
            # A run that is taken up again would find its own keys and could not tell.
            return "--if-exists fail compares a key with the source's (replace or skip do not)"
        if self.fence == "hook":
            return "--fence hook holds back writers, and a file has none"
        if self.tune_source:
            return "--tune-source sets options of a server"
        return None

    def aof_objection(self) -> str | None:
        """The same of a source that is an append-only file.

        Its commands change what they find, so everything of it goes into an empty target.
        """
        if (objection := self.file_objection()) is not None:
            return objection
        if self.databases is not None:
            return (
                "--db chooses keys, and commands of an append-only file build on keys that would "
                "be left out (load it into a server of its version, and scan that)"
            )
        if self.if_exists != "replace":
            return (
                f"--if-exists {self.if_exists} keeps keys of the target, and the commands of an "
                "append-only file build on an empty one"
            )
        return None

    def objection_to(self, source: Endpoint) -> str | None:
        """Why what is asked for cannot be done with this source, None if it can."""
        if source.aof_path is not None:
            return self.aof_objection()
        if self.until_time is not None:
            return "--until-time is for an append-only file (aof:PATH)"
        if not self.aof_load_truncated:
            return "--aof-load-truncated is for an append-only file (aof:PATH)"
        return None if source.rdb_path is None else self.file_objection()

    def _check_fence(self) -> None:
        if self.fence not in get_args(Fence):
            raise UsageError(f"--fence {self.fence!r}: expected pause, none or hook")
        if self.source_after not in get_args(SourceAfter):
            raise UsageError(f"--source-after {self.source_after!r}: expected refuse or resume")
        if self.fence == "hook" and not (self.fence_hook or "").strip():
            raise UsageError(
                "--fence hook needs a command",
                remedy="Give it with --fence-hook; it must return once writes have stopped.",
            )
        if self.fence != "hook" and self.fence_hook is not None:
            raise UsageError(
                f"--fence {self.fence} runs no command",
                remedy="Use --fence hook with --fence-hook.",
            )

    @property
    def disconnects_clients(self) -> bool:
        """Whether a cut-over disconnects the source's clients, and goes on to for a while."""
        return self.closes_source and self.disconnect_for > 0

    @property
    def closes_source(self) -> bool:
        """Whether a cut-over has the source refuse writes."""
        closes = self.fence == "pause" and self.source_after == "refuse"
        return closes and self.until == "cut-over"

    def _check_bounds(self) -> None:
        if not 0 < self.retry_for < math.inf:
            raise UsageError("--retry-for must be a time span above 0, such as 90s, 10m or 6h")
        if self.until_time is not None and not 0 <= self.until_time < 1 << 62:
            raise UsageError("--until-time must be a moment: seconds since the epoch, or ISO 8601")
        if not 0 < self.switch_timeout < math.inf:
            raise UsageError("--switch-timeout must be a time span above 0")
        if not 0 <= self.disconnect_for < math.inf:
            raise UsageError("--disconnect-for must be a time span of 0 or more")
        if self.switch_hook is not None and not self.switch_hook.strip():
            raise UsageError("--switch-hook needs a command")
        if not 0 < self.cut_over_timeout < math.inf:
            raise UsageError("--cut-over-timeout must be above 0 seconds")
        if not 60 <= self.extend_horizon < math.inf:
            raise UsageError("extend_horizon must be 60 seconds or more")
        if self.check_bytes < 0:
            raise UsageError("check_bytes must be 0 or more")
        for name, seconds in (
            ("check_seconds", self.check_seconds),
            ("sweep_seconds", self.sweep_seconds),
        ):
            if not 0 < seconds < math.inf:
                raise UsageError(f"{name} must be above 0 seconds")
        if self.max_lag_bytes < 0:
            raise UsageError("max_lag_bytes must be 0 or more")
        if not 0 < self.spool_bytes < 1 << 63:
            raise UsageError("--spool-bytes must be a size above 0 and below 2^63")
        if self.spool_directory is not None and not os.path.isabs(self.spool_directory):
            # A worker that is started later, from elsewhere, must find the same place.
            raise UsageError("the spool's directory must be an absolute path")

    @property
    def max_lag_seconds(self) -> float:
        """A cut-over does not begin while what the target is behind by has waited for longer than
        this, or takes longer: half of the time that the fence may stand, for both ends are compared
        in it as well. What is shorter than a second is no sign of anything."""
        return min(max(self.cut_over_timeout / 2, _LEAST_LAG_SECONDS), self.cut_over_timeout)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TransferSettings:
        """Inverse of `to_dict`; what an earlier engine did not know has its default, and unknown
        names raise `UsageError` (a newer engine's state)."""
        data = dict(data)
        # What it was called once, when it was kept for every transfer: 120 s was not chosen by an
        # operator.
        if (retry := data.pop("retry_seconds", None)) not in (None, 120.0):
            data.setdefault("retry_for", retry)
        if data.get("databases") is not None:
            data["databases"] = tuple(data["databases"])
        data["skip_checks"] = tuple(data.get("skip_checks", ()))
        data["keep_users"] = tuple(data.get("keep_users", ()))
        data["source_nodes"] = tuple(data.get("source_nodes", ()))
        data["search_names"] = tuple(data.get("search_names", ()))
        data["command_names"] = tuple(data.get("command_names", ()))
        try:
            return cls(**data)
        except TypeError:
            raise UsageError("the settings in the state were written by another version") from None
