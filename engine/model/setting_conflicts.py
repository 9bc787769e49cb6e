"""What does not go together: settings with each other, and settings with a kind of source."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from engine.errors import UsageError
from engine.model.modules import TIME_SERIES_MODULE

if TYPE_CHECKING:
    from engine.model.endpoint import Endpoint
    from engine.model.settings import TransferSettings


def check_together(settings: TransferSettings) -> None:
    """Raises `UsageError` for settings that do not go together, whatever the source is."""
    if settings.tune_source and settings.read_from == "replica":
        raise UsageError(
            "--tune-source changes a setting of the server that sends the snapshot, which with "
            "--read-from replica may be another one by the time at which it is put back",
            remedy="Leave one of the two out.",
        )
    _check_fence(settings)
    objection = following_objection(settings)
    if settings.source_type == "replica" and objection is not None:
        raise UsageError(
            f"the source type replica does not do: {objection}",
            remedy="Use --source-type scan, or move everything.",
        )
    if settings.verify == "full":
        if objection is None and settings.until == "snapshot":
            objection = "--until snapshot does not follow"
        if objection is not None:
            raise UsageError(
                f"--verify full compares every key of a source that is followed: {objection}",
                remedy="Leave one of the two out; the verb verify compares any two servers.",
            )


def _check_fence(settings: TransferSettings) -> None:
    if settings.fence == "hook" and not (settings.fence_hook or "").strip():
        raise UsageError(
            "--fence hook needs a command",
            remedy="Give it with --fence-hook; it must return once writes have stopped.",
        )
    if settings.fence != "hook" and settings.fence_hook is not None:
        raise UsageError(
            f"--fence {settings.fence} runs no command",
            remedy="Use --fence hook with --fence-hook.",
        )


def following_objection(settings: TransferSettings) -> str | None:
    """Why what is asked for cannot be done where the source is followed, None if it can.

    A replica is sent every key and every write, and must apply each as it comes. With the source
    type "auto" an objection means that the source is scanned.
    """
    for value, option in (
        (settings.match, "--match"),
        (settings.key_type, "--type"),
        (settings.databases, "--db"),
    ):
        if value is not None:
            return f"{option} chooses keys, and a replica is sent all of them"
    if (rule := settings.rules.of_type) is not None:
        return (
            f"the rule {rule.text} asks for types, and a stream names keys without them (a key may "
            "become one of another type)"
        )
    if settings.if_exists != "replace":
        return f"--if-exists {settings.if_exists} keeps keys that the source's writes are meant for"
    if settings.source_type == "scan":
        return "--source-type scan reads keys once"
    return None


def followed_by_rules_objection(settings: TransferSettings, modules: Collection[str]) -> str | None:
    """Why a source with these modules is not followed by the rules that there are, None if it is,
    or if there are none."""
    if settings.rules and TIME_SERIES_MODULE in modules:
        return (
            "rules do not hold for a source with time series that is followed: one series changes "
            "others by its compaction rules, which no command names"
        )
    return None


def cluster_objection(settings: TransferSettings) -> str | None:
    """Why what is asked for cannot be done with a cluster at one of the ends, None if it can."""
    if settings.rules:
        option = "--include" if settings.include else "--exclude"
        return f"{option} is for servers with cluster mode disabled"
    return following_objection(settings)


def objection_to(settings: TransferSettings, source: Endpoint) -> str | None:
    """Why what is asked for cannot be done with this source, None if it can."""
    if source.aof_path is not None:
        return _aof_objection(settings)
    if settings.until_time is not None:
        return "--until-time is for an append-only file (aof:PATH)"
    if not settings.aof_load_truncated:
        return "--aof-load-truncated is for an append-only file (aof:PATH)"
    return None if source.rdb_path is None else file_objection(settings)


def file_objection(settings: TransferSettings) -> str | None:
    """Why what is asked for cannot be done with a source that is an RDB file, None if it can.

    A file is not written to, and cannot be asked what is in it: it is read from its first byte to
    its last, and what chooses keys is databases and rules.
    """
    if settings.source_type != "auto":
        return f"--source-type {settings.source_type} asks a server"
    if settings.match is not None or settings.key_type is not None:
        return (
            "a file is read whole, and --match and --type ask a server (--include chooses keys "
            "of a file)"
        )
    if settings.if_exists == "fail":
        # A run that is taken up again would find its own keys and could not tell.
        return "--if-exists fail compares a key with the source's (replace or skip do not)"
    if settings.fence == "hook":
        return "--fence hook holds back writers, and a file has none"
    if settings.tune_source:
        return "--tune-source sets options of a server"
    if settings.verify == "full":
        return "--verify full compares with a server that is followed"
    if settings.read_from != "primary":
        return f"--read-from {settings.read_from} asks a server for its replicas"
    return None


def _aof_objection(settings: TransferSettings) -> str | None:
    """The same of a source that is an append-only file.

    Its commands change what they find, so everything of it goes into an empty target.
    """
    if (objection := file_objection(settings)) is not None:
        return objection
    for chosen, option in (
        (settings.databases is not None, "--db"),
        (bool(settings.include), "--include"),
        (bool(settings.exclude), "--exclude"),
    ):
        if chosen:
            return (
                f"{option} chooses keys, and commands of an append-only file build on keys that "
                "would be left out (load it into a server of its version, and scan that)"
            )
    if settings.if_exists != "replace":
        return (
            f"--if-exists {settings.if_exists} keeps keys of the target, and the commands of an "
            "append-only file build on an empty one"
        )
    return None
