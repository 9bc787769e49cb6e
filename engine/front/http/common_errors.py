"""The errors that every action can give: ElastiCache's page of common errors, as faults.

An action's own faults are in `engine.errors`. Codes and statuses are those of the service.
"""

from __future__ import annotations

from typing import ClassVar

from engine.errors import ApiFault


class AccessDenied(ApiFault):
    """The key's role does not allow the action (the page calls it NotAuthorized too)."""

    code: ClassVar[str] = "AccessDenied"
    http_status: ClassVar[int] = 403


class IncompleteSignature(ApiFault):
    """The authentication of the request cannot be understood."""

    code: ClassVar[str] = "IncompleteSignature"


class InternalFailure(ApiFault):
    """Our fault."""

    code: ClassVar[str] = "InternalFailure"
    http_status: ClassVar[int] = 500


class InvalidAction(ApiFault):
    """No such action, or not in this version of the API."""

    code: ClassVar[str] = "InvalidAction"


class InvalidClientTokenId(ApiFault):
    """The access key is not known, or a session token came with it."""

    code: ClassVar[str] = "InvalidClientTokenId"
    http_status: ClassVar[int] = 403


class InvalidQueryParameter(ApiFault):
    """A parameter that the action does not have, or a list or structure that is not one."""

    code: ClassVar[str] = "InvalidQueryParameter"


class MalformedQueryString(ApiFault):
    """The request is not a form of UTF-8 text, or asks for another path than the API's."""

    code: ClassVar[str] = "MalformedQueryString"
    http_status: ClassVar[int] = 404


class MissingAction(ApiFault):
    """The parameter Action is missing."""

    code: ClassVar[str] = "MissingAction"


class MissingAuthenticationToken(ApiFault):
    """The request is not signed."""

    code: ClassVar[str] = "MissingAuthenticationToken"
    http_status: ClassVar[int] = 403


class MissingParameter(ApiFault):
    """A parameter that the action needs is missing."""

    code: ClassVar[str] = "MissingParameter"


class RequestExpired(ApiFault):
    """The request's date is too far from ours, or the request was used before."""

    code: ClassVar[str] = "RequestExpired"


class ServiceUnavailable(ApiFault):
    """The state cannot be used just now, or the server is ending."""

    code: ClassVar[str] = "ServiceUnavailable"
    http_status: ClassVar[int] = 503


class SignatureDoesNotMatch(ApiFault):
    """The signature is not that of this request by this key."""

    code: ClassVar[str] = "SignatureDoesNotMatch"
    http_status: ClassVar[int] = 403


class Throttling(ApiFault):
    """More requests than are answered."""

    code: ClassVar[str] = "Throttling"


class ValidationError(ApiFault):
    """The request is larger, or takes longer to arrive, than is allowed."""

    code: ClassVar[str] = "ValidationError"
