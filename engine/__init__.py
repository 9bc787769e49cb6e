"""startmigration: an online migration engine for Redis and Valkey.

    from engine import Engine, Endpoint

Names are looked up when they are first used: a worker process, which is measured, imports what it
needs and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from engine.errors import (
        ApiFault,
        EngineError,
        Interrupted,
        InvalidParameterCombinationException,
        InvalidParameterValueException,
        InvalidReplicationGroupStateFault,
        ReplicationGroupAlreadyExistsFault,
        ReplicationGroupAlreadyUnderMigrationFault,
        ReplicationGroupNotFoundFault,
        ReplicationGroupNotUnderMigrationFault,
        StateError,
        TransferFailed,
        TransferStopped,
        UsageError,
    )
    from engine.front.engine import Engine
    from engine.model.credentials import Credentials
    from engine.model.endpoint import Endpoint, Tls
    from engine.model.progress import Phase, Progress
    from engine.model.proof import ProofReport, ProofSettings
    from engine.model.report import Report
    from engine.model.settings import TransferSettings

_HOMES = {
    "Engine": "engine.front.engine",
    "Credentials": "engine.model.credentials",
    "Endpoint": "engine.model.endpoint",
    "Tls": "engine.model.endpoint",
    "Phase": "engine.model.progress",
    "Progress": "engine.model.progress",
    "ProofReport": "engine.model.proof",
    "ProofSettings": "engine.model.proof",
    "Report": "engine.model.report",
    "TransferSettings": "engine.model.settings",
    "ApiFault": "engine.errors",
    "EngineError": "engine.errors",
    "Interrupted": "engine.errors",
    "InvalidParameterCombinationException": "engine.errors",
    "InvalidParameterValueException": "engine.errors",
    "InvalidReplicationGroupStateFault": "engine.errors",
    "ReplicationGroupAlreadyExistsFault": "engine.errors",
    "ReplicationGroupAlreadyUnderMigrationFault": "engine.errors",
    "ReplicationGroupNotFoundFault": "engine.errors",
    "ReplicationGroupNotUnderMigrationFault": "engine.errors",
    "StateError": "engine.errors",
    "TransferFailed": "engine.errors",
    "TransferStopped": "engine.errors",
    "UsageError": "engine.errors",
}

__all__ = [
    "ApiFault",
    "Credentials",
    "Endpoint",
    "Engine",
    "EngineError",
    "Interrupted",
    "InvalidParameterCombinationException",
    "InvalidParameterValueException",
    "InvalidReplicationGroupStateFault",
    "Phase",
    "Progress",
    "ProofReport",
    "ProofSettings",
    "ReplicationGroupAlreadyExistsFault",
    "ReplicationGroupAlreadyUnderMigrationFault",
    "ReplicationGroupNotFoundFault",
    "ReplicationGroupNotUnderMigrationFault",
    "Report",
    "StateError",
    "Tls",
    "TransferFailed",
    "TransferSettings",
    "TransferStopped",
    "UsageError",
    "__version__",
]


def __getattr__(name: str) -> object:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
