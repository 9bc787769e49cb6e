"""How one transfer is to run."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

from engine.errors import UsageError
from engine.model import connect_command
from engine.model import renamed_commands as names
from engine.model.check_names import check_skipped
from engine.model.cluster_shard import AddressMap
from engine.model.endpoint import Endpoint
from engine.model.protection import SOURCE_BOUNDS, TARGET_BOUNDS, Protection
from engine.model.rules import Rules, key_rules_of, rules_of
from engine.model.setting import Member, Shorthand, declared, setting
from engine.model.setting_conflicts import check_together

if TYPE_CHECKING:
    from engine._native import KeyRules
    from engine.model.daily_window import DailyWindow

SourceType = Literal["auto", "replica", "scan"]
IfExists = Literal["replace", "skip", "fail"]
ReadFrom = Literal["primary", "replica"]
Verify = Literal["sample", "full"]
Until = Literal["snapshot", "in-sync", "cut-over"]
Fence = Literal["pause", "none", "hook"]
SourceAfter = Literal["refuse", "resume"]
Publish = Literal["pass", "drop"]
PositionForm = Literal["transaction", "record"]
Auto = Literal["auto"]
_DETACHED = "=detached"
MIB = 1 << 20
GIB = 1 << 30

# A target is behind by as much whenever the machine is busy, in seconds.
_LEAST_LAG_SECONDS = 1.0


def _position_form() -> PositionForm:
    # For tests and measurements, by whatever way a transfer is started.
    found = os.environ.get("STARTMIGRATION_POSITION_FORM", "transaction")
    return "record" if found == "record" else "transaction"


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """Settings of one transfer; immutable, kept in the state, the same after a resume.

    `databases` None means every database; `match` a glob as SCAN's MATCH; `key_type` as SCAN's
    TYPE; `include` and `exclude` are rules (`model.rules`). Sizes are bytes, times seconds. Raises
    `UsageError` for a value that makes no sense, and for settings that do not go together
    (`model.setting_conflicts`).
    """

    source_type: SourceType = setting(
        "auto",
        option="--source-type",
        kind="word",
        words=get_args(SourceType),
        help=(
            "How the source is read: as a replica, which follows its writes; by SCAN, which does "
            "not; auto: as a replica where that can be done."
        ),
        row=(
            "Become a replica and follow every write; or read by SCAN, which does not follow "
            "writes. `auto`: a replica where that can be done"
        ),
    )
    """"replica": PSYNC, the snapshot and then every write. "scan": SCAN and DUMP, once. "auto": a
    replica where the source lets us be one and `following_objection` has nothing against it."""
    read_from: ReadFrom = setting(
        "primary",
        option="--read-from",
        kind="word",
        words=get_args(ReadFrom),
        help=(
            "Which server of the source sends the snapshot and the stream: its primary, or a "
            "healthy replica of it."
        ),
        row=(
            "Which server of the source (of each shard) sends the snapshot and the stream: its "
            "primary, or a healthy replica of it, which spares the primary the fork. Keys are "
            "compared, and read again, at the primary, and the cut-over is there"
        ),
        resumed="From now on: which server of the source sends the stream.",
        member=Member(
            "ReadFrom",
            ("StartMigration", "TestMigration", "ResumeMigration"),
            expected="must be primary or replica",
        ),
    )
    """Which server of the source is followed: its primary, or a healthy replica of it
    (`wire.source_replica`)."""
    match: str | None = setting(
        None,
        option="--match",
        kind="text",
        metavar="GLOB",
        help="Only keys that match, as SCAN's MATCH.",
        shown="all",
        row="Only keys that match, as SCAN's MATCH; needs `scan`",
    )
    key_type: str | None = setting(
        None,
        option="--type",
        kind="text",
        metavar="TYPE",
        help="Only keys of this type, as SCAN's TYPE.",
        shown="all",
        row="Only keys of this type, as SCAN's TYPE; needs `scan`",
    )
    databases: tuple[int, ...] | None = setting(
        None,
        option="--db",
        kind="numbers",
        metavar="N",
        help="Only this database; may be repeated.",
        shown="all",
        row="Only this database; may be repeated; needs `scan`, or a file of SAVE",
    )
    include: tuple[str, ...] = setting(
        (),
        option="--include",
        kind="names",
        metavar="RULE",
        help=(
            "Only keys that match this rule, or another one: prefix:user:, glob:user:*, "
            "regex:^user:, db:3, type:hash, or several with commas, the name last: "
            "db:3,prefix:user:; may be repeated."
        ),
        shown="all",
        row=(
            "Only keys that match this rule or another one: by `prefix:`, `glob:` or `regex:`, "
            "`db:N`, `type:TYPE` (which needs `scan`, or a file of SAVE); may be repeated "
            "([rules](rules.md))"
        ),
        shorthand=Shorthand(
            "--rules",
            "FILE",
            help="Rules from a file (TOML): tables [[include]] and [[exclude]].",
            row=(
                "Rules from a file, which is read once: tables `[[include]]` and `[[exclude]]` of "
                "TOML ([rules](rules.md#a-file-of-rules))"
            ),
            file=True,
        ),
    )
    """Rules of which a key matches one to go over (`model.rules`); empty: every key does."""
    exclude: tuple[str, ...] = setting(
        (),
        option="--exclude",
        kind="names",
        metavar="RULE",
        help="No keys that match this rule; written as for --include; may be repeated.",
        row="No keys that match this rule, also where one includes them; may be repeated",
    )
    """Rules of which a key that goes over matches none."""
    if_exists: IfExists = setting(
        "replace",
        option="--if-exists",
        kind="word",
        words=get_args(IfExists),
        help="What to do with a key that the target already has.",
        row=(
            "What happens to a key that the target has. `skip` and `fail` need `scan`; of a file "
            "`skip` can be chosen"
        ),
    )
    until: Until = setting(
        "cut-over",
        option="--until",
        kind="word",
        words=get_args(Until),
        help="End after the snapshot, once in sync, or by cutting over.",
        row="Where the migration ends",
    )
    """Where the transfer ends: after the snapshot, once in sync, or with the cut-over."""
    fence: Fence = setting(
        "pause",
        option="--fence",
        kind="word",
        words=get_args(Fence),
        help=(
            "How writes to the source are blocked during the cut-over: by CLIENT PAUSE, not at "
            "all (they have stopped), or by a command of yours."
        ),
        row=(
            "How writes at the source are held back during the cut-over: CLIENT PAUSE, not at all "
            "(the writers have stopped), or `--fence-hook`"
        ),
    )
    """What holds back writes to the source during the cut-over: "pause" (CLIENT PAUSE), "hook" (a
    command of the operator's), "none" (writers are known to have stopped)."""
    fence_hook: str | None = setting(
        None,
        option="--fence-hook",
        kind="text",
        metavar="CMD",
        help="The command for --fence hook; it is kept in the state, so no secrets.",
        row=(
            "Runs with the word `fence`, and then with `unfence` (the cut-over was refused) or "
            "`done` (the target is open), of a cluster for each of its shards at the same time. It "
            "returns once writes have stopped, and the fence has "
            "to last for `--cut-over-timeout`. It is kept in the state: no secrets"
        ),
    )
    """The command of the fence "hook". It is kept in the state: no place for a secret."""
    verify: Verify = setting(
        "sample",
        option="--verify",
        kind="word",
        words=get_args(Verify),
        help=(
            "What a cut-over compares: counts, names, a sample and the kinds of keys that the "
            "stream does not tell all of; or every key, while the source is followed."
        ),
        row=(
            "What both ends are compared by before a cut-over: counts, names, a sample, and the "
            "kinds of keys that the stream does not tell all of. `full`: every key beside that, "
            "while the source is followed, and again what is written to meanwhile; the cut-over "
            "waits until none is left ([full proof](guarantees.md#every-key-compared))"
        ),
        member=Member("Verify", ("StartMigration",), expected="must be sample or full"),
    )
    """What a cut-over of a source that is followed compares: "sample", or "full": every key, before
    it can begin (`transfer.full_proof`)."""
    verify_rate: int = setting(
        0,
        option="--verify-rate",
        kind="size",
        metavar="SIZE",
        help=(
            "With --verify full: how many bytes a second are read from both ends together to be "
            "compared: 20mb; 0: as many as there are."
        ),
        shown="no bound",
        row=(
            "With `--verify full`: bytes a second that are read from both ends together, of all "
            "shards, to be compared. What is compared behind the fence is not held up by it"
        ),
        resumed="From now on: how many bytes a second are read to be compared (--verify full).",
    )
    """Bytes a second that "full" reads from both ends together, of all lanes; 0: no bound."""
    max_rate: int = setting(
        0,
        option="--max-rate",
        kind="size",
        metavar="SIZE",
        help=(
            "At most this many bytes a second are moved, of all shards: 20mb; 0: no bound. "
            "set-migration-rate changes it while the migration runs."
        ),
        shown="no bound",
        row=(
            "Bytes a second that are moved at the most, of all shards together: values of a scan, "
            "a snapshot or a file, and the source's stream while it is followed. "
            "`set-migration-rate` changes it while the migration runs "
            "([speed and pause](operating.md#speed-and-pause))"
        ),
        resumed="From now on: at most this many bytes a second are moved.",
        member=Member("MaxRate", ("StartMigration", "ResumeMigration")),
    )
    """Bytes a second that all lanes move together; 0: no bound."""
    max_key_rate: int = setting(
        0,
        option="--max-key-rate",
        kind="count",
        metavar="N",
        help=(
            "At most this many keys a second are moved, of all shards; while the source is "
            "followed a command counts as a key; 0: no bound."
        ),
        shown="no bound",
        row=(
            "The same in keys a second: it bounds what many short values cost the source. A "
            "command of the stream counts as a key. Both options may be given, and both hold"
        ),
        resumed="From now on: at most this many keys a second are moved.",
        member=Member("MaxKeyRate", ("StartMigration", "ResumeMigration")),
    )
    """Keys a second that all lanes move together; 0: no bound."""
    window: str = setting(
        "",
        option="--window",
        kind="text",
        metavar="HH:MM-HH:MM [ZONE]",
        help=(
            "The migration is paused outside of this time of the day: 22:00-05:00 is by UTC, "
            "'22:00-05:00 Europe/Berlin' by the clocks there; always: no window."
        ),
        shown="always",
        row=(
            "The time of the day in which data is moved; outside of it the migration is paused, "
            "and says until when. By UTC, or by the clocks of the zone that is named: "
            "`'22:00-05:00 Europe/Berlin'`. A cut-over happens only within it"
        ),
        resumed="From now on: the time of the day in which data is moved; always: no window.",
        member=Member("Window", ("StartMigration", "ResumeMigration")),
    )
    """The time of the day in which data is moved (`model.daily_window`); empty: always."""
    protect_source: str = setting(
        "",
        option="--protect-source",
        kind="text",
        metavar="BOUNDS",
        help=(
            "Move less while the source suffers: latency=5ms,cow=512mb,output-buffer=4mb, or some "
            "of that; off: no bounds."
        ),
        shown="off",
        row=(
            "`latency=5ms,cow=512mb,output-buffer=4mb`, or some of that: less is moved while a "
            "command takes the source longer than that, and its snapshot is read at once where "
            "the child that makes it has so much memory copied, or so much waits behind it "
            "([protection](operating.md#protection))"
        ),
        resumed="From now on: what the source may suffer; off: no bounds.",
        member=Member("ProtectSource", ("StartMigration", "ResumeMigration")),
    )
    """What the source may suffer (`model.protection`); empty: no bounds of the operator's."""
    protect_target: str = setting(
        "",
        option="--protect-target",
        kind="text",
        metavar="BOUNDS",
        help="Move less while a command takes the target longer than latency=20ms; off: no bound.",
        shown="off",
        row="The same of the target: `latency=20ms`; it bounds what is applied of the stream too",
        resumed="From now on: what the target may suffer; off: no bound.",
        member=Member("ProtectTarget", ("StartMigration", "ResumeMigration")),
    )
    """What the target may suffer (`model.protection`); empty: no bound."""
    cut_over_timeout: float = setting(
        10.0,
        option="--cut-over-timeout",
        kind="number",
        metavar="SECONDS",
        help="A cut-over that takes longer is undone.",
        row="A cut-over that takes longer is undone",
    )
    """How long the fence may stand; a cut-over that is not through by then is undone."""
    parallel_snapshots: int = setting(
        0,
        option="--parallel-snapshots",
        kind="count",
        metavar="N",
        help="How many shards of the source send their snapshots at once (0: all of them).",
        row=(
            "How many shards of the source send their snapshots at once, each of which forks for "
            "it; `0`: all of them"
        ),
        resumed="From now on: how many shards of the source send their snapshots at once.",
    )
    """How many shards of the source send a snapshot at once; 0: all of them."""
    lanes_per_worker: int | Auto = setting(
        "auto",
        option="--lanes-per-worker",
        kind="count-or-auto",
        metavar="N",
        help=(
            "At most N lanes in one process; further lanes get processes of their own (0: one "
            "process for all; auto: as many lanes as it has CPU for)."
        ),
        row=(
            "A migration of more lanes than this is driven by several processes, each with so many "
            "of them; lanes that share a server at either end stay together. `0`: one process "
            "drives all. `auto`: one drives all until its CPU is short while it follows (70 % of a "
            "core over 10 s, and the machine has another one), then some of them go on in another "
            "one ([many lanes](operating.md#clusters))"
        ),
        resumed="From now on: how many lanes one process drives.",
    )
    """How many lanes one process drives; 0: all of them; "auto": as many as it has CPU for
    (`transfer.lane_process_split`)."""
    durability: str = setting(
        "",
        option="--durability",
        kind="text",
        metavar="replicas=N",
        help="Nothing is promoted before N replicas of each target server have all that it has.",
        row=(
            "`replicas=N`: a cut-over waits until N replicas of each target server have all that "
            "it has (WAIT), before the fence and behind it, and is refused if they do not"
        ),
        shown="none",
    )
    """`replicas=N`: how many replicas of each server of the target have to have everything before
    it is promoted; empty: none."""
    source_after: SourceAfter = setting(
        "refuse",
        option="--source-after",
        kind="word",
        words=get_args(SourceAfter),
        help=(
            "The source once the target is open: it refuses writes (NOREPLICAS, until its "
            "min-replicas-to-write is set back), or accepts them again; they are not replicated."
        ),
        row=(
            "Once the target is open, with the fence `pause`: the source refuses writes, or "
            "accepts them again, and then they are not replicated"
        ),
    )
    """What becomes of the source once the target is open. "refuse": it refuses writes (until
    its `min-replicas-to-write` is set back), and its clients are disconnected once.
    "resume": it accepts writes again, which are not replicated. The fence "pause" does it; with
    another one the source is the operator's."""
    publish: Publish = setting(
        "pass",
        option="--publish",
        kind="word",
        words=get_args(Publish),
        help="Whether messages (PUBLISH, SPUBLISH) of the source reach the target's subscribers.",
        row=(
            "Whether messages (PUBLISH, SPUBLISH) of the source reach the target's subscribers. "
            "Messages by which Sentinels find each other (`__sentinel__:hello`) never do"
        ),
    )
    """What becomes of messages (PUBLISH, SPUBLISH) in the source's stream. "pass": the target's
    subscribers receive them. "drop": they do not. Sentinels' own messages are never passed on."""
    switch_hook: str | None = setting(
        None,
        option="--switch-hook",
        kind="text",
        metavar="CMD",
        help=(
            "Run once the target is promoted, before the source's clients are disconnected: "
            "points their name for the server to the target. Both ends are in its environment "
            "(STARTMIGRATION_SOURCE, STARTMIGRATION_TARGET). Kept in the state, so no secrets."
        ),
        row=(
            "Runs once the target is promoted, before the source's clients are disconnected. Its "
            "environment has `STARTMIGRATION_SOURCE`, `STARTMIGRATION_TARGET`, and each with "
            "`_HOST` and `_PORT`. After a crash it may run twice. If it fails an event says so; "
            "the target stays promoted. The library takes a callback (`on_switch` of "
            "`Engine.migrate`)"
        ),
    )
    """A command that is run once the target is promoted, before the source's clients are
    disconnected: it points their name for the server to the target. Both ends are in its
    environment (`transfer.operator_hook`). It is kept in the state: no place for a secret."""
    switch_timeout: float = setting(
        30.0,
        option="--switch-timeout",
        kind="duration",
        metavar="DURATION",
        help="The switch hook is killed if it takes longer.",
        row="The switch hook is killed if it takes longer",
    )
    """How long the switch hook may take; it is killed then, and the migration goes on."""
    disconnect_for: float = setting(
        600.0,
        option="--disconnect-for",
        kind="duration",
        metavar="DURATION",
        help=(
            "For how long clients that come back to the source after the cut-over are "
            "disconnected again; 0: they are disconnected once."
        ),
        row=(
            "For how long clients that come back to the source are disconnected again; `0`: they "
            "are disconnected once. (A source before 6.2 that runs scripts goes on running them "
            "then, and they are not counted: `migrate` ends with 1)"
        ),
    )
    """For how long clients that come back to the source are disconnected again, each second,
    behind a cut-over with the fence "pause" and `source_after` "refuse". 0: they are disconnected
    once, at the cut-over."""
    keep_users: tuple[str, ...] = setting(
        (),
        option="--keep-user",
        kind="names",
        metavar="USER",
        help="Never disconnect this ACL user of the source; may be repeated.",
        row="An ACL user of the source that is never disconnected; may be repeated",
    )
    """ACL users of the source whose connections are not closed."""
    search_names: tuple[str, ...] = setting(
        (),
        option="--search-name",
        kind="names",
        metavar="NAME",
        help=(
            "A search alias or dictionary (RediSearch) of the source, which no command lists; may "
            "be repeated. A source that is followed tells them by itself."
        ),
        row=(
            "A search alias or dictionary (RediSearch) of the source, which no command lists; may "
            "be repeated. A source that is followed tells them by itself"
        ),
    )
    """Names of the source's search aliases and dictionaries (RediSearch), which no command lists. A
    snapshot tells them; a scan carries those that are named here."""
    source_nodes: tuple[str, ...] = setting(
        (),
        option="--source-node",
        kind="names",
        metavar="HOST:PORT",
        help=(
            "Another server of the source's replication; may be repeated. Where the source cannot "
            "be reached, and one of them was promoted and continues its stream, that one is "
            "followed. (Replicas that the source lists are found without it.) "
            "HOST:PORT=detached: a copy that was detached on purpose; what is written there holds "
            "no cut-over up."
        ),
        row=(
            "Another server of the source's replication; may be repeated, also for "
            "`resume-migration`. Where the source cannot be reached, and one of them was promoted "
            "and continues its stream, that one is followed. Replicas that the source lists are "
            "found without it. `HOST:PORT=detached`: a copy that was detached on purpose, whose "
            "writes do not refuse the cut-over"
        ),
        resumed=(
            "From now on: other servers of the source's replication; where the source cannot be "
            "reached, the one that was promoted is followed. HOST:PORT=detached: a copy that was "
            "detached on purpose."
        ),
        member=Member(
            "SourceNodes", ("StartMigration", "ResumeMigration"), expected="each must be HOST:PORT"
        ),
    )
    """Other servers of the source's replication, `host:port` each. Where the source cannot be
    reached, and one of them was promoted and goes on with its stream, that one is followed.
    `host:port=detached`: a copy that was detached on purpose; what is written there is not the
    source's, and holds no cut-over up."""
    address_map: tuple[str, ...] = setting(
        (),
        option="--address-map",
        kind="names",
        metavar="FROM=TO",
        help=(
            "Where a cluster announces the address FROM (HOST:PORT, or HOST for each port), it is "
            "reached at TO from here; may be repeated."
        ),
        row=(
            "A cluster's node that announces the address `FROM` (`HOST:PORT`, or `HOST` for every "
            "port) is reached at `TO` from here, as through NAT or a forwarded port; may be "
            "repeated. The first one that fits counts"
        ),
        resumed="From now on: where a cluster's announced addresses are reached from here.",
        member=Member(
            "AddressMap",
            ("StartMigration", "TestMigration", "ResumeMigration"),
            expected="each must be HOST:PORT=HOST:PORT, or HOST=HOST",
        ),
    )
    """How announced addresses of a cluster's nodes are reached from here, `from=to` each
    (`model.cluster_shard.AddressMap`)."""
    connect_commands: tuple[str, ...] = setting(
        (),
        option="--connect-command",
        kind="names",
        metavar="[source:|target:]CMD",
        help=(
            "Connect by a command whose standard input and output are the link, as 'ssh -W %h:%p "
            "jump-host': %h is the host, %p the port. For both ends, or for one; may be repeated. "
            "Kept in the state, so no secrets."
        ),
        row=(
            "Servers are connected to by this command, whose standard input and output are the "
            "link: `ssh -W %h:%p jump-host`, `nc -X 5 -x 10.0.0.1:1080 %h %p`. `%h` "
            "stands for the host, `%p` for the port; no shell is used. It holds for "
            "every connection to that end, Sentinels and nodes of a cluster with it, one process "
            "each. One that ends is a lost link, told with the last line of its standard error. "
            "It is kept in the state"
        ),
        resumed="From now on: the command by which servers are connected to.",
    )
    """The command that is the link to an end, `[source:|target:]COMMAND` each
    (`model.connect_command`). It is kept in the state: no place for a secret."""
    spool_directory: str | None = setting(
        None,
        option="--spool-directory",
        kind="path",
        metavar="PATH",
        help=(
            "Where the source's writes wait on disk while the target is slower  [default: the "
            "folder for temporary files]"
        ),
        shown="`$TMPDIR`, else `/var/tmp`",
        row="Where the stream waits on disk while the target is slower",
        resumed="From now on: where the source's writes wait on disk.",
    )
    """Where the stream waits on disk while the target is slower: an absolute path; None: $TMPDIR,
    else /var/tmp."""
    spool_bytes: int = setting(
        10 * GIB,
        option="--spool-bytes",
        kind="size",
        metavar="SIZE",
        help="How much may wait there: 512mb, 10gb.",
        row="How much may wait there; units as in redis.conf",
        resumed="From now on: how much may wait there.",
    )
    """How much may wait there; above it the transfer stops, and the source is unharmed."""
    skip_checks: tuple[str, ...] = setting(
        (),
        option="--skip-checks",
        kind="list",
        metavar="NAME[,NAME]",
        help=(
            "Checks before the start that are not to stand in its way, by the names that "
            "test-migration shows; different-servers cannot be skipped."
        ),
        row=(
            "Checks that do not refuse the start; a failure is a warning. `different-servers` "
            "cannot be skipped. Where an end is a cluster, the checks that find its shards cannot "
            "be skipped either"
        ),
        member=Member("SkipChecks", ("StartMigration", "TestMigration")),
    )
    """Checks of the preflight (`model.check_names`) that are in the way of nothing if they fail."""
    command_names: tuple[str, ...] = setting(
        (),
        option="--command-name",
        kind="names",
        metavar="[source:|target:]NAME=OTHER",
        help=(
            "A command that rename-command has given another name: CONFIG=XYZ for both ends, "
            "source:FLUSHALL=XYZ for one; may be repeated."
        ),
        row=(
            "A command that `rename-command` has given another name, at one end or at both; may "
            "be repeated. It holds for the commands of an append-only file too. Commands that "
            "move keys (SET, DUMP, RESTORE …) cannot have another name"
        ),
        member=Member("CommandNames", ("StartMigration", "TestMigration")),
        shorthand=Shorthand(
            "--psync-command",
            "NAME",
            help=(
                "The name of PSYNC at a source whose rename-command has given it another one; the "
                "same as --command-name source:PSYNC=NAME."
            ),
            row=(
                "The same as `--command-name source:PSYNC=NAME`, for providers whose own name "
                "does what PSYNC does. (Redis and Valkey themselves take PSYNC for SYNC under "
                "another name: such a source is scanned)"
            ),
            meant="source:PSYNC=%s",
        ),
    )
    """Commands that have another name at an end (`rename-command`): `[source:|target:]NAME=OTHER`
    each, for both ends without one (`model.renamed_commands`)."""
    retry_for: float = setting(
        6 * 3600.0,
        option="--retry-for",
        kind="duration",
        metavar="DURATION",
        help=(
            "How long to wait for transient errors (a lost link, a server that restarts, a target "
            "out of memory), without any progress: 90s, 10m, 6h. Then the migration stops, and "
            "can be resumed."
        ),
        row=(
            "How long what passes by itself is waited for without progress: `90s`, `10m`, `6h`. "
            "Then the migration stops, and can be resumed"
        ),
        resumed="From now on: how long to wait for transient errors.",
        member=Member(
            "RetryFor",
            ("StartMigration", "ResumeMigration"),
            expected="must be a number of seconds above 0",
        ),
    )
    """For how long without progress what passes by itself (a lost link, a server that restarts or
    loads, a target out of memory) is waited for. Behind it the transfer stops, and can be
    resumed."""
    take_over: bool = setting(
        False,
        option="--take-over",
        kind="flag",
        help=(
            "Where another migration has the target: shut it out, and begin with a full sync. "
            "Where one that was not completed has left keys: remove every key of the target."
        ),
        row=(
            "Where another migration (of this or another state) has the target: it is shut out, "
            "and the target gets a full sync. The same where a migration that was not completed "
            "has left keys. Every key on the target is removed first, whoever wrote it; if the "
            "target had keys before that migration, none is removed. Without the option the start "
            "is refused"
        ),
        member=Member("TakeOver", ("StartMigration", "TestMigration")),
    )
    """Whether another migration that has the target loses it: it is shut out, and the target gets
    a full sync (which empties it, if it was empty before that other migration). Keys of a migration
    that ended without a cut-over go as well, where the target was empty before it."""
    until_time: int | None = setting(
        None,
        option="--until-time",
        kind="moment",
        metavar="TIME",
        help=(
            "Of an append-only file with timestamps: nothing that was written later. Seconds "
            "since the epoch, or 2026-11-28T20:20:00Z."
        ),
        row=(
            "Of an append-only file with timestamps: nothing that was written later; seconds "
            "since the epoch, or ISO 8601 (UTC without a zone)"
        ),
    )
    """Of an append-only file: nothing is carried that was written later than this (seconds since
    the epoch). The file has to have timestamps."""
    aof_load_truncated: bool = setting(
        True,
        option="--aof-load-truncated",
        kind="yes-no",
        help=(
            "Whether an append-only file may end inside a command or a transaction, which is then "
            "left out."
        ),
        row=(
            "Whether an append-only file may end inside a command or a transaction, which is then "
            "left out"
        ),
    )
    """Whether an append-only file may end inside a command or a transaction, which is left out
    then, as by a server with `aof-load-truncated yes`."""
    tune_source: bool = setting(
        False,
        option="--tune-source/--no-tune-source",
        kind="flag",
        help=(
            "Have the source send its snapshot uncompressed: CONFIG SET rdbcompression no, put "
            "back afterwards."
        ),
        row="`rdbcompression no` on the source for the time of the snapshot, put back afterwards",
    )
    """Whether the source's `rdbcompression` may be set to no for the time of the snapshot."""
    batch_bytes: int = 1 * MIB
    """A batch is handed on when its records reach this many bytes."""
    window_bytes: int = 8 * MIB
    """Bytes sent to the target and not yet acknowledged; above it the source's reader pauses."""
    stream_above: int = 4 * MIB
    """A value longer than this goes through in pieces and is never in memory whole."""
    connect_timeout: float = 10.0
    io_timeout: float = 60.0
    """No byte from a server that owes us replies for this long: the link counts as lost."""
    max_lag_bytes: int = setting(
        1 * MIB,
        shown="1 MiB",
        row=(
            "A cut-over does not begin while the target is further behind; nor while the rest "
            "takes longer than half of `--cut-over-timeout`"
        ),
    )
    """A cut-over does not begin while the target is further behind than this, nor while what it is
    behind by may take longer than `max_lag_seconds`."""
    check_bytes: int = setting(
        1 * MIB,
        shown="1 MiB",
        row="Bytes of values that are compared while writers wait",
    )
    """Bytes of values that are compared while the source's writers are paused; what is longer is
    compared before that."""
    check_seconds: float = setting(
        5.0,
        shown="5 s",
        row="For how long they are compared",
    )
    """How long that comparison may take; a cut-over in which it takes longer is undone."""
    sweep_seconds: float = setting(
        600.0,
        shown="600 s",
        row="For how long both ends are compared before that",
    )
    """How long the comparison before the fence may take; no writer waits for it."""
    extend_horizon: float = setting(
        3600.0,
        shown="3,600 s",
        row="TTLs nearer than this are extended until the cut-over",
    )
    """TTLs nearer than this (seconds, 60 or more) are extended until the cut-over: such
    keys could expire on the target before the command that extends them is applied."""
    position_form: PositionForm = field(default_factory=_position_form)
    """How the position is kept true on the target while the stream is followed: "transaction" (each
    batch in one with its position), or "record" (`ext/position_records.pxi`) for plain batches. No
    option: an operator has nothing to choose by."""
    auto_cut_over: bool = setting(
        False, kind="flag", member=Member("AutoCutover", ("StartMigration",), ours=False)
    )
    """Whether the server cuts over by itself as soon as the migration can be completed."""

    def __post_init__(self) -> None:
        if self.source_type not in get_args(SourceType):
            raise UsageError(
                f"source type {self.source_type!r} is not known",
                remedy=f"Known: {', '.join(get_args(SourceType))}.",
            )
        for each in SETTINGS:
            if each.words and (value := getattr(self, each.name)) not in each.words:
                known = f"{', '.join(each.words[:-1])} or {each.words[-1]}"
                raise UsageError(f"{each.option} {value!r}: expected {known}")
        if self.databases is not None and any(db < 0 for db in self.databases):
            raise UsageError("a database number must be 0 or more")
        rules_of(self.include, self.exclude)
        if self.position_form not in get_args(PositionForm):
            raise UsageError("position_form must be transaction or record")
        check_skipped(self.skip_checks)
        names.read(self.command_names)
        for node in self.source_nodes:
            host, _, port = node.removesuffix(_DETACHED).rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise UsageError(
                    f"--source-node {node!r}: expected HOST:PORT, or HOST:PORT=detached"
                )
        AddressMap.read(self.address_map)
        connect_command.read(self.connect_commands)
        if self.parallel_snapshots < 0:
            raise UsageError("--parallel-snapshots must be 0 or more")
        lanes = self.lanes_per_worker
        if lanes != "auto" and (not isinstance(lanes, int) or lanes < 0):
            raise UsageError("--lanes-per-worker must be auto, or 0 or more")
        if self.durability and not re.fullmatch(r"replicas=\d{1,3}", self.durability):
            raise UsageError("--durability: expected replicas=N")
        self._check_bounds()
        check_together(self)

    def _check_bounds(self) -> None:
        if not 0 < self.retry_for < math.inf:
            raise UsageError("--retry-for must be a time span above 0, such as 90s, 10m or 6h")
        if self.verify_rate < 0:
            raise UsageError("--verify-rate must be 0 or more bytes a second")
        if not 0 <= self.max_rate < 1 << 62:
            raise UsageError("--max-rate must be 0 or more bytes a second, and below 2^62")
        self.opening  # noqa: B018 (raises)
        Protection.read("--protect-source", self.protect_source, SOURCE_BOUNDS)
        Protection.read("--protect-target", self.protect_target, TARGET_BOUNDS)
        if not 0 <= self.max_key_rate < 1 << 62:
            raise UsageError("--max-key-rate must be 0 or more keys a second, and below 2^62")
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
    def named_nodes(self) -> tuple[str, ...]:
        """Those of `source_nodes` that may be followed."""
        return tuple(each for each in self.source_nodes if not each.endswith(_DETACHED))

    @property
    def detached_nodes(self) -> tuple[str, ...]:
        """Those that are no part of the source any more."""
        return tuple(
            each.removesuffix(_DETACHED) for each in self.source_nodes if each.endswith(_DETACHED)
        )

    def named(self, side: names.Side, endpoint: Endpoint) -> Endpoint:
        """The endpoint of one end, with the other names that commands have there, and the command
        that is the link to it; of the source whether a replica of it is read. Raises `UsageError`
        for a unix socket that is to be reached by a command."""
        through = connect_command.read(self.connect_commands)[side]
        if through and endpoint.unix_path is not None:
            raise UsageError(
                f"--connect-command leads to a host and a port, and the {side} is a unix socket",
                remedy=f"Give it only for the other end, or the {side} by host and port.",
            )
        return replace(
            endpoint,
            connect_command=() if endpoint.file_path is not None else through,
            command_names=names.read(self.command_names)[side],
            from_replica=side == "source" and self.read_from == "replica",
        )

    @property
    def addresses(self) -> AddressMap:
        """How nodes that a cluster announces are reached from here (`address_map`)."""
        return AddressMap.read(self.address_map)

    @property
    def stream_names(self) -> list[tuple[bytes, bytes, bytes]]:
        """Other names in the source's stream (`command_names.in_stream`)."""
        found = names.read(self.command_names)
        return names.in_stream(found["source"], found["target"])

    @property
    def match_bytes(self) -> bytes | None:
        """`match` as servers are sent it: a command line may name bytes that are no UTF-8."""
        return None if self.match is None else self.match.encode("utf-8", "surrogateescape")

    @property
    def chooses_keys(self) -> bool:
        """Whether not everything is wanted."""
        chosen = (self.match, self.key_type, self.databases)
        return chosen != (None, None, None) or bool(self.rules)

    @property
    def rules(self) -> Rules:
        """What `include` and `exclude` say."""
        return rules_of(self.include, self.exclude)

    @property
    def key_rules(self) -> KeyRules | None:
        """The same for the core; None: there are none."""
        return key_rules_of(self.include, self.exclude)

    def takes_db(self, db: int) -> bool:
        """Whether keys of a database can be wanted."""
        return (self.databases is None or db in self.databases) and self.rules.takes_db(db)

    @property
    def scan_match(self) -> bytes | None:
        """What SCAN is asked for with MATCH: what all keys match that are wanted."""
        return self.rules.scan_glob if self.match is None else self.match_bytes

    @property
    def disconnects_clients(self) -> bool:
        """Whether a cut-over disconnects the source's clients, and goes on to for a while."""
        return self.closes_source and self.disconnect_for > 0

    @property
    def closes_source(self) -> bool:
        """Whether a cut-over has the source refuse writes."""
        closes = self.fence == "pause" and self.source_after == "refuse"
        return closes and self.until == "cut-over"

    @property
    def target_replicas(self) -> int:
        """How many replicas of a target have to have everything before it is promoted."""
        return int(self.durability.partition("=")[2] or 0)

    @property
    def opening(self) -> DailyWindow | None:
        """What `window` says; None: always."""
        if not self.window:
            return None
        from engine.model.daily_window import DailyWindow

        return DailyWindow.read(self.window)

    @property
    def source_protection(self) -> Protection:
        """What `protect_source` says."""
        return Protection.read("--protect-source", self.protect_source, SOURCE_BOUNDS)

    @property
    def target_protection(self) -> Protection:
        """What `protect_target` says."""
        return Protection.read("--protect-target", self.protect_target, TARGET_BOUNDS)

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
        for name, value in data.items():
            if isinstance(value, list):  # as JSON has it
                data[name] = tuple(value)
        try:
            return cls(**data)
        except TypeError:
            raise UsageError("the settings in the state were written by another version") from None


SETTINGS = declared(TransferSettings)
"""What is declared of each setting that an operator may choose."""
CHANGEABLE = tuple(each.name for each in SETTINGS if each.resumed)
"""Settings that may be others when a transfer is resumed: what is carried stays the same."""


class Changes(TypedDict, total=False):
    """`CHANGEABLE`, with their types; None: as before."""

    retry_for: float | None
    spool_bytes: int | None
    spool_directory: str | None
    source_nodes: Sequence[str] | None
    address_map: Sequence[str] | None
    connect_commands: Sequence[str] | None
    parallel_snapshots: int | None
    lanes_per_worker: int | Auto | None
    read_from: ReadFrom | None
    verify_rate: int | None
    max_rate: int | None
    max_key_rate: int | None
    window: str | None
    protect_source: str | None
    protect_target: str | None


def changed(**changes: Unpack[Changes]) -> dict[str, Any]:
    """What a resume changes, as the fields have it. Raises `UsageError` for another setting."""
    if unknown := set(changes) - set(CHANGEABLE):
        raise UsageError(
            f"{', '.join(sorted(unknown))} cannot be changed by a resume",
            remedy=f"What can: {', '.join(CHANGEABLE)}.",
        )
    return {
        name: tuple(dict.fromkeys(value)) if isinstance(value, list | tuple) else value
        for name, value in changes.items()
        if value is not None
    }
