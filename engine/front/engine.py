"""The library's face: ElastiCache's operations, and ours beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from engine.front import (
    client_disconnection,
    group_verification,
    migration_wait,
    one_command_migration,
    operations,
)
from engine.front.service_context import ServiceContext
from engine.model.credentials import Credentials
from engine.model.endpoint import Endpoint
from engine.model.progress import Progress
from engine.model.proof import ProofProgress, ProofReport, ProofSettings
from engine.model.report import Report
from engine.model.settings import Changes, TransferSettings, changed

if TYPE_CHECKING:
    from engine.front.blocking_engine import BlockingEngine
    from engine.transfer.switch_hook import OnSwitch

CustomerNodeEndpointList = Sequence[Endpoint | Mapping[str, Any]]


class Engine:
    """Groups and migrations of one state; any number of these may be open at once.

    Responses are dicts with the members of ElastiCache's service model; a group under migration
    has our `Migration` beside them (`front.response_shapes`). Faults are those of the model too
    (`engine.errors`); every method also raises `StateError` when the state cannot be used, and
    `UsageError` for a configuration that is wrong.
    """

    def __init__(self, state: str | None = None, *, credentials: Credentials | None = None) -> None:
        """`state` is a URL (sqlite:///…, postgresql://…) or a file's path; None means
        STARTMIGRATION_STATE or the user's folder for state. `credentials` replace those of the
        environment and the configuration. Nothing is opened yet.
        """
        self._services = ServiceContext(state, credentials)

    @property
    def sync(self) -> BlockingEngine:
        """The same operations for code without an event loop."""
        from engine.front.blocking_engine import BlockingEngine

        return BlockingEngine(self)

    @property
    def services(self) -> ServiceContext:
        """The state and the credentials behind the operations: for the other faces."""
        return self._services

    def close(self) -> None:
        """Close the state's connections (it is opened again when needed)."""
        self._services.close()

    async def register_replication_group(
        self,
        replication_group_id: str,
        primary_endpoint: str | Endpoint,
        *,
        description: str = "",
        cluster_enabled: bool = False,
        engine: str | None = None,
    ) -> dict[str, Any]:
        """Name a target deployment by its primary (a URL without a password: it is stored).
        `engine` is what its servers run ("redis" or "valkey"); a start finds it out.

        Returns {"ReplicationGroup"}. Raises `InvalidParameterValueException`,
        `ReplicationGroupAlreadyExistsFault`.
        """
        return await operations.register(
            self._services,
            replication_group_id,
            primary_endpoint,
            description,
            cluster_enabled,
            engine,
        )

    async def test_migration(
        self,
        replication_group_id: str,
        customer_node_endpoint_list: CustomerNodeEndpointList,
        *,
        settings: TransferSettings | None = None,
    ) -> dict[str, Any]:
        """Check whether a migration could start; move nothing.

        Returns {"ReplicationGroup", "Checks": [{name, outcome, figure, remedy}]}. Failed checks
        raise `PreflightFault`, an InvalidParameterValue with all of the checks in `checks`; and
        the faults of `start_migration`.
        """
        return await operations.test(
            self._services, replication_group_id, customer_node_endpoint_list, settings
        )

    async def start_migration(
        self,
        replication_group_id: str,
        customer_node_endpoint_list: CustomerNodeEndpointList,
        *,
        settings: TransferSettings | None = None,
    ) -> dict[str, Any]:
        """Start a worker process that migrates the source into the group, unless a check of
        `test_migration` fails; return then at once.

        An endpoint is {"Address", "Port"}, or an `Endpoint` without a password. Checks that are
        named in `settings.skip_checks` do not stand in the way; warnings become events of the
        group. Returns {"ReplicationGroup", "Checks"}, migrating. Raises `PreflightFault`,
        `ReplicationGroupNotFoundFault`, `ReplicationGroupAlreadyUnderMigrationFault`,
        `InvalidReplicationGroupStateFault`, `InvalidParameterValueException`,
        `InvalidParameterCombinationException`.
        """
        return await operations.start(
            self._services, replication_group_id, customer_node_endpoint_list, settings
        )

    async def complete_migration(
        self, replication_group_id: str, *, force: bool = False, skip_verification: bool = False
    ) -> dict[str, Any]:
        """Ask the worker to cut over; return at once (`wait` waits for it).

        Refused with `CompletionRefused` (an InvalidReplicationGroupState with its `reason`) while
        `Migration.CanComplete` is not true: the group stays migrating, and an event says why.
        `skip_verification` cuts over without the comparison of both ends; fence, drain and write
        block are as ever, and what `CanComplete` says holds. `force` aborts the migration, with or
        without a worker: nothing is cut over, the source accepts writes and the target stays as it
        is. Returns {"ReplicationGroup"}. Raises `ReplicationGroupNotFoundFault`,
        `ReplicationGroupNotUnderMigrationFault`, and `InvalidParameterCombinationException` for
        both words at once, too.
        """
        return await operations.complete(
            self._services, replication_group_id, force, skip_verification
        )

    async def set_migration_rate(
        self,
        replication_group_id: str,
        *,
        bytes_per_second: int | None = None,
        keys_per_second: int | None = None,
        off: bool = False,
    ) -> dict[str, Any]:
        """Have the migration move at most this many bytes and keys a second from now on, of all
        its shards together (0: no bound; None: as before); `off`: no bound for either.

        It holds within a second, without a restart, for the workers that come too, and until it is
        set anew. What a cut-over does is not bounded by it. Returns {"ReplicationGroup",
        "Message"}. Raises `ReplicationGroupNotFoundFault`,
        `ReplicationGroupNotUnderMigrationFault`, `InvalidParameterCombinationException` where no
        rate is given, or `off` beside one, and `InvalidParameterValueException`.
        """
        return await operations.set_rate(
            self._services, replication_group_id, bytes_per_second, keys_per_second, off
        )

    async def pause_migration(self, replication_group_id: str) -> dict[str, Any]:
        """Have the migration write nothing to the target until `continue_migration`.

        A source that is followed stays connected: what it writes is received, acknowledged as far
        as it is applied, and waits in the spool; a spool that is full stops the migration. It holds
        within a second, and for the workers that come too; until then a cut-over is refused.
        Returns {"ReplicationGroup", "Message"}; also where it was paused already. Raises
        `ReplicationGroupNotFoundFault`, `ReplicationGroupNotUnderMigrationFault`, and
        `InvalidReplicationGroupStateFault` while a cut-over is asked for or under way.
        """
        return await operations.pause(self._services, replication_group_id, True)

    async def continue_migration(self, replication_group_id: str) -> dict[str, Any]:
        """Have a migration that `pause_migration` has paused go on from where it is.

        Returns {"ReplicationGroup", "Message"}; also where it was not paused. Raises
        `ReplicationGroupNotFoundFault` and `ReplicationGroupNotUnderMigrationFault`.
        """
        return await operations.pause(self._services, replication_group_id, False)

    async def unblock_source(self, replication_group_id: str) -> dict[str, Any]:
        """Have the source that the group was migrated from accept writes again, which it refuses
        since the cut-over. They are not replicated to the target, which stays as it is.

        Returns {"ReplicationGroup", "Message"}: what was done; also where the source accepted
        writes already. Raises `ReplicationGroupNotFoundFault`, `InvalidReplicationGroupStateFault`
        while the group is under migration, or if no migration has blocked writes at its source;
        `LinkError`, `ServerError` or `AuthError` of the source.
        """
        return await operations.unblock_source(self._services, replication_group_id)

    async def release_source(self, replication_group_id: str) -> dict[str, Any]:
        """The former name of `unblock_source`."""
        return await self.unblock_source(replication_group_id)

    async def disconnect_clients(
        self, replication_group_id: str, *, seconds: float | None = None
    ) -> dict[str, Any]:
        """Disconnect the clients that come back to the source of the group's last migration, for
        `seconds` from now (None: as its settings say); 0: stop doing so.

        A process of its own does it, each second; the member `SourceClients` of the group tells
        what it found. Returns {"ReplicationGroup", "Message"}. Raises
        `ReplicationGroupNotFoundFault`, `InvalidReplicationGroupStateFault` while the group is
        under migration or where its last one did not close its source,
        `InvalidParameterValueException`.
        """
        return await client_disconnection.disconnect(self._services, replication_group_id, seconds)

    async def resume_migration(
        self,
        /,
        replication_group_id: str,
        *,
        accept_source_loss: bool = False,
        **changes: Unpack[Changes],
    ) -> dict[str, Any]:
        """Start a new worker for a migration that was stopped or whose worker died; it goes on
        from the checkpoint.

        `retry_for` (seconds), `spool_bytes`, `spool_directory`, `source_nodes` and `address_map`
        replace the settings of these names from now on. `accept_source_loss`: a source that has
        lost data is followed all the same, and the next full sync makes the target what the source
        is now.

        Returns {"ReplicationGroup"}. Raises `ReplicationGroupNotFoundFault`,
        `ReplicationGroupNotUnderMigrationFault`, `ReplicationGroupAlreadyUnderMigrationFault`
        while a worker lives, and `UsageError` for settings that make no sense.
        """
        return await operations.resume(
            self._services, replication_group_id, changed(**changes), accept_source_loss
        )

    async def verify_replication_group(
        self,
        replication_group_id: str,
        customer_node_endpoint_list: CustomerNodeEndpointList | None = None,
        *,
        mode: str | None = None,
        match: str | None = None,
        rate: int | None = None,
        resume: bool = False,
        stop: bool = False,
    ) -> dict[str, Any]:
        """Start a worker process that compares every key of the group with those of a source (None:
        what its migration has, or had); return at once. Nothing is written to either.

        `mode`, `match` and `rate` are those of `ProofSettings`. `resume` goes on with one that was
        stopped or killed, or has failed: what it has compared is not compared again, and what is
        None is as it was. `stop` stops the one that is under way. The member `Verification` of the
        group tells how far it is and what it has found; the whole report is
        `verification-GROUP.jsonl` in the folder of the state.

        Returns {"ReplicationGroup", "Message"}. Raises `ReplicationGroupNotFoundFault`,
        `InvalidReplicationGroupStateFault` while the group is being verified,
        `InvalidParameterValueException`, `InvalidParameterCombinationException`.
        """
        given = {"mode": mode, "match": match, "rate": rate}
        return await group_verification.verify(
            self._services,
            replication_group_id,
            customer_node_endpoint_list,
            {name: value for name, value in given.items() if value is not None},
            resume,
            stop,
        )

    async def describe_replication_groups(
        self,
        replication_group_id: str | None = None,
        *,
        max_records: int = 100,
        marker: str | None = None,
    ) -> dict[str, Any]:
        """Describe one group, or a page of all of them (`max_records` 20 to 100).

        Returns {"ReplicationGroups": […]}, with a "Marker" for the next page if there is one.
        Raises `ReplicationGroupNotFoundFault`, `InvalidParameterValueException`.
        """
        return await operations.describe(self._services, replication_group_id, max_records, marker)

    async def describe_events(self, replication_group_id: str | None = None) -> dict[str, Any]:
        """What happened in the last 14 days to one group, or to all of them, oldest first (the
        newest 1,000).

        Returns {"Events": [{SourceIdentifier, SourceType, Message, Date}]}.
        """
        return await operations.describe_events(self._services, replication_group_id)

    async def page_events(
        self,
        replication_group_id: str | None = None,
        *,
        since: float | None = None,
        until: float | None = None,
        max_records: int = 100,
        marker: str | None = None,
    ) -> dict[str, Any]:
        """A page of what happened between two times (seconds since the epoch; both included),
        oldest first (`max_records` 20 to 100).

        Returns {"Events": […]}, with a "Marker" for the next page if there is one. Raises
        `InvalidParameterValueException`.
        """
        return await operations.page_events(
            self._services, replication_group_id, since, until, max_records, marker
        )

    async def delete_replication_group(self, replication_group_id: str) -> dict[str, Any]:
        """Forget a group. Its servers are not touched, its events stay.

        Returns {"ReplicationGroup"}, as it was. Raises `ReplicationGroupNotFoundFault`,
        `InvalidReplicationGroupStateFault` while it is under migration.
        """
        return await operations.delete(self._services, replication_group_id)

    async def wait(
        self,
        replication_group_id: str,
        *,
        until: migration_wait.Until,
        on_progress: Callable[[Progress], None] | None = None,
        poll: float = 0.2,
        timeout: float | None = None,
        supervise: bool = False,
        on_event: Callable[[str], None] | None = None,
    ) -> Progress | Report:
        """Wait until the migration is "in-sync", which means that it can be completed (returns its
        `Progress`; "copied" is another name for it), or the group is "available" again (returns
        the `Report`, status "done", or "stopped" when it was aborted). `poll` and `timeout`
        are seconds.

        With `supervise` a worker that is killed is replaced by a new one, which goes on from the
        checkpoint; `on_event` is told of it, and so are the group's events.

        An end before "in-sync" returns the `Report` as well. Raises `MigrationFailed` (a
        `TransferFailed` with the `report`) for a failed migration, `TransferFailed` when the
        worker is gone (with `supervise`: 20 of them in a row without progress) or the cut-over was
        refused, `Interrupted` when it was stopped, `EngineError` after `timeout`,
        `ReplicationGroupNotUnderMigrationFault` if there never was one.
        """
        return await migration_wait.wait(
            self._services,
            replication_group_id,
            until,
            on_progress,
            poll,
            timeout,
            supervise,
            on_event,
        )

    async def migrate(
        self,
        source: Endpoint,
        target: Endpoint,
        *,
        settings: TransferSettings | None = None,
        replication_group_id: str | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_event: Callable[[str], None] | None = None,
        on_checks: Callable[[one_command_migration.Checks], None] | None = None,
        on_switch: OnSwitch | None = None,
        accept_source_loss: bool = False,
    ) -> Report:
        """Register, test, start and complete in one go, in this process.

        `source` may be an RDB file (`Endpoint.parse("rdb:PATH")`) or an append-only file
        (`aof:PATH`, the file or its folder). Passwords in the endpoints are used here and never
        stored. A migration that an earlier call with the same source and
        settings left unfinished is resumed, without a test; with `accept_source_loss` also where
        the source has lost data meanwhile, as `resume_migration` says. One that failed, or that
        stopped because it needs a hand, is in the report. `on_switch(source, target)` is awaited
        once the target is promoted, before the source's clients are disconnected, for
        `settings.switch_timeout` seconds: it points their name for the server to the target; what
        it raises is an event, and no way back. Raises
        `PreflightFault`, `Interrupted` (when cancelled or told to stop; it can be resumed),
        `ReplicationGroupAlreadyUnderMigrationFault` while another process has it,
        `InvalidReplicationGroupStateFault` if one from elsewhere was left unfinished.
        """
        return await one_command_migration.migrate(
            self._services,
            source,
            target,
            settings or TransferSettings(),
            replication_group_id,
            on_progress,
            on_event,
            on_checks,
            on_switch,
            accept_source_loss,
        )

    async def verify(
        self,
        source: Endpoint,
        target: Endpoint,
        *,
        settings: ProofSettings | None = None,
        report: str | None = None,
        resume: bool = False,
        on_progress: Callable[[ProofProgress], None] | None = None,
    ) -> ProofReport:
        """Compare every key of two deployments, in both directions; nothing is written to either,
        but for `settings.repair`. The state is not used.

        Writers may go on: a key differs once it did in several looks, between which the source's
        stayed as it was. `report`: the path of a file of JSON lines, with a page beside it; with
        `resume` the comparison of that report goes on, where it was cut off: what it has compared
        is not compared again. Raises `LinkError`, `AuthError`, `ServerError` where an end cannot be
        asked, and `UsageError` for a file that cannot be written, a comparison to resume that is
        not there or was one of other ends or settings, or a repair while a migration has the
        target.
        """
        from engine.proof.run import prove

        credentials = self._services.credentials
        return await prove(
            credentials.apply(source),
            credentials.apply(target),
            settings or ProofSettings(),
            report=report,
            resume=resume,
            on_progress=on_progress,
        )
