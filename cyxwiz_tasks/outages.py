"""Waits that outlive a Redis that goes away for a while."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TypeVar

from cyxwiz_tasks.broker_connection import reached
from cyxwiz_tasks.errors import ServerUnavailable
from cyxwiz_tasks.requests import Requests, pauses

T = TypeVar("T")

log = logging.getLogger(__name__)


def outliving(requests: Requests, act: Callable[[], T], deadline: float | None = None) -> T:
    """What `act` returns, which reads from Redis: done again while that is away, with a warning in the log.

    Raises ServerUnavailable when `deadline` of `time.monotonic()` comes, and at once where Redis has never answered.
    """
    waiting, next_pauses = False, pauses()
    while True:
        try:
            with reached(requests.url):
                value = act()
        except ServerUnavailable as error:
            left_seconds = math.inf if deadline is None else deadline - time.monotonic()
            if not requests.answered or left_seconds <= 0:
                raise
            if not waiting:
                log.warning("%s; waiting for it", error)
            waiting = True
            time.sleep(min(next(next_pauses), left_seconds))
        else:
            requests.answered = True
            return value
