"""The tree of errors.

Every error says whose fault it is (`fault`), what was expected (in the message) and what to do
next (`remedy`). Foreign exceptions are translated into these once, at the layer that meets them.
Rank 0: imports nothing of the package.
"""

from __future__ import annotations

from typing import ClassVar, Literal

FaultOf = Literal["user", "source", "target", "state", "engine"]


class EngineError(Exception):
    """Root of all errors that the engine raises on purpose.

    `message` is one sentence for a person, without secrets; `remedy` is what to do next (may be
    empty); `fault` says on whose side the cause lies.
    """

    fault: FaultOf = "engine"

    def __init__(self, message: str, *, remedy: str = "", fault: FaultOf | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        if fault is not None:
            self.fault = fault

    def __str__(self) -> str:
        if not self.remedy:
            return self.message
        stop = "" if self.message.endswith((".", "!", "?")) else "."
        return f"{self.message}{stop} {self.remedy}"

    @property
    def in_one_line(self) -> str:
        """Message and remedy, for a reason that is one line."""
        return " ".join(str(self).split())


class UsageError(EngineError):
    """The request cannot be understood: a bad URL, option, or configuration file."""

    fault: FaultOf = "user"


class StateError(EngineError):
    """The state database cannot be read or written (disk full, locked, not ours)."""

    fault: FaultOf = "state"


class LinkError(EngineError):
    """A connection to a server could not be made, or was lost. Dialling again may help."""


class AuthError(EngineError):
    """The server refused the credentials, or a command that the engine needs. Not retried.

    `of_key`: the user may run the command, and may not touch the key that it names.
    `of_password`: AUTH was refused.
    """

    of_key: bool = False
    of_password: bool = False


class ServerError(EngineError):
    """A server answered a command with an error reply. `code` is the reply's first word."""

    def __init__(
        self, message: str, *, code: str = "ERR", remedy: str = "", fault: FaultOf | None = None
    ) -> None:
        super().__init__(message, remedy=remedy, fault=fault)
        self.code = code


class ProtocolFault(EngineError):
    """A server sent bytes that are not the reply that the protocol promises."""


class PsyncRefused(EngineError):
    """The source takes no replica from us: PSYNC is renamed, forbidden, or not known there.

    Asking again changes nothing; the scan source is the way that is left.
    """

    fault: FaultOf = "source"


class TransferFailed(EngineError):
    """A transfer ended without moving everything. The message carries the reason."""


class TransferStopped(TransferFailed):
    """A transfer that needs a hand before it can go on. What the target has stays there, with the
    position; `remedy` says what to do before the transfer is resumed."""


class SourceLost(TransferStopped):
    """The source has not the data any more that it had. Nothing was done to the target: once the
    data is restored, or the loss is accepted, the transfer can be resumed."""

    fault: FaultOf = "source"


class SpoolFull(TransferStopped):
    """The spool between source and target has no room left, or its disk fails."""


class Interrupted(EngineError):
    """The operator stopped the run. Its state can be resumed."""

    fault: FaultOf = "user"


# --- The API's faults: codes and HTTP statuses as in ElastiCache's service model (2015-02-02). ---


class ApiFault(EngineError):
    """A fault of the API: `code` and `http_status` are those of the service model."""

    fault: FaultOf = "user"
    code: ClassVar[str] = "InternalFailure"
    http_status: ClassVar[int] = 400


class ReplicationGroupNotFoundFault(ApiFault):
    """The specified replication group does not exist."""

    code: ClassVar[str] = "ReplicationGroupNotFoundFault"
    http_status: ClassVar[int] = 404


class ReplicationGroupAlreadyExistsFault(ApiFault):
    """The specified replication group already exists."""

    code: ClassVar[str] = "ReplicationGroupAlreadyExists"


class InvalidReplicationGroupStateFault(ApiFault):
    """The requested replication group is not in the `available` state."""

    code: ClassVar[str] = "InvalidReplicationGroupState"


class ReplicationGroupAlreadyUnderMigrationFault(ApiFault):
    """The targeted replication group is already under migration."""

    code: ClassVar[str] = "ReplicationGroupAlreadyUnderMigrationFault"


class ReplicationGroupNotUnderMigrationFault(ApiFault):
    """The targeted replication group is not under migration."""

    code: ClassVar[str] = "ReplicationGroupNotUnderMigrationFault"


class InvalidParameterValueException(ApiFault):
    """The value for a parameter is invalid."""

    code: ClassVar[str] = "InvalidParameterValue"


class InvalidParameterCombinationException(ApiFault):
    """Two or more incompatible parameters were specified."""

    code: ClassVar[str] = "InvalidParameterCombination"
