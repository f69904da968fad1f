"""Waits that outlive a Redis that is away: until their deadline, and no shorter."""

from __future__ import annotations

import time

import pytest
import redis

from cyxwiz_tasks.errors import ServerUnavailable
from cyxwiz_tasks.outages import outliving
from cyxwiz_tasks.requests import Requests


def is_away() -> None:
    raise redis.ConnectionError


def test_it_is_given_up_at_the_deadline_and_not_a_pause_before() -> None:
    requests = Requests(redis.Redis(), "redis://h")
    requests.answered = True
    deadline = time.monotonic() + 0.3
    with pytest.raises(ServerUnavailable):
        outliving(requests, is_away, deadline)
    assert time.monotonic() >= deadline


def test_a_redis_that_has_never_answered_is_not_waited_for() -> None:
    with pytest.raises(ServerUnavailable):
        outliving(Requests(redis.Redis(), "redis://h"), is_away)
