"""The processes of jobs that a test runs on a real node: where each says who it is, and whether it lives."""

from __future__ import annotations

from pathlib import Path

import psutil

from tests.integration.node_process import wait_until


def pid_in(file: Path) -> int:
    """The pid in the first line of a file that a job writes, once that line is there."""
    return int(wait_until(lambda: file.exists() and file.read_text().rpartition("\n")[0]).split()[0])


def is_alive(pid: int) -> bool:
    """Whether a process is there and not merely waits to be reaped."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
