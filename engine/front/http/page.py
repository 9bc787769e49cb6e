"""The page: a few static files, read once, and the headers that keep everything else out.

The page asks for nothing that is not this server's, and signs its calls as any client does: its
files are no secret, and are given to every client that can reach the server.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response

from engine.front.http.common_errors import MalformedQueryString

_FOLDER = "page"
_INDEX = "index.html"
_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    # A form is read by the script. Were it ever sent by the browser itself, a secret key would
    # stand in a URL.
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types startmigration-xml",
)
_HEADERS = {
    "Content-Security-Policy": "; ".join(_POLICY),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Looked up each time, and answered with 304: another version's script must not meet our feed.
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    kind: str
    tag: str


class Page:
    """The page's files, as they are in the package."""

    def __init__(self) -> None:
        folder = resources.files("engine.front") / _FOLDER
        self._files = {
            each.name: _file(each.read_bytes(), kind)
            for each in folder.iterdir()
            if (kind := _TYPES.get(each.name.rpartition(".")[2])) is not None
        }

    def index(self, request: Request) -> Response:
        """The page itself."""
        return self._given(request, _INDEX)

    def part(self, request: Request) -> Response:
        """One of its files, by the route's `name`. Raises `MalformedQueryString` for another."""
        name = request.path_params["name"]
        if name not in self._files or name == _INDEX:
            raise MalformedQueryString("The page has no such file.")
        return self._given(request, name)

    def _given(self, request: Request, name: str) -> Response:
        file = self._files[name]
        headers = {**_HEADERS, "ETag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.body, headers=headers, media_type=file.kind)


def asked_for(request: Request) -> bool:
    """Whether a request for `/` is a browser's for the page, and no call of the API."""
    return (
        request.method in ("GET", "HEAD")
        and not request.scope["query_string"]
        and "authorization" not in request.headers
        and "text/html" in request.headers.get("accept", "")
    )


def _file(body: bytes, kind: str) -> _File:
    return _File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
