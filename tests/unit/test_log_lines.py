"""The form of the scheduler's log."""

from __future__ import annotations

from broker.scheduler.log_lines import line


def test_values_are_quoted_where_they_need_it_and_nothing_can_forge_a_line():
    made = line("refused", job="a-1", reason='no "x"\nevent=forged', gone=None, milliseconds=1.23456, count=3)
    assert made == 'event=refused job=a-1 reason="no \\"x\\"\\nevent=forged" milliseconds=1.235 count=3'
    assert "\n" not in made
