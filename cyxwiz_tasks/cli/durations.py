"""Times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def show_seconds(seconds: float) -> str:
    """Two parts at most: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 4 d 3 h."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f} s"
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def parse_time(text: Any) -> datetime | None:
    """A time out of the record, aware of its zone."""
    if not isinstance(text, str):
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def show_since(text: Any) -> str:
    """How long ago a time of the record was."""
    moment = parse_time(text)
    return "" if moment is None else show_seconds((datetime.now(UTC) - moment).total_seconds())


def show_between(start: Any, end: Any) -> str:
    """How long it took from one time of the record to another, or till now."""
    first, last = parse_time(start), parse_time(end)
    return "" if first is None else show_seconds(((last or datetime.now(UTC)) - first).total_seconds())
