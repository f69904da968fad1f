"""One thread writes to Redis all that running jobs say of themselves; no job ever waits for Redis.

It takes what has gathered, writes it as one pipeline, and keeps it until Redis has it. While Redis is away, what
gathers is bounded: older progress is thinned out, older output is dropped with a mark (the job's log file has all).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis

from workers.attempt_reports import AttemptReports, Command, Taken
from workers.refusals import is_refusal, passes

log = logging.getLogger(__name__)

#: What comes within this time travels together, and a job's first words do not compete for cores with its start.
_GATHER_SECONDS = 0.02
#: how often a waiting attempt looks whether it shall go on waiting
_LOOK_SECONDS = 0.5
_RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0)


class Reporter:
    """Start it once; each attempt gets its own `AttemptReports` through `watch`."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._attempts: list[AttemptReports] = []
        self._wake = threading.Event()
        #: somebody waits for what has gathered
        self._urgent = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cyxwiz-reporter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Write what is there and end; what Redis does not take within its time-out is lost."""
        self._closing.set()
        self._hurry()
        self._thread.join(5.0)

    def wake(self) -> None:
        """Something has gathered."""
        self._wake.set()

    def watch(self, reports: AttemptReports) -> None:
        """Write what this attempt gathers from now on."""
        with self._lock:
            self._attempts.append(reports)

    def finish(self, reports: AttemptReports, patient: Callable[[], bool]) -> bool:
        """Write all that this attempt has gathered, and nothing of it later.

        Waits while Redis is away and `patient` says so. False: what was left is dropped.
        """
        reports.end()
        self._hurry()
        while not (written := reports.written.wait(_LOOK_SECONDS)) and patient():
            self._hurry()
        with self._lock:
            self._attempts = [other for other in self._attempts if other is not reports]
        return written

    def _run(self) -> None:
        due: float | None = None
        while not self._closing.is_set():
            self._wake.wait(None if due is None else max(0.0, due - time.monotonic()))
            self._urgent.wait(_GATHER_SECONDS)
            self._urgent.clear()
            self._wake.clear()
            due = self._write_once()
        self._write_once()

    def _hurry(self) -> None:
        self._urgent.set()
        self._wake.set()

    def _write_once(self) -> float | None:
        """Write what is due; returns when the next is."""
        with self._lock:
            attempts = list(self._attempts)
        now = time.monotonic()
        taken = [(reports, self._take(reports, now)) for reports in attempts]
        commands = [command for _, some in taken for command in some.commands]
        if commands:
            self._write(commands, lambda: self._wanted(attempts))
        for reports, some in taken:
            if some.event is not None:
                reports.show(some.event)
            if some.last:
                reports.written.set()
        return min((due for reports in attempts if (due := reports.due()) is not None), default=None)

    def _take(self, reports: AttemptReports, now: float) -> Taken:
        try:
            return reports.take(now)
        except Exception as error:
            # A job put it on its pipe past ctx.report, or nested it too deeply. Without this thread no job here ends.
            log.warning("a report cannot be sent on: %s", error)
            self.wake()
            return Taken([], None, last=False)

    def _wanted(self, attempts: Iterable[AttemptReports]) -> bool:
        with self._lock:
            return not self._closing.is_set() and any(reports in self._attempts for reports in attempts)

    def _write(self, commands: list[Command], wanted: Callable[[], bool]) -> None:
        for failures in range(1_000_000):
            try:
                pipeline = self._client.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
                answers = pipeline.execute(raise_on_error=False)
            except redis.RedisError as error:
                # Of some commands it may have been the answer alone that was lost: progress may be there twice.
                answers = [error] * len(commands)
            commands, refusal = _to_repeat(commands, answers)
            if refusal is None:
                if failures:
                    log.info("Redis takes progress again")
                return
            if failures == 0:
                log.warning("Redis takes no progress (%s): jobs go on, theirs is kept until it does", refusal)
            if not wanted():
                return
            self._closing.wait(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])


def _to_repeat(commands: list[Command], answers: list[Any]) -> tuple[list[Command], Exception | None]:
    """The commands that may be taken another time, and why they were not now."""
    refused = [(command, answer) for command, answer in zip(commands, answers, strict=True) if is_refusal(answer)]
    lasting = [answer for _, answer in refused if not passes(answer)]
    if lasting:
        log.warning("Redis refused %d of %d writes for good: %s", len(lasting), len(commands), lasting[0])
    again = [(command, answer) for command, answer in refused if passes(answer)]
    return [command for command, _ in again], again[0][1] if again else None
