"""Jobs that do to their process what programs do, imported by that process."""

from __future__ import annotations

import os

from cyxwiz_tasks import job


@job
def forks_and_returns_twice() -> str:
    pid = os.fork()
    if not pid:
        return "of the fork"
    return f"the fork exited with {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"


@job
def forks_and_raises_in_the_fork() -> str:
    pid = os.fork()
    if not pid:
        raise ValueError("in the fork")
    return f"the fork exited with {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}"
