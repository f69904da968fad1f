"""Logs of services that run for months: what is long is set aside, and what was set aside before is gone."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

LOG_LIMIT_BYTES = 16 * 1024 * 1024


def limit_log(log: Path) -> bool:
    """Empty a log that is too long, with a copy of it in `<name>.1`; whether it was.

    Its service has it open for appending, writes on into the empty file, and need not know. What it writes between copy
    and cut, some milliseconds, is lost. A disk without room for the copy has none: others need that room more.
    """
    copy = log.with_name(f"{log.name}.1")
    with suppress(OSError):
        if log.stat().st_size > LOG_LIMIT_BYTES:
            try:
                shutil.copy(log, copy)
            except OSError:
                copy.unlink(missing_ok=True)
            os.truncate(log, 0)
            return True
    return False
