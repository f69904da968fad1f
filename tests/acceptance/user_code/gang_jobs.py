"""Jobs of a user's that run on several nodes at once."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from cyxwiz_tasks import Resources, job


@job(resources=Resources(nodes=3))
def sums_ranks(ctx: Any) -> dict[str, Any]:
    """The sum of all ranks, by the usual way into `torch.distributed`."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method="env://")
    total = torch.tensor([float(ctx.rank)])
    dist.all_reduce(total)
    ctx.report(step=1, by_rank=dist.get_rank())
    print(f"rank {ctx.rank} is done", flush=True)
    dist.destroy_process_group()
    return {"sum": total.item(), "rank": ctx.rank, "world": dist_world(), "nodes": list(ctx.nodes)}


def dist_world() -> list[int]:
    return [int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])]


@job(resources=Resources(nodes=3), max_retries=1)
def waits_for_a_peer(ctx: Any, folder: str) -> int:
    """In its first attempt: says its pid, and waits for another's message that never comes."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method="env://")
    if ctx.attempt == 1:
        Path(folder, f"rank-{ctx.rank}").write_text(str(os.getpid()))
        dist.recv(torch.zeros(1), src=(ctx.rank + 1) % ctx.world_size)
    dist.barrier()
    return int(ctx.attempt)


@job(resources=Resources(nodes=3))
def waits_for_ever(ctx: Any, folder: str) -> None:
    Path(folder, f"rank-{ctx.rank}").write_text(str(os.getpid()))
    while True:
        time.sleep(0.1)


@job(resources=Resources(nodes=3))
def saves_when_asked_to_stop(ctx: Any, folder: str) -> dict[str, int]:
    """In its first attempt: says its pid, counts, and saves its count once it has to stop. Then: what was saved."""
    if (saved := ctx.restore()) is not None:
        return {"step": saved["step"], "attempt": ctx.attempt}
    Path(folder, f"rank-{ctx.rank}").write_text(str(os.getpid()))
    step = 1
    while not ctx.should_stop:
        step += 1
        time.sleep(0.01)
    ctx.checkpoint(step=step)
    return {"step": 0, "attempt": ctx.attempt}
