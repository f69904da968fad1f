"""Several nodes on one machine: each takes its part, or two jobs would be given the same GPU."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from cyxwiz_tasks.capability import Capability, Gpu
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.telemetry import GpuReading
from workers.gpus import GpuProvider


@dataclass(frozen=True)
class Share:
    """Part `number`, from 1, of `of` equal ones."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """Out of "1/2". Raises InvalidSettings that shows the form."""
        found = re.fullmatch(r"(\d{1,3})/(\d{1,3})", text.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InvalidSettings(f'--share: "{text}" is no part of a machine: write "1/2", the first of two')
        return cls(int(found[1]), int(found[2]))

    def of_capability(self, capability: Capability) -> Capability:
        """The same machine with this share of its cores and memory; its GPUs are dealt out by `of_gpus`."""
        cores, ram_bytes = capability.cpu_cores // self.of, capability.ram_bytes // self.of
        return capability.model_copy(update={"cpu_cores": max(1, cores), "ram_bytes": ram_bytes})


class SharedGpus:
    """Every `share.of`-th GPU of a provider, from `share.number` on."""

    def __init__(self, provider: GpuProvider, share: Share) -> None:
        self._provider, self._share = provider, share

    def gpus(self) -> list[Gpu]:
        return [gpu for gpu in self._provider.gpus() if self._is_ours(gpu.index)]

    def readings(self) -> list[GpuReading]:
        return [reading for reading in self._provider.readings() if self._is_ours(reading.index)]

    def fault(self, indexes: Collection[int]) -> str | None:
        return self._provider.fault(indexes)

    def near_cores(self, indexes: Collection[int]) -> frozenset[int]:
        return self._provider.near_cores(indexes)

    def _is_ours(self, index: int) -> bool:
        return index % self._share.of == self._share.number - 1
