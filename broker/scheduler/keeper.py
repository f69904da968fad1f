"""The thread that keeps the leadership while the main loop waits: for a lock, a slow Redis, a long read of the record.

PostgreSQL ends the session of a leader that is silent, so a frozen process is followed by another one. A process whose
main loop alone has stopped must be, too: then this thread falls silent by itself.
"""

from __future__ import annotations

import threading
import time

from db.leadership import Leadership

_EVERY_SECONDS = 1.0
#: longer than any one wait of the main loop: the time-outs of statements, of locks and of Redis
STALLED_SECONDS = 60.0


class Keeper(threading.Thread):
    def __init__(self, leadership: Leadership) -> None:
        super().__init__(name="leadership", daemon=True)
        self._leadership = leadership
        self._moved_at = time.monotonic()
        self._stop_asked = threading.Event()

    def moved(self) -> None:
        """The main loop goes on."""
        self._moved_at = time.monotonic()

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        while not self._stop_asked.wait(_EVERY_SECONDS):
            if time.monotonic() - self._moved_at < STALLED_SECONDS and not self._leadership.alive():
                return
