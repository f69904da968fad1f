"""What a Linux process can ask of its kernel about parents and orphans. Elsewhere nothing happens: False."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> bool:
    """Adopt every orphaned descendant of this process, so a daemon that double-forks stays in its tree.

    The adopter has to wait for what it adopts, or zombies stay until it ends. Returns whether the kernel agreed.
    """
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent_pid: int | None = None, signal_number: int = signal.SIGKILL) -> bool:
    """Receive `signal_number` when the parent ends. Returns whether the kernel agreed.

    `parent_pid` is who the parent was at the fork: if it ended before this call, the signal is raised here, because
    the kernel reports only later deaths. The kernel watches the parent's *thread* that forked, so fork from one that
    lives as long as its process. A fork of the caller does not inherit the setting.
    """
    agreed = _prctl(_PR_SET_PDEATHSIG, signal_number)
    if agreed and parent_pid is not None and os.getppid() != parent_pid:
        signal.raise_signal(signal_number)
    return agreed


def _prctl(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    unused = ctypes.c_ulong(0)
    return bool(libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), unused, unused, unused) == 0)
