"""Disconnects the clients that come back to a source behind its cut-over, a process of its own:

    python -m engine.fleet.client_disconnector GROUP [FD [MIGRATION]]

with the state's URL in the environment. FD: a connection to the source (of that migration, by its
number in the state) that was handed over, which its pause does not hold. Where the source runs
scripts whose writes it does not refuse, it is paused as well (`transfer.hold_source`).

It looks each second, and writes what it found into the state. It ends when its time is over, when
the state says so (a verb, `unblock-source`, another process that has taken over), when the source
no longer blocks writes (then its operator wants clients there, or it was restarted), where it may
not close connections, or when no server answers at the source's address any more. If it is killed,
its guard starts another one (`fleet.disconnector_restart`); if both are, what watches the state
(`serve`) does. The state says since when there is none.

Exit codes: 0 it ended as it should, or there was nothing to do; 1 the state failed. stderr is a
log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Sequence

from engine import logs
from engine.errors import (
    AuthError,
    EngineError,
    LinkError,
    ProtocolFault,
    ServerError,
    UsageError,
)
from engine.fleet import local, worker_log_file
from engine.fleet.disconnector_restart import DisconnectorGuard
from engine.fleet.group_process import main_of
from engine.fleet.launcher import open_registry
from engine.fleet.process_identity import ProcessId
from engine.fleet.state_thread import persist
from engine.groups import disconnections
from engine.model.calls_despite_write_block import Calls, calls_words, since, total
from engine.model.clients_after_cut_over import moment
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.transfer import hold_source, scripts_behind_cut_over, write_block
from engine.transfer.disconnect_source_clients import ClientTally, Look, disconnect
from engine.wire.control_connection import Admin, admin, adopted

_log = logs.logger("engine.fleet.client_disconnector")
LOOK_SECONDS = 1.0
ABSENT_SECONDS = 30.0
"""For so long the source's address may refuse every connection: a server that is gone has no
clients, and another one that is started there is none of ours."""
_TIMEOUT = 10.0
# A pause of the last look has run out by then.
_GAP_SECONDS = hold_source.KEPT_SECONDS + LOOK_SECONDS


class OtherShard:
    """One more server that the same cut-over closed: another primary of a source that is a
    cluster. It is looked at as long as the first one is, and holds no look up by being away."""

    def __init__(self, endpoint: Endpoint, keep: frozenset[str]) -> None:
        self._endpoint = endpoint
        self._keep = keep
        self._stack = contextlib.AsyncExitStack()
        self._end: Admin | None = None
        self._blocked = self._over = False

    async def look(self) -> Look:
        """Disconnect its clients; who they were. Raises `ServerError`, `AuthError`,
        `ProtocolFault`."""
        if self._over:
            return Look((), 0)
        try:
            if self._end is None:
                self._end = await self._stack.enter_async_context(
                    admin(self._endpoint, timeout=LOOK_SECONDS, fault="source")
                )
            blocks = await write_block.blocks(self._end)
            if blocks is False and self._blocked:
                # Its operator wants clients there, or it was restarted.
                self._over = True
                return Look((), 0)
            self._blocked = self._blocked or blocks is True
            return await disconnect(self._end, self._keep)
        except LinkError:
            await self.close()
            return Look((), 0)

    async def close(self) -> None:
        """Hang up."""
        self._end = None
        await self._stack.aclose()


class ClientDisconnector:
    """Looks at one source until its time is over. `endpoint` has its credentials; `others` are the
    other servers that its cut-over closed."""

    def __init__(
        self,
        claimed: disconnections.Claimed,
        endpoint: Endpoint,
        guard: DisconnectorGuard,
        handed: int | None = None,
        others: Sequence[Endpoint] = (),
    ) -> None:
        self._claimed = claimed
        # A connection that was handed over, until it is used.
        self._handed = handed
        self._endpoint = endpoint
        self._guard = guard
        self._keep = frozenset(claimed.transfer.settings.keep_users)
        self._others = [OtherShard(each, self._keep) for each in others]
        self._tally = ClientTally(claimed.found)
        self._refused_since: float | None = None
        # Whether the source blocks writes since the cut-over, as far as we know.
        report = claimed.transfer.report
        self._blocked = report is not None and bool(report.sealed)
        # It takes writes again.
        self._open = False
        # What was run behind the cut-over: whether that is looked at, what the source told of at
        # the last look (None: it is not known), and how much that is since.
        self._counts = report is not None and report.lets_scripts
        self._calls: Calls | None = None
        self._run = Calls(0)
        self._told = False
        if report is not None and report.scripts_before is not None:
            in_cut_over = Calls(report.scripts_run or 0, report.writes_run)
            self._run = claimed.found.calls or in_cut_over
            self._calls = total(Calls(report.scripts_before, report.writes_before), self._run)
            self._told = bool(self._run.any or report.lost_writes)
            self._tally.count_calls(self._run)
        # When clients were last disconnected; none were by this process yet.
        self._looked_at, self._first_look = claimed.found.looked_at, True
        # Whether the source is to be paused where it runs scripts, and whether it is.
        self._may_hold = report is not None and report.held
        self._holds = False
        self._stack = contextlib.AsyncExitStack()
        self._end: Admin | None = None

    async def run(self) -> str:
        """Look each second; why it ended, empty if it is another's now. Raises `StateError`."""
        async with self._stack, contextlib.AsyncExitStack() as others:
            for each in self._others:
                others.push_async_callback(each.close)
            self._guard.watch(None, b"")
            ended = await self._work()
            self._guard.leave()
            return ended

    async def _work(self) -> str:
        until: float | None = self._claimed.found.until
        if self._claimed.first:
            await self._add_event(self._begun())
        while True:
            why = "the time set for it is over" if until is None or time.time() >= until else ""
            if not why:
                why = await self._look()
            elif self._counts:
                await self._count_last()
            found = self._tally.found
            if why:
                found = found.end(why, refuses=not self._open)
                await asyncio.to_thread(persist, lambda: self._claimed.end(found))  # noqa: B023
                return found.ended
            until = await asyncio.to_thread(persist, lambda: self._claimed.write(found))  # noqa: B023
            if until is None:
                return ""
            self._tally.extend(until)
            await asyncio.sleep(LOOK_SECONDS)

    def _begun(self) -> str:
        end = moment(self._claimed.found.until)
        text = f"clients that connect to the source are disconnected until {end}"
        if self._handed is not None:
            text += ", and it answers none of them"
        elif self._may_hold:
            text += (
                "; what scripts write there is counted, until this process is let in and the "
                "source answers none of them"
            )
        return text

    async def _add_event(self, text: str) -> None:
        await asyncio.to_thread(persist, lambda: self._claimed.add_event(text))

    async def _look(self) -> str:
        """Look once; why there is nothing more to do, empty: look again."""
        try:
            if self._end is None:
                self._end = await self._stack.enter_async_context(self._dialling())
            self._refused_since = None
            await self._hold(self._end)
            # Before the state has it that the source is looked at.
            pausing = self._end if self._holds else None
            self._guard.watch(pausing, b"" if pausing is None else hold_source.longer(pausing))
            return await self._disconnect(self._end)
        except LinkError as error:
            self._tally.failed(error)
            self._end, self._holds = None, False
            self._guard.watch(None, b"")
            await self._stack.aclose()
            return self._unreachable(error)
        except AuthError as error:
            self._tally.failed(error)
            return f"the source does not allow it: {error.message}"
        except (ServerError, ProtocolFault) as error:
            self._tally.failed(error)
            return ""

    def _dialling(self) -> contextlib.AbstractAsyncContextManager[Admin]:
        number, self._handed = self._handed, None
        if number is not None:
            self._holds = True
            return adopted(number, self._endpoint, timeout=_TIMEOUT, fault="source")
        # One that was paused until now answers when its pause has run out.
        timeout = _TIMEOUT + (hold_source.SECONDS if self._may_hold else 0.0)
        return admin(self._endpoint, timeout=timeout, fault="source")

    async def _hold(self, end: Admin) -> None:
        """Have all clients wait, where scripts were seen or it is not known whether there are
        any."""
        seen = self._calls is None or self._calls.scripts > 0
        if not (self._may_hold and seen):
            return
        if self._holds:
            await hold_source.lengthen(end, hold_source.KEPT_SECONDS)
            return
        try:
            await hold_source.attach(end)
            await hold_source.lengthen(end, hold_source.KEPT_SECONDS)
            self._holds = True
        except (AuthError, ServerError, ProtocolFault) as error:
            self._may_hold = False
            text = f"the source runs scripts, and its clients cannot be paused: {error.message}"
        else:
            text = "the source runs scripts (EVAL): it answers none of its clients from now on"
        await self._add_event(text)

    async def _disconnect(self, end: Admin) -> str:
        blocks = await write_block.blocks(end)
        if blocks is False and self._blocked:
            self._open = True
            await self._count(end)
            return "the source accepts writes again (unblock-source was run, or it was restarted)"
        self._blocked = self._blocked or blocks is True
        looks = await asyncio.gather(
            disconnect(end, self._keep), *(each.look() for each in self._others)
        )
        look = Look(
            tuple(client for each in looks for client in each.disconnected),
            sum(each.kept for each in looks),
        )
        await self._count(end)
        self._tally.add(look)
        self._looked_at, self._first_look = self._tally.found.looked_at, False
        return ""

    async def _count(self, end: Admin) -> None:
        """Where the source does not refuse what scripts write. The first ones are an event, and so
        are those of a time in which clients were not disconnected; the event of the end has the
        whole figure."""
        if not self._counts:
            return
        calls = await scripts_behind_cut_over.ask(end)
        more = since(calls, self._calls)
        if more is None:
            # Nor is the sum known, until it is told again.
            self._tally.count_calls(None)
        else:
            self._calls, self._run = calls, total(self._run, more)
            self._tally.count_calls(self._run)
        if gap := self._gap():
            if more is None:
                text = f"how many scripts (EVAL) the source has run {gap} is not known"
            elif more.any:
                text = calls_words("the source", more, gap)
            else:
                text = f"the source has run no script (EVAL) {gap}"
        elif more is not None and more.any and (self._first_look or not self._told):
            text = calls_words("the source", self._run)
        else:
            return
        self._told = self._told or self._run.any
        await self._add_event(text)

    async def _count_last(self) -> None:
        """Once more, at the end; what is not told then is not known."""
        with contextlib.suppress(EngineError):
            if self._end is not None:
                await self._count(self._end)
                return
        self._tally.count_calls(None)

    def _gap(self) -> str:
        """Since when until now clients were not disconnected; empty: they were."""
        now = time.time()
        if self._looked_at is None or now - self._looked_at < _GAP_SECONDS:
            return ""
        began = moment(self._looked_at)
        return f"from {began} to {moment(now)}, while its clients were not disconnected"

    def _unreachable(self, error: LinkError) -> str:
        now = time.monotonic()
        if "refused" not in error.message:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since >= ABSENT_SECONDS:
            self._open = True
            return f"no server answers at {self._endpoint.address}"
        return ""


async def work(group_id: str, handed: int | None = None, of: int | None = None) -> int:
    """Do it for the group's last migration; `handed` as for `ClientDisconnector`, of the migration
    `of` alone if that is given."""
    registry = open_registry()
    worker_log_file.begin(local.worker_log(registry, group_id))
    claimed = disconnections.claim(registry.store, group_id, ProcessId.here().worker)
    if claimed is None:
        _log.info("No clients are to be disconnected, or another process disconnects them")
        return 0
    try:
        endpoint, *others = _closed_servers(claimed)
    except UsageError as error:
        claimed.add_event(f"clients of the source are not disconnected: {error.message}")
        return 1
    _log.info("Clients are disconnected from now on", extra=_at(endpoint))
    if handed is not None and of not in (None, claimed.transfer.id):
        os.close(handed)
        handed = None
    guard = DisconnectorGuard(registry, claimed.transfer)
    ended = await ClientDisconnector(claimed, endpoint, guard, handed, others).run()
    _log.info(
        "Clients are no longer disconnected by this process: %s",
        ended or "another process disconnects them",
        extra=_at(endpoint),
    )
    await asyncio.to_thread(registry.store.close)
    return 0


def _closed_servers(claimed: disconnections.Claimed) -> list[Endpoint]:
    """The servers that the cut-over closed, with credentials: the source, or the primary that it
    replicates from; of a cluster one for each shard. Raises `UsageError`."""
    credentials, report = Credentials.load(), claimed.transfer.report
    settings = claimed.transfer.settings
    named = settings.named("source", credentials.apply(claimed.transfer.source))
    source = named.of_primary
    if report is None:
        return [source]
    addresses = [report.sealed_at, *(address for address, _ in report.sealed_too)]
    return [credentials.beside(source, each) if each else source for each in addresses]


def _at(endpoint: Endpoint) -> dict[str, str]:
    return {"end": "source", "endpoint": endpoint.address}


def main(arguments: Sequence[str]) -> int:
    """Disconnect the clients of the source of the group named in `arguments`."""
    return main_of(
        "engine.fleet.client_disconnector",
        "process that disconnects clients",
        work,
        arguments,
        ("FD", "MIGRATION"),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
