"""Named points at which a test has this process die or stall, to see what is left and whether it is put right.

Nothing happens unless CYXWIZ_FAILPOINTS names a folder when the process starts; then `hit("scheduler.after_commit")`
looks for a file of that name there. The file is removed first, so one armed point strikes once, in one process and one
thread, and whoever armed it sees that it did. An empty file is a SIGKILL of this very process: nothing is flushed and
no handler runs. `sleep 3.5` in it is a stall of so many seconds, as of a long pause between a check and a write.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_FOLDER = os.environ.get("CYXWIZ_FAILPOINTS")


def hit(name: str) -> None:
    """Strike here if this point is armed. Costs one comparison in a process without failpoints."""
    if _FOLDER is not None:
        _strike(Path(_FOLDER, name))


def _strike(armed: Path) -> None:
    try:
        order = armed.read_text()
        armed.unlink()
    except FileNotFoundError:
        return
    verb, _, seconds = order.partition(" ")
    if verb == "sleep":
        time.sleep(float(seconds))
    else:
        os.kill(os.getpid(), signal.SIGKILL)
