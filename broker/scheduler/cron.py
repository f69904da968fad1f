"""When a cron expression is due next. Pure.

Around a change of the clocks as Debian's cron does it: what falls into the hour that is left out comes right after it,
and what falls into the hour that comes twice comes once, unless the expression says `*` for hour or minute.
"""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from cyxwiz_tasks.errors import InvalidJob


def next_after(cron: str, timezone: str, moment: datetime) -> datetime:
    """The first moment after this one, in UTC.

    Raises InvalidJob for an expression or a timezone that is none, and for one that never comes.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ValueError, OSError, KeyError):  # KeyError: what ZoneInfo raises of a name that nobody knows
        raise InvalidJob("timezone", f"{timezone!r} is no timezone", 'Write "UTC" or "Europe/Berlin"') from None
    if len(cron.split()) != 5:  # cronsim knows a sixth field, seconds: a scheduler's turn is no clock for them
        raise InvalidJob("cron", f"{cron!r} has not five fields", _EXAMPLE)
    try:
        # Within the hour that comes twice, cronsim begins with what its first time had.
        found: datetime = next(at for at in CronSim(cron, moment.astimezone(zone)) if at.astimezone(UTC) > moment)
    except CronSimError as error:
        raise InvalidJob("cron", f"{cron!r} cannot be read ({str(error).lower()})", _EXAMPLE) from None
    except StopIteration:
        raise InvalidJob("cron", f"{cron!r} never comes", _EXAMPLE) from None
    return found.astimezone(UTC)


_EXAMPLE = 'Write "0 3 * * *": minute, hour, day of the month, month, day of the week'
