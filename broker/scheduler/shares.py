"""What one job takes of the whole cluster, as one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from broker.scheduler.demand import Demand


class Totals(NamedTuple):
    """What all nodes have together."""

    slots: int = 0
    gpus: int = 0
    gpu_memory_bytes: int = 0
    cpus: int = 0
    ram_bytes: int = 0


#: what one job holds beside one slot: GPUs that it has for itself, bytes of GPU memory, cores, bytes of memory; what a
#: gang holds on all its nodes together has a fifth figure, its slots
Taken = tuple[int, int, int, int] | tuple[int, int, int, int, int]


def dominant_share(taken: Taken, totals: Totals) -> float:
    """0..1; more only where nodes came back smaller than they were. 0 without nodes."""
    slots = taken[4] if len(taken) == 5 else 1
    return max(
        (amount / total for amount, total in zip((slots, *taken[:4]), totals, strict=True) if total),
        default=0.0,
    )


def taken_together(demand: Demand, gpu_memory_bytes: Sequence[int]) -> Taken:
    """What a gang holds; the bytes are of each member, since whole cards may be of different sizes."""
    nodes, gpus = len(gpu_memory_bytes), 0 if demand.shared else demand.gpus
    return nodes * gpus, sum(gpu_memory_bytes), nodes * demand.cpus, nodes * demand.ram_bytes, nodes


def expected(demand: Demand) -> Taken:
    """What a job with this demand will hold, as far as that can be said before it has GPUs."""
    each = demand.gpu_memory_bytes if demand.shared else demand.wished_gpu_memory_bytes
    if demand.nodes > 1:
        return taken_together(demand, [each * demand.gpus] * demand.nodes)
    return 0 if demand.shared else demand.gpus, each * demand.gpus, demand.cpus, demand.ram_bytes
