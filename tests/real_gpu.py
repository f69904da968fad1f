"""Whether this machine has a GPU for the tests and the bench that need one."""

from __future__ import annotations

import pynvml


def has_gpu() -> bool:
    """By NVML: asking CUDA would make a context in every test process."""
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount()) > 0
    except pynvml.NVMLError:
        return False
