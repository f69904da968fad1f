"""Looks after an embedded server of `cyxwiz up`: killed for memory, or dead on a full disk, it is started again.

In a thread of its own, for a start may take a minute, and the services are looked after meanwhile. They wait for the
server, which is where it was: same folder, address and password.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from broker.backoff import Backoff
from db.embedded_server import EmbeddedServer
from db.log_limit import limit_log

LOOK_EVERY_SECONDS = 0.25
#: a start that is under way when all is stopped ends with this process, and so does what it started
JOIN_SECONDS = 10.0


class ServerWatch(threading.Thread):
    def __init__(self, server: EmbeddedServer, say: Callable[[str], None]) -> None:
        super().__init__(name=f"{server.name}-watch", daemon=True)
        self._server, self._say = server, say
        self._stop_asked = threading.Event()
        self._backoff = Backoff()
        self._ready_at = time.monotonic()

    def stop(self) -> None:
        """Look no longer; call it before the server is stopped."""
        self._stop_asked.set()
        self.join(JOIN_SECONDS)

    def run(self) -> None:
        while not self._stop_asked.wait(LOOK_EVERY_SECONDS):
            with suppress(OSError):  # no file can be opened just now
                if self._server.has_ended():
                    self._start_again()
            limit_log(self._server.log_file)

    def _start_again(self) -> None:
        pause = self._backoff.pause_seconds(time.monotonic() - self._ready_at)
        self._say(f"died, starts again in {pause:.1f} s; log: {self._server.log_file}")
        failures = 0
        while not self._stop_asked.wait(pause):
            began = time.monotonic()
            try:
                self._server.start()
            except Exception as error:  # such as no thread left: nobody else would start the server again
                failures += 1
                pause = self._backoff.pause_seconds(0.0)
                self._say(_failure(error, failures, pause))
                continue
            self._ready_at = time.monotonic()
            self._say(f"ready: {self._server.name} runs again, with what it had ({self._ready_at - began:.1f} s)")
            return


def _failure(error: Exception, failures: int, pause_seconds: float) -> str:
    """All of it the first time, with the end of the server's log; then one line each."""
    if failures > 1:
        return f"cannot start, {failures} times now, next in {pause_seconds:g} s: {str(error).partition(' ends:')[0]}"
    return (
        f"cannot start, next in {pause_seconds:g} s: {error}\n"
        "Jobs that run go on, all else waits for it. Mend what is said above (often a full disk, or no memory left): "
        "then it starts by itself"
    )
