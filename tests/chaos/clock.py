"""A wall clock that jumps: libfaketime, if its wheel is installed, reads the offset out of a file each time.

Only the wall clock: monotonic time goes on as it is, as it does when somebody sets a machine's clock.
"""

from __future__ import annotations

import sys
from pathlib import Path

from db.embedded_server import package_folder


def library() -> Path | None:
    """The library, or None where it is not installed or not of use."""
    package = package_folder("libfaketime")
    if package is None or sys.platform != "linux":
        return None
    return next(iter(sorted(package.rglob("libfaketime.so*"))), None)


def faked_clock_environment(file: Path) -> dict[str, str]:
    """What a process needs to follow `file`; empty without the library."""
    found = library()
    if found is None:
        return {}
    set_clock(file, 0)
    return {
        "LD_PRELOAD": str(found),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        # A cached offset would be kept until the clock that was set back has caught up.
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_RESET": "1",
    }


def set_clock(file: Path, offset_seconds: int) -> None:
    """Let whoever follows `file` be so many seconds ahead, or behind."""
    part = file.with_suffix(".part")
    part.write_text(f"{offset_seconds:+d}s\n" if offset_seconds else "+0\n")
    part.replace(file)
