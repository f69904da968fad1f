"""One node as the scheduler sees it: what it has, and what its jobs leave free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from broker.scheduler.demand import Demand
from broker.scheduler.matching import GpuKind
from cyxwiz_tasks.capability import Capability


class Holding(NamedTuple):
    """What one job holds on a node. `positions` are places in the node's list of GPUs, not NVML's indexes."""

    demand: Demand
    positions: tuple[int, ...]


class Kept(NamedTuple):
    """What is kept free on a node for one job that waits. `gpu_bytes` are positions, and bytes of each."""

    slots: int
    cpus: int
    ram_bytes: int
    gpu_bytes: tuple[tuple[int, int], ...]

    def __bool__(self) -> bool:
        return self.slots > 0 or self.cpus > 0 or self.ram_bytes > 0 or any(size for _, size in self.gpu_bytes)


class Node:
    """Totals, and what is free of them. Free amounts fall below zero only where a node came back smaller."""

    __slots__ = (
        "availability",
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
        "kept",
        "mixed",
        "most_gpu_free",
        "name",
        "node_id",
        "opens_at",
        "quarantines",
        "ram_free_bytes",
        "reputation",
        "row",
        "slots",
        "slots_free",
        "standing",
        "state",
        "tried",
        "uptime",
    )

    name: str
    capability: Capability
    incarnation: str
    #: "up", "suspect", ...: values of `db.models.NodeState`
    state: str
    #: why it gets no new work although it is up, "draining" or "quarantined": values of `db.models.Cordon`
    cordon: str | None
    #: outside its hours it gets no new work either: when they begin, in its own time zone; None: it is within them
    opens_at: datetime | None
    reputation: float
    uptime: float
    #: whether a job has ever completed there
    tried: bool
    #: faults since its last success, and quarantines since it was last trusted
    faults: int
    quarantines: int
    #: kept by the cluster: `scoring.availability`, `scoring.standing`, and whether it takes a job at all: it is up and
    #: within its hours, and has a free slot and no cordon; or it is a last resort: in quarantine, with nothing on it
    availability: float
    standing: float
    is_open: bool
    #: kept by the cluster, too: free bytes of the GPU with most of them; 0 without GPUs
    most_gpu_free: int

    def __init__(self, row: int, node_id: str) -> None:
        self.row = row
        self.node_id = node_id
        #: by job id
        self.holdings: dict[str, Holding] = {}
        #: by the job that waits for it
        self.kept: dict[str, Kept] = {}
        self.gpu_indexes: list[int] = []
        self.is_open = False
        self.cordon = self.opens_at = None
        self.faults = self.quarantines = 0
        #: the incarnation whose death was counted as a fault already
        self.blamed = ""

    def describe(self, name: str, capability: Capability, incarnation: str) -> None:
        """Take over what a node says of itself; what its jobs hold stays held, by NVML's index of each GPU.

        Nothing is kept for anybody afterwards.
        """
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
        self.holdings, self.kept = {}, {}
        for job_id, holding in held.items():
            self.take(job_id, holding)

    def gpu_memory_at(self, indexes: Iterable[int]) -> list[int]:
        """Bytes of the GPUs with these indexes of NVML's, so far as the node has them."""
        return [size for index, size in zip(self.gpu_indexes, self.gpu_memory, strict=True) if index in set(indexes)]

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

    def keep(self, job_id: str, kept: Kept) -> None:
        """Take something out of what is free, for a job that waits."""
        self.kept[job_id] = kept
        self._count_kept(kept, -1)

    def give_back(self, job_id: str) -> None:
        """Keep nothing for this job any more, if anything was kept."""
        kept = self.kept.pop(job_id, None)
        if kept is not None:
            self._count_kept(kept, 1)

    def _count_kept(self, kept: Kept, sign: int) -> None:
        self.slots_free += sign * kept.slots
        self.cpus_free += sign * kept.cpus
        self.ram_free_bytes += sign * kept.ram_bytes
        for at, size in kept.gpu_bytes:
            memory, before = self.gpu_memory[at], self.gpu_free[at]
            after = self.gpu_free[at] = before + sign * size
            self.idle_gpus += (after == memory) - (before == memory)
            self.gpu_memory_free += sign * size
