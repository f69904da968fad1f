"""Watch one job's process from its start to its end: relay what it says, keep its time, end it when asked.

Everything that can happen is a descriptor that turns readable, or a deadline by the monotonic clock: nothing is polled.
"""

from __future__ import annotations

import selectors
import time
from dataclasses import dataclass
from typing import Literal

from workers.attempt import Attempt

_LAST_FRAMES = frozenset({"returned", "raised", "exited", "retry", "not_json", "too_large"})
#: For exit handlers of the job, once it has said its result.
_EXIT_SECONDS = 5.0

Event = Literal["frame", "output", "ended", "stop"]


@dataclass
class _Deadlines:
    limit: float | None
    #: when patience with an ending process is over
    patience: float | None = None

    def wait_seconds(self) -> float | None:
        times = [at for at in (self.limit, self.patience) if at is not None]
        return None if not times else max(0.0, min(times) - time.monotonic())


def supervise(attempt: Attempt) -> None:
    """Return once the process and all that it started are gone; what happened is in `attempt`."""
    limit_seconds = attempt.time_limit_seconds
    deadlines = _Deadlines(None if limit_seconds is None else attempt.started_at + limit_seconds)
    with selectors.DefaultSelector() as selector:
        selector.register(attempt.process.pipe, selectors.EVENT_READ, "frame")
        selector.register(attempt.process.log_fd, selectors.EVENT_READ, "output")
        selector.register(attempt.process.status_fd, selectors.EVENT_READ, "ended")
        selector.register(attempt.stop_request, selectors.EVENT_READ, "stop")
        while attempt.exit_code is None:
            for key, _ in selector.select(deadlines.wait_seconds()):
                if not _handle(key.data, attempt, deadlines):
                    selector.unregister(key.fileobj)
            _keep_time(attempt, deadlines)
    _end(attempt)


def _handle(event: Event, attempt: Attempt, deadlines: _Deadlines) -> bool:
    """One thing that happened. False: nothing more will come from there."""
    match event:
        case "frame":
            return _take_frames(attempt, deadlines)
        case "output":
            return attempt.log.read_from(attempt.process.log_fd)
        case "ended":
            attempt.exit_code = attempt.process.read_exit_code()
        case "stop":
            stop = attempt.stop_request.take()
            if stop is not None and attempt.last_frame is None:
                attempt.stopped = stop
                _ask_to_stop(attempt, deadlines, stop.grace_seconds)
    return True


def _take_frames(attempt: Attempt, deadlines: _Deadlines) -> bool:
    try:
        frames = attempt.process.pipe.receive_all()
    except (EOFError, OSError, ValueError):
        return False
    for frame in frames:
        match frame["kind"]:
            case "progress":
                attempt.reports.progress(frame["at"], frame["values"])
            case "heeds":
                if not frame["stop"] and attempt.exit_code is None:
                    # Nobody in there looks: SIGTERM ends what does not handle it; who does has the rest of the grace.
                    _terminate(attempt, deadlines)
            case kind if kind in _LAST_FRAMES:
                attempt.last_frame = frame
                deadlines.patience = time.monotonic() + _EXIT_SECONDS
    return True


def _ask_to_stop(attempt: Attempt, deadlines: _Deadlines, grace_seconds: float) -> None:
    deadlines.patience = time.monotonic() + grace_seconds
    try:
        attempt.process.pipe.send({"kind": "stop"})
    except OSError:
        deadlines.patience = time.monotonic()


def _keep_time(attempt: Attempt, deadlines: _Deadlines) -> None:
    now = time.monotonic()
    if deadlines.limit is not None and now >= deadlines.limit:
        deadlines.limit = None
        if attempt.last_frame is None and attempt.stopped is None:
            attempt.overstayed = True
            _ask_to_stop(attempt, deadlines, attempt.node.settings.stop_grace_seconds)
    if deadlines.patience is not None and now >= deadlines.patience and attempt.exit_code is None:
        _kill(attempt, 0.0)


def _terminate(attempt: Attempt, deadlines: _Deadlines) -> None:
    left = 0.0 if deadlines.patience is None else deadlines.patience - time.monotonic()
    _kill(attempt, max(0.0, left))


def _kill(attempt: Attempt, grace_seconds: float) -> None:
    attempt.undead = attempt.process.end_tree(grace_seconds)
    attempt.exit_code = attempt.process.read_exit_code() if not attempt.undead else -9


def _end(attempt: Attempt) -> None:
    """The process is gone: take what it still said, then end what it left behind."""
    attempt.ran_out_of_memory = attempt.process.kernel_ran_out_of_memory()
    attempt.undead = attempt.undead or attempt.process.end_tree()
    while _take_frames(attempt, _Deadlines(None)):
        pass
    attempt.log.drain(attempt.process.log_fd)
