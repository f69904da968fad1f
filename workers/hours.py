"""The hours in which a node takes new work: `--hours "Mon-Fri 18:00-08:00, Sat-Sun" --timezone Asia/Tokyo`."""

from __future__ import annotations

import tzlocal

from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.opening_hours import OpeningHours


def checked_hours(hours: str | None, timezone: str | None) -> dict[str, str]:
    """`hours` and `timezone` of a capability; nothing without hours. Raises InvalidSettings that shows the form."""
    if hours is None:
        if timezone is not None:
            raise InvalidSettings(f"--timezone {timezone}: of what? Write --hours as well, or leave it out")
        return {}
    try:
        zone = timezone or tzlocal.get_localzone_name()
        OpeningHours.parse(hours, zone)
    except (ValueError, LookupError) as error:
        raise InvalidSettings(f"--hours: {error}") from None
    return {"hours": hours, "timezone": zone}
