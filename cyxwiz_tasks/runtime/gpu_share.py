"""A job that shares its GPUs keeps to what it asked for: one that takes more runs out of memory, not its neighbour."""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType


def keep_to_share(share_bytes: int) -> None:
    """Let torch's allocator take no more than this of each GPU.

    It is set once the job first touches CUDA: doing so now would cost every job a CUDA context, some 0.5 GB.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.cuda._lazy_call(partial(_limit, torch, share_bytes))


def _limit(torch: ModuleType, share_bytes: int) -> None:
    for index in range(torch.cuda.device_count()):
        total_bytes = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share_bytes / total_bytes), index)
