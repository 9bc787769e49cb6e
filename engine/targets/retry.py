"""Which answers of a target are worth asking again, and what to tell the operator."""

from __future__ import annotations

from engine.errors import ServerError, TransferStopped

# Error codes that say "not now", and the way out if it lasts. The whole window is sent again from
# the first refused batch on: records keep their order, and RESTORE may be repeated.
TRY_AGAIN = {
    "OOM": "The target is out of memory: raise its maxmemory, or free some.",
    "LOADING": "The target is loading its data: wait until it has.",
    "BUSY": "A script or function blocks the target: end it with SCRIPT KILL or FUNCTION KILL.",
    "MISCONF": "The target cannot save to disk and refuses writes: see its log, free disk space.",
    "READONLY": "The target is a replica: name its primary.",
    "MASTERDOWN": "The target is a replica without a primary: name the primary.",
    "NOREPLICAS": "The target has too few replicas for its min-replicas-to-write.",
    "CLUSTERDOWN": "The target's cluster is down: see CLUSTER INFO.",
    "TRYAGAIN": "The target is moving slots: let that end.",
}
# Refusals that concern the user, not a key: going on would refuse every key.
REFUSED_ALL = {
    "NOPERM": "Grant the target's user RESTORE and SELECT on all keys (ACL SETUSER).",
    "NOAUTH": "Give the target's user and password.",
}


def no_database(db: int, refusal: ServerError) -> TransferStopped:
    """What to raise where the target refuses to SELECT a database that the source uses."""
    return TransferStopped(
        f"the target has no database {db}: {refusal.message}",
        remedy="Raise `databases` in the target's configuration (needs a restart), and resume.",
        fault="target",
    )
