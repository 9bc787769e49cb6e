"""--max-items and --starting-token: the AWS CLI's own paging over the API's markers.

A token is opaque to the user: base64 of the marker of a page, and how many of that page's items
were already shown.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any

from engine.errors import UsageError

Ask = Callable[[str | None], Awaitable[dict[str, Any]]]


async def collect(
    ask: Ask, member: str, *, max_items: int | None = None, token: str | None = None
) -> dict[str, Any]:
    """Ask for page after page (by marker) and join the lists in `member`, up to `max_items`.

    The answer has a `NextToken` if items are left. Raises `UsageError` for a token that is none.
    """
    marker, shown = _read(token) if token is not None else (None, 0)
    items: list[Any] = []
    while True:
        page = await ask(marker)
        fresh = page[member][shown:]
        room = len(fresh) if max_items is None else max_items - len(items)
        items += fresh[:room]
        following = page.get("Marker")
        if room < len(fresh):
            return {member: items, "NextToken": _write(marker, shown + room)}
        if not following:
            return {member: items}
        if len(items) == max_items:
            return {member: items, "NextToken": _write(following, 0)}
        marker, shown = following, 0


def _write(marker: str | None, shown: int) -> str:
    data = json.dumps({"Marker": marker, "Shown": shown})
    return base64.urlsafe_b64encode(data.encode()).decode()


def _read(token: str) -> tuple[str | None, int]:
    try:
        data = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        marker, shown = data["Marker"], data["Shown"]
    except (ValueError, TypeError, KeyError):
        marker, shown = 0, 0
    if not (marker is None or isinstance(marker, str)) or not isinstance(shown, int) or shown < 0:
        raise UsageError(
            "the starting token is not a NextToken", remedy="Expected a NextToken of an answer."
        )
    return marker, shown
