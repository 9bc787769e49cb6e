"""Which answers of a target are worth asking again, and what to tell the operator."""

from __future__ import annotations

import re

from engine.errors import AuthError, ServerError, TransferStopped
from engine.model.endpoint import Endpoint
from engine.model.transient_errors import remedies

# The whole window is sent again from the first refused batch on: records keep their order, and
# RESTORE may be repeated.
TRY_AGAIN = remedies("write")
# "… no permissions to run the 'function|delete' command" (ACL, acl.c and server.c).
_COMMAND = re.compile(r"run the '([\w|.-]+)' command")


def refused_all(message: str, target: Endpoint) -> AuthError | None:
    """What to raise where an error reply concerns the user, not one key: going on would refuse
    every key, or leave out what was written with that command. None for all other replies."""
    code = message.partition(" ")[0]
    if code == "NOAUTH":
        what, remedy = "wants a password", "Give the target's user and password."
    elif code == "NOPERM":
        what = "does not let the user write that"
        if named := _COMMAND.search(message):
            rule = f"+{named[1].lower()}"
        elif "channel" in message:
            rule = "&PATTERN (one that the channel fits)"
        else:
            rule = "~PATTERN (one that the key fits)"
        remedy = f"On the target: ACL SETUSER {target.username or 'default'} {rule}."
    else:
        return None
    return AuthError(f"the target {what}: {message}", remedy=remedy, fault="target")


def no_database(db: int, refusal: ServerError) -> TransferStopped:
    """What to raise where the target refuses to SELECT a database that the source uses."""
    return TransferStopped(
        f"the target has no database {db}: {refusal.message}",
        remedy="Raise `databases` in the target's configuration (from Valkey 9.0 on "
        "`cluster-databases` of a cluster's nodes; it needs a restart), and resume.",
        fault="target",
    )
