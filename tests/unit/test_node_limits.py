"""When a node ends a job by itself: time limit, deadline, silence of the job, silence of the broker."""

from __future__ import annotations

import selectors
import socket
import time
from types import SimpleNamespace

import pytest

from cyxwiz_tasks.settings import Settings
from workers.hung import REPORTS_NEEDED, Pace
from workers.limits import Limits
from workers.link import alone_seconds, gone_seconds, grace_seconds
from workers.supervise import _Clock

SETTINGS = Settings(lease_seconds=15, stop_grace_seconds=2, disconnected_seconds=900, preempt_grace_seconds=20)


def reported(pace: Pace, times: list[float]) -> Pace:
    for at in times:
        pace.reported(at)
    return pace


def test_a_job_without_a_pace_never_hangs():
    pace = Pace(floor_seconds=10, factor=20)
    assert pace.hangs_at() is None
    assert reported(pace, [float(at) for at in range(REPORTS_NEEDED - 1)]).hangs_at() is None


def test_the_floor_counts_where_reports_come_fast_and_the_pace_where_they_come_slowly():
    fast = reported(Pace(floor_seconds=10, factor=20), [at / 10 for at in range(50)])
    assert fast.hangs_at() == pytest.approx(4.9 + 10)
    slow = reported(Pace(floor_seconds=10, factor=20), [at * 3.0 for at in range(50)])
    assert slow.hangs_at() == pytest.approx(147 + 60)


def test_one_long_pause_is_no_new_pace_and_a_new_pace_is_learned():
    pace = reported(Pace(floor_seconds=1, factor=10), [0, 1, 2, 3, 4, 104, 105])
    assert pace.hangs_at() == pytest.approx(105 + 10)
    pace = reported(pace, [105 + 8.0 * step for step in range(1, 200)])
    assert pace.hangs_at() == pytest.approx(105 + 8 * 199 + 80)


def test_a_checkpoint_is_a_sign_of_life_and_no_pace():
    pace = reported(Pace(floor_seconds=1, factor=10), [0, 1, 2, 3, 4])
    pace.lives(30)
    assert pace.hangs_at() == pytest.approx(40)


def limits(**given: float) -> Limits:
    return Limits(pace=Pace(floor_seconds=10, factor=20), **({"alone_seconds": 900.0} | given))


def test_the_first_reason_is_the_one():
    both = limits(time_limit_at=5.0, deadline_at=7.0)
    assert both.next(heard_at=0.0) == (5.0, "time_limit")
    assert both.passed(4.9, heard_at=0.0) is None
    assert both.passed(5.0, heard_at=0.0) == "time_limit"
    assert limits(deadline_at=7.0).passed(8.0, heard_at=7.5) == "deadline"


def test_every_beat_that_is_answered_moves_the_cut():
    alone = limits(alone_seconds=10.0)
    assert alone.passed(9.9, heard_at=0.0) is None
    assert alone.passed(10.0, heard_at=0.0) == "cut_off"
    assert alone.passed(10.0, heard_at=0.1) is None


def test_an_exclusive_job_is_gone_before_its_lease_can_end():
    asked = alone_seconds(SETTINGS, exclusive=True)
    assert asked + grace_seconds(SETTINGS, exclusive=True) == gone_seconds(SETTINGS) < SETTINGS.lease_seconds
    short = SETTINGS.model_copy(update={"lease_seconds": 1.0})
    assert 0 < alone_seconds(short, exclusive=True) < gone_seconds(short) < 1.0


@pytest.mark.parametrize("alone_seconds", [30 * 86_400.0, float("inf")])
def test_a_node_waits_for_a_job_however_long_it_may_go_on(alone_seconds):
    """The kernel counts what a select may take in milliseconds, in 31 bits: 24.8 days."""
    pace = Pace(floor_seconds=10, factor=20)
    attempt = SimpleNamespace(is_going_on=True, node=SimpleNamespace(link=SimpleNamespace(heard_at=time.monotonic())))
    clock = _Clock(Limits(pace=pace, alone_seconds=alone_seconds), pace)
    ours, theirs = socket.socketpair()
    with ours, theirs, selectors.DefaultSelector() as selector:
        selector.register(ours, selectors.EVENT_READ)
        theirs.send(b"x")
        assert selector.select(clock.wait_seconds(attempt))


def test_any_other_job_goes_on_for_as_long_as_the_setting_says():
    assert alone_seconds(SETTINGS, exclusive=False) == 900
    assert grace_seconds(SETTINGS, exclusive=False) == 20
