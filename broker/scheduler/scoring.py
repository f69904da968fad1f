"""The score of a node for a job: parts of 0..1, weighed. The formulas stand in docs/scheduling.md.

Reputation, availability and uptime are the node's own and change only with the node, so the cluster keeps their
weighted sum (`standing`) ready for each node; only the fit and what the job prefers differ from shape to shape.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from broker.scheduler.demand import Demand
from broker.scheduler.node import Node
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.resources import PlacementPolicy

#: stands for "no GPU there" where memories are sorted; sums of it stay below 2**63
NO_GPU = 2**52
#: So much less is the score of a node where no job has completed yet, for a job of several GPUs: more than all else in
#: a score together, so such a job goes there only where no other node has room for it, and then at once.
UNTRIED = 4.0


class Parts(NamedTuple):
    """The parts of a score, each 0..1, before they are weighed. The first four are also used for the weights."""

    reputation: float
    availability: float
    fit: float
    uptime: float
    #: what the job prefers and the node has, by weight; None: it prefers nothing
    preferred: float | None = None


class Leaning(NamedTuple):
    """What a placement policy adds to a score: `constant + slope * availability + over_idle / idle GPUs`."""

    slope: float
    constant: float
    over_idle: float = 0.0


def leaning(placement: PlacementPolicy, weights: Parts, demand: Demand) -> Leaning:
    """Where a job leans: "spread" makes availability weigh 1 more, "pack" does so with its opposite in its place.

    For whole GPUs the opposite is the share of the node's idle GPUs that the job takes: the fewer it leaves, the more
    nodes stay whole. Availability, a share of the node, would take an empty small node for as whole as a big one.
    """
    weight = 1.0 + weights.availability
    match placement:
        case "spread":
            return Leaning(1.0, 0.0)
        case "pack" if demand.gpus and not demand.shared:
            return Leaning(-weights.availability, 0.0, weight * demand.gpus)
        case "pack":
            return Leaning(-weight - weights.availability, weight)
        case _:
            return Leaning(0.0, 0.0)


def normalised(weights: tuple[float, float, float, float]) -> Parts:
    """Weights that sum to 1. Raises InvalidSettings if one is negative or all are 0."""
    total = sum(weights)
    if min(weights) < 0 or total <= 0:
        raise InvalidSettings(
            f"score_weights: {weights} has a negative weight or none above 0. Write four numbers for reputation, "
            "availability, capability fit and uptime, such as CYXWIZ_SCORE_WEIGHTS=40,30,20,10"
        )
    return Parts(*(weight / total for weight in weights))


def availability(node: Node) -> float:
    """0..1: the free share of its slots; where it has GPUs, the mean of that and of their free memory's share."""
    slots = node.slots_free / node.slots if node.slots_free > 0 else 0.0
    return (slots + node.gpu_memory_free / node.gpu_memory_total) / 2 if node.gpu_memory_total else slots


def standing(node: Node, weights: Parts) -> float:
    """The part of the score that is the same for every shape."""
    return (
        weights.reputation * node.reputation + weights.availability * node.availability + weights.uptime * node.uptime
    )


def fit(node: Node, demand: Demand, positions: tuple[int, ...]) -> float:
    """How tightly the job fits: wished memory over free memory of the GPUs it would get, at most 1.

    A job without GPUs fits a node without GPUs (1), and keeps off the others while it can (0).
    """
    if not demand.gpus:
        return 0.0 if node.gpu_memory_total else 1.0
    free = sum([node.gpu_free[at] for at in positions])
    return min(1.0, demand.gpus * demand.wished_gpu_memory_bytes / free)


def parts(node: Node, demand: Demand, positions: tuple[int, ...], preferred: float | None) -> Parts:
    """The parts of a node's score before the job is placed there, on these GPUs."""
    return Parts(node.reputation, node.availability, fit(node, demand, positions), node.uptime, preferred)


def gpu_fit(
    demand: Demand, admitted: NDArray[np.bool_], free: NDArray[np.int64], memory: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """`fit` for many nodes at once: arrays of shape (nodes, GPUs) in, (nodes,) out.

    Returns where the job has its GPUs now, and how tightly; the second means nothing where the first is False.
    """
    wanted = demand.gpus
    if admitted.shape[1] < wanted:
        return np.zeros(len(admitted), bool), np.zeros(len(admitted))
    usable = admitted & (free >= (demand.gpu_memory_bytes if demand.shared else memory))
    has = np.where(usable, free, NO_GPU)
    if wanted == 1:
        total = largest = has.min(axis=1)
    else:
        tightest = np.sort(has, axis=1)[:, :wanted]
        total, largest = tightest.sum(axis=1), tightest[:, -1]
    return largest < NO_GPU, np.minimum(1.0, wanted * demand.wished_gpu_memory_bytes / total)


def constant_fit(demand: Demand, largest_gpu_bytes: NDArray[np.int64]) -> NDArray[np.float64]:
    """`fit` for nodes whose GPUs are all alike and used by one job each, or that have none (0 bytes)."""
    if not demand.gpus:
        return np.where(largest_gpu_bytes == 0, 1.0, 0.0)
    wished = demand.gpus * demand.wished_gpu_memory_bytes
    tightness: NDArray[np.float64] = np.minimum(1.0, wished / (demand.gpus * np.maximum(largest_gpu_bytes, 1)))
    return tightness
