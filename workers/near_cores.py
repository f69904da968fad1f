"""CPU cores on the side of a job's GPUs, where a machine has several sides (NUMA).

From the far side every copy to the GPU crosses the link between the processors. So a job that asks for CPU cores is
kept on those near its GPUs: on all of them, not on as many as it asks for, since cores of one side are alike and the
kernel shares them out better than we would. A machine with one side is left alone, and so is one whose cores are not
all the node's (a share, a quota): what is near there may belong to somebody else.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

PCI_FOLDER = Path("/sys/bus/pci/devices")


def cores_near(pci_address: str, folder: Path = PCI_FOLDER) -> frozenset[int]:
    """Cores on the side of a PCI device such as "0000:41:00.0"; empty where the kernel does not say."""
    try:
        return _parse((folder / pci_address / "local_cpulist").read_text())
    except (OSError, ValueError):
        return frozenset()


def chosen(cpus: int, near: frozenset[int], allowed: frozenset[int], node_cores: int) -> frozenset[int]:
    """The cores to keep a job on that asks for `cpus`; empty: all that it is `allowed` now.

    `node_cores` are how many of the machine's the node says that it has.
    """
    cores = near & allowed
    is_sided = cores and cores != allowed
    return cores if cpus and is_sided and len(cores) >= cpus and node_cores == len(allowed) else frozenset()


def keep_on(pid: int, cores: frozenset[int]) -> None:
    """Move a process with all threads that it has; what it starts later stays with them. Never raises."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        for thread in threads:
            # One that ends meanwhile is no loss.
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)
    except OSError as error:
        log.warning("process %d is not kept near its GPUs: %s", pid, error)


def _parse(text: str) -> frozenset[int]:
    """Of "0-15,32-47"."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)
