"""When schedules are due, and the ids of their jobs."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from broker.scheduler.cron import next_after
from broker.scheduler.scheduling import firing_id
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.ids import new_id


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "timezone", "after", "expected"),
    [
        ("0 3 * * *", "UTC", "2026-01-01 02:59:59", "2026-01-01 03:00"),
        ("0 3 * * *", "UTC", "2026-01-01 03:00", "2026-01-02 03:00"),
        ("0 3 * * *", "Europe/Berlin", "2026-01-01 00:00", "2026-01-01 02:00"),
        ("0 3 * * *", "Europe/Berlin", "2026-07-01 00:00", "2026-07-01 01:00"),
        ("*/15 9-17 * * mon-fri", "UTC", "2026-01-02 17:45", "2026-01-05 09:00"),
        # The clocks go from 2 to 3 on this night: what was for half past two comes at three.
        ("30 2 * * *", "Europe/Berlin", "2026-03-29 00:00", "2026-03-29 01:00"),
        # They go back from 3 to 2: half past two comes twice, and counts once.
        ("30 2 * * *", "Europe/Berlin", "2026-10-24 23:00", "2026-10-25 00:30"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 00:30", "2026-10-26 01:30"),
        # Ten past two for the second time: its half past two is over.
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 01:10", "2026-10-26 01:30"),
        ("45 1 * * *", "America/New_York", "2026-11-01 06:20", "2026-11-02 06:45"),
    ],
)
def test_the_next_moment(cron, timezone, after, expected):
    found = next_after(cron, timezone, moment(after))
    assert (found, found.tzinfo) == (moment(expected), UTC)


@pytest.mark.parametrize(
    ("cron", "timezone", "told"),
    [
        ("61 * * * *", "UTC", "cron: '61 * * * *' cannot be read (bad minute). Write \"0 3 * * *\""),
        ("daily", "UTC", "cron: 'daily' has not five fields"),
        ("* * * * * *", "UTC", "has not five fields"),
        ("0 0 31 2 *", "UTC", "cron: '0 0 31 2 *'"),
        ("0 3 * * *", "Berlin", 'timezone: \'Berlin\' is no timezone. Write "UTC" or "Europe/Berlin"'),
        ("0 3 * * *", "../etc/passwd", "is no timezone"),
        ("0 3 * * *", "", "is no timezone"),
    ],
)
def test_what_is_no_schedule(cron, timezone, told):
    with pytest.raises(InvalidJob) as raised:
        next_after(cron, timezone, moment("2026-01-01 00:00"))
    assert told in str(raised.value)


def test_a_moment_of_a_schedule_has_one_id():
    one, other, at = new_id(), new_id(), moment("2026-01-01 03:00")
    ids = {firing_id(one, at), firing_id(other, at), firing_id(one, moment("2026-01-02 03:00"))}
    assert len(ids) == 3
    assert firing_id(one, at) in ids
    assert {UUID(id).version for id in ids} == {5}
