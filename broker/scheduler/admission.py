"""The filter over all nodes at once: `matching.failures` in columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from broker.scheduler.acceptance import NOBODY_REFUSES, Refused
from broker.scheduler.cluster import Cluster
from broker.scheduler.columns import Columns, K, Rows
from broker.scheduler.matching import GPUS_TOGETHER, gpu_checks, is_excluded, is_named, kind_checks
from cyxwiz_tasks.quantities import SizeRange
from cyxwiz_tasks.resources import Resources, nominal

Mask = NDArray[np.bool_]


class Admission:
    """Which nodes and GPUs meet a shape's requirements while they run nothing.

    Texts and versions are judged once per kind; the verdicts are kept, so that one changed node costs little.
    """

    def __init__(self, resources: Resources, refused: Refused = NOBODY_REFUSES) -> None:
        """`refused`: the nodes' own conditions that do not hold for the job."""
        self.resources = resources
        self._on_kind = {name: _Verdicts(check) for name, check in kind_checks(resources, refused).items()}
        self._on_gpu = {name: _Verdicts(check) for name, check in gpu_checks(resources).items()}

    def gpus(self, columns: Columns, rows: Rows) -> Mask:
        """Of shape (nodes, GPUs): the GPUs that meet every requirement on a GPU."""
        kinds = columns.gpu_kinds.values
        on_kind = np.array([*[True] * len(kinds), False])
        for verdicts in self._on_gpu.values():
            on_kind &= verdicts.of(kinds)
        admitted: Mask = on_kind[columns.gpu_kind[rows]]
        return admitted

    def failures(self, cluster: Cluster, rows: Rows, admitted: Mask) -> dict[str, Mask]:
        """Per requirement that is set, the nodes that do not meet it. `admitted`: what `gpus` said of the same rows."""
        of_gpus = self._gpu_failures(cluster.columns, rows, admitted) if self.resources.gpus else {}
        return of_gpus | self._node_failures(cluster, rows)

    def nodes(self, cluster: Cluster, rows: Rows, admitted: Mask) -> Mask:
        """The nodes that meet every requirement."""
        fits: Mask = cluster.columns.kind[rows] >= 0
        if self.resources.gpus:
            fits &= admitted.sum(axis=1) >= self.resources.gpus
        for mask in self._node_failures(cluster, rows).values():
            fits &= ~mask
        return fits

    def _node_failures(self, cluster: Cluster, rows: Rows) -> dict[str, Mask]:
        resources, columns = self.resources, cluster.columns
        failed: dict[str, Mask] = {}
        if resources.cpus:
            failed["cpus"] = columns.cpus[rows] < resources.cpus
        if resources.ram is not None:
            failed["ram"] = _outside(
                columns.ram_bytes[rows], resources.ram_bytes, nominal(resources.ram_bytes.min_bytes)
            )
        if resources.disk is not None:
            disk = resources.disk_bytes
            failed["disk"] = _outside(columns.disk_free_bytes[rows], disk, disk.min_bytes)
        kinds = columns.kind[rows]
        for name, verdicts in self._on_kind.items():
            failed[name] = ~verdicts.of(columns.node_kinds.values)[kinds]
        if (pattern := resources.node) is not None:
            failed["node"] = _by_name(cluster, rows, lambda node_id, name: not is_named(pattern, node_id, name))
        if excluded := resources.exclude_nodes:
            failed["exclude_nodes"] = _by_name(
                cluster, rows, lambda node_id, name: is_excluded(excluded, node_id, name)
            )
        return failed

    def _gpu_failures(self, columns: Columns, rows: Rows, admitted: Mask) -> dict[str, Mask]:
        wanted, kinds = self.resources.gpus, columns.gpu_kind[rows]
        failed: dict[str, Mask] = {"gpus": (kinds >= 0).sum(axis=1) < wanted}
        for name, verdicts in self._on_gpu.items():
            failed[name] = verdicts.of(columns.gpu_kinds.values)[kinds].sum(axis=1) < wanted
        each = np.logical_or.reduce(list(failed.values()))
        failed[GPUS_TOGETHER] = ~each & (admitted.sum(axis=1) < wanted)
        return failed


class _Verdicts(Generic[K]):
    """One check's verdict on each kind, judged when the kind first appears."""

    def __init__(self, check: Callable[[K], bool]) -> None:
        self._check = check
        self._table = np.zeros(1, bool)

    def of(self, kinds: list[K]) -> Mask:
        """By number of kind; the last entry, that of number -1, is False."""
        known = len(self._table) - 1
        if known < len(kinds):
            new = [self._check(kind) for kind in kinds[known:]]
            self._table = np.concatenate([self._table[:-1], np.array([*new, False])])
        return self._table


def _outside(sizes: NDArray[np.int64], wanted: SizeRange, low: int) -> Mask:
    outside: Mask = sizes < low
    return outside if wanted.max_bytes is None else outside | (sizes > wanted.max_bytes)


def _by_name(cluster: Cluster, rows: Rows, verdict: Callable[[str, str], bool]) -> Mask:
    nodes = (cluster.rows[row] for row in rows.tolist())
    return np.array([node is not None and verdict(node.node_id, node.name) for node in nodes], bool)
