"""What this node can do. Nothing heavy is imported for it: torch's version is read from its package's metadata."""

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.resources import LabelValue
from cyxwiz_tasks.version import __version__
from workers.cgroups import cpu_limit_cores, memory_limit_bytes
from workers.gpus import GpuProvider
from workers.network import link_bytes_per_second


def detect_capability(
    provider: GpuProvider,
    folder: Path,
    *,
    slots: int | None = None,
    region: str | None = None,
    labels: Mapping[str, LabelValue] | None = None,
    address: str | None = None,
) -> Capability:
    """This node as it is now, without scores: `workers.measurements.measured` adds them.

    `folder` is the node's and exists; `address` is where other nodes reach it; `slots` None means one for each GPU, and
    one on a node without.
    """
    gpus = provider.gpus()
    real = [gpu for gpu in gpus if not gpu.fake]
    disk = shutil.disk_usage(folder)
    return Capability(
        hostname=socket.gethostname(),
        os=platform.system(),
        os_version=_os_version(),
        architecture=platform.machine(),
        python=platform.python_version(),
        cyxwiz=__version__,
        cpu_model=_cpu_model(),
        cpu_cores=_cpu_cores(),
        ram_bytes=min(psutil.virtual_memory().total, memory_limit_bytes() or 2**63),
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
        torch=_installed_version("torch"),
        cuda=real[0].cuda if real else None,
        driver=real[0].driver if real else None,
        region=region,
        address=address,
        network_bytes_per_second=link_bytes_per_second(address) if address is not None else None,
        labels=dict(labels or {}),
        gpus=gpus,
        slots=max(1, len(gpus)) if slots is None else slots,
    )


def _os_version() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                name, _, value = line.partition(":")
                if name.strip() == "model name":
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _cpu_cores() -> int:
    # Affinity is where `taskset` and cpusets show; macOS has neither.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_limit_cores()
    return cores if quota is None else max(1, min(cores, int(quota)))


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
