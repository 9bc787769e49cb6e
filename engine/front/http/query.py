"""Requests of the Query protocol: a form's text in, parameters in the model's shapes out.

A structure's members are `Name.Member`, a list's items `Name.member.1` or, where the model has a
name for them, `Name.ItemName.1`; both spellings are read, as the service does. An empty list is
`Name=`. Indices run from 1 without a gap: one that is missing might be an item that was lost.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_to_bytes

from engine.errors import InvalidParameterValueException
from engine.front.http.botocore_model import Model, Shape
from engine.front.http.common_errors import (
    InvalidQueryParameter,
    MalformedQueryString,
    MissingParameter,
    ValidationError,
)

PARAMETERS_MOST = 500
"""So many parameters a request may have."""
_NAME_SHOWN = 80

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_INDEX = re.compile(r"[1-9][0-9]{0,3}")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)
_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?",
    re.ASCII,
)
# What XML 1.0 has no way to write, and could therefore not be given back.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")

Pairs = Sequence[tuple[str, str]]


def pairs(form: bytes) -> list[tuple[str, str]]:
    """A form's names and values in their order.

    Raises `MalformedQueryString` for what is no form, `ValidationError` for too many.
    """
    if not form:
        return []
    if form.count(b"&") >= PARAMETERS_MOST:
        raise ValidationError(f"The request has more than {PARAMETERS_MOST} parameters.")
    if _BAD_ESCAPE.search(form):
        raise MalformedQueryString("The query string has a % that begins no escape.")
    found = []
    for part in form.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            found.append((_text(name), _text(value)))
    return found


def _text(raw: bytes) -> str:
    try:
        return unquote_to_bytes(raw.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedQueryString("The query string is not UTF-8.") from None


def single(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Names and their values. Raises `MalformedQueryString` for a name that comes twice."""
    flat: dict[str, str] = {}
    for name, value in found:
        if name in flat:
            raise MalformedQueryString(f"The parameter {_shown(name)} occurs more than once.")
        flat[name] = value
    return flat


class _Node:
    """What stands under one name: a value, parts with names of their own, or (an error) both."""

    __slots__ = ("parts", "value")

    def __init__(self) -> None:
        self.value: str | None = None
        self.parts: dict[str, _Node] = {}


def read(flat: dict[str, str], shape: Shape, model: Model) -> dict[str, Any]:
    """The parameters that a structure describes, from a form's names and values.

    Strings, ints, bools, aware datetimes, lists and dicts; what is not given is not there. Raises
    `InvalidQueryParameter` for names that the shape does not have, `InvalidParameterValue` for
    values of another type, `MissingParameter`.
    """
    root = _Node()
    # Deeper than the shape goes no name is followed: the tree is bounded by the form.
    for name, value in flat.items():
        node = root
        for part in name.split(".", 7):
            node = node.parts.setdefault(part, _Node())
        node.value = value
    return _structure(root, shape, model, "")


def _structure(node: _Node, shape: Shape, model: Model, path: str) -> dict[str, Any]:
    by_name = {member.name: (name, member.shape) for name, member in shape.members.items()}
    found: dict[str, Any] = {}
    for part, child in node.parts.items():
        full = f"{path}.{part}" if path else part
        if part not in by_name:
            raise InvalidQueryParameter(f"There is no parameter {_shown(full)}.")
        name, of = by_name[part]
        found[name] = _value(child, model.shape(of), model, full)
    for name in shape.required:
        if name not in found:
            where = f"{path}.{name}" if path else name
            raise MissingParameter(f"The request must contain the parameter {_shown(where)}.")
    return found


def _value(node: _Node, shape: Shape, model: Model, path: str) -> Any:
    if shape.kind == "structure":
        if node.value is not None:
            raise InvalidQueryParameter(f"The parameter {_shown(path)} is a structure.")
        return _structure(node, shape, model, path)
    if shape.kind == "list":
        return _list(node, shape, model, path)
    if node.parts or node.value is None:
        raise InvalidQueryParameter(f"The parameter {_shown(path)} has no parts.")
    return _scalar(node.value, shape, path)


def _list(node: _Node, shape: Shape, model: Model, path: str) -> list[Any]:
    if node.value is not None:
        if node.value or node.parts:
            raise InvalidQueryParameter(f"The parameter {_shown(path)} is a list.")
        return []
    assert shape.item is not None
    if len(node.parts) != 1 or not set(node.parts) <= {"member", shape.item.name}:
        raise InvalidQueryParameter(
            f"The items of {_shown(path)} are {path}.{shape.item.name}.1 and so on."
        )
    (spelled, items), *_ = node.parts.items()
    where = f"{path}.{spelled}"
    if items.value is not None or not items.parts:
        raise InvalidQueryParameter(f"The parameter {_shown(where)} has no index.")
    wrong = [index for index in items.parts if not _INDEX.fullmatch(index)]
    if wrong:
        raise InvalidQueryParameter(f"The index of {_shown(f'{where}.{wrong[0]}')} is not one.")
    ordered = sorted(items.parts.items(), key=lambda part: int(part[0]))
    for n, (index, _) in enumerate(ordered, 1):
        if int(index) != n:
            raise InvalidQueryParameter(f"The list {_shown(path)} has no {spelled}.{n}.")
    item = model.shape(shape.item.shape)
    return [_value(child, item, model, f"{where}.{index}") for index, child in ordered]


def _scalar(text: str, shape: Shape, path: str) -> Any:
    if shape.kind == "string":
        if _NOT_XML.search(text):
            raise _invalid(path, "has a character that XML does not allow")
        if shape.values and text not in shape.values:
            raise _invalid(path, f"must be one of {', '.join(shape.values)}")
        return text
    if shape.kind == "integer":
        if not _INTEGER.fullmatch(text) or not -(1 << 31) <= int(text) < 1 << 31:
            raise _invalid(path, "must be an integer")
        return int(text)
    if shape.kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise _invalid(path, "must be true or false")
        return text.lower() == "true"
    if shape.kind == "timestamp":
        return _timestamp(text, path)
    if shape.kind in ("double", "float"):
        if not _NUMBER.fullmatch(text):
            raise _invalid(path, "must be a number")
        return float(text)
    if shape.kind == "long":
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text, re.ASCII):
            raise _invalid(path, "must be an integer")
        return int(text)
    raise _invalid(path, "cannot be given")


def _timestamp(text: str, path: str) -> datetime:
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        found = datetime.fromisoformat(text)
        # A time without a zone is UTC, as everywhere in the API.
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _invalid(path, "must be a time as in 2017-03-30T07:03:49.555Z") from None


def _invalid(path: str, problem: str) -> InvalidParameterValueException:
    return InvalidParameterValueException(f"Invalid value for {_shown(path)}: {problem}.")


def _shown(name: str) -> str:
    """A parameter's name for a message, which must not grow with it."""
    clean = _NOT_XML.sub("?", name)
    return clean if len(clean) <= _NAME_SHOWN else f"{clean[:_NAME_SHOWN]}…"
