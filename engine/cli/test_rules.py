"""test-rules: which keys of a source rules would take."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.cli.common_options import OutputOption, endpoint
from engine.cli.error_output import show
from engine.cli.output_format import table
from engine.cli.transfer_options import with_rules
from engine.cli.verb_runner import fail
from engine.errors import UsageError
from engine.model.rules import Rules

if TYPE_CHECKING:
    from engine.inspect.rules_trial import Judged, Trial

_SHOWN = 10
_NAME_MOST = 60


@with_rules
def trial(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Whose keys are looked at: a server's URL, or rdb:PATH, a file of SAVE. Of a "
            "cluster it is one node. It is never written to.",
        ),
    ],
    wanted: Rules,
    sample: Annotated[
        int,
        typer.Option("--sample", metavar="N", min=1, max=1_000_000, help="At most this many keys."),
    ] = 1000,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            show_default=False,
            help="The seed of the sample  [default: a random one]",
        ),
    ] = None,
    output: OutputOption = "text",
) -> None:
    """Show which keys would go over by rules.

    Some keys of a server or a file are held against the rules: how many each rule matches, and
    which keys go over. No value is read from a server. With --output json every key that was looked
    at is listed.
    """
    from engine.fleet import run
    from engine.inspect.rules_trial import RulesTrial
    from engine.model.credentials import Credentials

    here = endpoint("SOURCE", source)
    chosen = secrets.randbits(32) if seed is None else seed
    try:
        if not wanted:
            raise UsageError("no rules are given")
        at = here if here.file_path is not None else Credentials.load().apply(here)
        found = run(RulesTrial(at, wanted, sample=sample, seed=chosen).run())
    except Exception as error:
        fail(error, output)
    if output == "json":
        show(json.dumps(_as_object(found), indent=4))
    else:
        show("\n".join(_as_text(found)))


def _as_object(found: Trial) -> dict[str, Any]:
    return {
        "keys": found.there,
        "sample": len(found.keys),
        "going": found.going,
        "staying": len(found.keys) - found.going,
        "rules": [{"rule": rule, "matches": count} for rule, count in found.matched.items()],
        "looked_at": [
            {"db": each.db, "key": _name(each), "type": each.kind, "goes": each.goes,
             "by": each.by or None}
            for each in found.keys
        ],
    }  # fmt: skip


def _as_text(found: Trial) -> Iterator[str]:
    total = len(found.keys)
    share = f" ({100 * found.going / total:.1f} %)" if total else ""
    yield f"{total:,} of {found.there:,} keys looked at: {found.going:,} go over{share}"
    yield ""
    rows = [(rule, f"{count:,}") for rule, count in found.matched.items()]
    yield table(["rule", "matches"], rows, right=(1,))
    for goes, words in ((True, "go over"), (False, "stay")):
        some = [each for each in found.keys if each.goes is goes]
        if some:
            yield ""
            yield table([f"keys that {words}", "db", "type", "by"], map(_row, some[:_SHOWN]))
        if len(some) > _SHOWN:
            yield f"… and {len(some) - _SHOWN:,} more (--output json lists all)"


def _row(each: Judged) -> tuple[str, str, str, str]:
    name = _name(each)
    short = name if len(name) <= _NAME_MOST else f"{name[:_NAME_MOST]}…"
    none = "" if each.goes else "no rule includes it"
    return short, str(each.db), each.kind, each.by or none


def _name(each: Judged) -> str:
    from engine.inspect.shown_value import text

    return text(each.key)
