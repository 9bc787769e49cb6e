"""The options that say how a transfer is to run, for every verb that starts one, or resumes one.

They are made of what is declared at the fields of `TransferSettings` (`model.setting`): `KINDS`
says how each kind of value is written. A verb that has a parameter `wanted`, and is decorated with
`with_transfer_options`, takes them in its place; with `with_changes`, those that a resume may
change.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from engine.cli import durations, sizes, timestamps
from engine.cli.common_options import understood
from engine.cli.program_name import Option
from engine.errors import UsageError
from engine.model.setting import Setting
from engine.model.setting_conflicts import objection_to
from engine.model.settings import SETTINGS, Changes, TransferSettings

if TYPE_CHECKING:
    from engine.model.endpoint import Endpoint

OPTIONS = tuple(each for each in SETTINGS if each.option)
"""Settings that have an option, in the order of the help."""
_PLACE = "wanted"


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of a kind are written: Typer's `annotation`; `read` makes a value of what Typer
    gives; `write` makes options' values of one, as many as the option is given times.
    `optional`: where the option is not given Typer gives None, and the setting has its default."""

    annotation: Any
    read: Callable[[Any], Any] = lambda value: value
    write: Callable[[Any], Iterable[Any]] = lambda value: (value,)
    optional: bool = True


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _parts(values: Iterable[str]) -> tuple[str, ...]:
    """The names in a list of lists with commas, each once."""
    parts = (part.strip() for value in values for part in value.split(","))
    return _distinct(part for part in parts if part)


def _count_or_auto(text: str) -> int | str:
    if text != "auto" and not (text.isascii() and text.isdigit()):
        raise UsageError(f"{text!r} is neither auto nor a whole number of 0 or more")
    return text if text == "auto" else int(text)


KINDS: dict[str, Kind] = {
    "word": Kind(str, optional=False),
    "text": Kind(str),
    "number": Kind(float, optional=False),
    "count": Kind(int, optional=False),
    "count-or-auto": Kind(str, _count_or_auto, lambda value: (str(value),), optional=False),
    "numbers": Kind(list[int], _distinct, lambda value: value),
    "names": Kind(list[str], _distinct, lambda value: value),
    "list": Kind(list[str], _parts, lambda value: (",".join(value),)),
    "path": Kind(str, lambda value: str(Path(value).resolve())),
    "duration": Kind(str, durations.parse, lambda value: (durations.write(value),), optional=False),
    "size": Kind(str, sizes.parse, lambda value: (sizes.write(value),), optional=False),
    "moment": Kind(str, timestamps.parse, lambda value: (timestamps.write(value),)),
    "flag": Kind(bool, optional=False),
    "yes-no": Kind(
        Literal["yes", "no"],
        lambda value: value == "yes",
        lambda value: ("yes" if value else "no",),
        optional=False,
    ),
}


def _written(each: Setting) -> Any:
    """The option's default, as Typer shows it."""
    kind = KINDS[each.kind]
    if kind.optional:
        return None
    (value,) = kind.write(each.default)
    return value


def parameter(each: Setting) -> inspect.Parameter:
    """The option, as Typer reads it."""
    annotation: Any = KINDS[each.kind].annotation
    if each.words:
        annotation = Literal[each.words]
    least = 0 if each.kind == "numbers" else None
    option = typer.Option(each.option, metavar=each.metavar, help=each.help, min=least)
    if KINDS[each.kind].optional:
        annotation = annotation | None
    return _keyword(each.name, option, annotation, _written(each))


def _keyword(name: str, option: Any, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, option],
    )


def _parameters() -> Iterator[inspect.Parameter]:
    for each in OPTIONS:
        if (short := each.shorthand) is not None:
            option = typer.Option(short.option, metavar=short.metavar, help=short.help)
            # The last one of several files would be the only one that counts.
            kind: Any = list[str] if short.file else str
            yield _keyword(short_of(each), option, kind | None, None)
        yield parameter(each)


def short_of(each: Setting) -> str:
    """The parameter of its shorthand."""
    return f"{each.name}_short"


PARAMETERS = {each.name: each for each in _parameters()}
"""The options, as Typer reads them."""


def settings(**given: Any) -> TransferSettings:
    """The settings of a transfer as its options say: `given` by the names of `PARAMETERS`, those
    that are left out as their defaults. Raises `typer.BadParameter` for options that make no sense,
    or not together."""
    values: dict[str, Any] = {}
    in_file = _in_files(given)
    for each in OPTIONS:
        value = given.get(each.name)
        if each.name in in_file:
            value = [*in_file[each.name], *(value or ())]
        elif (
            (about := each.shorthand) is not None
            and not about.file
            and (short := given.get(short_of(each))) is not None
        ):
            value = [about.meant % short, *(value or ())]
        if value not in (None, [], ()):
            values[each.name] = _read(each, value)
    return understood(None, lambda: TransferSettings(**values))


def _in_files(given: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """What stands in the files that options name, by the names of settings."""
    found: dict[str, tuple[str, ...]] = {}
    for each in OPTIONS:
        if each.shorthand is not None and each.shorthand.file:
            for path in given.get(short_of(each)) or ():
                from engine.model import rules_file

                read = understood(each.shorthand.option, partial(rules_file.read, path))
                for name, rules in read.items():
                    found[name] = (*found.get(name, ()), *rules)
    return found


def _read(each: Setting, value: Any) -> Any:
    return understood(each.flag, lambda: KINDS[each.kind].read(value))


def with_transfer_options(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` with these options in the place of its parameter `wanted`, which it is then called
    with. Raises `typer.BadParameter` as `settings` does."""
    return _with(verb, PARAMETERS, lambda given: settings(**given))


def with_rules(verb: Callable[..., None]) -> Callable[..., None]:
    """The same with the options that are rules; `wanted` are the `Rules`."""
    names = [name for name in PARAMETERS if name in ("include", "include_short", "exclude")]
    options = {name: PARAMETERS[name] for name in names}
    return _with(verb, options, lambda given: settings(**given).rules)


def with_changes(verb: Callable[..., None]) -> Callable[..., None]:
    """The same with the options that a resume may change; `wanted` are the `Changes`."""
    changeable = {each.name: each for each in OPTIONS if each.resumed}
    options = {}
    for name, each in changeable.items():
        text = f"{each.resumed}  [default: as before]"
        option = typer.Option(each.flag, metavar=each.metavar, show_default=False, help=text)
        annotation: Any = Literal[each.words] if each.words else KINDS[each.kind].annotation
        options[name] = _keyword(name, option, annotation | None, None)

    def read(given: dict[str, Any]) -> Changes:
        said = {name: value for name, value in given.items() if value not in (None, [], ())}
        return cast(Changes, {name: _read(changeable[name], said[name]) for name in said})

    return _with(verb, options, read)


def _with(
    verb: Callable[..., None],
    options: dict[str, inspect.Parameter],
    read: Callable[[dict[str, Any]], Any],
) -> Callable[..., None]:
    own = inspect.signature(verb, eval_str=True).parameters
    listed: list[inspect.Parameter] = []
    for name, parameter in own.items():
        listed += options.values() if name == _PLACE else [parameter]

    def command(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in options}
        verb(**given, **{_PLACE: read(chosen)})

    command.__name__, command.__doc__ = verb.__name__, verb.__doc__
    # Typer passes everything by name, so that the order is the help's alone.
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in listed]
    )
    command.__annotations__ = {}
    return command


def fitting(source: Endpoint, target: Endpoint, wanted: TransferSettings) -> None:
    """Raises `typer.BadParameter` for a file where there can be none, or options it has no use
    for."""

    def check() -> None:
        if target.file_path is not None:
            raise UsageError("a target is a server, not a file")
        objection = objection_to(wanted, source)
        if objection is not None:
            raise UsageError(
                f"--source {source.url}: {objection}",
                remedy="Leave it out, or name a server as the source.",
            )

    understood(None if target.file_path is None else "--target", check)


def spelled(wanted: TransferSettings) -> list[Option]:
    """The options that give these settings: (name, value); those of a default are left out."""
    return [
        (each.flag, text)
        for each in OPTIONS
        if (value := getattr(wanted, each.name)) != each.default
        for text in KINDS[each.kind].write(value)
    ]
