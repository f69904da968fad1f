"""A node in a process of its own, with a scheduler that is only played."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

NODE_CODE = Path(__file__).with_name("node_code")
_COMMAND = "from workers.cli import worker; worker()"


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """The first true value of `condition`; an AssertionError after so many seconds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.01)
    return value


class NodeProcess:
    """`cyxwiz worker` with its log in a file. Use as a context manager."""

    def __init__(self, url: str, home: Path, *options: str, **environment: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.log = home / "worker.log"
        self._arguments = [sys.executable, "-c", _COMMAND, "--path", str(NODE_CODE), *options]
        self._environment = os.environ | {
            "CYXWIZ_BROKER_URL": url,
            "CYXWIZ_DATABASE_URL": "postgresql://keeper:opensesame@nowhere/record",
            "CYXWIZ_HOME": str(home),
            "SOME_API_TOKEN": "canary-1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environment,
        }
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> NodeProcess:
        with open(self.log, "ab") as log:
            self._began_at = log.tell()
            self.process = subprocess.Popen(
                self._arguments, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def text(self) -> str:
        """What it has logged since its start."""
        return self.log.read_bytes()[self._began_at :].decode(errors="replace")

    def wait_for_text(self, text: str, seconds: float = 60.0) -> None:
        def found() -> bool:
            assert self.process.poll() is None, f"the node exited:\n{self.text}"
            return text in self.text

        try:
            wait_until(found, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}, {text!r} in:\n{self.text}") from None

    def ready(self) -> NodeProcess:
        self.wait_for_text(" ready: ")
        return self

    def family(self) -> list[psutil.Process]:
        """Every process below the agent."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: int = signal.SIGTERM, seconds: float = 20.0) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(seconds)
