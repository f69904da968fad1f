"""What a scheduler says while it does not lead."""

from __future__ import annotations

from broker.scheduler.hindrance import Growing, Hindrance
from cyxwiz_tasks.errors import ServerUnavailable


def test_what_stays_so_is_said_at_once_and_then_at_growing_intervals():
    growing = Growing()
    said = [second for second in range(400) if growing.is_due("no such host", float(second))]
    assert said == [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363]


def test_what_is_new_is_said_soon_and_what_changes_all_the_time_once_a_second():
    growing = Growing()
    assert [tenths for tenths in range(100) if growing.is_due("away", tenths / 10)] == [0, 10, 30, 70]
    assert [tenths for tenths in range(100, 121) if growing.is_due(f"pid {tenths}", tenths / 10)] == [100, 110, 120]


def test_another_one_that_leads_is_said_once_and_again_after_trouble(caplog):
    caplog.set_level("INFO")
    hindrance, away = Hindrance(), ServerUnavailable("PostgreSQL cannot be used (no such database)")
    for trouble in (None, None, away, away, None, None):
        hindrance(trouble)
    assert caplog.messages == [
        "event=another_leads",
        'event=cannot_lead reason="PostgreSQL cannot be used (no such database)"',
        "event=another_leads",
    ]
