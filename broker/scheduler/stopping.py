"""Attempts that are told to end: by a wish to cancel, a drain, or a more urgent job that needs the place.

What a node is told may get lost with Redis, and a leader may die before it says it: `duties.reconcile` says it again to
a node that still runs the attempt.
"""

from __future__ import annotations

import time

from broker.scheduler.live import Live
from broker.scheduler.turn import Turn
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.settings import Settings

#: after the grace period, a node needs so long to end a process tree and to say so
_PATIENCE_SECONDS = 5.0


def cancel(turn: Turn, live: Live) -> None:
    """Tell an attempt's node, or those of a gang, that its job was cancelled. Said again, it does no harm."""
    for one in live.together:
        one.cancel_asked = True
        if one.ended is None:
            _say(turn, one, Stop(job=one.job_id, token=one.token, grace_seconds=turn.settings.stop_grace_seconds))


def preempt(turn: Turn, live: Live, reason: str) -> None:
    """Tell an attempt's node, or those of a gang, that it must give its place back; whoever was told to end is not."""
    for one in live.together:
        if one.stop is None and one.ended is None:
            _say(turn, one, preemption(one, reason, turn.settings))


def preemption(live: Live, reason: str, settings: Settings) -> Stop:
    """What a node is told of an attempt that must give its place back."""
    grace = settings.preempt_grace_seconds
    return Stop(job=live.job_id, token=live.token, outcome="preempted", grace_seconds=grace, reason=reason)


def end_with(turn: Turn, ended: Live, reason: str) -> None:
    """A member of a gang has ended: tell the nodes of all others that were not told yet."""
    for one in ended.gang:
        if one.stop is None and one.ended is None:
            one.follows = True
            _say(turn, one, following(one, reason, turn.settings))


def following(live: Live, reason: str, settings: Settings) -> Stop:
    """What a node is told of a member whose gang cannot go on."""
    grace = settings.stop_grace_seconds
    return Stop(job=live.job_id, token=live.token, outcome="preempted", grace_seconds=grace, reason=reason)


def is_overdue(live: Live) -> bool:
    """Whether an attempt should have ended by now: its node may not know that it must."""
    if live.stop is None:
        return live.cancel_asked  # told by a leader before this one, if at all
    return time.monotonic() - live.stop_said_at > live.stop.grace_seconds + _PATIENCE_SECONDS


def repeat(turn: Turn, live: Live) -> None:
    """Say once more what an attempt's node was told."""
    if live.stop is None:
        cancel(turn, live)
    else:
        _say(turn, live, live.stop)


def _say(turn: Turn, live: Live, stop: Stop) -> None:
    turn.outbox.control(live.node_id, stop)
    live.stop, live.stop_said_at = stop, time.monotonic()
