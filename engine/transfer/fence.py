"""The fence: how the source's writes are blocked while the last bytes go over, and afterwards.

    prepare ─▶ close ─▶ block ─▶ finish       the target is open
                 └───────┴────▶ open         it is not: the source is as it was

Each kind tells the source's role and offset at the moment when it stands: what lies behind that
offset belongs to no state. A fence stands at the server that takes the source's writes, see
`transfer.source_primary`. No client that waits behind the fence is let go before the target is open
or the fence is taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Protocol

from engine.errors import AuthError, EngineError, ProtocolFault, ServerError, TransferFailed
from engine.model import silent_commands
from engine.model.calls_despite_write_block import Calls, calls_words, since
from engine.model.cluster_topology import Topology
from engine.model.endpoint import Endpoint
from engine.model.replication import Replication
from engine.model.server import ServerInfo, parse_info
from engine.model.settings import TransferSettings
from engine.transfer import hold_source, scripts_behind_cut_over, write_block
from engine.transfer.disconnect_source_clients import disconnect
from engine.transfer.operator_hook import run_hook
from engine.wire import cluster_primary, connections_for_child
from engine.wire.control_connection import Admin, admin
from engine.wire.info_command import replication_in

# Between the refusal of clients that waited and their disconnection, in seconds: a link that is cut
# takes answers along that have not arrived yet. Longer than a round trip, and no longer: what
# waits for the status `available` waits for this as well.
_READ_SECONDS = 0.1
# Where the fence pauses all clients, and only its time ends it: the first try, in
# seconds. Each further one may take twice as long, up to `cut_over_timeout`.
_EVERYBODY_SECONDS = 0.5


class Fence(Protocol):
    """Holds the source's writers off."""

    readable: bool
    """Whether the source can be read while the fence stands."""
    seconds: float
    """How long it may stand."""
    before: str
    """What `prepare` found in the source's settings and `block_writes` changes; empty: it changes
    none."""
    closed_before: str
    """The setting by which the source refused writes already when `prepare` asked, so that
    `block_writes` does not change it; empty: it accepted them, or does not tell."""
    info: ServerInfo | None
    """Of a source that cannot be read meanwhile: what INFO told when the fence was put up."""
    topology: Topology | None
    """The same of its cluster, if it is a shard's primary."""
    silent_calls: silent_commands.Calls | None
    """The same of how often it was called by what leaves no word in the stream."""
    calls: Calls | None
    """What the source had run when the fence was put up (`transfer.scripts_behind_cut_over`);
    None: it refuses what scripts write, or does not tell."""
    calls_since: Calls | None
    """What it has run since, as `finish` found; None as above."""
    lost_writes: str
    """What of that is on the source alone, or may be, as `finish` found; empty: nothing."""
    lets_scripts: bool
    """Whether the source, once it refuses writes, does not refuse those of scripts."""
    script_pause: bool
    """Whether its clients are paused once scripts are seen there (`transfer.hold_source`)."""
    role_since: Replication | None
    """The server's role once clients were let go, as `finish` was told; None: it was not asked."""
    record: Callable[[str], Awaitable[None]]
    """Has the state say what `finish` is about to change at the source (`before`,
    `closed_before`), and what was lost by then. Raises `StateError`."""

    @property
    def lasts(self) -> bool:
        """Whether it stands, once it blocks writes, until it is taken away; else it is known to
        stand for `seconds` alone."""
        ...

    async def prepare(self) -> None:
        """All that can be done before it stands. Raises `EngineError`."""
        ...

    async def approach(self) -> None:
        """What is to be done right before `close`, or before `block_writes` after a crash. Never
        raises `EngineError`."""
        ...

    async def close(self) -> Replication:
        """Put it up; the server's role and offset then. Raises `EngineError`."""
        ...

    async def block_writes(self) -> Replication | None:
        """From here on writes are refused, however long the fence stands. What the server says of
        its role behind that; None: it was not asked. Raises `EngineError`."""
        ...

    async def look(self) -> Replication | None:
        """The server's role now; None where it answers nothing while the fence stands. Raises
        `EngineError`."""
        ...

    def on_promotion(self) -> None:
        """The target is open: the fence is not taken away any more."""
        ...

    async def open(self) -> None:
        """Take it away, and the write block before it. Raises `EngineError`."""
        ...

    async def finish(self) -> list[str]:
        """The target is open: let the clients go that wait; what an operator has to know of it.

        Raises `EngineError`.
        """
        ...

    async def remove(self) -> None:
        """Let go of its connection."""
        ...


def fence_of(
    source: Endpoint,
    info: ServerInfo,
    settings: TransferSettings,
    *,
    name: str = "the source",
    before: str = "",
    closed_before: str = "",
    calls_before: Calls | None = None,
    script_pause: bool = False,
    refused: int = 0,
    straight: bool = False,
    in_cluster: bool = False,
) -> Fence:
    """The fence that the settings name, at the server that takes the writes.

    `source` and `info` are that server's, and `name` what it is called in messages. `before` and
    `closed_before`: what an earlier one found, if it may still stand, and `calls_before` the calls
    that it counted,
    `script_pause` whether its clients were to be paused where scripts are run; `refused`: how many
    cut-overs were before.
    `straight` as for `admin`; `in_cluster`: the source is a shard of a cluster, whose slots count.
    """
    if settings.fence == "pause":
        fence = PauseFence(source, info, settings, name, before, refused, straight)
        fence.calls, fence.script_pause = calls_before, script_pause
        fence.in_cluster = in_cluster
        fence.find_closed(closed_before)
        return fence
    if settings.fence == "hook":
        return HookFence(source, settings, straight)
    return NoFence(source, settings, straight)


async def _no_state(lost: str) -> None:
    """Nothing keeps a state."""
    del lost


class NoFence:
    """For sources whose writers have been stopped already, or may lose the last moment."""

    readable = True
    before = ""
    closed_before = ""
    info: ServerInfo | None = None
    topology: Topology | None = None
    silent_calls: silent_commands.Calls | None = None
    calls: Calls | None = None
    calls_since: Calls | None = None
    lost_writes = ""
    lets_scripts = False
    script_pause = False
    role_since: Replication | None = None
    lasts = True

    def __init__(self, source: Endpoint, settings: TransferSettings, straight: bool) -> None:
        self.seconds = settings.cut_over_timeout
        self.record: Callable[[str], Awaitable[None]] = _no_state
        self._source = source
        self._straight = straight
        self._timeout = settings.connect_timeout

    async def prepare(self) -> None:
        """Nothing to prepare."""

    async def approach(self) -> None:
        """Nothing to do."""

    async def close(self) -> Replication:
        """The source's role and offset now."""
        async with admin(
            self._source, timeout=self._timeout, fault="source", straight=self._straight
        ) as end:
            return replication_in(end, await end.call("INFO", "replication"))

    async def block_writes(self) -> Replication | None:
        """The source is not ours to close."""
        return None

    async def look(self) -> Replication | None:
        """Its role is its operator's."""
        return None

    def on_promotion(self) -> None:
        """Nothing depends on it."""

    async def open(self) -> None:
        """Nothing to take away."""

    async def finish(self) -> list[str]:
        """No client waits."""
        return []

    async def remove(self) -> None:
        """There is no connection."""


class HookFence(NoFence):
    """The operator's own command.

    Run with the argument `fence`; then with `done`, once the target is open (it may come twice,
    after a crash), or with `unfence`, if the cut-over did not come off. It is asked to hold writers
    off for `cut_over_timeout`, and not relied upon for longer.
    """

    lasts = False

    def __init__(self, source: Endpoint, settings: TransferSettings, straight: bool) -> None:
        super().__init__(source, settings, straight)
        self._command = settings.fence_hook or ""
        self._limit = settings.cut_over_timeout

    async def close(self) -> Replication:
        """Run the hook, then ask for role and offset."""
        await self._run("fence")
        return await super().close()

    async def open(self) -> None:
        """Run the hook to let writers on."""
        await self._run("unfence")

    async def finish(self) -> list[str]:
        """Run the hook to turn writers to the target."""
        await self._run("done")
        return []

    async def _run(self, word: str) -> None:
        await run_hook("the fence's hook", self._command, word, limit=self._limit)


class PauseFence:
    """CLIENT PAUSE … WRITE on the source, and then the write block.

    The pause ends by itself after `seconds`, so that an engine that dies cannot leave the source
    closed. Pause and offset come out of one MULTI: nothing is written between the two.

    Writers that wait are let on behind the write block, and told NOREPLICAS; nothing of theirs is
    run. Then each client is disconnected once: one that waits for a key or a message would wait for
    ever at a source that is not written to, and one that reconnects by name finds the target.

    Redis 6.0 knows neither WRITE nor UNPAUSE. All clients are paused, and nothing can be asked of
    the source meanwhile; so the pause is short, and the write block is put on in the same MULTI. It
    does not hold for scripts: where they are seen the pause is made longer from `block_writes` on
    (`transfer.hold_source`), and clients are disconnected within it. Redis 2.8 has no CLIENT PAUSE:
    the write block is all there is of a fence, and writers are refused."""

    def __init__(
        self,
        source: Endpoint,
        info: ServerInfo,
        settings: TransferSettings,
        name: str,
        before: str,
        refused: int,
        straight: bool,
    ) -> None:
        self.before = before
        self.record: Callable[[str], Awaitable[None]] = _no_state
        self._name = name
        self._pausable = info.capabilities.client_pause
        self._unpause = info.capabilities.pause_of_writes
        self._scripts_refused = info.capabilities.refuses_writes_of_scripts
        # Before 6.0 EXEC is run whatever its transaction holds, if that was queued before the write
        # block.
        self.info: ServerInfo | None = None
        self.in_cluster = False
        self.topology: Topology | None = None
        self.closed_before = ""
        self._setting = write_block.setting_of(info)
        self._exec_refused = info.capabilities.refuses_exec
        self.silent_calls: silent_commands.Calls | None = None
        self.calls: Calls | None = None
        self.calls_since: Calls | None = None
        self.lost_writes = ""
        self.role_since: Replication | None = None
        self.lets_scripts = not self._scripts_refused and settings.source_after == "refuse"
        self._holdable = hold_source.needed(info) and settings.source_after == "refuse"
        self.script_pause = False
        # The source took writes when `prepare` asked.
        self._took_writes = False
        self._not_paused = ""
        self._hold: hold_source.ScriptPause | None = None
        # The pause is this fence's own: it has stood ever since.
        self._closed = False
        # Another process keeps the pause up after the cut-over.
        self._hands_on = settings.disconnects_clients
        self._finished = False
        self.readable = info.readable_behind(settings.fence)
        self.seconds = settings.cut_over_timeout
        if not self.readable:
            self.seconds = min(self.seconds, _EVERYBODY_SECONDS * 2 ** min(refused, 10))
        self._source = source
        self._straight = straight
        self._wanted = settings.source_after == "refuse"
        self._keep_users = settings.keep_users
        # While all clients are paused the source owes no answer.
        paused_for = 0.0 if self.readable else self.seconds
        if self._holdable:
            paused_for = max(paused_for, hold_source.SECONDS)
        self._timeout = settings.connect_timeout + paused_for
        self._why = ""
        self._blocks_writes = self._promoted = False
        # Its operator has it refuse writes.
        self._refuses = False
        # Its figures were set back since it was followed.
        self._reset = False
        self._stack = contextlib.AsyncExitStack()
        self._end: Admin | None = None

    def find_closed(self, by: str) -> None:
        """The source refused writes before this cut-over, by this setting; empty: it did not."""
        self.closed_before, self._refuses = by, bool(by)

    @property
    def lasts(self) -> bool:
        """Whether writes are refused when the pause has run out."""
        if self._pausable and self._goes_on:
            # Those of scripts are not.
            return False
        return bool(self.before) or self._refuses

    @property
    def _goes_on(self) -> bool:
        """Whether the write block may not hold for some of what is under way when the fence
        comes."""
        return not self._exec_refused or (not self._scripts_refused and self._runs_scripts)

    @property
    def _runs_scripts(self) -> bool:
        """Whether scripts were run there, as far as that is known."""
        return self.calls is None or self.calls.scripts > 0 or self._reset

    async def prepare(self) -> None:
        """Dial, and ask what the write block has to put back."""
        end = await self._dialled()
        if self._holdable:
            reply = await end.call(*scripts_behind_cut_over.ASK)
            self.calls, seen = (
                scripts_behind_cut_over.calls_in(reply),
                silent_commands.calls_in(reply),
            )
            self._reset = seen is None or silent_commands.was_reset(seen)
            self._not_paused = await hold_source.objection(end)
            self.script_pause = not self._not_paused
        if not self._wanted or self.before:
            return
        self.find_closed("")
        try:
            found = await write_block.ask(end)
            self.before, self._refuses = found or "", found is None
            self._took_writes = found is not None
            self.closed_before = "" if found else self._setting
        except (AuthError, ServerError, ProtocolFault) as error:
            self._why = error.message

    async def approach(self) -> None:
        """Where the write block does not hold for all: have a connection that the pause does not
        hold."""
        if not self.script_pause or not self._goes_on or not (self.before or self._refuses):
            return
        try:
            end = await self._stack.enter_async_context(self._dialling())
        except EngineError as error:
            self._not_paused = error.message
            return
        found = await hold_source.attached(end)
        if isinstance(found, EngineError):
            self._not_paused = found.message
        else:
            self._hold = found

    async def close(self) -> Replication:
        """Pause the writers."""
        end = await self._dialled()
        at_once = write_block.commands(self.before) if self.before and not self._unpause else []
        if not self._pausable and not at_once and (self._why or not self._wanted):
            raise TransferFailed(
                f"{self._name} has no CLIENT PAUSE, and is not to refuse writes"
                + (f" ({self._why})" if self._why else ""),
                remedy="Choose --fence none or --fence hook.",
                fault="source",
            )
        self._blocks_writes, self._closed = bool(at_once), True
        mode = ("WRITE",) if self._unpause else ()
        pause = [("CLIENT", "PAUSE", int(self.seconds * 1000), *mode)] if self._pausable else []
        asked = [] if self._scripts_refused else [scripts_behind_cut_over.ASK]
        counted = [] if self.readable else [("INFO",)]
        placed = cluster_primary.QUESTIONS if self.in_cluster and not self.readable else ()
        # The role and the offset are those of the moment in which the fence stands, and so are the
        # scripts that were run before, the number of keys, and the slots.
        found = [write_block.ASK] if (at_once and self._took_writes) or self._refuses else []
        asking = [*asked, *counted, *placed, *found, *at_once, *pause, ("INFO", "replication")]
        *_, replies = await end.pipeline([("MULTI",), *asking, ("EXEC",)])
        if isinstance(replies, EngineError):
            raise TransferFailed(
                f"the writers of {self._name} cannot be paused: {replies.message}",
                remedy="Grant +client +config +info +multi +exec, or choose --fence none or "
                "--fence hook.",
                fault="source",
            )
        if not isinstance(replies, list) or len(replies) != len(asking):
            raise ProtocolFault("EXEC answered with something else", fault="source")
        if asked:
            counts = replies.pop(0)
            self.calls, self.silent_calls = (
                scripts_behind_cut_over.calls_in(counts),
                silent_commands.calls_in(counts),
            )
        if counted and isinstance(text := replies.pop(0), bytes):
            self.info = parse_info(text.decode("utf-8", "replace"))
        if placed:
            self.topology = cluster_primary.read(self._source, [replies.pop(0) for _ in placed])
        if found:
            refused = write_block.refused(replies.pop(0))
            if self._refuses and not refused:
                raise self._opened_by_another()
            if refused and not self._refuses:
                raise self._closed_by_another()
        for reply in replies[:-1]:
            if reply != b"OK":
                raise TransferFailed(
                    f"the writers of {self._name} cannot be paused: {reply!r}",
                    remedy="Choose --fence none or --fence hook.",
                    fault="source",
                )
        return replication_in(end, replies[-1])

    async def block_writes(self) -> Replication | None:
        """Have writes refused; where the user may not, `finish` says so."""
        replication = None
        if self.before and not self._blocks_writes:
            replication = await self._block_writes()
        # Behind a pause of all clients it was asked as that began.
        asked = self._refuses and not self._promoted and self.readable
        if asked and not await write_block.stands(await self._dialled()):
            raise self._opened_by_another()
        if self._hold is not None:
            # It takes its time.
            replication = None
            await self._hold.begin()
            if self._hold.lost:
                raise TransferFailed(
                    f"cannot pause the clients of {self._name}: {self._hold.lost}. Their scripts "
                    "and transactions would go on",
                    fault="source",
                )
        return replication

    async def _block_writes(self) -> Replication:
        end = await self._dialled()
        found, *_, reply = await end.pipeline(
            [write_block.ASK, *write_block.commands(self.before), ("INFO", "replication")],
            raise_on_error=True,
        )
        if self._took_writes and not self._promoted and write_block.refused(found):
            raise self._closed_by_another()
        replication = replication_in(end, reply)
        if replication.is_replica:
            raise TransferFailed(
                f"{self._name} became a replica during the fence: another server accepts writes "
                "now",
                fault="source",
            )
        return replication

    def _closed_by_another(self) -> TransferFailed:
        """Another cut-over has closed the source since `prepare`: that is not ours to take away."""
        self.before = ""
        return TransferFailed(
            f"{self._name} began to refuse writes a moment ago: another migration has cut over "
            "from it, or an operator has closed it",
            fault="source",
        )

    def _opened_by_another(self) -> TransferFailed:
        """What another one had set is not there any more: the next try sets its own."""
        return TransferFailed(
            f"{self._name} accepts writes again: the setting by which it refused them before this "
            "cut-over was removed meanwhile",
            remedy="The migration goes on. Complete it again.",
            fault="source",
        )

    async def _refuse_again(self, end: Admin) -> str:
        """The target is open, and what had the source refuse writes before this cut-over has been
        taken away since: set it anew. Returns what may be lost by it."""
        lost = (
            f"the setting by which {self._name} refused writes before this cut-over was removed "
            "meanwhile: what it accepted until it was set again exists only there"
        )
        recorded = False
        try:
            self.before, self.closed_before = await write_block.ask(end) or "", ""
            if self.before:
                # The engine that goes on behind a crash in between sets it, and can put it back.
                await self.record(lost)
                recorded = True
                await end.pipeline(write_block.commands(self.before), raise_on_error=True)
        except (AuthError, ServerError, ProtocolFault) as error:
            self.before, self._why = "", error.message
            if recorded:
                await self.record("")
            return ""
        return lost

    async def look(self) -> Replication | None:
        """The server's role now."""
        end = await self._answering()
        if not (self.readable or self._promoted or (self._hold and self._hold.end is end)):
            return None
        replication = replication_in(end, await end.call("INFO", "replication"))
        if self._hold is not None and not self._promoted:
            self._hold.go_on()
        return replication

    def on_promotion(self) -> None:
        """There is no way back: clients that are paused may be paused for longer."""
        self._promoted = True
        if self._hold is not None:
            # Not at its next turn: a link that is lost before that leaves the source to its pause.
            self._hold.lasting(self._pause_seconds)

    async def open(self) -> None:
        """The source as it was; where there is no UNPAUSE the pause's own time ends it."""
        end = await self._answering()
        try:
            # In this order, or clients that waited would be refused what they wait for.
            if self.before:
                await write_block.put_back(end, self.before)
            self._blocks_writes = False
            if self._unpause:
                await end.call("CLIENT", "UNPAUSE")
        except ServerError as error:
            raise TransferFailed(error.message, fault="source") from None

    async def finish(self) -> list[str]:
        """Let the writers on: to a refusal, if the source blocks writes."""
        end, name = await self._answering(), self._name
        holds = self._hold is not None and self._hold.end is end
        if not self._wanted:
            if self._unpause:
                await end.call("CLIENT", "UNPAUSE")
            return [f"{name} accepts writes again; they are no longer replicated to the target"]
        events: list[str] = []
        refuses = bool(self.before) or await write_block.stands(end)
        reopened: list[str] = []
        if not refuses and self._refuses and (lost_since := await self._refuse_again(end)):
            refuses = True
            reopened.append(lost_since)
            events.append(lost_since)
        if refuses:
            if holds:
                await hold_source.lengthen(end, self._pause_seconds)
            else:
                # A PING is answered once the pause is over.
                word = ("CLIENT", "UNPAUSE") if self._unpause else ("PING",)
                _, role = await end.ask(word, ("INFO", "replication"))
                self.role_since = replication_in(end, role)
            await asyncio.sleep(_READ_SECONDS)
        try:
            await disconnect(end, self._keep_users)
        except (AuthError, ServerError) as error:
            events.append(f"the clients of {name} were not disconnected: {error.message}")
        if refuses and not self._scripts_refused:
            self.calls_since = since(await scripts_behind_cut_over.ask(end), self.calls)
            lost = list(self._lost(holds))
            events += lost
            self.lost_writes = "; ".join([*reopened, *lost])
        else:
            self.lost_writes = "; ".join(reopened)
        if not refuses:
            self.lost_writes = f"{name} still accepts writes, which exist only there"
        self._finished = refuses and holds
        # Once it is known what was run there.
        return [self._said(refuses, holds), *events]

    def _said(self, refuses: bool, holds: bool) -> str:
        """The event: what the server does with writes from now on."""
        name = self._name
        if not refuses:
            return (
                f"{name} could not be made to refuse writes ({self._why}): what it takes once "
                f"its pause has run out ({self.seconds:g} s) is not replicated to the target"
            )
        if self.before:
            return (
                f"{name} refuses writes from now on (NOREPLICAS){self._but(holds)}; to have it "
                f"take them again: {write_block.remedy(self.before)}, or unblock-source for a group"
            )
        return (
            f"{name} refuses writes (NOREPLICAS){self._but(holds)}, as it did before this "
            f"cut-over: its {self._setting} was set before, and is to be set back by hand"
        )

    def _lost(self, holds: bool) -> Iterator[str]:
        """What was run behind the fence and is on the source alone, or may be."""
        run = self.calls_since
        if run is not None and run.any:
            yield calls_words(self._name, run)
        elif run is None and not holds:
            yield (
                f"how many scripts and transactions {self._name} has run since the cut-over is not "
                "known (INFO commandstats), and what they wrote is only on the source"
            )
        if self._runs_scripts and not self._hands_on:
            yield (
                f"scripts (EVAL) go on at {self._name} and are not counted, because its clients "
                "are disconnected only once (--disconnect-for 0): what they write is only on the "
                "source. Stop the source, or keep its clients away (disconnect-clients)"
            )

    @property
    def _pause_seconds(self) -> float:
        """Seconds of a pause once the target is open: until another process goes on with it, where
        there are scripts; else those that were there are disconnected at once."""
        return (
            hold_source.SECONDS
            if self._hands_on and self._runs_scripts
            else hold_source.PENDING_SECONDS
        )

    def _but(self, holds: bool) -> str:
        if self._scripts_refused:
            return ""
        if not self._exec_refused and not self._runs_scripts:
            run = self.calls_since
            # A hold that was made anew says nothing of the time between the two.
            if holds and self._closed and run is not None and not run.any:
                return "; its clients were disconnected before it answered any of them"
            why = f" (it cannot be paused: {self._not_paused})" if self._not_paused else ""
            return (
                ", but for transactions (MULTI) that were begun before, and for scripts (EVAL), of "
                f"which it had run none before the cut-over{why}"
            )
        of = "scripts (EVAL)" if self._exec_refused else "scripts (EVAL) and transactions (MULTI)"
        gap = ""
        if self._source.tls is not None:
            gap = (
                " (with TLS but for the moment in which the process that does it is let in; what "
                "scripts write then is counted)"
            )
        if holds and self._hands_on:
            return (
                f", but for {of}, whose writes this version does not refuse: so it answers no "
                f"client as long as clients are disconnected{gap}"
            )
        if self.script_pause and not self._runs_scripts:
            return ", but for scripts (EVAL), of which it had run none before the cut-over"
        why = f" (and it cannot be paused: {self._not_paused})" if self._not_paused else ""
        if holds:
            why = f" (it answers no client for the next {hold_source.PENDING_SECONDS:g} s)"
        return f", but for {of}, whose writes this version does not refuse{why}"

    async def remove(self) -> None:
        """Hang up; a hold goes on in the process that disconnects clients."""
        hold, self._hold = self._hold, None
        if hold is not None:
            await hold.rest()
            number = hold.end.duplicate() if self._finished and self._hands_on else None
            if number is not None:
                connections_for_child.leave(self._source.address, number, hold_source.SECONDS)
        self._end = None
        await self._stack.aclose()

    async def _answering(self) -> Admin:
        """A connection that has answers: the one that is not paused, if there is one."""
        if self._hold is not None:
            await self._hold.rest()
            if not (self._hold.lost or self._hold.end.lost):
                return self._hold.end
        return await self._dialled()

    async def _dialled(self) -> Admin:
        if self._end is None:
            self._end = await self._stack.enter_async_context(self._dialling())
        return self._end

    def _dialling(self) -> contextlib.AbstractAsyncContextManager[Admin]:
        return admin(self._source, timeout=self._timeout, fault="source", straight=self._straight)
