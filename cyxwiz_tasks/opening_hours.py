"""Hours in which a node takes new work, such as "Mon-Fri 18:00-08:00, Sat-Sun", in a time zone of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_ENTRY = re.compile(
    r"(?:(?P<first>[a-z]+)(?:\s*-\s*(?P<last>[a-z]+))?)?\s*(?:(?P<start>\d{1,2}:\d\d)\s*-\s*(?P<end>\d{1,2}:\d\d))?"
)
_FORM = 'write days, hours or both, such as "Mon-Fri 18:00-08:00, Sat-Sun"'


@dataclass(frozen=True)
class OpeningHours:
    #: minutes since Monday 00:00, the first included, the second not; the second may lie in the week after
    spans: tuple[tuple[int, int], ...]
    zone: ZoneInfo

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str, timezone: str) -> OpeningHours:
        """Entries with a comma between them. Hours that end before they begin end on the next day.

        Raises ValueError that shows the form.
        """
        spans = tuple(span for entry in text.split(",") for span in _spans(entry))
        return OpeningHours(spans, _zone(timezone))

    def is_open(self, at: datetime) -> bool:
        """Whether new work is taken at a moment, which must have a time zone."""
        local = at.astimezone(self.zone)
        minute = local.weekday() * _DAY_MINUTES + local.hour * 60 + local.minute
        return any(start <= minute < end or minute < end - _WEEK_MINUTES for start, end in self.spans)

    def opens_at(self, at: datetime) -> datetime | None:
        """The next opening in the node's own time; None: it is open."""
        if self.is_open(at):
            return None
        local = at.astimezone(self.zone)
        monday = datetime(local.year, local.month, local.day) - timedelta(days=local.weekday())
        openings = (
            # By way of UTC, so that an hour that a change of the clocks leaves out becomes one that there is.
            (monday + timedelta(days=days, minutes=start)).replace(tzinfo=self.zone).astimezone(UTC)
            for days in (0, 7)
            for start, _ in self.spans
        )
        return min(opening for opening in openings if opening > at).astimezone(self.zone)


def show_opening(at: datetime) -> str:
    """Such as "Mon 18:00"."""
    return f"{at:%a %H:%M}"


def _spans(entry: str) -> list[tuple[int, int]]:
    found = _ENTRY.fullmatch(entry.strip().lower())
    if found is None or not entry.strip():
        raise ValueError(f'"{entry.strip()}" is not understood: {_FORM}')
    first, last = found["first"] or "mon", found["last"] or found["first"] or "sun"
    start, end = _minutes(found["start"] or "00:00"), _minutes(found["end"] or "24:00")
    if start == end:
        raise ValueError(f'"{entry.strip()}" lasts no time: for whole days {_FORM}')
    from_day, to_day = _day(first), _day(last)
    days = range(from_day, (to_day if to_day >= from_day else to_day + 7) + 1)
    length = (end - start) % _DAY_MINUTES or _DAY_MINUTES
    return [(begin, begin + length) for day in days for begin in (day % 7 * _DAY_MINUTES + start,)]


def _day(name: str) -> int:
    if name[:3] not in _DAYS:
        raise ValueError(f'"{name}" is no day: write Mon, Tue, Wed, Thu, Fri, Sat or Sun')
    return _DAYS.index(name[:3])


def _minutes(text: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or hours * 60 + minutes > _DAY_MINUTES:
        raise ValueError(f'"{text}" is no time of day: write 00:00 to 24:00')
    return hours * 60 + minutes


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise ValueError(
            f'"{name}" is no time zone that is known here: write one such as "Europe/Berlin" '
            "(a machine without a list of them needs the package tzdata)"
        ) from None
