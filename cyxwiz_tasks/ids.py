"""Ids of jobs: UUIDs of version 7 (RFC 9562), which sort by the time they were made and keep indexes compact."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from uuid import UUID

from cyxwiz_tasks.errors import InvalidJob


class _Stamps:
    """Rising numbers: 48 bits of milliseconds and 12 bits for their fraction (RFC 9562, 6.2, method 3)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        nanoseconds = time.time_ns()
        stamp = (nanoseconds // 1_000_000 << 12) | (nanoseconds % 1_000_000 * 4096 // 1_000_000)
        with self._lock:
            self._last = max(stamp, self._last + 1)
            return self._last


_stamps = _Stamps()


def new_id() -> str:
    """A new id, greater than every id that this process made before."""
    stamp = _stamps.next()
    random_bits = int.from_bytes(os.urandom(8), "big") & (2**62 - 1)
    return str(UUID(int=(stamp >> 12 << 80) | (0x7 << 76) | ((stamp & 0xFFF) << 64) | (0b10 << 62) | random_bits))


def member_id(array_id: str, index: int) -> str:
    """The id of one job of an array, which anybody can tell from the two: a UUID of version 8 (RFC 9562).

    It begins with the time of the array's own id, so the jobs of one array lie side by side in an index.
    """
    array = UUID(array_id)
    digest = hashlib.sha256(array.bytes + index.to_bytes(8, "big")).digest()
    low = int.from_bytes(digest[:10], "big") & ~(0xF << 76) & ~(0b11 << 62)
    return str(UUID(int=(array.int >> 80 << 80) | (0x8 << 76) | (0b10 << 62) | low))


def parse_id(text: object) -> str:
    """A job's id in its usual form. Raises InvalidJob if it is none."""
    if not isinstance(text, str) or not text.strip():
        raise InvalidJob("id", "is empty", "Leave it out to get one, or write a UUID")
    try:
        return str(UUID(text))
    except ValueError:
        raise InvalidJob("id", f"{text[:60]!r} is not a UUID", "Leave it out to get one, or write a UUID") from None
