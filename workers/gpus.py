"""The GPUs of this node, by NVML, and declared ones for machines without any.

Never by CUDA: a CUDA context in the agent would cost memory on each GPU and break every process forked from it.
"""

import logging
import os
import re
from collections.abc import Callable, Collection
from typing import Any, Protocol

import pynvml

from cyxwiz_tasks.capability import Gpu
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.quantities import parse_size
from cyxwiz_tasks.telemetry import GpuReading
from workers.near_cores import cores_near

log = logging.getLogger(__name__)

FAKE_GPUS_VARIABLE = "CYXWIZ_FAKE_GPUS"
#: After these a GPU does nothing until somebody resets it.
_BROKEN = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, getattr(pynvml, "NVML_ERROR_RESET_REQUIRED", 16)})
_FORM = 'write "COUNTxMEMORY:COMPUTE_CAPABILITY[:MODEL]", such as "2x24GB:8.9" or "1x80GB:9.0:H100,2x24GB:8.9"'
_GROUP = re.compile(r"(?P<count>\d{1,3})x(?P<memory>[^:]+):(?P<capability>\d+\.\d+)(?::(?P<model>[^:,]+))?")


class GpuProvider(Protocol):
    """Where GPUs and their readings come from."""

    def gpus(self) -> list[Gpu]: ...

    def readings(self) -> list[GpuReading]: ...

    def fault(self, indexes: Collection[int]) -> str | None:
        """What is wrong with one of these GPUs, if anything."""

    def near_cores(self, indexes: Collection[int]) -> frozenset[int]:
        """CPU cores on the side of these GPUs; empty where nothing is known."""


class FakeGpus:
    """GPUs that are only declared: jobs are placed by them and run on the CPU."""

    def __init__(self, gpus: list[Gpu]) -> None:
        self._gpus = gpus

    @classmethod
    def parse(cls, text: str) -> "FakeGpus":
        """Out of "2x24GB:8.9", groups separated by commas. Raises InvalidSettings that shows the form."""
        gpus = list[Gpu]()
        for group in text.split(","):
            found = _GROUP.fullmatch(group.strip())
            if found is None:
                raise InvalidSettings(f'{FAKE_GPUS_VARIABLE}: "{group.strip()}" declares no GPUs: {_FORM}')
            try:
                memory_bytes = parse_size(found["memory"])
            except ValueError as error:
                raise InvalidSettings(f"{FAKE_GPUS_VARIABLE}: {error}; {_FORM}") from None
            if memory_bytes == 0 or int(found["count"]) == 0:
                raise InvalidSettings(f'{FAKE_GPUS_VARIABLE}: "{group.strip()}" has a zero in it: {_FORM}')
            for _ in range(int(found["count"])):
                gpus.append(
                    Gpu(
                        index=len(gpus),
                        uuid=f"FAKE-{len(gpus)}",
                        model=found["model"] or f"Fake {found['memory']}",
                        memory_bytes=memory_bytes,
                        compute_capability=found["capability"],
                        fake=True,
                    )
                )
        return cls(gpus)

    def gpus(self) -> list[Gpu]:
        return self._gpus

    def readings(self) -> list[GpuReading]:
        return [GpuReading(index=gpu.index) for gpu in self._gpus]

    def fault(self, indexes: Collection[int]) -> str | None:
        return None

    def near_cores(self, indexes: Collection[int]) -> frozenset[int]:
        return frozenset()


class NvmlGpus:
    """NVIDIA's GPUs; none where there is no driver. A GPU that fails costs its own readings and nothing else."""

    def __init__(self, visible_devices: str | None = None) -> None:
        """`visible_devices` is CUDA_VISIBLE_DEVICES: the node offers only what its jobs will see."""
        self._visible_devices = visible_devices
        self._failures = set[tuple[int, str]]()
        self._handles: dict[int, Any] = {}
        #: uncorrectable memory errors of each that are known already
        self._errors: dict[int, int] = {}
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            log.info("no NVIDIA GPUs here: %s", error)
            return
        for index in range(count):
            handle = self._ask(index, "handle", pynvml.nvmlDeviceGetHandleByIndex, index)
            if handle is not None and self._visible(index, handle):
                self._handles[index] = handle
                self._errors[index] = self._uncorrected(index, handle)

    def gpus(self) -> list[Gpu]:
        found = [self._describe(index, handle) for index, handle in self._handles.items()]
        return [gpu for gpu in found if gpu is not None]

    def readings(self) -> list[GpuReading]:
        return [self._read(index, handle) for index, handle in self._handles.items()]

    def fault(self, indexes: Collection[int]) -> str | None:
        for index in indexes:
            if (handle := self._handles.get(index)) is None:
                continue
            try:
                pynvml.nvmlDeviceGetMemoryInfo(handle)
            except pynvml.NVMLError as error:
                if error.value in _BROKEN:
                    return f"GPU {index}: {error}"
            errors = self._uncorrected(index, handle)
            before = self._errors.setdefault(index, errors)
            if errors > before:
                self._errors[index] = errors
                return f"GPU {index}: {errors - before} uncorrectable memory errors"
        return None

    def near_cores(self, indexes: Collection[int]) -> frozenset[int]:
        near = [self._near_cores(index, self._handles[index]) for index in indexes if index in self._handles]
        return frozenset().union(*near) if all(near) else frozenset()

    def _near_cores(self, index: int, handle: Any) -> frozenset[int]:
        pci = self._ask(index, "PCI address", pynvml.nvmlDeviceGetPciInfo, handle)
        return frozenset() if pci is None else cores_near(f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0")

    def _uncorrected(self, index: int, handle: Any) -> int:
        kind, since = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        try:
            return int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, since))
        except pynvml.NVMLError:
            return 0  # most GPUs for gaming have no ECC

    def _describe(self, index: int, handle: Any) -> Gpu | None:
        try:
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            cuda = pynvml.nvmlSystemGetCudaDriverVersion()
            return Gpu(
                index=index,
                uuid=pynvml.nvmlDeviceGetUUID(handle),
                model=pynvml.nvmlDeviceGetName(handle),
                memory_bytes=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                compute_capability=f"{major}.{minor}",
                driver=pynvml.nvmlSystemGetDriverVersion(),
                cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
            )
        except pynvml.NVMLError as error:
            log.warning("GPU %d is not offered: %s", index, error)
            return None

    def _read(self, index: int, handle: Any) -> GpuReading:
        memory = self._ask(index, "memory", pynvml.nvmlDeviceGetMemoryInfo, handle)
        utilization = self._ask(index, "utilization", pynvml.nvmlDeviceGetUtilizationRates, handle)
        sensor = pynvml.NVML_TEMPERATURE_GPU
        temperature_celsius = self._ask(index, "temperature", pynvml.nvmlDeviceGetTemperature, handle, sensor)
        power_milliwatts = self._ask(index, "power", pynvml.nvmlDeviceGetPowerUsage, handle)
        return GpuReading(
            index=index,
            memory_used_bytes=None if memory is None else memory.used,
            utilization_percent=None if utilization is None else utilization.gpu,
            temperature_celsius=temperature_celsius,
            power_watts=None if power_milliwatts is None else power_milliwatts / 1000,
        )

    def _visible(self, index: int, handle: Any) -> bool:
        if self._visible_devices is None:
            return True
        wanted = [part.strip() for part in self._visible_devices.split(",") if part.strip()]
        uuid = str(self._ask(index, "uuid", pynvml.nvmlDeviceGetUUID, handle) or "")
        return any(part == str(index) or (part.startswith("GPU-") and uuid.startswith(part)) for part in wanted)

    def _ask(self, index: int, what: str, question: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None; the first failure of its kind is logged, since a reading is taken every second."""
        try:
            return question(*arguments)
        except pynvml.NVMLError as error:
            if (index, what) not in self._failures:
                self._failures.add((index, what))
                log.warning("GPU %d does not tell its %s: %s", index, what, error)
            return None


def find_gpus() -> GpuProvider:
    """The declared GPUs if CYXWIZ_FAKE_GPUS is set, else the real ones.

    Raises InvalidSettings for a declaration that cannot be read.
    """
    declared = os.environ.get(FAKE_GPUS_VARIABLE)
    if declared:
        return FakeGpus.parse(declared)
    return NvmlGpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
