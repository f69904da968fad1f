"""What NVML and CUDA say of a real GPU, as a node asks them."""

from __future__ import annotations

import pynvml
import pytest
import torch

from workers.capabilities import detect_capability
from workers.gpus import NvmlGpus
from workers.measurements import measured

pytestmark = pytest.mark.gpu


def test_nvml_tells_what_cuda_tells():
    found = NvmlGpus()
    [gpu, *_] = found.gpus()
    seen = torch.cuda.get_device_properties(0)
    assert (gpu.model, gpu.uuid) == (seen.name, f"GPU-{seen.uuid}")
    assert gpu.compute_capability == f"{seen.major}.{seen.minor}"
    assert len(found.gpus()) == torch.cuda.device_count()
    [reading, *_] = found.readings()
    assert 0 < (reading.memory_used_bytes or 0) < gpu.memory_bytes
    assert 0 < (reading.temperature_celsius or 0) < 120
    assert (reading.power_watts or 0) > 1
    assert reading.utilization_percent is not None
    assert found.fault([gpu.index]) is None


def test_only_what_the_environment_shows_is_offered():
    uuid = NvmlGpus().gpus()[0].uuid
    assert [gpu.uuid for gpu in NvmlGpus(uuid).gpus()] == [gpu.uuid for gpu in NvmlGpus(uuid[:12]).gpus()] == [uuid]
    assert [gpu.uuid for gpu in NvmlGpus("0").gpus()] == [uuid]
    assert NvmlGpus("").gpus() == NvmlGpus("-1").gpus() == []


def test_each_gpu_is_scored_once_and_nothing_of_it_stays_on_the_gpu(tmp_path):
    provider = NvmlGpus()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    before = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    able = measured(detect_capability(provider, tmp_path), tmp_path)
    assert pynvml.nvmlDeviceGetMemoryInfo(handle).used - before < 2**28
    for gpu in able.gpus:
        assert (gpu.matmul_tflops or 0) > 1
        assert (gpu.memory_bandwidth_bytes_per_second or 0) > 1e10
    assert able.cuda is not None
    assert measured(detect_capability(provider, tmp_path), tmp_path).gpus == able.gpus, "kept, not measured again"
