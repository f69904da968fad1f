"""Nodes that are only declared: the scheduler knows them, they beat, and nobody runs there."""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator

from cyxwiz_tasks.capability import Capability, Gpu

GB = 2**30
#: model, memory in GB, compute capability, GPUs a node
_CARDS = (
    ("NVIDIA GeForce RTX 3090", 24, "8.6", 1),
    ("NVIDIA GeForce RTX 4090", 24, "8.9", 2),
    ("NVIDIA A100-SXM4-80GB", 80, "8.0", 8),
    ("NVIDIA H100 80GB HBM3", 80, "9.0", 8),
    ("Tesla T4", 16, "7.5", 4),
)


def declared(nodes: int, chance: random.Random) -> Iterator[tuple[str, Capability]]:
    """Ids and capabilities of nodes with five kinds of GPUs or none."""
    for number in range(nodes):
        yield str(uuid.UUID(int=chance.getrandbits(128))), capability(number)


def capability(number: int) -> Capability:
    """What the node with this number can do."""
    model, memory, compute, count = _CARDS[number % len(_CARDS)]
    count = 0 if number % 6 == 5 else count
    gpus = [
        Gpu(
            index=index,
            uuid=f"GPU-{number}-{index}",
            model=model,
            memory_bytes=memory * GB,
            compute_capability=compute,
        )
        for index in range(count)
    ]
    return Capability(
        hostname=f"node-{number}",
        os="Linux",
        os_version="Debian GNU/Linux 12 (bookworm)",
        architecture="x86_64",
        python="3.11.7",
        cyxwiz="1.0",
        cpu_model="AMD EPYC 7763",
        cpu_cores=32,
        ram_bytes=256 * GB,
        disk_bytes=1000 * GB,
        disk_free_bytes=500 * GB,
        torch="2.13.0+cu130",
        cuda="13.0",
        driver="580.65",
        region=("eu-west", "us-east", "ap-south")[number % 3],
        gpus=gpus,
        slots=max(2, count),
    )
