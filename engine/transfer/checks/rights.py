"""Whether the users at both ends may run the commands that a transfer needs.

Where there is ACL DRYRUN (Redis 7.0, Valkey) it is asked: nothing runs. Elsewhere, or where it is
denied itself, harmless forms are run, and what has none is queued in a transaction that is
discarded: a server looks at the rights before it queues. PSYNC is queued by servers before 7.0
alone; elsewhere only DRYRUN can tell, or the handshake itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.errors import AuthError, EngineError, ServerError
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks import needs
from engine.transfer.checks.needs import Needed, Trial, Way
from engine.transfer.checks.result import Check, Side, failed, passed, warned
from engine.wire.admin import Admin

_ACL_SINCE = (6, 0, 0)
FOLLOWING = "following"
"""The name of the check whether the source will be followed."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What was found of some needed commands; `unknown` are those that could not be judged."""

    user: str
    asked: int
    denied: tuple[Needed, ...]
    how: str
    unknown: tuple[Needed, ...] = ()

    @property
    def fatal(self) -> tuple[Needed, ...]:
        """Those without which nothing goes."""
        return tuple(each for each in self.denied if not each.loss)

    @property
    def figure(self) -> str:
        """What is denied, in words."""
        return f"denied or unknown: {_names(self.denied)} ({self.how})"

    @property
    def remedy(self) -> str:
        """The ACL rule to add."""
        rules = " ".join(dict.fromkeys(each.rule for each in self.denied))
        return (
            f"ACL SETUSER {self.user} {rules} ~* (or another user, if the provider denies the "
            "command)."
        )


async def ask_rights(end: Admin, needed: Sequence[Needed]) -> Rights:
    """Which of the needed commands are denied to the user, or do not exist. Raises `LinkError`."""
    user = end.endpoint.username or "default"
    denied = await _dry_run(end, needed)
    if denied is not None:
        return Rights(user, len(needed), tuple(denied), "ACL DRYRUN")
    replies = await _try(end, needed)
    denied = [each for each in needed if each in replies and _is_denial(replies[each])]
    unknown = tuple(each for each in needed if each not in replies)
    return Rights(user, len(replies), tuple(denied), "tried without effect", unknown)


async def check_rights(
    side: Side, end: Admin, info: ServerInfo, settings: TransferSettings, way: Way
) -> Check:
    """Whether the user of one end may do what this way takes."""
    name = f"{side}-permissions"
    rights = await _rights_for(side, end, info, settings, way)
    if rights.fatal:
        return failed(name, rights.figure, rights.remedy)
    if rights.denied:
        losses = "; ".join(sorted({each.loss for each in rights.denied}))
        return warned(name, f"{rights.figure}: {losses}", rights.remedy)
    left = f"; not known: {_names(rights.unknown)}" if rights.unknown else ""
    return passed(name, f"{rights.asked} commands allowed ({rights.how}){left}")


async def _rights_for(
    side: Side, end: Admin, info: ServerInfo, settings: TransferSettings, way: Way
) -> Rights:
    if side == "source":
        return await ask_rights(end, needs.of_source(info, settings, way))
    needed = needs.of_target(info, way)
    if way == "scan":
        return await ask_rights(end, needed)
    # Deadlines are held by import mode, or lifted: one of the two must be allowed.
    importing = needs.import_mode(info)
    if importing and not (await ask_rights(end, importing)).denied:
        return await ask_rights(end, [*needed, *importing])
    return await ask_rights(end, [*needed, *needs.lifted_deadlines(info)])


async def replica_objection(
    ends: Mapping[Side, Admin], infos: Mapping[Side, ServerInfo], settings: TransferSettings
) -> tuple[str, str] | None:
    """Why the source cannot be followed with these users, and the rule to add; None if it can.

    Raises `LinkError`.
    """
    for side, info in infos.items():
        rights = await _rights_for(side, ends[side], info, settings, "replica")
        if rights.fatal:
            denied = _names(rights.fatal)
            reason = f"the {side}'s user {rights.user!r} may not run {denied} ({rights.how})"
            return reason, rights.remedy
    return None


async def check_following(
    source: Admin, target: Admin, info: ServerInfo, settings: TransferSettings
) -> list[Check]:
    """For a source that is followed: what is needed later than at the start."""
    return [
        check
        for check in (
            await _check_fence(source, info, settings),
            await _check_seal(source, settings),
            await _check_tuning(source, settings),
            await _check_writes(target),
        )
        if check is not None
    ]


async def check_comparison(
    side: Side, end: Admin, info: ServerInfo, settings: TransferSettings
) -> Check | None:
    """Whether the comparison before the cut-over can read; None if it can."""
    if settings.until != "cut-over":
        return None
    rights = await ask_rights(end, needs.comparison(info))
    if not rights.denied:
        return None
    return warned(
        f"{side}-comparison",
        f"{rights.figure}: both ends cannot be compared, and the cut-over is refused then",
        f"ACL SETUSER {rights.user} +@read ~*."
        if info.version >= _ACL_SINCE
        else "Restore these commands: rename-command in its configuration took them away.",
    )


async def _check_fence(source: Admin, info: ServerInfo, settings: TransferSettings) -> Check | None:
    if settings.fence != "pause" or settings.until != "cut-over":
        return None
    rights = await ask_rights(source, needs.PAUSE if info.version >= (6, 2, 0) else needs.PAUSE[:1])
    if not rights.denied:
        return passed("fence", "writes to the source can be paused")
    return failed(
        "fence",
        f"{rights.figure}: writes to the source cannot be paused during the cut-over",
        f"{rights.remedy} Or --fence none (stop the writers yourself), or --fence hook.",
    )


async def _check_seal(source: Admin, settings: TransferSettings) -> Check | None:
    if settings.fence != "pause" or settings.until != "cut-over":
        return None
    if settings.source_after != "refuse":
        return None
    rights = await ask_rights(source, needs.SEAL)
    if not rights.denied:
        return None
    losses = "; ".join(sorted({each.loss for each in rights.denied}))
    return warned("source-after", f"{rights.figure}: once cut over {losses}", rights.remedy)


async def _check_tuning(source: Admin, settings: TransferSettings) -> Check | None:
    if not settings.tune_source:
        return None
    rights = await ask_rights(source, needs.TUNING)
    if not rights.denied:
        return passed("tune-source", "the source's rdbcompression can be set")
    return failed("tune-source", rights.figure, f"{rights.remedy} Or leave out --tune-source.")


async def _check_writes(target: Admin) -> Check:
    rights = await ask_rights(target, needs.WRITES)
    if not rights.denied:
        return passed("stream-commands", f"{rights.asked} common writes allowed ({rights.how})")
    return warned(
        "stream-commands",
        f"{rights.figure}: the migration fails when the source writes with one of them",
        f"ACL SETUSER {rights.user} +@write ~*, if they are in use.",
    )


# --- Asking ---


async def _dry_run(end: Admin, needed: Sequence[Needed]) -> list[Needed] | None:
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


async def _try(end: Admin, needed: Sequence[Needed]) -> dict[Needed, object]:
    """The replies to what could be tried."""
    direct = [each for each in needed if each.trial is Trial.DIRECT]
    # A WATCH of ours is over with the UNWATCH behind it, or at the end of the connection.
    replies = dict(zip(direct, await end.pipeline([each.args for each in direct]), strict=True))
    queued = [each for each in needed if each.trial is Trial.QUEUED]
    if queued:
        replies |= await _queue(end, queued)
    return replies


async def _queue(end: Admin, queued: Sequence[Needed]) -> dict[Needed, object]:
    """The replies to what was queued and discarded; nothing ran.

    Without the right to DISCARD nothing is queued: MULTI could not be left again. Without the right
    to MULTI, which is known before anything is sent behind it, all would run.
    """
    (discard,) = await end.pipeline([("DISCARD",)])
    if _is_denial(discard):
        return {}
    (multi,) = await end.pipeline([("MULTI",)])
    # MULTI inside of MULTI is no question: the one before is the answer.
    of_multi: dict[Needed, object] = {each: multi for each in queued if each.args == ("MULTI",)}
    if multi != b"OK":
        return of_multi
    others = [each for each in queued if each not in of_multi]
    replies = await end.pipeline([*(each.args for each in others), ("DISCARD",)])
    answered = zip(others, replies[:-1], strict=True)
    return of_multi | {each: reply for each, reply in answered if not _is_no_answer(reply)}


def _is_no_answer(reply: object) -> bool:
    """A command that is never queued says so before its rights are looked at (Redis 7.0)."""
    return isinstance(reply, ServerError) and "not allowed inside" in reply.message


def _is_denial(reply: object) -> bool:
    if isinstance(reply, AuthError):
        return True
    # A refused EXEC is told as an aborted transaction: "EXECABORT … because of: NOPERM …".
    if isinstance(reply, ServerError) and reply.code == "EXECABORT" and "NOPERM" in reply.message:
        return True
    # Renamed or switched off (rename-command), as some providers do. LFU and IDLETIME exclude each
    # other and a missing key has neither: such errors are answers of a command that may run.
    return isinstance(reply, ServerError) and "unknown" in reply.message.lower()


def _names(needed: Iterable[Needed]) -> str:
    return ", ".join(dict.fromkeys(each.name for each in needed))
