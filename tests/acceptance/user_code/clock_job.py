"""One small job in a module of its own, as a user's would be: for measuring how fast jobs start."""

from __future__ import annotations

import time

from cyxwiz_tasks import job


@job
def started_at() -> float:
    """The clock at the function's first line: CLOCK_MONOTONIC is one clock for all processes of a machine."""
    return time.monotonic()
