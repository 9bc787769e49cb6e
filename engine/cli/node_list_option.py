"""`--customer-node-endpoint-list`, in the AWS CLI's spellings.

    Address=10.0.0.1,Port=6379 Address=::1,Port=6380      several values after one option
    '[{"Address": "10.0.0.1", "Port": 6379}]'             JSON: a list, or one object
    'Address="redis+sentinel://10.0.0.1,10.0.0.2/main"'   what Sentinels watch

An option's value may be split over several arguments at its commas (`Address=h, Port=1`). What an
address or a port may be is the API's business; here only the form is understood.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from engine.errors import UsageError
from engine.model.sentinel_group import is_url

OPTION = "--customer-node-endpoint-list"
EXPECTED = (
    "Expected Address=HOST,Port=PORT, several of them separated by spaces, or a JSON list of "
    '{"Address": "HOST", "Port": PORT}.'
)
_MEMBERS = {"address": "Address", "port": "Port"}
# A value ends at a comma or at white space; quotes are taken off. An IPv6 address holds colons.
_PAIR = re.compile(r"""(?P<name>[^\s,=]+)\s*=\s*(?P<value>"[^"]*"|'[^']*'|[^\s,"'=]*)""")
_COMMA = re.compile(r"\s*,\s*")
_SPACE = re.compile(r"\s+")


def spread(arguments: Sequence[str]) -> list[str]:
    """Give each value after `OPTION` an option of its own, as Typer wants it.

    No verb has positional arguments, so whatever follows up to the next option is a value.
    """
    out: list[str] = []
    gathering = False
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            gathering = name == OPTION
            if not gathering:
                out.append(argument)
            elif equals:
                out += (OPTION, value)
        elif gathering:
            out += (OPTION, argument)
        else:
            out.append(argument)
    return out


def parse(values: Iterable[str]) -> list[dict[str, Any]]:
    """The endpoints that the option's values name: dicts with `Address` and `Port` (an int).

    Raises `UsageError`, with what was expected, for anything that has not the form.
    """
    text = " ".join(values).strip()
    if not text:
        raise UsageError("no endpoint is named", remedy=EXPECTED)
    if text[0] in "[{":
        return _from_json(text)
    found: list[dict[str, Any]] = [{}]
    at = 0
    while True:
        pair = _PAIR.match(text, at)
        if pair is None:
            raise UsageError(f"{text[at:]!r} is not NAME=VALUE", remedy=EXPECTED)
        _add(found[-1], pair["name"], pair["value"].strip("\"'"))
        at = pair.end()
        if at == len(text):
            return [_checked(item) for item in found]
        if comma := _COMMA.match(text, at):
            at = comma.end()
        elif space := _SPACE.match(text, at):
            at = space.end()
            found.append({})
        else:
            raise UsageError(f"{text[at:]!r} follows a value", remedy=EXPECTED)


def _add(item: dict[str, Any], name: str, value: str) -> None:
    member = _MEMBERS.get(name.lower())
    if member is None:
        raise UsageError(f"{name!r} is not a member of an endpoint", remedy=EXPECTED)
    if member in item:
        raise UsageError(f"{member} is given twice for one endpoint", remedy=EXPECTED)
    if member == "Port":
        if not re.fullmatch(r"-?[0-9]{1,10}", value, re.ASCII):
            raise UsageError(f"the port {value!r} is not a number", remedy=EXPECTED)
        item[member] = int(value)
    else:
        item[member] = value


def _from_json(text: str) -> list[dict[str, Any]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UsageError(f"the list is not JSON: {error}", remedy=EXPECTED) from None
    items = data if isinstance(data, list) else [data]
    return [_checked(item) for item in items]


def _checked(item: object) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise UsageError("an endpoint in the list is not an object", remedy=EXPECTED)
    for name in item:
        if name not in _MEMBERS.values():
            raise UsageError(f"{name!r} is not a member of an endpoint", remedy=EXPECTED)
    for name, kind, article in (("Address", str, "a string"), ("Port", int, "a number")):
        if name not in item:
            if name == "Port" and is_url(item["Address"]):
                continue  # Sentinels, each with its port
            raise UsageError(f"an endpoint has no {name}", remedy=EXPECTED)
        if not isinstance(item[name], kind) or isinstance(item[name], bool):
            raise UsageError(f"{name} is not {article}", remedy=EXPECTED)
    if not item["Address"]:
        raise UsageError("an endpoint has no Address", remedy=EXPECTED)
    return item
