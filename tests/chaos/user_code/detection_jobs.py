"""Jobs whose processes a test kills, or whose end it times."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cyxwiz_tasks import job


@job
def sleeps(path: str, seconds: float = 600.0) -> None:
    """Writes its pid to PATH, whole, and sleeps."""
    _write(path, str(os.getpid()))
    time.sleep(seconds)


@job
def placed() -> None:
    """Nothing: that it was placed is all that counts."""


@job
def clings(path: str) -> None:
    """Ignores SIGTERM, and so does its child in a session of its own; their pids go to PATH."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    _write(path, f"{os.getpid()} {child.pid}")
    time.sleep(600)


def _write(path: str, text: str) -> None:
    temporary = Path(path + ".partial")
    temporary.write_text(text)
    temporary.replace(path)


@job
def waits(ctx: Any, gate: str) -> int:
    """Returns once GATE is there; reports as it waits."""
    step = 0
    while not Path(gate).exists():
        step += 1
        ctx.report(step=step)
        time.sleep(0.05)
    return step
