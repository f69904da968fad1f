"""What one job takes of the node that runs it, or a gang of each of its nodes, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cyxwiz_tasks.resources import Resources, nominal

#: For scoring alone: a job that says nothing of GPU memory is taken for one of this size, so it goes to a small card.
UNSTATED_GPU_MEMORY_BYTES = 8 * 2**30


@dataclass(frozen=True, slots=True)
class Demand:
    """Beside one slot, a job takes this of its node, and a gang of each of its `nodes`.

    Sizes are lower ends at NOMINAL_SHARE: two jobs of 12GB share a 24GB card.
    """

    gpus: int
    #: False: the GPUs are the job's alone
    shared: bool
    #: taken on each shared GPU, at least 1 so that the GPU counts as used; 0 where not shared
    gpu_memory_bytes: int
    cpus: int
    ram_bytes: int
    #: what is told by counting: GPUs that must be idle (0 where shared), CPU cores, bytes of memory, and bytes that
    #: some GPU must have free (0 where not shared)
    counted: tuple[int, int, int, int]
    #: memory of each GPU that the score compares with what a GPU has
    wished_gpu_memory_bytes: int
    nodes: int = 1


@lru_cache(maxsize=4096)
def _demand(shape: str) -> Demand:
    resources = Resources.model_validate_json(shape)
    wished, ram_bytes = resources.gpu_memory_bytes.min_bytes, nominal(resources.ram_bytes.min_bytes)
    shared_bytes = (resources.gpu_share_bytes or 1) if resources.shared else 0
    return Demand(
        gpus=resources.gpus,
        shared=resources.shared,
        gpu_memory_bytes=shared_bytes,
        cpus=resources.cpus,
        ram_bytes=ram_bytes,
        counted=(0 if resources.shared else resources.gpus, resources.cpus, ram_bytes, shared_bytes),
        wished_gpu_memory_bytes=wished or UNSTATED_GPU_MEMORY_BYTES,
        nodes=resources.nodes,
    )


def demand_of(resources: Resources) -> Demand:
    """The demand of a job with these requirements; equal shapes share one object."""
    return _demand(resources.shape)
