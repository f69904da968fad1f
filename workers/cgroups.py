"""Where this process stands in the kernel's control groups, and what they limit (v2, and v1 where it is used)."""

import os
from collections.abc import Iterator
from pathlib import Path


def unified_folder() -> Path | None:
    """This process's own cgroup v2 folder, or None without one."""
    return _own_folder("", "cgroup2")


def memory_limit_bytes() -> int | None:
    """The tightest memory limit that holds for this process, or None."""
    limits = [_number(folder / "memory.max") for folder in _upwards(unified_folder())]
    limits += [_number(folder / "memory.limit_in_bytes") for folder in _upwards(_own_folder("memory", "cgroup"))]
    # cgroup v1 says "no limit" with a number close to 2**63.
    known = [limit for limit in limits if limit is not None and limit < 2**60]
    return min(known, default=None)


def cpu_limit_cores() -> float | None:
    """The tightest CPU quota that holds for this process, in cores, or None."""
    quotas = []
    for folder in _upwards(unified_folder()):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    for folder in _upwards(_own_folder("cpu", "cgroup")):
        quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota_us and period_us:
            quotas.append(quota_us / period_us)
    return min(quotas, default=None)


def out_of_memory_kills(folder: Path | None) -> int | None:
    """How many processes of this cgroup the kernel has killed for memory; None where it does not count them."""
    if folder is None:
        return None
    for line in _text(folder / "memory.events").splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return None


def _own_folder(controller: str, filesystem: str) -> Path | None:
    """`controller` is empty for v2. Lines of /proc/self/cgroup are `number:controller,controller:path`."""
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return _mounted(controller, filesystem, path)
    return None


def _mounted(controller: str, filesystem: str, path: str) -> Path | None:
    """Fields: man 5 proc_pid_mountinfo: root of the mount (4), mount point (5), then ` - type source options`."""
    for line in _text(Path("/proc/self/mountinfo")).splitlines():
        mount, _, kind = line.partition(" - ")
        root, point = mount.split()[3:5]
        name, _, options = kind.split(" ", 2)
        if name != filesystem or (controller and controller not in options.split(",")):
            continue
        # In a container without a cgroup namespace the path is the host's, and the mount begins somewhere below it.
        inside = os.path.relpath(path, root) if path.startswith(root) else "."
        return Path(point, inside)
    return None


def _upwards(folder: Path | None) -> Iterator[Path]:
    while folder is not None and (folder / "cgroup.procs").exists():
        yield folder
        folder = folder.parent


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None
