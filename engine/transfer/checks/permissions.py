"""Whether the users at both ends may run the commands that a transfer needs.

Where there is ACL DRYRUN (Redis 7.0, Valkey) it is asked: nothing runs. Elsewhere, or where it is
denied itself, harmless forms are run, and what has none is queued in a transaction that is
discarded: a server looks at the rights before it queues. PSYNC is queued by servers before 7.0
alone; elsewhere only DRYRUN can tell, or the handshake itself.

A command may be missing there, denied to the user, or allowed but not on the keys that are wanted:
three faults, with three remedies. The third is looked for with keys of the source (`sample_keys`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from engine.errors import AuthError, EngineError, ServerError
from engine.model.online_checkpoint import OWN_PREFIX
from engine.model.renamed_commands import FIXED
from engine.model.report import printable_key
from engine.model.server import ServerInfo
from engine.model.settings import TransferSettings
from engine.transfer.checks import required_commands
from engine.transfer.checks.check_result import Check, Side, failed, passed, warned
from engine.transfer.checks.permission_keys import UNKNOWN, SampleKeys
from engine.transfer.checks.required_commands import Needed, Trial, Way
from engine.transfer.graphs_in_parts import REMEDY as GRAPHS_REMEDY
from engine.transfer.graphs_in_parts import in_parts
from engine.wire.control_connection import Admin, Arg

_SHOWN_KEY = 80
_LOST_KEYS = "keys that the user's rules leave out are refused when they come, and named"
FOLLOWING = "following"
"""The name of the check whether the source will be followed."""


class Why(Enum):
    """What is in the way of a command."""

    MISSING = "the server does not know it"
    COMMAND = "the user may not run it"
    KEY = "the user may not touch its key"


@dataclass(frozen=True, slots=True)
class Denial:
    """One command that was refused; `key` is the one that its user may not touch."""

    needed: Needed
    why: Why
    key: bytes = b""
    fatal: bool = True
    """Whether nothing goes without it."""


@dataclass(frozen=True, slots=True)
class Rights:
    """What was found of some needed commands; `unknown` are those that could not be judged."""

    user: str
    asked: int
    denied: tuple[Denial, ...]
    how: str
    unknown: tuple[Needed, ...] = ()

    @property
    def fatal(self) -> tuple[Denial, ...]:
        """Those without which nothing goes."""
        return tuple(each for each in self.denied if each.fatal)

    def among(self, needed: Collection[Needed]) -> Rights:
        """What was found of these, where they were asked for with others."""
        denied = tuple(each for each in self.denied if each.needed in needed)
        unknown = tuple(each for each in self.unknown if each in needed)
        return replace(self, asked=len(needed) - len(unknown), denied=denied, unknown=unknown)

    @property
    def losses(self) -> str:
        """What goes without the denied ones, and how."""
        said = {each.needed.loss or _LOST_KEYS for each in self.denied if not each.fatal}
        return "; ".join(sorted(said))

    def figure(self, side: str, denied: Sequence[Denial] | None = None) -> str:
        """What is denied (all, or `denied` of it), in words; `side` is whose user it is."""
        denied = self.denied if denied is None else denied
        parts = []
        if missing := _of(denied, Why.MISSING):
            parts.append(
                f"the {side} does not know {_names(missing)} (renamed, switched off, or not in its "
                "version)"
            )
        if commands := _of(denied, Why.COMMAND):
            parts.append(f"the {side}'s user {self.user!r} may not run {_names(commands)}")
        if keys := _of(denied, Why.KEY):
            named = list(dict.fromkeys(printable_key(each.key)[:_SHOWN_KEY] for each in keys))
            more = f" and {len(named) - 2} more of those looked at" if len(named) > 2 else ""
            parts.append(
                f"the {side}'s user {self.user!r} may not touch the key "
                f"{' or '.join(map(repr, named[:2]))}{more} with {_names(keys)}"
            )
        return f"{'; '.join(parts)} ({self.how})"

    def remedy(self, side: Side, rules: str = "", *, chosen: bool = True) -> str:
        """What to do about it at `side`; `rules` in the place of the ACL rules of each command.
        `chosen`: whether other keys could be chosen."""
        parts = []
        if missing := _of(self.denied, Why.MISSING):
            parts.append(_renamed(side, missing))
        if commands := _of(self.denied, Why.COMMAND):
            rules = rules or " ".join(dict.fromkeys(each.needed.rule for each in commands))
            parts.append(
                f"ACL SETUSER {self.user} {rules} (or another user, if the provider denies the "
                "command)."
            )
        if keys := _of(self.denied, Why.KEY):
            own = all(each.key.startswith(OWN_PREFIX) for each in keys)
            pattern = f"~{OWN_PREFIX.decode()}*" if own else "~*"
            other = (
                "" if own or not chosen else ", or choose the keys that its rules name (--match)"
            )
            parts.append(f"ACL SETUSER {self.user} {pattern}{other}.")
        return " ".join(parts)


async def ask_rights(end: Admin, needed: Sequence[Needed], keys: SampleKeys = UNKNOWN) -> Rights:
    """Which of the needed commands are denied to the user, on `keys`, or do not exist. Raises
    `LinkError`."""
    user = end.endpoint.username or "default"
    denied = await _dry_run(end, needed, keys)
    if denied is not None:
        return Rights(user, len(needed), tuple(denied), "ACL DRYRUN")
    replies = await _try(end, needed, keys)
    found = []
    closed = await _closed(end, needed, keys)
    for each in needed:
        why = _denial(replies[each]) if each in replies else None
        if why is Why.KEY and keys.there and closed is not None and each.has_key:
            why = None  # the name beside the key is not allowed, and the key itself is
        if why is not None:
            found.append(_denied(each, why, keys))
        elif closed and each.has_key:
            found.append(_denied(each, Why.KEY, keys, closed))
    unknown = tuple(each for each in needed if each not in replies)
    return Rights(user, len(replies), tuple(found), "tried without effect", unknown)


async def check_rights(
    side: Side,
    end: Admin,
    info: ServerInfo,
    settings: TransferSettings,
    way: Way,
    keys: SampleKeys = UNKNOWN,
    rights: Rights | None = None,
) -> Check:
    """Whether the user of one end may do what this way takes, with `keys`. `rights`: as
    `replica_objection` has found them for this way."""
    name = f"{side}-permissions"
    rights = rights or await _rights_for(side, end, info, settings, way, keys)
    if rights.fatal:
        return failed(name, rights.figure(side), rights.remedy(side))
    if rights.denied:
        return warned(name, f"{rights.figure(side)}: {rights.losses}", rights.remedy(side))
    left = f"; not known: {_words(rights.unknown)}" if rights.unknown else ""
    return passed(name, f"{rights.asked} commands allowed ({rights.how}){left}")


async def _rights_for(
    side: Side,
    end: Admin,
    info: ServerInfo,
    settings: TransferSettings,
    way: Way,
    keys: SampleKeys,
) -> Rights:
    if side == "source":
        return await ask_rights(end, required_commands.of_source(info, settings, way), keys)
    needed = required_commands.of_target(info, way, whole=not settings.rules)
    if way == "scan":
        return await ask_rights(end, needed, keys)
    # Expire times are kept by import mode, or extended: one of the two must be allowed.
    # By rules it is the latter: the mode is the whole server's.
    importing = [] if settings.rules else required_commands.import_mode(info)
    if importing and not (await ask_rights(end, importing, keys)).denied:
        return await ask_rights(end, [*needed, *importing], keys)
    return await ask_rights(end, [*needed, *required_commands.extended_ttls(info)], keys)


async def replica_objection(
    ends: Mapping[Side, Admin],
    infos: Mapping[Side, ServerInfo],
    settings: TransferSettings,
    keys: SampleKeys = UNKNOWN,
    found: dict[Side, Rights] | None = None,
) -> tuple[str, str] | None:
    """Why the source cannot be followed with these users, and the rule to add; None if it can.
    `found` gets what they may do.

    Where the source may be scanned as well, a large graph is a reason too
    (`transfer.graphs_in_parts`). Raises `LinkError`.
    """
    each = await asyncio.gather(
        *(
            _rights_for(side, ends[side], info, settings, "replica", keys)
            for side, info in infos.items()
        )
    )
    if found is not None:
        found.update(zip(infos, each, strict=True))
    for side, rights in zip(infos, each, strict=True):
        if rights.fatal:
            return rights.figure(side, rights.fatal), rights.remedy(side)
    if settings.source_type == "auto" and "source" in infos:
        why = await in_parts(ends["source"], infos["source"])
        return (why, GRAPHS_REMEDY) if why else None
    return None


async def check_following(
    source: Admin,
    target: Admin,
    info: ServerInfo,
    settings: TransferSettings,
    keys: SampleKeys = UNKNOWN,
) -> list[Check]:
    """For a source that is followed: what is needed later than at the start."""

    async def at_source() -> list[Check | None]:
        needed = _of_fence(info, settings), _of_write_block(settings), _of_tuning(settings)
        asked = list(dict.fromkeys(each for some in needed for each in some))
        if not asked:
            return [_check_fence(info, settings, None)]
        rights = await ask_rights(source, asked)
        fence, block, tuning = (rights.among(some) if some else None for some in needed)
        return [
            _check_fence(info, settings, fence),
            _check_write_block(block),
            _check_tuning(tuning),
        ]

    found, writes = await asyncio.gather(at_source(), _check_writes(target, keys))
    return [check for check in (*found, writes) if check is not None]


async def check_comparison(
    side: Side,
    end: Admin,
    info: ServerInfo,
    settings: TransferSettings,
    way: Way,
    keys: SampleKeys = UNKNOWN,
) -> Check | None:
    """Whether the comparison before the cut-over can read; None if it can."""
    if settings.until != "cut-over":
        return None
    rights = await ask_rights(end, required_commands.whole_comparison(info, way), keys)
    if not rights.denied:
        return None
    return warned(
        f"{side}-comparison",
        f"{rights.figure(side)}: both ends cannot be compared, and the cut-over is refused then",
        rights.remedy(side, "+@read"),
    )


def _of_fence(info: ServerInfo, settings: TransferSettings) -> Sequence[Needed]:
    if settings.fence != "pause" or settings.until != "cut-over":
        return ()
    if not info.capabilities.client_pause:
        return ()
    if info.capabilities.pause_of_writes:
        return required_commands.PAUSE
    return required_commands.PAUSE[:1]


def _of_write_block(settings: TransferSettings) -> Sequence[Needed]:
    if settings.fence != "pause" or settings.until != "cut-over":
        return ()
    return required_commands.WRITE_BLOCK if settings.source_after == "refuse" else ()


def _of_tuning(settings: TransferSettings) -> Sequence[Needed]:
    return required_commands.TUNING if settings.tune_source else ()


def _check_fence(
    info: ServerInfo, settings: TransferSettings, rights: Rights | None
) -> Check | None:
    if settings.fence != "pause" or settings.until != "cut-over":
        return None
    if rights is None:
        return passed("fence", "writes to the source are refused: before 3.0 none can be paused")
    if not rights.denied:
        return passed("fence", "writes to the source can be paused")
    return failed(
        "fence",
        f"{rights.figure('source')}: writes to the source cannot be paused during the cut-over",
        f"{rights.remedy('source')} Or --fence none (stop the writers yourself), or --fence hook.",
    )


def _check_write_block(rights: Rights | None) -> Check | None:
    if rights is None or not rights.denied:
        return None
    figure = f"{rights.figure('source')}: once cut over {rights.losses}"
    resume = (
        "Or set --source-after resume if no client writes to the source after the cut-over. "
        "Without either the exit code is 1."
    )
    return warned("source-after", figure, f"{rights.remedy('source')} {resume}")


def _check_tuning(rights: Rights | None) -> Check | None:
    if rights is None:
        return None
    if not rights.denied:
        return passed("tune-source", "the source's rdbcompression can be set")
    return failed(
        "tune-source",
        rights.figure("source"),
        f"{rights.remedy('source')} Or leave out --tune-source.",
    )


async def _check_writes(target: Admin, keys: SampleKeys) -> Check:
    rights = await ask_rights(target, required_commands.WRITES, keys)
    if not rights.denied:
        return passed("stream-commands", f"{rights.asked} common writes allowed ({rights.how})")
    return warned(
        "stream-commands",
        f"{rights.figure('target')}: the migration fails when the source runs one of these "
        "commands",
        rights.remedy("target", "+@write"),
    )


# --- Asking ---


async def _dry_run(end: Admin, needed: Sequence[Needed], keys: SampleKeys) -> list[Denial] | None:
    """The denied ones; None where there is no ACL DRYRUN, or no right to it."""
    asked = [(each, name) for each in needed for name in (keys.names if each.has_key else (b"",))]

    def commands(user: bytes) -> list[tuple[Arg, ...]]:
        return [("ACL", "DRYRUN", user, *each.with_key(name)) for each, name in asked]

    # The user that the credentials name, most likely.
    likely = (end.endpoint.username or "default").encode()
    user, *replies = await end.pipeline([("ACL", "WHOAMI"), *commands(likely)])
    if isinstance(user, EngineError):
        return None
    if user != likely:
        replies = await end.pipeline(commands(user))
    denied: dict[tuple[Needed, Why], Denial] = {}
    for (each, name), reply in zip(asked, replies, strict=True):
        if isinstance(reply, ServerError) and "not found" in reply.message:
            why = Why.MISSING  # "Command 'x' not found": renamed or switched off
        elif isinstance(reply, EngineError):  # 6.x has ACL without DRYRUN
            return None
        elif reply == b"OK":
            continue
        else:  # the reason, as a string: "User joe has no permissions to run …", "… access …"
            why = Why.KEY if b"to access" in bytes(reply) else Why.COMMAND
        denied.setdefault((each, why), _denied(each, why, keys, name))
    return list(denied.values())


def _denied(needed: Needed, why: Why, keys: SampleKeys, name: bytes = b"") -> Denial:
    if why is not Why.KEY:
        return Denial(needed, why, fatal=not needed.loss)
    key = name or (keys.absent if needed.has_key else needed.own_key)
    # Where the keys that are wanted are not known, the user's rules may well name them.
    sure = keys.sure or not needed.has_key
    return Denial(needed, why, key, fatal=not needed.loss and sure)


async def _closed(end: Admin, needed: Sequence[Needed], keys: SampleKeys) -> bytes | None:
    """Of keys that are there, one that the user may not touch (empty: may touch each), found with a
    command that costs nothing whatever the value is; None where that was not found out."""
    if not keys.there or not any(each.has_key for each in needed):
        return b"" if keys.there else None
    replies = await end.pipeline([("PTTL", name) for name in keys.names])
    whys = [_denial(reply) for reply in replies]
    if any(why in (Why.COMMAND, Why.MISSING) for why in whys):
        return None
    return next((n for n, why in zip(keys.names, whys, strict=True) if why is Why.KEY), b"")


async def _try(end: Admin, needed: Sequence[Needed], keys: SampleKeys) -> dict[Needed, object]:
    """The replies to what could be tried."""
    key = keys.absent
    direct = [each for each in needed if each.trial is Trial.DIRECT]
    # A WATCH of ours is over with the UNWATCH behind it, or at the end of the connection.
    asked = [each.with_key(key) for each in direct]
    replies = dict(zip(direct, await end.pipeline(asked), strict=True))
    queued = [each for each in needed if each.trial is Trial.QUEUED]
    if queued:
        replies |= await _queue(end, queued, key)
    return replies


async def _queue(end: Admin, queued: Sequence[Needed], key: bytes) -> dict[Needed, object]:
    """The replies to what was queued and discarded; nothing ran.

    Without the right to DISCARD nothing is queued: MULTI could not be left again. Without the right
    to MULTI, which is known before anything is sent behind it, all would run.
    """
    (discard,) = await end.pipeline([("DISCARD",)])
    if _denial(discard) is not None:
        return {}
    (multi,) = await end.pipeline([("MULTI",)])
    # MULTI inside of MULTI is no question: the one before is the answer.
    of_multi: dict[Needed, object] = {each: multi for each in queued if each.args == ("MULTI",)}
    if multi != b"OK":
        return of_multi
    others = [each for each in queued if each not in of_multi]
    replies = await end.pipeline([*(each.with_key(key) for each in others), ("DISCARD",)])
    answered = zip(others, replies[:-1], strict=True)
    return of_multi | {each: reply for each, reply in answered if not _is_no_answer(reply)}


def _is_no_answer(reply: object) -> bool:
    """A command that is never queued says so before its rights are looked at (Redis 7.0)."""
    return isinstance(reply, ServerError) and "not allowed inside" in reply.message


def _denial(reply: object) -> Why | None:
    if isinstance(reply, AuthError):
        return Why.KEY if reply.of_key else Why.COMMAND
    if not isinstance(reply, ServerError):
        return None
    # A refused EXEC is told as an aborted transaction: "EXECABORT … because of: NOPERM …".
    if reply.code == "EXECABORT" and "NOPERM" in reply.message:
        return Why.COMMAND
    # Renamed or switched off (rename-command), as some providers do. LFU and IDLETIME exclude each
    # other and a missing key has neither: such errors are answers of a command that may run.
    return Why.MISSING if "unknown" in reply.message.lower() else None


def _of(denied: Iterable[Denial], why: Why) -> list[Denial]:
    return [each for each in denied if each.why is why]


def _renamed(side: Side, missing: Iterable[Denial]) -> str:
    """What to do where the server has given these commands other names."""
    words = dict.fromkeys(str(each.needed.args[0]) for each in missing)
    given = [
        "--psync-command NAME" if word == "PSYNC" else f"--command-name {side}:{word}=NAME"
        for word in words
        if word not in FIXED
    ]
    parts = []
    if given:
        them = "it another name" if len(given) == 1 else "them other names"
        parts.append(f"Where rename-command gave {them}: {' '.join(given)}.")
    if fixed := [word for word in words if word in FIXED]:
        own = "its own name" if len(fixed) == 1 else "their own names"
        parts.append(f"Give {', '.join(fixed)} back under {own}, in the {side}'s configuration.")
    return " ".join(parts)


def _names(denied: Iterable[Denial]) -> str:
    return _words(each.needed for each in denied)


def _words(needed: Iterable[Needed]) -> str:
    return ", ".join(dict.fromkeys(each.name for each in needed))
