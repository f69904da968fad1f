"""When nodes take new work, by the hours that they were started with. Pure: whoever asks says what time it is."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from broker.scheduler.log_lines import line
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.opening_hours import OpeningHours

log = logging.getLogger(__name__)


class Opening:
    """What is asked at one moment, in Unix seconds: equal hours are worked out once."""

    def __init__(self, now: float) -> None:
        self._now = datetime.fromtimestamp(now, UTC)
        self._known: dict[tuple[str, str | None], datetime | None] = {}

    def of(self, capability: Capability) -> datetime | None:
        """When a node that is outside its hours opens, in its own time zone; None: it takes work."""
        if capability.hours is None:
            return None
        kind = capability.hours, capability.timezone
        if kind not in self._known:
            try:
                self._known[kind] = _parse(capability.hours, capability.timezone).opens_at(self._now)
            except InvalidSettings as error:
                # It was let in by a scheduler whose machine knows the time zone.
                log.warning(line("hours_ignored", host=capability.hostname, reason=str(error)))
                self._known[kind] = None
        return self._known[kind]


def check(capability: Capability) -> None:
    """Raises InvalidSettings for hours that cannot be read here."""
    if capability.hours is not None:
        _parse(capability.hours, capability.timezone)


def _parse(hours: str, timezone: str | None) -> OpeningHours:
    try:
        return OpeningHours.parse(hours, timezone or "UTC")
    except ValueError as error:
        raise InvalidSettings(f"hours: {error}") from None
