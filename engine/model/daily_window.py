"""The time of the day in which a migration moves data (`--window`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from datetime import time as time_of_day
from zoneinfo import ZoneInfo

from engine.errors import UsageError

ALWAYS = "always"
"""The word for no window."""
_FORM = re.compile(r"(\d\d):(\d\d)-(\d\d):(\d\d)(?: ([A-Za-z0-9_+\-/]{1,64}))?", re.ASCII)
_REMEDY = "Expected one like 22:00-05:00 (UTC), or '22:00-05:00 Europe/Berlin'; or always."


@dataclass(frozen=True, slots=True)
class DailyWindow:
    """From `begin` to `end`, minutes of the day by the clocks of `zone`; over midnight where the
    end comes first."""

    begin: int
    end: int
    zone: tzinfo
    zone_name: str

    @classmethod
    def read(cls, text: str) -> DailyWindow | None:
        """As the option has it; None: always. Raises `UsageError`."""
        if text in ("", ALWAYS):
            return None
        match = _FORM.fullmatch(text)
        if match is None:
            raise UsageError(f"--window {text!r} is not a time of the day", remedy=_REMEDY)
        hours = [int(match[1]), int(match[3])]
        minutes = [int(match[2]), int(match[4])]
        begin, end = (hour * 60 + minute for hour, minute in zip(hours, minutes, strict=True))
        # (24:00 is the midnight at a day's end.)
        if max(minutes) > 59 or begin >= 1440 or end > 1440:
            raise UsageError(f"--window {text!r} is not a time of the day", remedy=_REMEDY)
        if begin == end % 1440 and not (begin == 0 and end == 1440):
            raise UsageError(
                f"--window {text!r} never opens: it begins and ends at the same time",
                remedy="Give another end; or always, where it is to be open all the time.",
            )
        name = match[5] or "UTC"
        try:
            # (A machine without the tables of the zones knows UTC as well.)
            zone = UTC if name == "UTC" else ZoneInfo(name)
        except (OSError, ValueError, KeyError):
            # (`ZoneInfoNotFoundError` is a KeyError.)
            raise UsageError(
                f"--window: the time zone {name!r} is not known on this machine", remedy=_REMEDY
            ) from None
        return cls(begin, end, zone, name)

    def closed_until(self, now: float) -> float | None:
        """When it opens next, where it is closed at `now`; None: it is open. Seconds since the
        epoch."""
        local = datetime.fromtimestamp(now, self.zone)
        at = local.hour * 60 + local.minute
        is_open = self.begin <= at < self.end
        if self.end < self.begin:
            is_open = at >= self.begin or at < self.end
        if is_open:
            return None
        opens = time_of_day(self.begin // 60, self.begin % 60)
        # An hour that comes twice, or not at all, has it open a day later at the most.
        moments = (
            datetime.combine(
                local.date() + timedelta(days=day), opens.replace(fold=fold), self.zone
            ).timestamp()
            for day in range(3)
            for fold in (0, 1)
        )
        return min(moment for moment in moments if moment > now)

    def words(self, now: float) -> str:
        """Why a migration is paused at `now`, and until when; empty: it is open."""
        opens = self.closed_until(now)
        if opens is None:
            return ""
        until = datetime.fromtimestamp(opens, self.zone)
        moment = f"{until:%Y-%m-%d %H:%M} {self.zone_name}"
        return f"paused outside of its window {self}: it goes on at {moment}"

    def __str__(self) -> str:
        begin, end = (f"{each // 60:02}:{each % 60:02}" for each in (self.begin, self.end))
        return f"{begin}-{end} {self.zone_name}"
