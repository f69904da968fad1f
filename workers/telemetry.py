"""Readings of how busy this node is. They ride on the heartbeat, so taking one is quick and never raises."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil

from cyxwiz_tasks.telemetry import NodeReading
from workers.gpus import GpuProvider

log = logging.getLogger(__name__)
Value = TypeVar("Value")


class Telemetry:
    """Takes readings; keeps only what it has complained about already."""

    def __init__(self, gpus: GpuProvider, folder: Path) -> None:
        """`folder` is the node's: the disk it lies on is the one that is watched."""
        self._gpus = gpus
        self._folder = folder
        self._failures = set[str]()
        # The first call has nothing to compare with, and answers 0.
        self._ask("CPU", lambda: psutil.cpu_percent(interval=None))

    def read(self) -> NodeReading:
        """One reading: a few milliseconds at most."""
        return NodeReading(
            cpu_percent=self._ask("CPU", lambda: psutil.cpu_percent(interval=None)),
            ram_used_bytes=self._ask("memory", _ram_used_bytes),
            disk_free_bytes=self._ask("disk", lambda: shutil.disk_usage(self._folder).free),
            load_1m=self._ask("load", lambda: os.getloadavg()[0]),
            gpus=self._ask("GPUs", self._gpus.readings) or [],
        )

    def _ask(self, what: str, question: Callable[[], Value]) -> Value | None:
        try:
            return question()
        except Exception as error:
            # Whatever a driver throws: a heartbeat that stops for it would cost every job of the node.
            if what not in self._failures:
                self._failures.add(what)
                log.warning("telemetry: no reading of the %s: %s", what, error)
            return None


def _ram_used_bytes() -> int:
    memory = psutil.virtual_memory()
    # Not `used`: that counts differently on each system. What cannot be had by a new process is used.
    return int(memory.total - memory.available)
