"""Runs services as child processes: each with a log file, restarted with backoff when it dies, stopped in order."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from broker.backoff import Backoff
from cyxwiz_tasks.cli.supervised import SUPERVISOR
from cyxwiz_tasks.errors import ServerUnavailable
from db.log_limit import limit_log

LOOK_EVERY_SECONDS = 0.1
LOG_TAIL_BYTES = 2000


@dataclass(frozen=True)
class Service:
    """One `cyxwiz ...` command; `ready_text` is what its log says once it serves, `standby_text` once it could."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    ready_text: str
    standby_text: str | None = None
    #: SIGKILL follows this long after SIGTERM
    stop_timeout_seconds: float = 20.0
    #: the others need it to end in order, so it is stopped after them
    needed_to_the_last: bool = False


@dataclass
class Running:
    service: Service
    log_file: Path
    process: subprocess.Popen[bytes] | None = None
    log_start: int = 0
    started_at: float = 0.0
    backoff: Backoff = field(default_factory=Backoff)
    restart_at: float | None = None
    announced: bool = False

    def start(self) -> None:
        with open(self.log_file, "ab") as log:
            self.log_start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cyxwiz_tasks.cli.main", *self.service.arguments],
                env=os.environ
                | dict(self.service.environment)
                | {"PYTHONUNBUFFERED": "1", SUPERVISOR: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C at the terminal reaches the supervisor alone, which stops its services in order.
                process_group=0,
            )
        self.started_at, self.restart_at, self.announced = time.monotonic(), None, False

    def output(self) -> str:
        """What it wrote since its last start."""
        with open(self.log_file, "rb") as log:
            log.seek(self.log_start)
            return log.read().decode(errors="replace")

    def ready_line(self) -> str | None:
        """The line of its log that says it serves, or stands by, once it is there."""
        texts = [text for text in (self.service.ready_text, self.service.standby_text) if text]
        return next((line for line in self.output().splitlines() if any(text in line for text in texts)), None)


class Supervisor:
    """Starts, watches and stops services. Use it from the main thread alone: a child dies with the thread it is of."""

    def __init__(self, services: Sequence[Service], log_folder: Path, announce: Callable[[Running, str], None]) -> None:
        """`announce(service, event)` is called with "ready", "died" and "stopped", which may say more."""
        log_folder.mkdir(parents=True, exist_ok=True)
        self.running = [Running(service, log_folder / f"{service.name}.log") for service in services]
        self.announce = announce

    def start(self, timeout_seconds: float = 90.0, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Start all and wait until each serves.

        Raises ServerUnavailable with the end of its log if one dies first or takes too long.
        """
        for running in self.running:
            running.start()
        deadline = time.monotonic() + timeout_seconds
        while waiting := [running for running in self.running if not running.announced]:
            for running in waiting:
                self._announce_if_ready(running)
                if not running.announced and running.process is not None and running.process.poll() is not None:
                    raise self._failure(running, f"ended with status {running.process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(waiting[0], f"was not ready within {timeout_seconds:g} s")
            if cancelled():
                return
            time.sleep(LOOK_EVERY_SECONDS / 5)

    def watch(self, until: Callable[[], bool]) -> None:
        """Restart what dies, and keep logs short, until told to stop."""
        while not until():
            now = time.monotonic()
            for running in self.running:
                self._look_after(running, now)
                if limit_log(running.log_file):
                    running.log_start = 0
            time.sleep(LOOK_EVERY_SECONDS)

    def stop(self) -> None:
        """SIGTERM all at once, so that no node gets what another one gives back, and what they need after them.

        SIGKILL what has not ended in its time.
        """
        for needed in (False, True):
            self._stop([running for running in self.running if running.service.needed_to_the_last is needed])

    def _stop(self, told: Sequence[Running]) -> None:
        left = [(running, running.process) for running in told if running.process is not None]
        for _, process in left:
            process.terminate()
        told_at = time.monotonic()
        while left:
            for running, process in tuple(left):
                in_time = time.monotonic() - told_at < running.service.stop_timeout_seconds
                if process.poll() is None and in_time:
                    continue
                process.kill()
                process.wait()
                running.process = None
                left.remove((running, process))
                self.announce(running, "stopped" if in_time else "stopped: killed, it took too long")
            time.sleep(LOOK_EVERY_SECONDS / 5)

    def _look_after(self, running: Running, now: float) -> None:
        if running.restart_at is not None:
            if now >= running.restart_at:
                running.start()
        elif running.process is not None and running.process.poll() is not None:
            running.restart_at = now + running.backoff.pause_seconds(now - running.started_at)
            self.announce(running, "died")
        elif not running.announced:
            self._announce_if_ready(running)

    def _announce_if_ready(self, running: Running) -> None:
        if running.ready_line() is not None:
            running.announced = True
            self.announce(running, "ready")

    def _failure(self, running: Running, what: str) -> ServerUnavailable:
        tail = running.output()[-LOG_TAIL_BYTES:].strip()
        return ServerUnavailable(f"{running.service.name} {what}; its log ({running.log_file}) ends:\n{tail}")
