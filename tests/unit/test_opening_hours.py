"""Hours of a node: in its own time zone, over midnight, over a weekend, over changes of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from broker.scheduler.opening import Opening, check
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.opening_hours import OpeningHours, show_opening
from tests.unit.fleet import capability
from workers.hours import checked_hours

NIGHTS = "Mon-Fri 18:00-08:00, Sat-Sun"


def _at(text: str) -> datetime:
    """2026-06-01 is a Monday."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("hours", "at", "is_open"),
    [
        (NIGHTS, "2026-06-01T17:59", False),
        (NIGHTS, "2026-06-01T18:00", True),
        (NIGHTS, "2026-06-02T07:59", True),
        (NIGHTS, "2026-06-02T08:00", False),
        # from Friday's evening on it is open until Sunday's end, and Monday's morning belongs to nobody
        (NIGHTS, "2026-06-05T18:00", True),
        (NIGHTS, "2026-06-06T12:00", True),
        (NIGHTS, "2026-06-07T23:59", True),
        (NIGHTS, "2026-06-08T00:00", False),
        ("22:00-06:00", "2026-06-08T00:00", True),
        ("22:00-06:00", "2026-06-07T06:00", False),
        ("sunday 22:00-06:00", "2026-06-08T05:59", True),
        ("Fri-Mon", "2026-06-01T12:00", True),
        ("Fri-Mon", "2026-06-02T00:00", False),
        ("Wed 00:00-24:00", "2026-06-03T23:59", True),
        ("  mon   9:00 - 10:30  ", "2026-06-01T10:29", True),
    ],
)
def test_open_or_not(hours: str, at: str, is_open: bool) -> None:
    found = OpeningHours.parse(hours, "UTC")
    assert found.is_open(_at(at)) == is_open
    assert (found.opens_at(_at(at)) is None) == is_open


@pytest.mark.parametrize(
    ("hours", "zone", "at", "opens"),
    [
        (NIGHTS, "UTC", "2026-06-01T12:00", "2026-06-01T18:00"),
        (NIGHTS, "UTC", "2026-06-08T03:00", "2026-06-08T18:00"),
        ("Sun 10:00-11:00", "UTC", "2026-06-07T11:00", "2026-06-14T10:00"),
        # in Berlin two hours earlier by UTC in summer, in New York four later
        ("18:00-20:00", "Europe/Berlin", "2026-06-01T12:00", "2026-06-01T16:00"),
        ("18:00-20:00", "America/New_York", "2026-06-01T12:00", "2026-06-01T22:00"),
        # Berlin's clocks go from 2:00 to 3:00 on 2026-03-29: what opens at 2:30 opens within that hour
        ("02:30-05:00", "Europe/Berlin", "2026-03-28T12:00", "2026-03-29T01:30"),
        # and from 3:00 to 2:00 on 2026-10-25: the first 2:30 counts
        ("02:30-02:45", "Europe/Berlin", "2026-10-24T12:00", "2026-10-25T00:30"),
    ],
)
def test_the_next_opening(hours: str, zone: str, at: str, opens: str) -> None:
    found = OpeningHours.parse(hours, zone)
    opening = found.opens_at(_at(at))
    assert opening is not None
    # An hour that comes twice equals no time of another zone: compared by UTC.
    assert opening.astimezone(UTC) == _at(opens)
    assert found.is_open(_at(opens))


def test_the_next_opening_is_the_first_open_minute_of_the_week() -> None:
    found = OpeningHours.parse("Mon-Thu 18:00-08:00, Sat 12:00-13:00, Sun 23:30-00:15", "Asia/Kolkata")
    moment, opening = _at("2026-06-15T00:00"), None
    for _ in range(7 * 24 * 4):
        moment -= timedelta(minutes=15)
        opening = opening if not found.is_open(moment) else moment
        expected = None if opening == moment else opening
        if opening is not None:
            assert found.opens_at(moment) == expected, moment


def test_an_opening_is_shown_in_the_nodes_own_time() -> None:
    found = OpeningHours.parse("18:00-20:00", "Europe/Berlin").opens_at(_at("2026-06-01T12:00"))
    assert found is not None
    assert (show_opening(found), str(found.tzinfo)) == ("Mon 18:00", "Europe/Berlin")


def test_equal_hours_of_many_nodes_open_at_one_moment() -> None:
    at = Opening(_at("2026-06-01T12:00").timestamp())
    nights = capability(hours=NIGHTS, timezone="Europe/Berlin")
    assert at.of(capability()) is None
    assert at.of(nights) == _at("2026-06-01T16:00")
    assert at.of(nights) is at.of(capability(hours=NIGHTS, timezone="Europe/Berlin"))
    assert at.of(capability(hours="Mon", timezone=None)) is None


def test_hours_that_the_scheduler_cannot_read_are_refused_and_later_ignored() -> None:
    stranger = capability(hours="Mon", timezone="Mars/Olympus")
    with pytest.raises(InvalidSettings, match=r"^hours: .*no time zone that is known here"):
        check(stranger)
    # One in the record must not keep a scheduler from leading.
    assert Opening(0.0).of(stranger) is None


@pytest.mark.parametrize(
    ("hours", "timezone", "words"),
    [
        ("Mon 18-20", None, '^--hours: "Mon 18-20" is not understood'),
        ("Mon", "Mars", '^--hours: "Mars" is no time zone'),
        (None, "Europe/Berlin", "^--timezone Europe/Berlin: of what"),
    ],
)
def test_a_worker_does_not_start_with_hours_that_mean_nothing(hours: str, timezone: str, words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        checked_hours(hours, timezone)


def test_a_worker_without_a_time_zone_takes_that_of_its_machine() -> None:
    assert checked_hours(None, None) == {}
    assert checked_hours("Mon", "Asia/Tokyo") == {"hours": "Mon", "timezone": "Asia/Tokyo"}
    here = checked_hours("Mon", None)["timezone"]
    assert OpeningHours.parse("Mon", here).zone.utcoffset(datetime.now()) == datetime.now().astimezone().utcoffset()


@pytest.mark.parametrize(
    ("hours", "zone", "words"),
    [
        ("", "UTC", 'write days, hours or both, such as "Mon-Fri 18:00-08:00, Sat-Sun"'),
        ("Mon,", "UTC", "is not understood"),
        ("always", "UTC", '"always" is no day: write Mon'),
        ("Mon 18-20", "UTC", '"Mon 18-20" is not understood'),
        ("Mon 25:00-26:00", "UTC", '"25:00" is no time of day: write 00:00 to 24:00'),
        ("Mon 18:60-19:00", "UTC", "no time of day"),
        ("Mon 18:00-18:00", "UTC", "lasts no time"),
        ("Mon", "Berlin", '"Berlin" is no time zone .*Europe/Berlin'),
        ("Mon", "../etc", "is no time zone"),
        ("Mon", "", "is no time zone"),
    ],
)
def test_what_is_not_understood_is_refused(hours: str, zone: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OpeningHours.parse(hours, zone)
