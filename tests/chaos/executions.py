"""A file outside the system, to which each execution of a task appends one line of a fixed length."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

_LINE = 11


def note(path: str, number: int) -> None:
    """One write of one line: whoever is killed has either written it or not."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, f"{number:10d}\n".encode())
    finally:
        os.close(fd)


def count(path: Path) -> int:
    """How many executions there were so far."""
    return path.stat().st_size // _LINE if path.exists() else 0


def by_number(path: Path) -> Counter[int]:
    """How often each task ran."""
    return Counter(int(line) for line in path.read_text().split()) if path.exists() else Counter()
