"""A user's own module: jobs that compute on a real GPU."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

from cyxwiz_tasks import Resources, job

#: as most users' modules ask it, while they are imported
HAS_GPU = torch.cuda.is_available()


@job(resources=Resources(gpus=1))
def looks_around(ctx: Any) -> dict[str, Any]:
    seen = torch.cuda.get_device_properties(0)
    return {
        "device": ctx.device,
        "count": torch.cuda.device_count(),
        "model": seen.name,
        "uuid": f"GPU-{seen.uuid}",
        "memory_bytes": seen.total_memory,
        "compute_capability": f"{seen.major}.{seen.minor}",
        "sum": int(torch.arange(1000, device=ctx.device).sum().item()),
    }


@job
def asks_for_none() -> dict[str, Any]:
    return {"available": torch.cuda.is_available(), "count": torch.cuda.device_count()}


@job
def uses_one_without_asking() -> None:
    torch.zeros(1, device="cuda")


@job(resources=Resources(gpus=1))
def takes_more_than_there_is(ctx: Any) -> None:
    torch.empty(2**42, dtype=torch.uint8, device=ctx.device)


@job(resources=Resources(gpus=1))
def breaks_its_context(ctx: Any) -> None:
    """A kernel that fails: all that the process does on the GPU after it fails too."""
    table = torch.zeros(4, device=ctx.device)
    table[torch.tensor([99], device=ctx.device)] += 1
    torch.cuda.synchronize()


@job(resources=Resources(gpus=1))
def chooses_another(ctx: Any) -> None:
    """As scripts that were written for another machine do."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "99"
    torch.zeros(1, device=ctx.device)


@job(resources=Resources(gpus=1))
def holds(ctx: Any, path: str, size_bytes: int) -> int:
    """Takes so much, writes PATH.started, and computes until PATH exists."""
    held = torch.ones(size_bytes // 4, device=ctx.device)
    Path(path + ".started").write_text(str(os.getpid()))
    while not Path(path).exists():
        held.mul_(1.0)
        torch.cuda.synchronize()
    return held.nbytes


@job
def how_much_it_gets(ctx: Any) -> int:
    """Takes pieces of 64 MiB until there are no more, and tells how many bytes it had."""
    pieces = []
    try:
        while True:
            pieces.append(torch.empty(2**26, dtype=torch.uint8, device=ctx.device))
    except torch.OutOfMemoryError:
        return len(pieces) * 2**26


@job(resources=Resources(gpus=1))
def first_sum(ctx: Any) -> float:
    """When it has its first number from the GPU, by time.time()."""
    torch.ones(1, device=ctx.device).sum().item()
    return time.time()
