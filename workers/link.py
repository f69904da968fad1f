"""Since when this node has not heard from the broker, by its own monotonic clock, and for how long its jobs may go on.

A node that hears nothing cannot know whether it is cut off or the broker is away. So its jobs go on: if nobody took
their places, nothing was lost, and if somebody did, their reports are refused. An `exclusive` job may not take that
chance. Its lease lasts at least `lease_seconds` from when the last beat that was answered had been *sent*; by then it
is gone.
"""

from __future__ import annotations

import time

from cyxwiz_tasks.settings import Settings

#: For ending a process tree, and for a clock that is read now and then.
_MARGIN_SECONDS = 2.0


class Link:
    """Written by the heartbeat, read by the threads of attempts."""

    def __init__(self) -> None:
        #: when the last beat that was answered had been sent
        self.heard_at = time.monotonic()
        #: how far the clock of Redis is ahead of this node's, which may be wrong by hours
        self.server_ahead_seconds = 0.0


def grace_seconds(settings: Settings, *, exclusive: bool) -> float:
    """How long a job that is ended because its node is cut off may take to end by itself."""
    if exclusive:
        return min(settings.stop_grace_seconds, settings.lease_seconds / 4)
    return settings.preempt_grace_seconds


def alone_seconds(settings: Settings, *, exclusive: bool) -> float:
    """So long after the last beat that was answered, a job is asked to end; after its grace it is gone."""
    if not exclusive:
        return settings.disconnected_seconds
    return gone_seconds(settings) - grace_seconds(settings, exclusive=True)


def gone_seconds(settings: Settings) -> float:
    """So long after it an exclusive job is gone, whatever became of the agent."""
    return settings.lease_seconds - min(_MARGIN_SECONDS, settings.lease_seconds / 4)
