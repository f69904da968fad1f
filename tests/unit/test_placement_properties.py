"""Placement against a plain search over all nodes, under random sequences of everything that can happen."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import groupby

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.scheduler import candidates
from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.demand import demand_of
from broker.scheduler.matching import GpuKind, failures, gpu_checks
from broker.scheduler.node import Node
from broker.scheduler.placement import Placement, Placer
from broker.scheduler.scoring import UNTRIED, availability, fit
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.conditions import Applicant, Condition
from cyxwiz_tasks.preferences import as_requirement
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from db.models import Cordon, NodeState
from tests.property_size import examples
from tests.unit.fleet import capabilities, light_requirements, requirements

_NODES = 6
shares = st.sampled_from([0.0, 0.25, 0.5, 1.0])
node_ids = st.integers(0, _NODES - 1).map("n{}".format)


def takes(node: Node, resources: Resources, applicant: Applicant) -> bool:
    """The specification: whether a node's own condition holds for a job."""
    condition = node.capability.accept
    return condition is None or Condition.parse(condition).holds(resources, applicant)


def score_now(cluster: Cluster, node: Node, resources: Resources, applicant: Applicant) -> float | None:
    """The specification: the score of one node for one job, None where it does not fit now.

    A node in quarantine takes one job at a time, if no node without a cordon could ever run it.
    """
    demand, checks = demand_of(resources), gpu_checks(resources).values()
    admitted = [at for at, gpu in enumerate(node.capability.gpus) if all(holds(GpuKind.of(gpu)) for holds in checks)]
    if (
        failures(resources, node.node_id, node.name, node.capability)
        or not takes(node, resources, applicant)
        or node.state != NodeState.UP
        or node.cordon == Cordon.DRAINING
        or (node.cordon == Cordon.QUARANTINED and (node.holdings or not is_stranded(cluster, resources, applicant)))
        or node.opens_at is not None
        or node.slots_free < 1
        or node.cpus_free < demand.cpus
        or node.ram_free_bytes < demand.ram_bytes
    ):
        return None
    positions = node.best_gpus(demand, admitted) if demand.gpus else ()
    if positions is None:
        return None
    weights, free = cluster.weights, availability(node)
    untried = -UNTRIED * (not node.tried and resources.gpus * resources.nodes > 1)
    bonus = weights.fit * fit(node, demand, positions) + (untried + preferred_share(node, resources, admitted))
    policy = resources.placement or cluster.placement
    packed = 1.0 + weights.availability - (1.0 + 2 * weights.availability) * free
    if demand.gpus and not demand.shared:
        packed = -weights.availability * free + (1.0 + weights.availability) * demand.gpus / node.idle_gpus
    score = node.standing + bonus + {"spread": free, "pack": packed}.get(policy, 0.0)
    # The order of additions is the scheduler's own: its rounding to 32 bits would tell the orders apart.
    return float(np.float32(score))


def preferred_share(node: Node, resources: Resources, admitted: list[int]) -> float:
    """The specification: how much of what is preferred a node has, by weight."""
    share, total = 0.0, sum(resources.prefer.values())
    for text, weight in resources.prefer.items():
        wish = Resources.parse(as_requirement(text))
        if on_gpu := gpu_checks(wish):
            [has] = on_gpu.values()
            holds = all(has(GpuKind.of(node.capability.gpus[at])) for at in admitted)
        else:
            holds = not failures(wish, node.node_id, node.name, node.capability)
        share += weight / total * holds
    return share


def is_stranded(cluster: Cluster, resources: Resources, applicant: Applicant) -> bool:
    """Whether no node without a cordon could ever run this, however busy or silent it is now."""
    return all(
        node.cordon is not None
        or failures(resources, node.node_id, node.name, node.capability)
        or not takes(node, resources, applicant)
        for node in cluster
    )


def next_placement(cluster: Cluster, backlog: Backlog) -> tuple[str, str] | None:
    """The specification: which job goes where next."""
    for queue in backlog:
        assert queue.head is not None
        scores = {node.row: score_now(cluster, node, queue.resources, queue.applicant) for node in cluster}
        scored = {row: score for row, score in scores.items() if score is not None}
        if scored:
            row = max(scored, key=lambda row: (scored[row], -row))
            return queue.head[1], cluster.node_at(row).node_id
    return None


class PlacementMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cluster, self.backlog = Cluster(), Backlog()
        self.placer = Placer(self.cluster, self.backlog)
        self.running: dict[str, Placement] = {}
        self.number = 0
        self.now = 0.0

    @initialize(able=st.lists(capabilities, min_size=1, max_size=_NODES))
    def start(self, able: list[Capability]) -> None:
        for number, capability in enumerate(able):
            self.cluster.upsert_node(f"n{number}", f"n{number}", capability, "0")

    @rule(
        node_id=node_ids,
        able=capabilities,
        reputation=shares,
        uptime=shares,
        state=st.sampled_from(["up", "suspect"]),
        tried=st.booleans(),
    )
    def register(
        self, node_id: str, able: Capability, reputation: float, uptime: float, state: str, tried: bool
    ) -> None:
        self.cluster.upsert_node(
            node_id, node_id, able, "1", state=NodeState(state), reputation=reputation, uptime=uptime, tried=tried
        )

    @rule(node_id=node_ids)
    def complete_a_first_job(self, node_id: str) -> None:
        if node_id in self.cluster:
            self.cluster.set_tried(node_id)

    @rule(node_id=node_ids, state=st.sampled_from(NodeState))
    def change_state(self, node_id: str, state: NodeState) -> None:
        if node_id in self.cluster:
            self.cluster.set_state(node_id, state)

    @rule(node_id=node_ids, cordon=st.sampled_from([None, *Cordon]))
    def cordon(self, node_id: str, cordon: Cordon | None) -> None:
        if node_id in self.cluster:
            self.cluster.set_cordon(node_id, cordon)

    @rule(node_id=node_ids, opens_at=st.sampled_from([None, datetime(2026, 6, 1, 18, tzinfo=UTC)]))
    def open_or_close(self, node_id: str, opens_at: datetime | None) -> None:
        if node_id in self.cluster:
            self.cluster.set_opening(node_id, opens_at)

    @rule(node_id=node_ids, reputation=shares, uptime=shares)
    def change_standing(self, node_id: str, reputation: float, uptime: float) -> None:
        if node_id in self.cluster:
            self.cluster.set_standing(node_id, reputation, uptime)

    @rule(node_id=node_ids)
    def lose(self, node_id: str) -> None:
        if node_id in self.cluster:
            for job_id in self.cluster.remove_node(node_id):
                self.backlog.discharge(job_id)
                self.backlog.add(self.running.pop(job_id).waiting)

    @rule(
        wishes=st.lists(st.one_of(light_requirements, light_requirements, requirements), min_size=1, max_size=6),
        priority=st.sampled_from(Priority),
        owner=st.sampled_from(["ann", "bob", "cem"]),
        project=st.sampled_from(["", "x"]),
    )
    def submit(self, wishes: list[Resources], priority: Priority, owner: str, project: str) -> None:
        for wish in wishes:
            self.number += 1
            self.backlog.add(Waiting(f"job-{self.number}", self.number, wish, priority, owner, project))

    @rule(seconds=st.sampled_from([1.0, 3600.0, 90_000.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.backlog.settle(self.now, self.cluster.totals)

    @rule(limit=st.integers(1, 8))
    def place_one_by_one(self, limit: int) -> None:
        for _ in range(limit):
            expected = next_placement(self.cluster, self.backlog)
            placed = self.placer.place(1)
            assert [(placement.job_id, placement.node_id) for placement in placed] == ([expected] if expected else [])
            self._check(placed)

    @rule()
    def place_all(self) -> None:
        placed = self.placer.place(1000)
        self._check(placed)
        assert next_placement(self.cluster, self.backlog) is None

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 3))
    def finish(self, data: st.DataObject, count: int) -> None:
        for _ in range(min(count, len(self.running))):
            job_id = data.draw(st.sampled_from(sorted(self.running)))
            placement = self.running.pop(job_id)
            on = self.cluster.node_of(job_id)
            assert on is not None
            assert on.node_id == placement.node_id
            assert self.cluster.release(job_id)
            assert not self.cluster.release(job_id)
            self.backlog.discharge(job_id)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        self.placer.undo(self.running.pop(data.draw(st.sampled_from(sorted(self.running)))))

    @rule(number=st.integers(1, 60))
    def cancel(self, number: int) -> None:
        waits = f"job-{number}" in self.backlog
        assert self.backlog.remove(f"job-{number}") == waits

    def _check(self, placed: list[Placement]) -> None:
        """Constraints hold for each placement, and what it took was there."""
        for placement in placed:
            node, (_, _, resources, priority, owner, project, _) = (
                self.cluster.node(placement.node_id),
                placement.waiting,
            )
            assert takes(node, resources, Applicant(owner, project, priority))
            assert failures(resources, node.node_id, node.name, node.capability) == []
            assert placement.last_resort == (node.cordon is not None)
            assert node.cordon is None or (node.cordon == Cordon.QUARANTINED and len(node.holdings) == 1)
            assert len(set(placement.gpu_indexes)) == resources.gpus
            used = [node.capability.gpus[index] for index in placement.gpu_indexes]
            assert all(holds(GpuKind.of(gpu)) for gpu in used for holds in gpu_checks(resources).values())
            assert node.slots_free >= 0
            assert node.cpus_free >= 0
            assert node.ram_free_bytes >= 0
            assert min(node.gpu_free, default=0) >= 0
            self.running[placement.job_id] = placement

    @invariant()
    def whoever_had_less_goes_first(self) -> None:
        """Priority, then the project's standing, then the owner's in it, then age; of equals, each's jobs together."""
        shares = self.backlog.shares
        standings = []
        kinds = groupby(self.backlog, lambda queue: (queue.rank, queue.project, queue.owner))
        blocks = [(kind, [queue.head for queue in queues]) for kind, queues in kinds]
        for (rank, project, owner), heads in blocks:
            assert heads == sorted(heads)
            standings.append((-rank, shares.account(project, None).standing, shares.account(project, owner).standing))
        assert standings == sorted(standings)
        assert len(blocks) == len({kind for kind, _ in blocks})

    @invariant()
    def books_add_up(self) -> None:
        for node in self.cluster:
            held = node.holdings.values()
            able = node.capability
            assert node.slots_free == able.slots - len(held)
            assert node.cpus_free == able.cpu_cores - sum(holding.demand.cpus for holding in held)
            assert node.ram_free_bytes == able.ram_bytes - sum(holding.demand.ram_bytes for holding in held)
            for at, gpu in enumerate(able.gpus):
                on_it = [holding.demand for holding in held if at in holding.positions]
                whole = [demand for demand in on_it if not demand.shared]
                assert len(whole) <= 1
                assert not whole or len(on_it) == 1
                taken = sum(demand.gpu_memory_bytes for demand in on_it) + (gpu.memory_bytes if whole else 0)
                assert node.gpu_free[at] == gpu.memory_bytes - taken
            assert node.gpu_memory_free == sum(node.gpu_free)
            assert node.idle_gpus == sum(map(int.__eq__, node.gpu_free, node.gpu_memory))
        assert self.cluster.open_nodes == sum(
            node.state == NodeState.UP
            and node.opens_at is None
            and node.slots_free > 0
            and (node.cordon is None or (node.cordon == Cordon.QUARANTINED and not node.holdings))
            for node in self.cluster
        )


@pytest.mark.parametrize("scalar_rows", [0, 2, 1000], ids=["vectorised", "both", "scalar"])
def test_placement_is_what_a_plain_search_finds(scalar_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SCALAR_ROWS", scalar_rows)
    run_state_machine_as_test(
        PlacementMachine, settings=settings(max_examples=examples(50), stateful_step_count=40, deadline=None)
    )
