"""What one job takes of the whole cluster, as one number."""

from __future__ import annotations

from typing import NamedTuple

from broker.scheduler.demand import Demand


class Totals(NamedTuple):
    """What all nodes have together."""

    slots: int = 0
    gpus: int = 0
    gpu_memory_bytes: int = 0
    cpus: int = 0
    ram_bytes: int = 0


#: what one job holds beside one slot: GPUs that it has for itself, bytes of GPU memory, cores, bytes of memory
Taken = tuple[int, int, int, int]


def dominant_share(taken: Taken, totals: Totals) -> float:
    """0..1; more only where nodes came back smaller than they were. 0 without nodes."""
    return max(
        (amount / total for amount, total in zip((1, *taken), totals, strict=True) if total),
        default=0.0,
    )


def expected(demand: Demand) -> Taken:
    """What a job with this demand will hold, as far as that can be said before it has GPUs."""
    each = demand.gpu_memory_bytes if demand.shared else demand.wished_gpu_memory_bytes
    return 0 if demand.shared else demand.gpus, each * demand.gpus, demand.cpus, demand.ram_bytes
