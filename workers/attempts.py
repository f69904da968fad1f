"""The attempts that run on this node, and the stops that came before their job did."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict

from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.reports import Process

#: A stop whose message never came is forgotten after so many others, and so is an attempt that has begun.
_REMEMBERED = 10_000


class StopRequest:
    """Asked for once by any thread; the attempt's own thread waits for `fileno` among others."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._lock = threading.Lock()
        self.asked: Stop | None = None

    def fileno(self) -> int:
        return self._read

    def ask(self, stop: Stop) -> None:
        """The first stop counts, except that a cancel overrules a preemption."""
        with self._lock:
            if self._write < 0 or (self.asked is not None and self.asked.outcome == "cancelled"):
                return
            self.asked = stop
            os.write(self._write, b"s")

    def take(self) -> Stop | None:
        """What was asked for since the last call."""
        os.read(self._read, 64)
        return self.asked

    def close(self) -> None:
        with self._lock:
            if self._write >= 0:
                os.close(self._read)
                os.close(self._write)
            self._read = self._write = -1


class Attempts:
    """Running attempts by their token. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_token: dict[int, tuple[str, StopRequest]] = {}
        self._stopped_before_start: OrderedDict[int, Stop] = OrderedDict()
        self._entered: OrderedDict[int, None] = OrderedDict()
        #: of the running attempts whose start was told
        self._processes: dict[int, Process] = {}
        #: when (monotonic) the newest checkpoint of a running attempt was whole
        self._checkpointed_at: dict[int, float] = {}

    def enter(self, job: str, token: int, stop: StopRequest) -> bool:
        """An attempt begins; a stop that came earlier is asked for at once.

        False, and nothing begins, for one that has begun before: the scheduler publishes an attempt again when it
        cannot know that its message arrived.
        """
        with self._lock:
            if token in self._entered:
                return False
            self._entered[token] = None
            if len(self._entered) > _REMEMBERED:
                self._entered.popitem(last=False)
            self._by_token[token] = (job, stop)
            early = self._stopped_before_start.pop(token, None)
        if early is not None:
            stop.ask(early)
        return True

    def leave(self, token: int) -> None:
        """An attempt has ended."""
        with self._lock:
            self._by_token.pop(token, None)
            self._processes.pop(token, None)
            self._checkpointed_at.pop(token, None)

    def started(self, token: int, process: Process) -> None:
        """A running attempt has its process, and the scheduler is told so."""
        with self._lock:
            if token in self._by_token:
                self._processes[token] = process

    def processes(self) -> dict[int, Process]:
        """By token, of the running attempts whose start was told: who runs them."""
        with self._lock:
            return dict(self._processes)

    def checkpointed(self, token: int) -> None:
        """A running attempt has written a checkpoint, and it is whole."""
        with self._lock:
            if token in self._by_token:
                self._checkpointed_at[token] = time.monotonic()

    def checkpoint_age_seconds(self) -> dict[int, float]:
        """By token, of the running attempts that have written a checkpoint: how old the newest one is."""
        with self._lock:
            now = time.monotonic()
            return {token: round(now - at, 1) for token, at in self._checkpointed_at.items()}

    def stop(self, stop: Stop) -> None:
        """Stop an attempt, now or as soon as it arrives."""
        with self._lock:
            found = self._by_token.get(stop.token)
            if found is None:
                self._stopped_before_start[stop.token] = stop
                while len(self._stopped_before_start) > _REMEMBERED:
                    self._stopped_before_start.popitem(last=False)
        if found is not None:
            found[1].ask(stop)

    def preempt_all(self, grace_seconds: float) -> int:
        """The node stops: every attempt gives its place back. Returns how many there are."""
        with self._lock:
            found = [(job, token, stop) for token, (job, stop) in self._by_token.items()]
        for job, token, stop in found:
            told = Stop(
                job=job,
                token=token,
                outcome="preempted",
                grace_seconds=grace_seconds,
                reason="the node stops",
                by_node=True,
            )
            stop.ask(told)
        return len(found)

    def jobs(self) -> set[str]:
        """The jobs that run now."""
        with self._lock:
            return {job for job, _ in self._by_token.values()}

    def tokens(self) -> tuple[int, ...]:
        """Tokens of the attempts that run now."""
        with self._lock:
            return tuple(self._by_token)
