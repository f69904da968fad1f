"""A server that `cyxwiz up` looks after: said once when it dies, tried until it runs, with what is wrong."""

from __future__ import annotations

import threading
from pathlib import Path

from broker.backoff import PAUSES_SECONDS, STEADY_SECONDS, Backoff
from broker.server_watch import ServerWatch
from cyxwiz_tasks.errors import ServerUnavailable


class DyingServer:
    """As much of an embedded server as is looked after: dead until a start passes, and then told of."""

    name = "PostgreSQL"
    log_file = Path("no-such-folder/server.log")

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.dead = list(errors), True

    def has_ended(self) -> bool:
        return self.dead

    def start(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.dead = False


def watched(server, monkeypatch):
    monkeypatch.setattr("broker.server_watch.LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.setattr("broker.backoff.PAUSES_SECONDS", (0.01,))
    said, over = [], threading.Event()

    def say(text):
        said.append(text)
        if text.startswith("ready"):
            over.set()

    watch = ServerWatch(server, say)
    watch.start()
    assert over.wait(10)
    watch.stop()
    assert not watch.is_alive()
    return said


def test_one_that_died_is_started_again_and_said_so(monkeypatch):
    died, ready = watched(DyingServer(), monkeypatch)
    assert died == "died, starts again in 0.0 s; log: no-such-folder/server.log"
    assert ready.startswith("ready: PostgreSQL runs again")


def test_one_that_cannot_start_is_tried_on_and_its_reason_said_in_full_once(monkeypatch):
    full = ServerUnavailable("PostgreSQL did not start; its log ends:\nFATAL: No space left on device")
    died, first, second, third, ready = watched(
        DyingServer(full, full, OSError(28, "No space left on device")), monkeypatch
    )
    assert died.startswith("died")
    assert "FATAL: No space left" in first
    assert "often a full disk" in first
    assert second == "cannot start, 2 times now, next in 0.01 s: PostgreSQL did not start; its log"
    assert third.endswith("[Errno 28] No space left on device")
    assert ready.startswith("ready")


def test_pauses_grow_and_are_short_again_for_what_ran_for_long():
    backoff = Backoff()
    assert [backoff.pause_seconds(0) for _ in range(9)] == [*PAUSES_SECONDS, PAUSES_SECONDS[-1], PAUSES_SECONDS[-1]]
    assert backoff.pause_seconds(STEADY_SECONDS + 1) == PAUSES_SECONDS[0]


def test_one_that_cannot_start_for_a_reason_that_nobody_thought_of_is_tried_on(monkeypatch):
    _, failed, ready = watched(DyingServer(RuntimeError("can't start new thread")), monkeypatch)
    assert "can't start new thread" in failed
    assert ready.startswith("ready")
