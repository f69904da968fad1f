"""The cluster's numbers as NumPy columns, one row a node, so that a shape is judged over all nodes in one pass."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.scheduler.matching import GpuKind, NodeKind
from broker.scheduler.node import Node

#: the rows that something is about
Rows = NDArray[np.int32]
K = TypeVar("K", bound=Hashable)


class Kinds(Generic[K]):
    """Distinct values, numbered in order of appearance."""

    def __init__(self) -> None:
        self.values: list[K] = []
        self._numbers: dict[K, int] = {}

    def number(self, value: K) -> int:
        found = self._numbers.get(value)
        if found is None:
            found = self._numbers[value] = len(self.values)
            self.values.append(value)
        return found


class Columns:
    """Arrays grow by doubling, in rows and in GPUs a node. A row that no node uses has `kind` -1."""

    def __init__(self, rows: int = 16, gpus: int = 1) -> None:
        self.node_kinds: Kinds[NodeKind] = Kinds()
        self.gpu_kinds: Kinds[GpuKind] = Kinds()
        self.regions: Kinds[str | None] = Kinds()
        #: totals
        self.kind = np.full(rows, -1, np.int32)
        self.cpus = np.zeros(rows, np.int64)
        self.ram_bytes = np.zeros(rows, np.int64)
        self.disk_free_bytes = np.zeros(rows, np.int64)
        self.gpu_kind = np.full((rows, gpus), -1, np.int32)
        self.gpu_memory = np.zeros((rows, gpus), np.int64)
        #: 0 without GPUs
        self.largest_gpu_bytes = np.zeros(rows, np.int64)
        #: for gangs: a number for each region, and one for none; 0 where the network's speed is not known
        self.region = np.zeros(rows, np.int32)
        self.network_bytes_per_second = np.zeros(rows, np.float64)
        #: whether a node's GPUs differ in memory, compute capability or model; whether any node's ever did
        self.mixed = np.zeros(rows, bool)
        self.any_mixed = False
        #: draining, or in quarantine
        self.cordoned = np.zeros(rows, bool)
        #: no job has completed there yet
        self.untried = np.zeros(rows, bool)
        #: what is free, in the order of `Demand.counted`: GPUs that nobody uses, or -1 while the node takes no job at
        #: all (see `Node.is_open`); CPU cores; bytes of memory; bytes of the GPU with most free. Of shape (4, rows).
        self.free = np.full((4, rows), -1, np.int64)
        self.gpu_free = np.full((rows, gpus), -1, np.int64)
        self.standing = np.zeros(rows, np.float64)
        self.availability = np.zeros(rows, np.float64)

    def make_room(self, rows: int, gpus: int) -> bool:
        """Grow to hold so many rows and GPUs a node. True if the shapes of the arrays changed."""
        have_rows, have_gpus = self.gpu_kind.shape
        if rows <= have_rows and gpus <= have_gpus:
            return False
        grown = Columns(_doubled(have_rows, rows), _doubled(have_gpus, gpus))
        for name, column in vars(self).items():
            if isinstance(column, np.ndarray):
                target: NDArray[Any] = getattr(grown, name)
                target[tuple(slice(size) for size in column.shape)] = column
                setattr(self, name, target)
        return True

    def describe(self, node: Node) -> None:
        """Write a node's totals."""
        row, capability, gpus = node.row, node.capability, len(node.gpu_memory)
        self.kind[row] = self.node_kinds.number(NodeKind.of(capability))
        self.cpus[row] = capability.cpu_cores
        self.ram_bytes[row] = capability.ram_bytes
        self.disk_free_bytes[row] = capability.disk_free_bytes
        self.gpu_kind[row] = -1
        self.gpu_kind[row, :gpus] = [self.gpu_kinds.number(GpuKind.of(gpu)) for gpu in capability.gpus]
        self.gpu_memory[row] = 0
        self.gpu_memory[row, :gpus] = node.gpu_memory
        self.largest_gpu_bytes[row] = max(node.gpu_memory, default=0)
        self.region[row] = self.regions.number(capability.region)
        self.network_bytes_per_second[row] = capability.network_bytes_per_second or 0.0
        self.gpu_free[row] = -1
        self.mixed[row] = node.mixed
        self.any_mixed |= node.mixed

    def update(self, node: Node) -> None:
        """Write what is free on a node."""
        row = node.row
        self.cordoned[row] = node.cordon is not None
        self.untried[row] = not node.tried
        self.free[0, row] = node.idle_gpus if node.is_open else -1
        self.free[1, row] = node.cpus_free
        self.free[2, row] = node.ram_free_bytes
        self.free[3, row] = node.most_gpu_free
        self.gpu_free[row, : len(node.gpu_free)] = node.gpu_free
        self.standing[row] = node.standing
        self.availability[row] = node.availability

    def clear(self, row: int) -> None:
        """Forget a row's node."""
        self.kind[row] = -1
        self.gpu_kind[row] = -1
        self.gpu_memory[row] = 0
        self.largest_gpu_bytes[row] = 0
        self.gpu_free[row] = -1
        self.free[0, row] = -1


def _doubled(size: int, needed: int) -> int:
    while size < needed:
        size *= 2
    return size
