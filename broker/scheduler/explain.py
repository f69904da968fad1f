"""Why a job waits: how many nodes fail which requirement, what is busy, who is ahead, and what to change."""

from __future__ import annotations

from collections import Counter

import numpy as np
from pydantic import BaseModel, Field

from broker.scheduler.admission import Admission
from broker.scheduler.backlog import Backlog
from broker.scheduler.cluster import Cluster
from broker.scheduler.demand import Demand, demand_of
from broker.scheduler.hints import hint
from broker.scheduler.matching import failures
from broker.scheduler.node import Node
from cyxwiz_tasks.errors import NotFound
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from db.models import Cordon, NodeState

_NAMES_SHOWN = 5
_SHORT_WORDS = {
    "slots": "no free slot",
    "gpus": "too few free GPUs",
    "gpu_memory": "too little free GPU memory",
    "cpus": "too few free CPU cores",
    "ram": "too little free memory",
}
_CORDON_WORDS = {
    Cordon.DRAINING: "draining",
    Cordon.QUARANTINED: "in quarantine after repeated faults",
}


class Explanation(BaseModel):
    """Where a job with certain requirements stands. Every count is of nodes, but for `ahead`."""

    nodes: int
    #: per requirement that is set, the nodes that do not meet it even when they are empty
    failed: dict[str, int] = Field(default_factory=dict)
    #: nodes that could run the job if they were empty
    fitting: int = 0
    #: of these, the ones that take it now
    free: int = 0
    #: of these, the ones that are silent and take no new work
    silent: int = 0
    #: of these, the ones that take no new work although they are up: draining, quarantined
    cordoned: dict[str, int] = Field(default_factory=dict)
    #: whether all of these have a cordon, and some are in quarantine: those take it all the same, one job at a time
    last_resort: bool = False
    #: of these, the ones that are short of something now: slots, gpus, gpu_memory (of shared GPUs), cpus, ram
    short: dict[str, int] = Field(default_factory=dict)
    #: jobs that are served before it; None: it does not wait in line
    ahead: int | None = None
    #: for people: what is so, and what would make it fit
    sentences: list[str] = Field(default_factory=list)

    def __str__(self) -> str:
        return " ".join(self.sentences)


def why(
    cluster: Cluster,
    backlog: Backlog,
    resources: Resources | None = None,
    job_id: str | None = None,
    priority: Priority = Priority.NORMAL,
) -> Explanation:
    """Explain a waiting job, or with `resources` alone what would happen to such a job (a dry run).

    Raises NotFound if the job does not wait and `resources` is None.
    """
    sequence = None
    if job_id is not None and (waiting := backlog.find(job_id)) is not None:
        resources, priority, sequence = waiting.resources, waiting.priority, waiting.sequence
    if resources is None:
        raise NotFound(f"job {job_id} does not wait for a node: `cyxwiz job {job_id}` shows where it is")
    found = Explanation(nodes=len(cluster), ahead=backlog.count_ahead(priority, sequence))
    if not len(cluster):
        found.sentences.append(
            "No node has registered. Start one with `cyxwiz worker` on a machine that reaches this broker "
            "(CYXWIZ_BROKER_URL names it)."
        )
        return found
    fitting = _count_failures(found, cluster, resources)
    found.fitting = len(fitting)
    if fitting:
        _count_shortages(found, fitting, demand_of(resources))
        found.sentences += _sentences_on_line(found, fitting)
    else:
        found.sentences += _sentences_on_misfit(found, cluster, resources)
    return found


def _count_failures(found: Explanation, cluster: Cluster, resources: Resources) -> list[tuple[Node, list[int]]]:
    """Fill in `failed`. Returns the nodes that fit, each with the positions of the GPUs that the job may use."""
    rows = np.array([node.row for node in cluster], np.int32)
    admission = Admission(resources)
    admitted = admission.gpus(cluster.columns, rows)
    failed = admission.failures(cluster, rows, admitted)
    found.failed = {name: count for name, mask in failed.items() if (count := int(mask.sum()))}
    fits = admission.nodes(cluster, rows, admitted)
    return [(cluster.node_at(int(rows[at])), admitted[at].nonzero()[0].tolist()) for at in fits.nonzero()[0]]


def _count_shortages(found: Explanation, fitting: list[tuple[Node, list[int]]], demand: Demand) -> None:
    short: Counter[str] = Counter()
    cordoned: Counter[str] = Counter()
    cordons = {node.cordon for node, _ in fitting}
    found.last_resort = None not in cordons and Cordon.QUARANTINED in cordons
    for node, admitted in fitting:
        if node.cordon is not None:
            cordoned[str(node.cordon)] += 1
            found.free += found.last_resort and node.is_open and not _shortages(node, demand, admitted)
            continue
        if node.state != NodeState.UP:
            found.silent += 1
            continue
        lacks = _shortages(node, demand, admitted)
        short.update(lacks)
        found.free += not lacks
    found.short, found.cordoned = dict(short), dict(cordoned)


def _shortages(node: Node, demand: Demand, admitted: list[int]) -> list[str]:
    lacks = []
    if node.slots_free <= 0:
        lacks.append("slots")
    if demand.gpus and node.best_gpus(demand, admitted) is None:
        lacks.append("gpu_memory" if demand.shared else "gpus")
    if node.cpus_free < demand.cpus:
        lacks.append("cpus")
    if node.ram_free_bytes < demand.ram_bytes:
        lacks.append("ram")
    return lacks


def _sentences_on_line(found: Explanation, fitting: list[tuple[Node, list[int]]]) -> list[str]:
    """For a job that some node can run."""
    fit = f"{_nodes(found.fitting)} of {found.nodes} {'fits' if found.fitting == 1 else 'fit'}"
    names = _names([node.name for node, _ in fitting])
    if found.free:
        said = [f"{fit} ({names}), {found.free} with room now."]
        if found.last_resort:
            said.append(f"Though {_CORDON_WORDS[Cordon.QUARANTINED]}, it is the last resort: no other could run this.")
        if found.ahead:
            said.append(f"{_jobs(found.ahead)} in line before it, and the next placement may take that room.")
        return said
    short = [f"{_SHORT_WORDS[name]} on {count}" for name, count in found.short.items()]
    if found.silent:
        short.append(f"no sign of life from {found.silent}, which get no new work")
    for cordon, count in found.cordoned.items():
        last_resort = found.last_resort and cordon == Cordon.QUARANTINED
        takes = "a last resort: one job at a time there" if last_resort else "no new work there"
        short.append(f"{count} {_CORDON_WORDS[Cordon(cordon)]}, {takes}")
    said = [f"{fit} ({names}), none with room now: {', '.join(short)}."]
    line = f"{_jobs(found.ahead)} in line before it; it" if found.ahead else "It is the next in line: it"
    said.append(f"{line} starts when a job there ends, or on another such node: start a worker there.")
    return said


def _sentences_on_misfit(found: Explanation, cluster: Cluster, resources: Resources) -> list[str]:
    """For a job that no node can run: what everybody lacks, or else the node that lacks least."""
    nowhere = [name for name, count in found.failed.items() if count == found.nodes]
    # Where there are too few GPUs at all, what kind they are is beside the point.
    if "gpus" in nowhere:
        nowhere = [name for name in nowhere if name not in {"gpu_memory", "gpu_model", "compute_capability"}]
    if nowhere:
        return [hint(name, cluster, resources) for name in nowhere]
    lacking = {node.node_id: failures(resources, node.node_id, node.name, node.capability) for node in cluster}
    closest = min(cluster, key=lambda node: (len(lacking[node.node_id]), node.row))
    names = " and ".join(lacking[closest.node_id])
    return [
        "Each requirement is met by some node, but no node meets all of them together.",
        f"{closest.name} comes closest: only {names} stand{'' if ' and ' in names else 's'} in the way.",
        *(hint(name, cluster, resources, closest) for name in lacking[closest.node_id]),
    ]


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _jobs(count: int) -> str:
    return "1 job is" if count == 1 else f"{count} jobs are"


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
