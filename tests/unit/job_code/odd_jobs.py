"""Jobs that do to their process what programs do, imported by that process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

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


class WithoutFlush:
    def write(self, text: str) -> int:
        return len(text)


@job
def writes_elsewhere(closed: bool) -> str:
    sys.stdout = cast(Any, None if closed else WithoutFlush())
    return "done"


@job
def restores_its_output_and_is_killed() -> None:
    sys.stdout = sys.__stdout__
    print("the last line")
    os.kill(os.getpid(), signal.SIGKILL)


@job
def prints_from_c() -> None:
    ctypes.CDLL(None).printf(b"from C\n")


@job
def leaves_a_thread(folder: str) -> str:
    def writes_later() -> None:
        while not Path(folder, "go").exists():
            time.sleep(0.01)
        Path(folder, "written").touch()

    ThreadPoolExecutor().submit(writes_later)
    return "returned"


@job
def reads_its_arguments() -> list[str]:
    return sys.argv[1:]
