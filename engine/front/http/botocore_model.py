"""ElastiCache's service model, as botocore ships it: what the API's messages look like.

Nothing that the model describes is written by hand: parameters are read, and answers written, by
these shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from botocore.loaders import Loader

from engine.front.verbs import VERBS, Verb
from engine.model.setting import Setting, members_of
from engine.model.settings import SETTINGS

SERVICE = "elasticache"
API_VERSION = "2015-02-02"


@dataclass(frozen=True, slots=True)
class MemberKind:
    """How a member gives a setting of one kind (`model.setting.Kind`): the shape of its value, and
    what makes the setting of it."""

    shape: str
    read: Callable[[Any], Any]


MEMBERS: Mapping[str, MemberKind] = {
    "names": MemberKind("OurNameList", lambda value: tuple(dict.fromkeys(value))),
    "list": MemberKind("OurNameList", lambda value: tuple(dict.fromkeys(value))),
    "size": MemberKind("IntegerOptional", int),
    "count": MemberKind("IntegerOptional", int),
    "duration": MemberKind("IntegerOptional", float),
    "flag": MemberKind("Boolean", bool),
    "word": MemberKind("String", str),
    "text": MemberKind("String", str),
}
"""The kinds of settings that a request can give."""


def shapes_of_settings(action: str, settings: Iterable[Setting] = SETTINGS) -> dict[str, str]:
    """The members of ours by which `action` is given settings, each with the shape of its value."""
    return {
        name: MEMBERS[each.kind].shape
        for name, each in members_of(settings, action).items()
        if each.member is not None and each.member.ours
    }


def _request(verb: Verb) -> str:
    """The name of the shape of its requests."""
    return f"Our{verb.action}Message" if verb.ours else f"{verb.action}Message"


_OURS: Mapping[str, Mapping[str, str]] = {
    _request(verb): {name: shape for name, shape in verb.members.items() if shape}
    | shapes_of_settings(verb.action)
    for verb in VERBS
    if verb.action
}
"""Members of our own that requests may have beside the model's: by the shape of the request, each
with the shape of its value. The SDKs do not know them; a form can name them."""
_OUR_OPERATIONS: Mapping[str, str] = {
    name: _request(verb)
    for verb in VERBS
    if verb.ours
    for name in (verb.action, verb.former_action)
    if name
}
"""Operations of our own, each with the shape of its request; the answer is CompleteMigration's."""
_OUR_SHAPES: Mapping[str, Mapping[str, Any]] = {
    **{
        _request(verb): {"type": "structure", "required": ["ReplicationGroupId"]}
        for verb in VERBS
        if verb.ours
    },
    "OurNameList": {"type": "list", "member": {"shape": "String"}},
}
"""Their shapes, where the model has none that fits; the members are among `_OURS`."""
_ITEM = "member"
"""How the Query protocol calls a list's items where the model has no name for them."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a structure, or a list's items: its name on the wire, and its shape's name."""

    name: str
    shape: str


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape. `kind` is the model's type: structure, list, string, integer, boolean,
    timestamp, double …; `members` are a structure's, `item` is a list's, `values` an enum's."""

    name: str
    kind: str
    members: Mapping[str, Member]
    required: tuple[str, ...]
    item: Member | None
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: the shapes of what it takes and gives, and the element around the answer."""

    name: str
    takes: str
    gives: str
    wrapper: str


class Model:
    """The service model."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._shapes: Mapping[str, Any] = data["shapes"]
        self._known: dict[str, Shape] = {}
        self.namespace: str = data["metadata"]["xmlNamespace"]
        self.operations = {
            name: Operation(
                name,
                takes=each["input"]["shape"],
                gives=each["output"]["shape"],
                wrapper=each["output"].get("resultWrapper", f"{name}Result"),
            )
            for name, each in data["operations"].items()
            if "input" in each and "output" in each
        } | {
            name: Operation(
                name,
                takes=takes,
                gives=data["operations"]["CompleteMigration"]["output"]["shape"],
                wrapper=f"{name}Result",
            )
            for name, takes in _OUR_OPERATIONS.items()
        }

    def shape(self, name: str) -> Shape:
        """The shape of this name."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = self._read(name)
        return found

    def _read(self, name: str) -> Shape:
        data = _OUR_SHAPES[name] if name in _OUR_SHAPES else self._shapes[name]
        item = data.get("member")
        return Shape(
            name=name,
            kind=data["type"],
            members={
                member: Member(each.get("locationName", member), each["shape"])
                for member, each in data.get("members", {}).items()
            }
            | {member: Member(member, shape) for member, shape in _OURS.get(name, {}).items()},
            required=tuple(data.get("required", ())),
            item=None if item is None else Member(item.get("locationName", _ITEM), item["shape"]),
            values=tuple(data.get("enum", ())),
        )


@cache
def model() -> Model:
    """The model of the API's version; some tens of ms when it is first read."""
    return Model(Loader().load_service_model(SERVICE, "service-2", api_version=API_VERSION))
