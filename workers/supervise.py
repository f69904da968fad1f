"""Watch one job's process from its start to its end: relay what it says, keep its time, end it when asked.

Everything that can happen is a descriptor that turns readable, or a time of the monotonic clock: nothing is polled.
"""

from __future__ import annotations

import logging
import selectors
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from workers import link
from workers.attempt import Attempt
from workers.hung import Pace
from workers.limits import Limits

_LAST_FRAMES = frozenset({"returned", "raised", "exited", "retry", "not_json", "too_large", "cut_off"})
#: For threads that the job left at work, and its exit handlers, once it has said its result.
_EXIT_SECONDS = 5.0
#: For a job that hangs, to write down where.
_DUMP_SECONDS = 1.0
#: An exclusive job hears so often in each lease that its node still has it.
_TELLS_PER_LEASE = 8

log = logging.getLogger(__name__)

Event = Literal["frame", "output", "ended", "stop"]


@dataclass
class _Clock:
    """What is due for an attempt, and when."""

    limits: Limits
    pace: Pace
    #: when patience with an ending process is over
    patience_at: float | None = None
    #: when an exclusive job is told next how long its lease lasts; None for others
    tell_at: float | None = None

    def wait_seconds(self, attempt: Attempt) -> float:
        now = time.monotonic()
        # An hour at most, because select takes neither infinity nor a month.
        times = [now + 3600, *(at for at in (self.patience_at, self.tell_at) if at is not None)]
        if attempt.is_going_on:
            times.append(self.limits.next(attempt.node.link.heard_at)[0])
        return max(0.0, min(times) - now)


def supervise(attempt: Attempt) -> None:
    """Return once the process and all that it started are gone; what happened is in `attempt`."""
    clock = _clock_of(attempt)
    with selectors.DefaultSelector() as selector:
        selector.register(attempt.process.pipe, selectors.EVENT_READ, "frame")
        selector.register(attempt.process.log_fd, selectors.EVENT_READ, "output")
        selector.register(attempt.process.status_fd, selectors.EVENT_READ, "ended")
        selector.register(attempt.stop_request, selectors.EVENT_READ, "stop")
        while attempt.exit_code is None:
            for key, _ in selector.select(clock.wait_seconds(attempt)):
                if not _handle(key.data, attempt, clock):
                    selector.unregister(key.fileobj)
            _keep_time(attempt, clock)
    _end(attempt, clock)


def _clock_of(attempt: Attempt) -> _Clock:
    settings, began_at = attempt.node.settings, attempt.started_at
    limit_seconds, deadline_seconds = attempt.time_limit_seconds, attempt.assignment.deadline_seconds
    pace = Pace(settings.hung_floor_seconds, settings.hung_factor)
    limits = Limits(
        time_limit_at=None if limit_seconds is None else began_at + limit_seconds,
        deadline_at=None if deadline_seconds is None else attempt.arrived_at + deadline_seconds,
        pace=pace,
        alone_seconds=link.alone_seconds(settings, exclusive=attempt.header.exclusive),
    )
    return _Clock(limits, pace, tell_at=began_at if attempt.header.exclusive else None)


def _handle(event: Event, attempt: Attempt, clock: _Clock) -> bool:
    """One thing that happened. False: nothing more will come from there."""
    match event:
        case "frame":
            return _take_frames(attempt, clock)
        case "output":
            return attempt.log.read_from(attempt.process.log_fd)
        case "ended":
            attempt.exit_code = attempt.process.read_exit_code()
        case "stop":
            stop = attempt.stop_request.take()
            if stop is not None and attempt.last_frame is None:
                attempt.stopped = stop
                _ask_to_stop(attempt, clock, stop.grace_seconds)
    return True


def _take_frames(attempt: Attempt, clock: _Clock) -> bool:
    try:
        frames = attempt.process.pipe.receive_all()
    except (EOFError, ConnectionError):
        return False
    except (OSError, ValueError, RecursionError) as error:
        # Noise: nothing more can be heard, and a job that went on talking would wait for ever.
        log.warning("job %s: its process cannot be understood: %s", attempt.assignment.job, error)
        attempt.process.pipe.hang_up()
        return False
    for frame in frames:
        match frame["kind"]:
            case "progress":
                clock.pace.reported(time.monotonic())
                attempt.reports.progress(frame["at"], frame["values"])
            case "checkpoint":
                clock.pace.lives(time.monotonic())
                if "error" not in frame:
                    attempt.node.attempts.checkpointed(attempt.assignment.token)
                attempt.artifacts.checkpoint(frame)
            case "heeds":
                if not frame["stop"] and attempt.exit_code is None:
                    # Nobody in there looks: SIGTERM ends what does not handle it; who does has the rest of the grace.
                    attempt.process.ask_tree_to_end()
            case kind if kind in _LAST_FRAMES:
                attempt.last_frame = frame
                clock.patience_at = time.monotonic() + _EXIT_SECONDS
    return True


def _keep_time(attempt: Attempt, clock: _Clock) -> None:
    now, heard_at = time.monotonic(), attempt.node.link.heard_at
    if clock.tell_at is not None and now >= clock.tell_at:
        settings = attempt.node.settings
        clock.tell_at = now + settings.lease_seconds / _TELLS_PER_LEASE
        with suppress(OSError):  # it has just ended, and the loop is about to hear of it
            attempt.process.pipe.send_if_room({"kind": "lease", "until": heard_at + link.gone_seconds(settings)})
    if attempt.is_going_on and (reason := clock.limits.passed(now, heard_at)) is not None:
        attempt.ended_for = reason
        _end_for(attempt, clock)
    if clock.patience_at is not None and now >= clock.patience_at and attempt.exit_code is None:
        _kill(attempt)


def _end_for(attempt: Attempt, clock: _Clock) -> None:
    settings = attempt.node.settings
    match attempt.ended_for:
        case "hung":
            attempt.process.dump_stacks()
            clock.patience_at = time.monotonic() + _DUMP_SECONDS
        case "cut_off":
            _ask_to_stop(attempt, clock, link.grace_seconds(settings, exclusive=attempt.header.exclusive))
        case _:
            _ask_to_stop(attempt, clock, settings.stop_grace_seconds)


def _ask_to_stop(attempt: Attempt, clock: _Clock, grace_seconds: float) -> None:
    clock.patience_at = time.monotonic() + grace_seconds
    try:
        attempt.process.pipe.send_if_room({"kind": "stop"})
    except OSError:
        clock.patience_at = time.monotonic()


def _kill(attempt: Attempt) -> None:
    attempt.undead = attempt.process.end_tree()
    attempt.exit_code = attempt.process.read_exit_code() if not attempt.undead else -9


def _end(attempt: Attempt, clock: _Clock) -> None:
    """The process is gone: take what it still said, then end what it left behind."""
    attempt.ran_out_of_memory = attempt.process.kernel_ran_out_of_memory()
    attempt.undead = attempt.undead or attempt.process.end_tree()
    # Who hangs in the kernel may hold the other end open for ever.
    while attempt.process.pipe.wait(0) and _take_frames(attempt, clock):
        pass
    attempt.log.drain(attempt.process.log_fd)
