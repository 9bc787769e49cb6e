"""Answers of the Query protocol: a response's dict in, XML by the model's shapes out.

Members have the model's names, in the model's order. Members that the model does not have (our
`Migration` and `Checks`) come last, in the same manner: clients pass over what they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from engine.front.http.botocore_model import Model, Operation, Shape

MEDIA_TYPE = "text/xml"
# XML 1.0 cannot say these in any way. (\x7f and others are allowed, and go as they are.)
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPES = str.maketrans(
    # Without a reference a parser makes of \r and \r\n a \n.
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}
)


def response(operation: Operation, body: Mapping[str, Any], request_id: str, model: Model) -> bytes:
    """The document that answers an operation."""
    inner = _structure(body, model.shape(operation.gives), model)
    return (
        f'<{operation.name}Response xmlns="{model.namespace}">'
        f"<{operation.wrapper}>{inner}</{operation.wrapper}>"
        f"<ResponseMetadata><RequestId>{text(request_id)}</RequestId></ResponseMetadata>"
        f"</{operation.name}Response>"
    ).encode()


def error(code: str, message: str, *, sender: bool, request_id: str, namespace: str) -> bytes:
    """The document of an error; `sender` says whose fault it is."""
    return (
        f'<ErrorResponse xmlns="{namespace}"><Error>'
        f"<Type>{'Sender' if sender else 'Receiver'}</Type>"
        f"<Code>{text(code)}</Code><Message>{text(message)}</Message></Error>"
        f"<RequestId>{text(request_id)}</RequestId></ErrorResponse>"
    ).encode()


def text(value: str) -> str:
    """Character data; what XML has no way to write becomes U+FFFD."""
    return _NOT_XML.sub("\ufffd", value).translate(_ESCAPES)


def _structure(value: Mapping[str, Any], shape: Shape, model: Model) -> str:
    parts = []
    for name, member in shape.members.items():
        if value.get(name) is not None:
            inner = _value(value[name], model.shape(member.shape), model)
            parts.append(f"<{member.name}>{inner}</{member.name}>")
    parts += (_plain(name, value[name]) for name in value if name not in shape.members)
    return "".join(parts)


def _value(value: Any, shape: Shape, model: Model) -> str:
    if shape.kind == "structure":
        return _structure(value, shape, model)
    if shape.kind == "list":
        assert shape.item is not None
        item, name = model.shape(shape.item.shape), shape.item.name
        return "".join(f"<{name}>{_value(each, item, model)}</{name}>" for each in value)
    return _scalar(value)


def _plain(name: str, value: Any) -> str:
    """An element without a shape: what the value is says how it is written."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        inner = "".join(_plain(key, each) for key, each in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        inner = "".join(_plain("member", each) for each in value)
    else:
        inner = _scalar(value)
    return f"<{name}>{inner}</{name}>"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return text(str(value.value) if isinstance(value, Enum) else str(value))
