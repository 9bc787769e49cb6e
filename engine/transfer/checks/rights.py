"""Whether the users at both ends may run the commands that a transfer needs.

Where there is ACL DRYRUN (Redis 7.0, Valkey) it is asked: nothing runs. Elsewhere, or where it is
denied itself, harmless forms are run: on a key that does not exist, or with no effect.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import AuthError, EngineError, ServerError
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks.result import Check, Side, failed, passed, warned
from engine.wire.admin import Admin, Arg

# A name that nobody uses, in the shape of the probe's: a user may be bound to a key pattern.
_ABSENT_KEY = "startmigration:probe:absent"


@dataclass(frozen=True, slots=True)
class Needed:
    """A command; `loss` says what is missing without it (empty: the transfer cannot run).

    `harmless` is false where no form of it is without effect: then only DRYRUN can tell.
    """

    args: tuple[Arg, ...]
    loss: str = ""
    harmless: bool = True

    @property
    def name(self) -> str:
        """As a person would write it: `OBJECT IDLETIME`, `DUMP`."""
        words = self.args[:2] if self.args[0] == "OBJECT" else self.args[:1]
        return " ".join(str(word) for word in words)


def _of_source(info: ServerInfo, settings: TransferSettings) -> list[Needed]:
    scan: tuple[Arg, ...] = ("SCAN", 0, "COUNT", 1)
    if settings.key_type is not None:
        scan += ("TYPE", settings.key_type)
    needed = [
        Needed(("PING",)),
        Needed(("INFO",)),
        Needed(("SELECT", 0)),
        Needed(scan),
        Needed(("DUMP", _ABSENT_KEY)),
        Needed(("MGET", _ABSENT_KEY), "strings come by DUMP, which takes longer"),
    ]
    if info.version >= (7, 0, 0) and not info.fork:
        needed.append(Needed(("PEXPIRETIME", _ABSENT_KEY), "deadlines are less exact (PTTL)"))
    else:
        needed.append(Needed(("TIME",), "deadlines follow this machine's clock"))
    needed.append(Needed(("PTTL", _ABSENT_KEY)))
    access = "FREQ" if "lfu" in info.maxmemory_policy else "IDLETIME"
    needed.append(Needed(("OBJECT", access, _ABSENT_KEY), "idle times or counters are not kept"))
    return needed


def _of_target() -> list[Needed]:
    restore = ("RESTORE", _ABSENT_KEY, 0, "", "REPLACE", "ABSTTL")
    return [
        Needed(("PING",)),
        Needed(("INFO",)),
        Needed(("SELECT", 0)),
        # Elsewhere the probe shows it: a RESTORE that must fail anyway would prove the same less.
        Needed(restore, harmless=False),
        # A key without a value: MSET does nothing but complain.
        Needed(("MSET", _ABSENT_KEY, "", _ABSENT_KEY), "strings go by RESTORE, which takes longer"),
    ]


async def check_rights(
    side: Side, end: Admin, info: ServerInfo, settings: TransferSettings
) -> Check:
    """Which of the needed commands are denied to the user, or do not exist."""
    name = f"{side}-permissions"
    needed = _of_source(info, settings) if side == "source" else _of_target()
    how = "ACL DRYRUN"
    denied = await _dry_run(end, needed)
    if denied is None:
        how = "tried without effect"
        needed = [each for each in needed if each.harmless]
        denied = await _try(end, needed)
    if not denied:
        return passed(name, f"{len(needed)} commands allowed ({how})")
    what = ", ".join(each.name for each in denied)
    fatal = [each for each in denied if not each.loss]
    verbs = " ".join("+" + each.name.lower().replace(" ", "|") for each in denied)
    user = end.endpoint.username or "default"
    remedy = f"ACL SETUSER {user} {verbs} ~* (or another user, if the provider denies the command)."
    if fatal:
        return failed(name, f"denied or unknown: {what} ({how})", remedy)
    losses = "; ".join(sorted({each.loss for each in denied}))
    return warned(name, f"denied or unknown: {what} ({how}): {losses}", remedy)


async def _dry_run(end: Admin, needed: list[Needed]) -> list[Needed] | None:
    """The denied ones; None where there is no ACL DRYRUN, or no right to it."""
    (user,) = await end.pipeline([("ACL", "WHOAMI")])
    if isinstance(user, EngineError):
        return None
    replies = await end.pipeline([("ACL", "DRYRUN", user, *each.args) for each in needed])
    denied = []
    for each, reply in zip(needed, replies, strict=True):
        if isinstance(reply, ServerError) and "not found" in reply.message:
            denied.append(each)  # "Command 'x' not found": renamed or switched off
        elif isinstance(reply, EngineError):  # 6.x has ACL without DRYRUN
            return None
        elif reply != b"OK":  # the reason, as a string: "User joe has no permissions to run …"
            denied.append(each)
    return denied


async def _try(end: Admin, needed: list[Needed]) -> list[Needed]:
    replies = await end.pipeline([each.args for each in needed])
    return [each for each, reply in zip(needed, replies, strict=True) if _is_denial(reply)]


def _is_denial(reply: object) -> bool:
    if isinstance(reply, AuthError):
        return True
    # Renamed or switched off (rename-command), as some providers do. LFU and IDLETIME exclude each
    # other and a missing key has neither: such errors are answers of a command that may run.
    return isinstance(reply, ServerError) and "unknown" in reply.message.lower()
