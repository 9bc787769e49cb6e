"""What a setting of a migration is, declared once: at its field of `TransferSettings`.

All that knows settings by name reads the declaration: the options of the command line and their way
back to a line (`cli.transfer_options`), the members of the API (`front.http`), what a resume may
change, the manual page, and the table of docs/options.md (`cli.options_page`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

T = TypeVar("T")

Kind = Literal[
    "word", "text", "number", "count", "count-or-auto", "numbers", "names", "list", "path",
    "duration", "size", "moment", "flag", "yes-no",
]  # fmt: skip
"""How a value is written on a command line. "count": 0 or more; "count-or-auto": that,
or the word `auto`; "numbers", "names": the option may
be repeated; "list": also with commas; "moment": seconds since the epoch, or ISO 8601."""
_KEY = "setting"


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the API's requests by which a setting is given: `name`, to these `actions`.
    `expected`: what is said of a value that is none, instead of what the settings say of it.
    `ours`: the service's model does not have it."""

    name: str
    actions: tuple[str, ...]
    expected: str = ""
    ours: bool = True


@dataclass(frozen=True, slots=True)
class Shorthand:
    """An option beside the setting's own, whose value stands for `meant` of it (`%s`). `file`: it
    names a file of rules, which has values of several settings (`model.rules_file`)."""

    option: str
    metavar: str
    help: str
    row: str
    meant: str = "%s"
    file: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The declaration of the setting `name`.

    `option` is empty where the library alone has it. `words` are those of the kind "word".
    `row` and `shown` are its words in docs/options.md, and the default there, where that is not the
    default as it is written. `resumed` is what resume-migration says of the option; where it is not
    empty the value may be another one when a transfer is resumed: what is carried stays the same.
    """

    name: str = ""
    default: Any = None
    kind: Kind = "text"
    option: str = ""
    metavar: str | None = None
    words: tuple[str, ...] = ()
    help: str = ""
    row: str = ""
    shown: str = ""
    resumed: str = ""
    member: Member | None = None
    shorthand: Shorthand | None = None

    @property
    def flag(self) -> str:
        """The option's name, without the one that says no (`--tune-source/--no-tune-source`)."""
        return self.option.partition("/")[0]


def setting(default: T, **declaration: Any) -> T:
    """The default of a field, declared as `Setting` has it."""
    made = Setting(default=default, **declaration)
    return field(default=default, metadata={_KEY: made})


def declared(settings: type[Any]) -> tuple[Setting, ...]:
    """The declarations of a class's fields, in their order."""
    return tuple(
        replace(each.metadata[_KEY], name=each.name)
        for each in fields(settings)
        if _KEY in each.metadata
    )


def members_of(settings: Iterable[Setting], action: str) -> dict[str, Setting]:
    """The members by which a request of this action gives settings, by their names."""
    return {
        each.member.name: each
        for each in settings
        if each.member is not None and action in each.member.actions
    }
