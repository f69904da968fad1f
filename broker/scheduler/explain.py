"""Why a job waits: how many nodes fail which requirement, what is busy, who is ahead, and what to change."""

from __future__ import annotations

from collections import Counter
from shlex import quote
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from broker.scheduler.acceptance import Refused
from broker.scheduler.admission import Admission
from broker.scheduler.backlog import Backlog
from broker.scheduler.cluster import Cluster
from broker.scheduler.demand import Demand, demand_of
from broker.scheduler.estimate import Estimate
from broker.scheduler.fair_share import Account
from broker.scheduler.hints import hint, whom_they_take
from broker.scheduler.matching import GPUS_TOGETHER, failures
from broker.scheduler.node import Node
from broker.scheduler.position import Ahead, ahead_of
from broker.scheduler.quotas import amounts_of
from broker.scheduler.shares import expected
from broker.scheduler.smallest_change import NODES, smallest_change
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.errors import NotFound
from cyxwiz_tasks.opening_hours import show_opening
from cyxwiz_tasks.resources import Resources
from db.models import Cordon, NodeState

NOBODY = Applicant()
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


class Share(BaseModel):
    """What a project, or with `owner` one in it, has of the cluster: shares of all of it, see `fair_share.py`."""

    project: str
    owner: str | None
    past: float
    present: float
    weight: float
    #: how many of its jobs are served first
    ahead: int = 0

    @classmethod
    def of(cls, account: Account, ahead: int = 0) -> Share:
        return cls(
            project=account.project,
            owner=account.owner,
            past=round(account.past, 4),
            present=round(account.present, 4),
            weight=account.weight,
            ahead=ahead,
        )

    def __str__(self) -> str:
        name = f"project {self.project or 'without a name'}" if self.owner is None else self.owner or "nobody"
        weight = f", weight {self.weight:g}" if self.weight != 1 else ""
        return f"{name} ({self.past:.1%} before, {self.present:.1%} now{weight})"


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
    #: of these, the ones that take no new work because it is outside their hours
    closed: int = 0
    #: of these, the ones that are short of something now: slots, gpus, gpu_memory (of shared GPUs), cpus, ram
    short: dict[str, int] = Field(default_factory=dict)
    #: jobs that are served before it; None: it does not wait in line
    ahead: int | None = None
    #: of these, those of a higher priority, and those of others who have had less of the cluster
    ahead_by_priority: int = 0
    ahead_by_share: list[Share] = Field(default_factory=list)
    #: what its own project and owner have, if others come first for having less
    own_shares: list[Share] = Field(default_factory=list)
    #: how many jobs its owner may run, if that many run and it is this that holds it back
    running_limit: int | None = None
    #: its project's quota does not admit it now, or its project borrows, and others come first for that
    quota: Literal["reached", "borrows"] | None = None
    #: if none fits: the fewest requirements to change, and to what, so that one does; None: leave it out
    change: dict[str, Any] | None = None
    #: when it will start, if somebody asked for that
    estimate: Estimate | None = None
    #: for people: what is so, and what would make it fit
    sentences: list[str] = Field(default_factory=list)

    def __str__(self) -> str:
        return " ".join(self.sentences)


def why(
    cluster: Cluster,
    backlog: Backlog,
    resources: Resources | None = None,
    job_id: str | None = None,
    applicant: Applicant = NOBODY,
) -> Explanation:
    """Explain a waiting job, or with `resources` and `applicant` what would happen to such a job (a dry run).

    Raises NotFound if the job does not wait and `resources` is None.
    """
    sequence, (owner, project, priority) = None, applicant
    if job_id is not None and (waiting := backlog.find(job_id)) is not None:
        _, sequence, resources, priority, owner, project, _ = waiting
    if resources is None:
        raise NotFound(f"job {job_id} does not wait for a node: `cyxwiz job {job_id}` shows where it is")
    found = Explanation(nodes=len(cluster))
    _count_ahead(found, backlog, ahead_of(backlog, priority, sequence, owner, project), owner, project)
    if not len(cluster):
        found.sentences.append(
            "No node has registered. Start one with `cyxwiz worker` on a machine that reaches this broker "
            "(CYXWIZ_BROKER_URL names it)."
        )
        return found
    refused = cluster.refusing(resources, Applicant(owner, project, priority))
    fitting = _count_failures(found, cluster, resources, refused)
    found.fitting = len(fitting)
    if fitting:
        _count_shortages(found, fitting, demand_of(resources))
        is_gang = resources.nodes > 1
        found.sentences += (
            _sentences_on_gang(found, fitting, resources.nodes) if is_gang else _sentences_on_line(found, fitting)
        )
        if refusing := [node for node in cluster if node.capability.accept in refused]:
            do = "does" if len(refusing) == 1 else "do"
            found.sentences.append(f"{_nodes(len(refusing))} {do} not take such a job: {whom_they_take(refusing)}.")
        if sequence is not None:
            found.sentences += _sentences_on_limits(found, backlog, owner)
        found.sentences += _sentences_on_quotas(found, backlog, project, resources)
    else:
        found.sentences += _sentences_on_misfit(found, cluster, resources, refused)
    return found


def _count_ahead(found: Explanation, backlog: Backlog, ahead: Ahead, owner: str, project: str) -> None:
    found.ahead, found.ahead_by_priority = ahead.jobs, ahead.higher_priority
    found.ahead_by_share = [Share.of(account, count) for account, count in ahead.fair_share]
    # Owners are compared within a project, and projects with each other.
    compared = {account.owner is None for account, _ in ahead.fair_share}
    found.own_shares = [
        Share.of(backlog.shares.account(project, None if is_project else owner)) for is_project in sorted(compared)
    ]


def _count_failures(
    found: Explanation, cluster: Cluster, resources: Resources, refused: Refused
) -> list[tuple[Node, list[int]]]:
    """Fill in `failed`. Returns the nodes that fit, each with the positions of the GPUs that the job may use."""
    rows = np.array([node.row for node in cluster], np.int32)
    admission = Admission(resources, refused)
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
        if node.opens_at is not None:
            found.closed += 1
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
        return said + _sentences_on_ahead(found)
    short = _shortage_words(found, fitting)
    said = [f"{fit} ({names}), none with room now: {', '.join(short)}."]
    line = f"{_jobs(found.ahead)} in line before it; it" if found.ahead else "It is the next in line: it"
    whens = ["a job there ends"] if found.short or found.last_resort else []
    whens += ["a node opens"] if found.closed else []
    when = " or ".join(whens or ["one of them takes work again"])
    said.append(f"{line} starts when {when}, or on another such node: start a worker there.")
    return said + _sentences_on_ahead(found)


def _sentences_on_gang(found: Explanation, fitting: list[tuple[Node, list[int]]], nodes: int) -> list[str]:
    """For a job on several nodes of which some fit."""
    names = _names([node.name for node, _ in fitting])
    fit = f"{found.fitting} of {found.nodes} {'fits' if found.fitting == 1 else 'fit'} ({names})"
    missing = nodes - found.fitting
    if missing > 0:
        fewer = f", or ask for nodes={found.fitting}" if found.fitting > 1 else ""
        return [
            f"It needs {nodes} nodes at the same time, and {fit}: start a worker on {missing} more such "
            f"{'node' if missing == 1 else 'nodes'}{fewer}."
        ]
    said = [f"It needs {nodes} nodes at the same time: {fit}, {found.free or 'none'} with room now."]
    if found.free < nodes:
        if short := _shortage_words(found, fitting):
            said.append(f"The others: {', '.join(short)}.")
        more = nodes - found.free
        line = f"{_jobs(found.ahead)} in line before it; it" if found.ahead else "It is the next in line: it"
        fewer = f"; with nodes={found.free} it would fit now" if found.free > 1 else ""
        said.append(
            f"{line} starts once {more} more {'has' if more == 1 else 'have'} room, all {nodes} together: when jobs "
            f"there end, or on other such nodes: start a worker there{fewer}."
        )
    elif found.ahead:
        said.append(f"{_jobs(found.ahead)} in line before it, and the next placement may take that room.")
    return said + _sentences_on_ahead(found)


def _shortage_words(found: Explanation, fitting: list[tuple[Node, list[int]]]) -> list[str]:
    """What keeps the nodes that fit from having room."""
    short = [f"{_SHORT_WORDS[name]} on {count}" for name, count in found.short.items()]
    if found.silent:
        short.append(f"no sign of life from {found.silent}, which get no new work")
    for cordon, count in found.cordoned.items():
        last_resort = found.last_resort and cordon == Cordon.QUARANTINED
        takes = "a last resort: one job at a time there" if last_resort else "no new work there"
        if cordon == Cordon.DRAINING:
            names = [node.name for node, _ in fitting if node.cordon == Cordon.DRAINING]
            takes += f" until `cyxwiz undrain {names[0] if len(names) == 1 else 'NODE'}`"
        short.append(f"{count} {_CORDON_WORDS[Cordon(cordon)]}, {takes}")
    if found.closed:
        short.append(f"{found.closed} outside {'its' if found.closed == 1 else 'their'} hours, {_opening(fitting)}")
    return short


def _sentences_on_ahead(found: Explanation) -> list[str]:
    """Why others come first, if it is not for having been accepted earlier."""
    said = []
    if found.ahead_by_priority:
        said.append(f"{_have(found.ahead_by_priority)} a higher priority.")
    if found.ahead_by_share:
        count = sum(share.ahead for share in found.ahead_by_share)
        are = "1 of them is" if count == 1 else f"{count} of them are"
        others = _names([str(share) for share in found.ahead_by_share])
        own = " and ".join(str(share) for share in found.own_shares)
        said.append(f"{are} of others who had less of the cluster: {others}; this job is of {own}.")
    return said


def _opening(fitting: list[tuple[Node, list[int]]]) -> str:
    openings = [(node.opens_at, node.name) for node, _ in fitting if node.opens_at is not None]
    opening, name = min(openings)
    first = " first," if len(openings) > 1 else ""
    return f"{name} opens{first} {show_opening(opening)} ({opening.tzinfo})"


def _sentences_on_misfit(found: Explanation, cluster: Cluster, resources: Resources, refused: Refused) -> list[str]:
    """For a job that no node can run: what everybody lacks, or else the node that lacks least; and what to change."""
    near = _closest(cluster, resources, refused)
    change = smallest_change(resources, near, refused)
    found.change = change.fields if change is not None else None
    nowhere = [name for name, count in found.failed.items() if count == found.nodes]
    # Where there are too few GPUs at all, what kind they are is beside the point.
    if "gpus" in nowhere:
        nowhere = [name for name in nowhere if name not in {"gpu_memory", "gpu_model", "compute_capability"}]
    if nowhere:
        said = [hint(name, cluster, resources) for name in nowhere]
        return said if change is None or change.is_said(nowhere, said[0]) else [*said, str(change)]
    closest = near[0]
    lacking = failures(resources, closest.node_id, closest.name, closest.capability, refused)
    names = " and ".join("the requirements on GPUs together" if name == GPUS_TOGETHER else name for name in lacking)
    stand = "stands" if len(lacking) == 1 and names == lacking[0] else "stand"
    return [
        "Each requirement is met by some node, but no node meets all of them together.",
        f"{closest.name} comes closest: only {names} {stand} in the way.",
        *(hint(name, cluster, resources, closest) for name in lacking),
        *([str(change)] if change is not None else []),
    ]


def _closest(cluster: Cluster, resources: Resources, refused: Refused) -> list[Node]:
    """Some of the nodes that fail the fewest requirements, of equals those with the largest GPUs and most memory; one
    that the job names comes before all others.
    """
    rows, columns = np.array(sorted(node.row for node in cluster), np.int32), cluster.columns
    admission = Admission(resources, refused)
    failed = admission.failures(cluster, rows, admission.gpus(columns, rows))
    counts = np.sum([np.zeros(len(rows), np.int64), *failed.values()], axis=0)
    unnamed = failed.get("node", np.zeros(len(rows), bool))
    sizes = -columns.ram_bytes[rows], -columns.gpu_memory[rows].max(axis=1, initial=0)
    order = np.lexsort((rows, *sizes, counts, unnamed))
    return [cluster.node_at(int(rows[at])) for at in order[:NODES]]


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _jobs(count: int) -> str:
    return "1 job is" if count == 1 else f"{count} jobs are"


def _sentences_on_limits(found: Explanation, backlog: Backlog, owner: str) -> list[str]:
    person = backlog.shares.person(owner)
    if not person.is_full:
        return []
    found.running_limit = person.running_limit
    whose = owner or "its owner"
    if not person.running_limit:
        return [f"No job of {whose} may run now: `cyxwiz limit {quote(owner)} --running N` allows N."]
    return [
        f"It starts when another job of {whose} ends: {person.running} run, and {person.running_limit} may "
        f"(`cyxwiz limit {quote(owner)} --running N`)."
    ]


def _sentences_on_quotas(found: Explanation, backlog: Backlog, project: str, resources: Resources) -> list[str]:
    quotas, amounts = backlog.shares.quotas, amounts_of(expected(demand_of(resources)))
    own, held = quotas.of(project), quotas.held(project)
    has = f"{_gpus(held.gpus)} and {held.cpus} cores, and owns {own.gpus} and {own.cpus}"
    if not quotas.admits(project, amounts):
        found.quota = "reached"
        why = "more is not to be borrowed now"
        if quotas.is_own(project, amounts):
            why = "what is free is others' own, and it gets its own once they have given back what they borrowed"
        return [
            f"Project {project or 'without a name'} holds {has}: {why}. `cyxwiz quotas` shows who has what, and "
            f"`cyxwiz quota set {quote(project)} --gpus N --cpus N` lets it own more."
        ]
    if quotas.borrows(project):
        found.quota = "borrows"
        return [
            f"Project {project or 'without a name'} holds {has}: projects that have something of their own left come "
            "first (`cyxwiz quotas`)."
        ]
    return []


def _have(count: int) -> str:
    return "1 of them has" if count == 1 else f"{count} of them have"


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    return shown if len(names) <= _NAMES_SHOWN else f"{shown} and {len(names) - _NAMES_SHOWN} more"
