"""How long a node was silent, judged by answers of a Redis that came late, or by a clock that jumped."""

from __future__ import annotations

import pytest

from broker.scheduler.watching import Watch

OFFSET = 1_000_000.0


class Redis:
    """Both clocks of a leader that looks at Redis; `watch` sees what it says."""

    def __init__(self):
        self.now, self.offset = 100.0, OFFSET
        self.watch = Watch(remembered_seconds=60.0)

    def look(self, after=0.25, unanswered=0.25):
        self.now += after
        self.watch.looked(self.now, self.now + self.offset, unanswered)

    def beat(self):
        return self.now + self.offset


@pytest.fixture
def redis():
    redis = Redis()
    redis.look()
    return redis


def test_silence_counts_from_the_last_beat(redis):
    beat = redis.beat()
    for _ in range(8):
        redis.look()
    assert redis.watch.silence(beat) == pytest.approx(2.0)
    assert not redis.watch.heard(beat)


def test_a_leader_that_was_busy_while_redis_answered_misses_nothing(redis):
    redis.look()
    beat = redis.beat()
    redis.look(after=8.0)
    assert redis.watch.silence(beat) == pytest.approx(8.0)
    assert redis.watch.heard(beat)


def test_of_a_time_without_an_answer_a_second_counts_at_most(redis):
    beat = redis.beat()
    redis.look(after=30.0, unanswered=30.0)
    assert redis.watch.silence(beat) == pytest.approx(1.0)
    later = redis.beat()
    redis.look(after=0.5)
    assert redis.watch.silence(later) == pytest.approx(0.5)


def test_with_a_connection_that_stays_slow_a_silent_node_is_judged_late_and_not_never(redis):
    beat, looks = redis.beat(), 0
    while redis.watch.silence(beat) < 15.0:
        redis.look(after=3.0, unanswered=3.0)
        looks += 1
    assert looks == 15


def test_beats_from_before_the_watch_say_nothing(redis):
    beat = redis.beat() - 500.0
    redis.look(after=0.5)
    assert redis.watch.silence(beat) == pytest.approx(0.5)
    redis.watch.start_anew()
    redis.look(after=5.0, unanswered=5.0)
    assert redis.watch.silence(beat) == 0.0


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_jump_of_redis_clock_is_nobodys_silence(redis, jump):
    beat = redis.beat()
    redis.offset += jump
    redis.look()
    assert redis.watch.silence(beat) <= 0.25
    redis.look(after=1.0)
    assert redis.watch.silence(beat) <= 1.25
