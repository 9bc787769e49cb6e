"""The stream's connection to the target: how it is dialled, what is found there, who may write.

Each dial asks in one round trip what has to be known before anything is sent: which server it is,
whether it is a replica, the position that it holds, and whether its user may run transactions. From
the look at the position on a WATCH stands, so that the next EXEC does nothing where another client
has moved the position since.

To a target that is far several transactions are under way at once, and WATCH covers the first of
them alone; where records are written in place of transactions (`ext/position_records.pxi`) there is
no WATCH. So the connection has a name then, by which the engine that takes the target next ends it,
and the dial that replaces a lost connection ends that one first. Where the target's user may not do
that, one transaction is under way at a time, and there are no records.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence, Set
from typing import Any

from engine import logs
from engine._native import RecordForm
from engine.errors import AuthError, EngineError, LinkError, ServerError
from engine.model.backoff import Patience
from engine.model.doubt import Doubt
from engine.model.endpoint import Endpoint
from engine.model.online_checkpoint import POSITION_DB
from engine.model.server import same_process
from engine.model.settings import TransferSettings
from engine.model.transient_errors import DIAL_AGAIN
from engine.targets.import_mode import import_source, in_import_mode
from engine.targets.role_check import refuse_replica
from engine.targets.target_refusals import TRY_AGAIN, no_database, refused_all
from engine.wire.connection import Connection, answered
from engine.wire.dial import Command, dial_and_ask
from engine.wire.info_command import info_in
from engine.wire.server_read_size import WIDEN_READS

# A target with a longer round trip, in seconds, is far.
_FAR_SECONDS = 0.004
# No server has given so many.
_NO_CLIENT = (1 << 63) - 1
# Without the right to these, connections cannot be ended by those that come after them.
_RIGHTS: tuple[Command, ...] = (
    ("CLIENT", "ID"),
    ("CLIENT", "LIST", "TYPE", "master"),
    ("CLIENT", "KILL", "ID", _NO_CLIENT),
)
_log = logs.logger(__name__)


def is_far(round_trip: float) -> bool:
    """Whether a target with this round trip, in seconds, has several transactions under way."""
    return round_trip >= _FAR_SECONDS


class ApplierLink:
    """One connection to the target at a time, made anew when it is lost.

    `attach` puts a connection into data mode: its replies are the applier's from then on. `form` is
    told that a WATCH stands. `full`, `name` and the callbacks are as in `targets.applier.Applier`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: TransferSettings,
        key: bytes,
        attach: Callable[[Connection], None],
        form: RecordForm,
        *,
        on_event: Callable[[str], None],
        importing: bool,
        on_doubt: Callable[[Doubt], None],
        on_trouble: Callable[[str], None],
        full: bool,
        name: str,
        far: bool,
    ) -> None:
        self._records_only = form.only
        self._endpoint = endpoint
        self._settings = settings
        self._key = key
        self._attach = attach
        self._form = form
        self._wants_records = form.only or (not full and settings.position_form == "record")
        self._importing = importing
        self._on_doubt = on_doubt
        self._full = full
        self._name = name
        # As at the last dial; before that, as it is known from elsewhere.
        self._far = far
        self.patience = Patience(
            settings.retry_for,
            ended="the target did not take anything",
            next_step="the next one comes",
            fault="target",
            report=on_trouble,
            event=on_event,
        )
        self.connection: Connection | None = None
        """Lost or not; None before the first dial."""
        self.client: int | None = None
        """The connection's own number at the target, where others may have to end it."""
        self.several = False
        """Whether several transactions may be under way at once."""
        self.record = False
        """Whether batches may go with a record."""
        self.databases = {POSITION_DB}
        """Those that the target is known to have."""
        self.position: bytes | None = None
        """The position that was found at the last dial, or written since."""
        self.identity = ""
        """The target's data set and process, as it called itself at the last dial
        (`ServerInfo.identity`)."""
        self.cluster = False
        """Whether the target is a node of a cluster: a command's keys have to be in one slot."""
        self.retries = 0
        self.reconnects = 0

    @property
    def closed(self) -> bool:
        """Whether there is no connection: it was not opened, was closed, or lost."""
        return self.connection is None or self.connection.lost is not None

    def close(self) -> None:
        """Give the connection up; what comes next dials."""
        if self.connection is not None:
            self.connection.close()

    def leave_for(self, there: Endpoint) -> None:
        """Give up a connection to any server but `there`, which is the target by now."""
        if self.connection is not None:
            self.connection.leave_for(there)

    async def dial(self) -> None:
        """Dial, and look at the position. Raises `LinkError`, `ServerError`, `AuthError`."""
        # Far away all that is known to be asked goes with the greeting, but where something has to
        # come before it: import mode, or the end of the connection before this one.
        at_once = self._far and not self._importing and self.client is None
        first = self._questions() if at_once else []
        connection, (answer, *replies) = await dial_and_ask(
            self._endpoint,
            [("INFO",), *first],
            fault="target",
            timeout=self._settings.connect_timeout,
        )
        try:
            if self._importing:
                woke = not await in_import_mode(connection)
                if woke:
                    self._on_doubt(Doubt.LAPSED)
                await import_source(connection)
                if woke:
                    # Again, now that no TTL passes any more: see `transfer.lane`. Not only
                    # now: had the link gone meanwhile, that would go unnoticed.
                    self._on_doubt(Doubt.LAPSED)
            info = info_in(connection, answered(answer))
            refuse_replica(connection.name, info)
            identity = info.identity
            if at_once:
                client = self._settled(replies)
                self._far = is_far(connection.round_trip)
            else:
                self._far = is_far(connection.round_trip)
                client = await self._settle_in(connection, identity)
            if self._records_only and client is None:
                raise _may_not_end(connection.name, self._endpoint)
        except BaseException:
            # Cancelled as well: nothing else knows of it yet.
            connection.close()
            raise
        if self.connection is not None:
            self.reconnects += 1
        self.databases = {POSITION_DB}
        extra = {"end": "target", "server": info.name, "run_id": info.run_id}
        _log.info("Connected to the target, for the stream", extra=extra)
        self.connection, self.identity = connection, identity
        self.several = self._far and client is not None
        self.record = self._wants_records and client is not None
        self.client = client if self.several or self.record else None
        self.cluster = info.mode == "cluster"
        self._attach(connection)

    async def _settle_in(self, connection: Connection, identity: str) -> int | None:
        """Find the position, in one round trip; as `_settled`."""
        first: list[Command] = []
        if self.client is not None and same_process(identity, self.identity):
            # Nothing of ours arrives over the connection before this one any more.
            first.append(("CLIENT", "KILL", "ID", self.client))
        replies = await connection.together(*first, *self._questions())
        for reply in replies[: len(first)]:
            answered(reply)
        return self._settled(replies[len(first) :])

    @property
    def _is_named(self) -> bool:
        """Whether others may have to end the connection."""
        return bool(self._name) and not self._full and (self._far or self._wants_records)

    def _questions(self) -> list[Command]:
        """What a new connection is asked for `_settled`."""
        first: list[Command] = []
        if self._is_named:
            # A name of its own, by which the next claim, be it ours, ends it.
            name = f"{self._name}:{secrets.token_hex(4)}"
            first += [*_RIGHTS, ("CLIENT", "SETNAME", name)]
        if self._full:
            first.append(WIDEN_READS)
        # A user without the right to MULTI would have what follows it run one by one.
        return [*first, ("SELECT", POSITION_DB), ("MULTI",), ("DISCARD",), *self._guard]

    def _settled(self, replies: Sequence[Any]) -> int | None:
        """Take in the replies to `_questions`. The number of this connection, if it has a name, and
        others can end it."""
        rights = replies[: len(_RIGHTS) + 1] if self._is_named else []
        for reply in replies[len(rights) + self._full :]:
            answered(reply)
        self.position = replies[-1] if isinstance(replies[-1], bytes) else None
        self._form.watched = True
        if not rights:
            return None
        if any(isinstance(reply, EngineError) for reply in rights):
            if self._records_only:
                return None
            _log.info(
                "One transaction at a time is under way, and no record is written: the user may "
                "not name, list and end connections",
                extra={"end": "target"},
            )
            return None
        return int(rights[0])

    @property
    def _guard(self) -> tuple[Command, ...]:
        """What has EXEC look after the position from now on, and gives it."""
        return (
            # A change since an earlier WATCH, our own too, would have EXEC refuse whatever comes.
            ("UNWATCH",),
            # In this order: what is changed behind the GET is seen by EXEC.
            ("WATCH", self._key),
            ("GET", self._key),
        )

    async def watch(self, connection: Connection, *first: Command) -> bytes | None:
        """The position, which EXEC looks after from now on. `first` is sent before."""
        replies = [answered(reply) for reply in await connection.together(*first, *self._guard)]
        self._form.watched = True
        return replies[-1] if isinstance(replies[-1], bytes) else None

    async def control(self) -> Connection:
        """The connection in control mode, dialled if need be: nothing may be owed. `attach` ends
        that."""
        while self.connection is None or self.connection.lost is not None:
            try:
                await self.dial()
            except (LinkError, ServerError) as exc:
                await self.pause(exc)
        self.connection.release()
        return self.connection

    async def ensure_databases(self, wanted: Set[int]) -> None:
        """A SELECT that fails inside a transaction would put what follows into another database,
        so a database is chosen once outside of one before it is used.

        It may dial: then `position` is what was found there.
        """
        while new := wanted - self.databases:
            connection = await self.control()
            try:
                for db in sorted(new):
                    await connection.call("SELECT", db)
                await connection.call("SELECT", POSITION_DB)
            except ServerError as exc:
                if exc.code in TRY_AGAIN:
                    await self.pause(exc)
                    continue
                raise no_database(sorted(new)[-1], exc) from None
            except LinkError as exc:
                await self.pause(exc)
                continue
            self.databases |= new
            self._attach(connection)

    async def pause(self, error: LinkError | ServerError) -> None:
        """Wait before another try; raise when it has been failing for too long, or would anyway."""
        code = error.code if isinstance(error, ServerError) else None
        if code is not None and code not in TRY_AGAIN:
            raise error
        delay = self.patience.failed(error.message, remedy=TRY_AGAIN.get(code or "", error.remedy))
        self.retries += 1
        await asyncio.sleep(delay)
        if code in DIAL_AGAIN:
            self.close()

    def guard_refused(self, message: str) -> ServerError:
        """What WATCH or GET was answered, as an error; the connection is given up. Raises
        `AuthError`."""
        if (refusal := refused_all(message, self._endpoint)) is not None:
            raise refusal
        self.close()
        return ServerError(message, code=message.partition(" ")[0], fault="target")


def _may_not_end(name: str, target: Endpoint) -> AuthError:
    """What to raise where a cluster's node does not let its user do what takes the place of WATCH
    there."""
    return AuthError(
        f"{name} does not let the user name, list and end connections: an engine that was replaced "
        "could go on writing to the cluster",
        remedy=f"On each node: ACL SETUSER {target.username or 'default'} "
        "+client|id +client|setname +client|list +client|kill.",
        fault="target",
    )
