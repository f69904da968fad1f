"""What runs where, kept apart from the product's own books; and what must hold after each step."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from broker.scheduler.backlog import Queue, Waiting
from broker.scheduler.demand import Demand, demand_of
from broker.scheduler.matching import GpuKind, failures, gpu_checks
from broker.scheduler.node import Kept
from broker.scheduler.placement import Placement
from broker.scheduler.quotas import Quota
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.conditions import Applicant, Condition
from cyxwiz_tasks.resources import Resources
from tests.worlds.making import PROJECTS


class Broken(AssertionError):
    """An invariant does not hold."""


def shown(waiting: Waiting) -> str:
    wish = waiting.resources.model_dump(exclude_defaults=True)
    limit = f" for {waiting.time_limit_seconds:.0f} s" if waiting.time_limit_seconds is not None else ""
    return f"{waiting.job_id} ({waiting.priority} {waiting.owner} {waiting.project} {wish}{limit})"


class Held(NamedTuple):
    """One job's place on one node."""

    job_id: str
    demand: Demand
    gpus: tuple[int, ...]


class Books:
    def __init__(self, nodes: Mapping[str, Capability]) -> None:
        self.nodes = dict(nodes)
        self._held: dict[str, list[Held]] = {name: [] for name in nodes}
        self._projects: dict[str, tuple[str, int]] = {}
        self._able: dict[tuple[str, Applicant], list[str]] = {}

    def lose(self, node: str) -> set[str]:
        """The node is gone; whose places were there."""
        self._able.clear()
        del self.nodes[node]
        return {held.job_id for held in self._held.pop(node)}

    def release(self, job_id: str) -> None:
        del self._projects[job_id]
        for name, held in self._held.items():
            self._held[name] = [one for one in held if one.job_id != job_id]

    def take(self, placement: Placement) -> None:
        """Book a job on all its nodes, if it may be there and all of it fits."""
        waiting = placement.waiting
        resources, demand = waiting.resources, demand_of(waiting.resources)
        places = [one.node_id for one in placement.members]
        _check(len(places) == resources.nodes, f"{shown(waiting)} has {len(places)} places")
        _check(len(set(places)) == len(places), f"{shown(waiting)} is twice on one node: {places}")
        _check(waiting.job_id not in self._projects, f"{shown(waiting)} is placed twice")
        for member in placement.members:
            self._check_requirements(waiting, member.node_id, member.gpu_indexes)
            self._held[member.node_id].append(Held(waiting.job_id, demand, member.gpu_indexes))
            self._check_capacity(member.node_id)
        gpus = 0 if demand.shared else demand.gpus * demand.nodes
        self._projects[waiting.job_id] = waiting.project, gpus

    def nodes_of(self, job_id: str) -> set[str]:
        """Where it holds a place."""
        return {name for name, held in self._held.items() if any(one.job_id == job_id for one in held)}

    def could_run(self, waiting: Waiting) -> list[str]:
        """Nodes that a job could run on if they were empty."""
        resources, applicant = waiting.resources, waiting.applicant
        kind = resources.shape, applicant
        if kind not in self._able:
            self._able[kind] = [
                name
                for name, able in self.nodes.items()
                if not failures(resources, name, name, able) and _takes(able, resources, applicant)
            ]
        return self._able[kind]

    def has_room(self, node: str, waiting: Waiting, kept: Iterable[Kept] = (), without: Collection[str] = ()) -> bool:
        """Whether a job that could run there fits beside all others, but those that are named, and what is kept."""
        demand = demand_of(waiting.resources)
        usable = self._usable(node, waiting, kept, without)
        return usable is not None and len(usable) >= demand.gpus

    def have_room(self, waiting: Sequence[Waiting], nodes: Collection[str]) -> bool:
        """Whether all of these fit on these nodes at the same time: every way to put them there is tried."""
        if not waiting:
            return True
        first, *others = waiting
        demand = demand_of(first.resources)
        for name in set(nodes).intersection(self.could_run(first)):
            usable = self._usable(name, first, (), ())
            for gpus in combinations(usable, demand.gpus) if usable is not None else ():
                self._held[name].append(Held(first.job_id, demand, gpus))
                found = self.have_room(others, nodes)
                self._held[name].pop()
                if found:
                    return True
        return False

    def _usable(self, node: str, waiting: Waiting, kept: Iterable[Kept], without: Collection[str]) -> list[int] | None:
        """The GPUs that a job could get; None: something else is short."""
        able, demand = self.nodes[node], demand_of(waiting.resources)
        held, aside = [one for one in self._held[node] if one.job_id not in without], list(kept)
        used: dict[int, int] = dict.fromkeys(range(len(able.gpus)), 0)
        for one in held:
            for at in one.gpus:
                used[at] += one.demand.gpu_memory_bytes if one.demand.shared else able.gpus[at].memory_bytes
        for other in aside:
            for at, size in other.gpu_bytes:
                used[at] += size
        cpus = sum(one.demand.cpus for one in held) + sum(one.cpus for one in aside)
        ram = sum(one.demand.ram_bytes for one in held) + sum(one.ram_bytes for one in aside)
        if (
            len(held) + sum(one.slots for one in aside) >= able.slots
            or able.cpu_cores - cpus < demand.cpus
            or able.ram_bytes - ram < demand.ram_bytes
        ):
            return None
        checks = gpu_checks(waiting.resources).values()
        free = {at: gpu.memory_bytes - used[at] for at, gpu in enumerate(able.gpus)}
        return [
            at
            for at, gpu in enumerate(able.gpus)
            if all(holds(GpuKind.of(gpu)) for holds in checks)
            and (free[at] >= demand.gpu_memory_bytes if demand.shared else used[at] == 0)
        ]

    @property
    def gpus(self) -> int:
        return sum(len(able.gpus) for able in self.nodes.values())

    def gpus_of(self, project: str, but: Collection[str] = ()) -> int:
        """How many its jobs hold for themselves, but for those that are named."""
        return sum(gpus for job_id, (name, gpus) in self._projects.items() if name == project and job_id not in but)

    def check_quotas(self, quotas: Mapping[str, Quota]) -> None:
        """No project has more than its own and what it may borrow, nor what another keeps for itself."""
        if not quotas:
            return
        total, used = self.gpus, {name: self.gpus_of(name) for name in PROJECTS}
        for name, quota in quotas.items():
            if quota.borrow_gpus is not None:
                _check(used[name] <= quota.gpus + quota.borrow_gpus, f"{name} holds {used[name]} of {quota}")
        kept = {name: 0 if quota.lend_gpus is None else quota.gpus - quota.lend_gpus for name, quota in quotas.items()}
        idle = sum(max(0, kept[name] - used[name]) for name in quotas)
        over = sum(quota.gpus for quota in quotas.values()) > total
        _check(over or sum(used.values()) + idle <= total, f"{used} used of {total}, and {kept} is kept")

    def _check_requirements(self, waiting: Waiting, node: str, gpus: tuple[int, ...]) -> None:
        able, resources = self.nodes[node], waiting.resources
        _check(node in self.could_run(waiting), f"{shown(waiting)} is on {node}, which cannot run it")
        _check(len(set(gpus)) == resources.gpus, f"{shown(waiting)} has the GPUs {gpus}")
        for field, holds in gpu_checks(resources).items():
            _check(all(holds(GpuKind.of(able.gpus[at])) for at in gpus), f"{shown(waiting)}: {field} on {node} {gpus}")

    def _check_capacity(self, node: str) -> None:
        able, held = self.nodes[node], self._held[node]
        _check(len(held) <= able.slots, f"{node} has more jobs than slots: {held}")
        _check(sum(one.demand.cpus for one in held) <= able.cpu_cores, f"{node} has too few cores: {held}")
        _check(sum(one.demand.ram_bytes for one in held) <= able.ram_bytes, f"{node} has too little memory: {held}")
        for at, gpu in enumerate(able.gpus):
            there = [one for one in held if at in one.gpus]
            whole = [one for one in there if not one.demand.shared]
            _check(len(there) <= 1 or not whole, f"GPU {at} of {node} is given twice: {there}")
            shared = sum(one.demand.gpu_memory_bytes for one in there if one.demand.shared)
            _check(shared <= gpu.memory_bytes, f"GPU {at} of {node} has too little memory: {there}")


def check_order(placed: list[Placement], waiting: Iterable[Queue]) -> None:
    """Of jobs that differ in nothing but age, the older one is placed first."""
    for queue in waiting:
        for one in placed:
            other = one.waiting
            is_like = other[2:] == queue.find(queue.head[1])[2:] if queue.head else False
            _check(not is_like or other.sequence < queue.head[0], f"{shown(other)} passed {queue.head}")  # type: ignore[index]


def _takes(able: Capability, resources: Resources, applicant: Applicant) -> bool:
    return able.accept is None or Condition.parse(able.accept).holds(resources, applicant)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)
