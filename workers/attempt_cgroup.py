"""One control group (cgroup v2) for one attempt: the kernel itself kills everything in it, whatever it did to hide.

It needs a cgroup folder that this user may write: root's, or one that systemd delegated (`Delegate=yes`). Where there
is none, `available()` is False and `workers.process_tree.kill_tree` does the work. No controllers are enabled here:
a group with processes of its own (the agent's) may not hand controllers down.
"""

import functools
import os
import re
import select
import time
from contextlib import suppress
from pathlib import Path

from cyxwiz_tasks.errors import CyxwizError
from workers.cgroups import out_of_memory_kills, unified_folder

_PREFIX = "cyxwiz-"


class CgroupUnavailable(CyxwizError):
    """No cgroup can be made for an attempt here: use `kill_tree`, or give the worker's service Delegate=yes."""


class AttemptCgroup:
    """A cgroup below the agent's own. Put the attempt's process in before it starts anything: children inherit it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    @functools.cache
    def available() -> bool:
        """Whether groups can be made and killed here; found out once, by making one."""
        try:
            probe = AttemptCgroup.create(f"probe-{os.getpid()}")
        except (CgroupUnavailable, FileExistsError):
            return False
        can_kill = (probe.folder / "cgroup.kill").exists()  # Linux 5.14
        # Moving a process needs the right to write to the group above both places, which is the agent's own.
        can_move = os.access(probe.folder.parent / "cgroup.procs", os.W_OK)
        probe.remove()
        return can_kill and can_move

    @classmethod
    def create(cls, name: str) -> "AttemptCgroup":
        """Make the group `cyxwiz-<name>`. Raises CgroupUnavailable; FileExistsError if it is there already."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", name):
            raise ValueError(f"cgroup name {name!r}: use letters, digits, '_', '.' and '-'")
        parent = unified_folder()
        if parent is None:
            raise CgroupUnavailable
        folder = parent / f"{_PREFIX}{name}"
        try:
            folder.mkdir()
        except FileExistsError:
            raise
        except OSError as error:
            raise CgroupUnavailable(f"{folder}: {error.strerror}. {CgroupUnavailable.__doc__}") from error
        return cls(folder)

    @classmethod
    def leftovers(cls, prefix: str) -> list["AttemptCgroup"]:
        """Groups whose name begins so, such as a killed agent left behind.

        Nodes on one machine may share the folder, so begin names with the node's id and ask for that.
        """
        parent = unified_folder()
        return [] if parent is None else [cls(folder) for folder in sorted(parent.glob(f"{_PREFIX}{prefix}*"))]

    def add(self, pid: int) -> None:
        """Move a process in (not its children of before). Raises ProcessLookupError if it has ended."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        """Who is in it and in groups below it."""
        found = list[int]()
        for path in self.folder.rglob("cgroup.procs"):
            with suppress(OSError):
                found += map(int, path.read_text().split())
        return sorted(found)

    def kill(self) -> None:
        """SIGKILL to everybody in it at once; a fork that is under way dies too."""
        (self.folder / "cgroup.kill").write_text("1")

    def wait_empty(self, timeout_seconds: float) -> bool:
        """Wait until nobody lives in it. The kernel tells (POLLPRI on cgroup.events); no polling."""
        deadline = time.monotonic() + timeout_seconds
        with open(self.folder / "cgroup.events") as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while True:
                events.seek(0)
                if "populated 0" in events.read():
                    return True
                remaining_seconds = deadline - time.monotonic()
                if remaining_seconds <= 0:
                    return False
                poll.poll(remaining_seconds * 1000)

    def out_of_memory_kills(self) -> int | None:
        """How many of its processes the kernel killed for memory; None where the memory controller is not on."""
        return out_of_memory_kills(self.folder)

    def remove(self) -> None:
        """Remove the empty group and groups that the job made in it. Raises OSError while somebody lives in it."""
        for folder, _, _ in os.walk(self.folder, topdown=False):
            os.rmdir(folder)
