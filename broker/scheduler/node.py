"""One node as the scheduler sees it: what it has, and what its jobs leave free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from broker.scheduler.demand import Demand
from broker.scheduler.matching import GpuKind
from cyxwiz_tasks.capability import Capability


class Holding(NamedTuple):
    """What one job holds on a node. `positions` are places in the node's list of GPUs, not NVML's indexes."""

    demand: Demand
    positions: tuple[int, ...]


class Node:
    """Totals, and what is free of them. Free amounts fall below zero only where a node came back smaller."""

    __slots__ = (
        "blamed",
        "capability",
        "cordon",
        "cpus_free",
        "faults",
        "gpu_free",
        "gpu_indexes",
        "gpu_memory",
        "gpu_memory_free",
        "gpu_memory_total",
        "holdings",
        "idle_gpus",
        "incarnation",
        "is_open",
        "mixed",
        "most_gpu_free",
        "name",
        "node_id",
        "quarantines",
        "ram_free_bytes",
        "reputation",
        "row",
        "slots",
        "slots_free",
        "standing",
        "state",
        "uptime",
    )

    name: str
    capability: Capability
    incarnation: str
    #: "up", "suspect", ...: values of `db.models.NodeState`
    state: str
    #: why it gets no new work although it is up, "draining" or "quarantined": values of `db.models.Cordon`
    cordon: str | None
    reputation: float
    uptime: float
    #: faults since its last success, and quarantines since it was last trusted
    faults: int
    quarantines: int
    #: kept by the cluster: `scoring.standing`, and whether it takes a job at all: it is up and has a free slot, and no
    #: cordon; or it is a last resort: in quarantine, with nothing on it
    standing: float
    is_open: bool
    #: kept by the cluster, too: free bytes of the GPU with most of them; 0 without GPUs
    most_gpu_free: int

    def __init__(self, row: int, node_id: str) -> None:
        self.row = row
        self.node_id = node_id
        #: by job id
        self.holdings: dict[str, Holding] = {}
        self.gpu_indexes: list[int] = []
        self.is_open = False
        self.cordon = None
        self.faults = self.quarantines = 0
        #: the incarnation whose death was counted as a fault already
        self.blamed = ""

    def describe(self, name: str, capability: Capability, incarnation: str) -> None:
        """Take over what a node says of itself; what its jobs hold stays held, by NVML's index of each GPU."""
        indexes = [gpu.index for gpu in capability.gpus]
        place = {index: position for position, index in enumerate(indexes)}
        held = {
            job_id: holding._replace(
                positions=tuple(
                    place[self.gpu_indexes[position]]
                    for position in holding.positions
                    if self.gpu_indexes[position] in place
                )
            )
            for job_id, holding in self.holdings.items()
        }
        self.name, self.capability, self.incarnation = name, capability, incarnation
        self.gpu_indexes = indexes
        self.gpu_memory = [gpu.memory_bytes for gpu in capability.gpus]
        self.gpu_memory_total = sum(self.gpu_memory)
        self.mixed = len({GpuKind.of(gpu) for gpu in capability.gpus}) > 1
        #: GPUs that nobody uses
        self.idle_gpus = len(indexes)
        self.slots = capability.slots
        self.slots_free, self.cpus_free, self.ram_free_bytes = (
            capability.slots,
            capability.cpu_cores,
            capability.ram_bytes,
        )
        self.gpu_free, self.gpu_memory_free = self.gpu_memory.copy(), self.gpu_memory_total
        self.holdings = {}
        for job_id, holding in held.items():
            self.take(job_id, holding)

    def gpu_memory_at(self, indexes: Iterable[int]) -> list[int]:
        """Bytes of the GPUs with these indexes of NVML's, so far as the node has them."""
        return [size for index, size in zip(self.gpu_indexes, self.gpu_memory, strict=True) if index in set(indexes)]

    @property
    def availability(self) -> float:
        """0..1: the free share of its slots; where it has GPUs, the mean of that and of their free memory's share."""
        slots = self.slots_free / self.slots if self.slots_free > 0 else 0.0
        return (slots + self.gpu_memory_free / self.gpu_memory_total) / 2 if self.gpu_memory_total else slots

    def has_room(self, demand: Demand) -> bool:
        """Whether a slot and enough of everything is free, as far as counting tells: see `Demand.counted`."""
        return (
            self.is_open
            and (demand.shared or self.idle_gpus >= demand.gpus)
            and self.cpus_free >= demand.cpus
            and self.ram_free_bytes >= demand.ram_bytes
            and self.most_gpu_free >= demand.gpu_memory_bytes
        )

    def best_gpus(self, demand: Demand, admitted: Sequence[int]) -> tuple[int, ...] | None:
        """Positions of the GPUs that the job would get: of those `admitted`, the ones with the least free memory.

        None: too few of them have room. An exclusive job needs GPUs that nobody uses.
        """
        free, memory = self.gpu_free, self.gpu_memory
        if demand.shared:
            usable = [at for at in admitted if free[at] >= demand.gpu_memory_bytes]
        else:
            usable = [at for at in admitted if free[at] == memory[at]]
        if len(usable) < demand.gpus:
            return None
        if demand.shared or self.mixed:
            usable.sort(key=free.__getitem__)
        return tuple(usable[: demand.gpus])

    def take(self, job_id: str, holding: Holding) -> None:
        """Book a job. Checks nothing: whoever restores a running job must be able to."""
        demand, positions = holding
        self.holdings[job_id] = holding
        self.slots_free -= 1
        self.cpus_free -= demand.cpus
        self.ram_free_bytes -= demand.ram_bytes
        for at in positions:
            memory, free = self.gpu_memory[at], self.gpu_free[at]
            taken = demand.gpu_memory_bytes if demand.shared else memory
            self.idle_gpus -= free == memory
            self.gpu_free[at] = free - taken
            self.gpu_memory_free -= taken

    def release(self, job_id: str) -> Holding:
        """Give back what a job held. Raises KeyError if it held nothing here."""
        demand, positions = holding = self.holdings.pop(job_id)
        self.slots_free += 1
        self.cpus_free += demand.cpus
        self.ram_free_bytes += demand.ram_bytes
        for at in positions:
            memory = self.gpu_memory[at]
            taken = demand.gpu_memory_bytes if demand.shared else memory
            free = self.gpu_free[at] = self.gpu_free[at] + taken
            self.idle_gpus += free == memory
            self.gpu_memory_free += taken
        return holding
