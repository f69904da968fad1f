"""Where a job's process writes what its function prints."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from io import TextIOWrapper


def take_output(log_fd: int) -> None:
    """Let this process, and all that it starts, write to `log_fd` and read nothing."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (log_fd, 1), (log_fd, 2)):
        os.dup2(source, target)
    for fd in (null, log_fd):
        os.close(fd)
    # By lines: a pipe would be buffered by blocks, and nobody would see what a running job prints. The second names
    # too: programs that silence a library put them back with `sys.stdout = sys.__stdout__`.
    sys.stdout = sys.__stdout__ = _writer(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _writer(2)  # type: ignore[misc]


def flush() -> None:
    """Write what Python's streams hold. Never raises: a job may have put anything in their place."""
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with suppress(Exception):
            if stream is not None:
                stream.flush()


def flush_c() -> None:
    """Write what libraries in C have printed and C's streams hold. Waits for whoever has one of these locked."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)


def _writer(fd: int) -> TextIOWrapper:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
