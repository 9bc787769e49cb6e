"""How often a server was called, by what a source that refuses writes may run all the same."""

from __future__ import annotations

from typing import NamedTuple

ASK_COUNTS = ("INFO", "commandstats")
"""The command; `counts_in` reads its reply."""
_PREFIX = "cmdstat_"


class Calls(NamedTuple):
    """How often a server was called: `scripts` (EVAL, EVALSHA), and `writes` (commands that can
    write, those of modules left out; None: not known)."""

    scripts: int
    writes: int | None = None

    @property
    def any(self) -> bool:
        """Whether anything was run that can have written."""
        return bool(self.scripts or self.writes)


def counts_in(reply: object) -> dict[str, int] | None:
    """How often each command was called by what a reply to `ASK_COUNTS` tells: since the server's
    start, or since CONFIG RESETSTAT. None where it does not tell."""
    if not isinstance(reply, bytes):
        return None
    found: dict[str, int] = {}
    for line in reply.decode("utf-8", "replace").splitlines():
        if line.startswith(_PREFIX):
            name, _, figures = line.removeprefix(_PREFIX).partition(":calls=")
            count = figures.partition(",")[0]
            if not count.isdigit():
                return None
            found[name] = int(count)
    # A server that tells anything has run a command: this INFO's connection has.
    return found or None


def since(calls: Calls | None, before: Calls | None) -> Calls | None:
    """What was run from `before` on, None where either is not known. Where the figures were reset
    meanwhile it is what was counted since."""
    if calls is None or before is None:
        return None
    return Calls(
        _more(calls.scripts, before.scripts) or 0,
        _more(calls.writes, before.writes),
    )


def total(first: Calls | None, more: Calls) -> Calls:
    """Both together; of what the first does not tell, the second."""
    if first is None:
        return more
    writes = None
    if first.writes is not None or more.writes is not None:
        writes = (first.writes or 0) + (more.writes or 0)
    return Calls(first.scripts + more.scripts, writes)


def calls_words(name: str, run: Calls, when: str = "since the cut-over") -> str:
    """The event: `name` has run so much, `when`; something was run (`Calls.any`)."""
    writes = ""
    if run.writes:
        one = run.writes == 1
        writes = "1 command that writes" if one else f"{run.writes:,} commands that write"
    if run.scripts:
        scripts = "1 script" if run.scripts == 1 else f"{run.scripts:,} scripts"
        what = f"{scripts} {when}{f', with {writes}' if writes else ''}"
    else:
        # Other commands of no script are refused.
        what = f"{writes} {when}, of transactions (MULTI) that were begun before it"
    return f"{name} has run {what}: what they wrote is only on the source"


def _more(now: int | None, before: int | None) -> int | None:
    if now is None or before is None:
        return None
    return now - before if now >= before else now
