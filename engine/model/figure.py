"""What a figure of a migration is, declared once: at its field of `Figures`.

All that shows figures reads the declaration: how the lanes of a migration add up
(`model.progress.total`), the members of the API (`front.response_shapes`), the page
(`front.page_details`), /metrics (`front.http.metrics`), the status line and the summary of a
report (`cli`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Adding = Callable[[Sequence[Any]], Any]
_KEY = "figure"


def added(values: Sequence[Any]) -> Any:
    """The sum."""
    return sum(values)


def added_if_known(values: Sequence[Any]) -> Any:
    """The sum; None where one is not known."""
    return None if None in values else sum(values)


def most(values: Sequence[Any]) -> Any:
    """The largest."""
    return max(values)


def most_if_known(values: Sequence[Any]) -> Any:
    """The largest; None where one is not known."""
    return None if None in values else max(values)


def only(values: Sequence[Any]) -> Any:
    """What several streams have each for themselves has no total."""
    return values[0] if len(values) == 1 else None


def said(values: Sequence[Any]) -> Any:
    """The words of one of those that have any: always the same one, whatever their order."""
    return min(filter(None, values), default="")


def first(values: Sequence[Any]) -> Any:
    """That of the first lane."""
    return values[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The declaration of the figure `name`. What it is not shown by is empty.

    `total`: how those of several lanes add up. `metric`: its name in /metrics, behind
    `startmigration_migration_`, and `meaning` the help there. `member`: its name in
    `Migration.Counters` of the API. `label`: on the page, as a count or a size (`form`); it is a
    worry there above `worry`, which None never is. `words`: behind the number, on the status line,
    where it is above `usual`; `report`: the same in the summary of a report, where it is above 0,
    and `followed`, if it stands there with what following a source took.
    """

    name: str = ""
    total: Adding | None = None
    metric: str = ""
    meaning: str = ""
    member: str = ""
    label: str = ""
    form: Literal["count", "bytes"] = "count"
    worry: int | None = None
    words: str = ""
    usual: int = 0
    report: str = ""
    followed: bool = False


def figure(default: T, total: Adding | None = None, **declaration: Any) -> T:
    """The default of a field, declared as `Figure` has it."""
    return field(default=default, metadata={_KEY: Figure(total=total, **declaration)})


def declared(figures: type[Any]) -> tuple[Figure, ...]:
    """The declarations of a class's fields, in their order."""
    return tuple(
        replace(each.metadata[_KEY], name=each.name)
        for each in fields(figures)
        if _KEY in each.metadata
    )


def counted(shown: Iterable[tuple[Figure, str]], of: Any, *, unusual: bool = False) -> list[str]:
    """`3 retries`: those of `shown` that have words and are not 0; with `unusual`, above what is
    usual."""
    found = []
    for each, words in shown:
        value = getattr(of, each.name)
        if words and value is not None and value > (each.usual if unusual else 0):
            found.append(f"{value:,} {words}")
    return found
