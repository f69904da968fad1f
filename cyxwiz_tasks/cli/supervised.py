"""A service that `cyxwiz up` started ends with it, even if `cyxwiz up` itself is killed."""

from __future__ import annotations

import os
import signal

#: names the supervisor's pid in the environment of its services
SUPERVISOR = "CYXWIZ_SUPERVISOR_PID"


def end_with_supervisor() -> None:
    """Have the kernel send SIGTERM when the supervisor is gone; without a supervisor it does nothing."""
    pid = os.environ.pop(SUPERVISOR, None)
    if pid is not None:
        from cyxwiz_tasks.runtime.prctl import die_with_parent

        die_with_parent(int(pid), signal.SIGTERM)
