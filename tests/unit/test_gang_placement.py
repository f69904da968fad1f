"""Gangs: all members or none, on different nodes, near each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from broker.scheduler import candidates, preemption
from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.demand import demand_of
from broker.scheduler.gang_choice import choose
from broker.scheduler.holder import holder
from broker.scheduler.placement import Placement, Placer
from broker.scheduler.places import able
from broker.scheduler.preemption import Clearing, Holder
from broker.scheduler.reservations import Blocked, plan
from broker.scheduler.shares import dominant_share, expected
from cyxwiz_tasks.capability import Capability
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.resources import MOST_NODES, Resources
from cyxwiz_tasks.states import Priority
from db.models import NodeState
from tests.property_size import examples
from tests.unit.fleet import A100, T4, capability, cluster_of

GB = 10**9
NOWHERE = float("-inf")


def placer_on(cluster: Cluster, *wishes: Resources) -> Placer:
    backlog = Backlog()
    for number, wish in enumerate(wishes, 1):
        backlog.add(Waiting(f"job-{number}", number, wish, Priority.NORMAL, "ann"))
    return Placer(cluster, backlog)


def nodes_of(placement: Placement) -> list[str]:
    return [member.node_id for member in placement.members]


def test_a_gang_is_placed_on_different_nodes_or_not_at_all():
    cluster = cluster_of(a=capability(A100, slots=8), b=capability(A100), c=capability(T4))
    placer = placer_on(cluster, Resources(nodes=3, gpus=1), Resources(nodes=2, gpus=1))
    [first] = placer.place(10)
    assert sorted(nodes_of(first)) == ["a", "b", "c"]
    assert [member.rank for member in first.members] == [0, 1, 2]
    assert len(placer.backlog) == 1
    placer.drop(first)
    [second] = placer.place(10)
    assert len(set(nodes_of(second))) == 2


def test_a_gang_that_slept_is_placed_as_soon_as_the_last_of_its_nodes_is_free():
    cluster = cluster_of(a=capability(A100, slots=1), b=capability(A100, slots=1))
    placer = placer_on(cluster, Resources(gpus=1, node="b"), Resources(nodes=2, gpus=1))
    [single] = placer.place(10)
    assert placer.place(10) == []
    placer.drop(single)
    [gang] = placer.place(10)
    assert sorted(nodes_of(gang)) == ["a", "b"]


def test_a_member_that_another_job_displaced_while_the_gang_slept_is_not_counted_on():
    cluster = cluster_of(**{name: capability(A100, slots=1) for name in "abc"})
    placer = placer_on(cluster, *[Resources(gpus=1, node=name) for name in "ab"], Resources(nodes=2, gpus=1))
    on_a, _ = placer.place(10)
    placer.backlog.add(Waiting("late", 9, Resources(gpus=1, node="c"), Priority.HIGH))
    assert [placement.job_id for placement in placer.place(10)] == ["late"]
    placer.drop(on_a)
    assert placer.place(10) == [], "only one node is free"


def test_what_a_gang_holds_is_counted_on_all_its_nodes():
    cluster = cluster_of(a=capability(A100), b=capability(T4))
    placer = placer_on(cluster, Resources(nodes=2, gpus=1, cpus=2))
    placer.backlog.settle(0.0, cluster.totals)
    [gang] = placer.place(1)
    account = placer.backlog.shares.account("", "ann")
    assert account.running == 1, "it is one job"
    assert account.present == 1.0, "both GPUs"
    placer.drop(gang)
    assert account.present == 0.0
    assert all(not node.holdings for node in cluster)


def test_a_gang_of_cpu_nodes_is_charged_a_slot_on_each():
    demand = demand_of(Resources(nodes=3))
    assert dominant_share(expected(demand), cluster_of(a=capability(slots=4), b=capability(slots=8)).totals) == 0.25


@pytest.mark.parametrize("nodes", [0, -1, MOST_NODES + 1])
def test_a_gang_of_no_nodes_or_of_too_many_is_refused(nodes):
    with pytest.raises(InvalidJob, match=r"resources\.nodes"):
        Resources.parse({"nodes": nodes})


def test_one_node_is_no_gang():
    assert Resources(nodes=1).shape == Resources().shape


# Which nodes --------------------------------------------------------------------------------------------------------


def chosen(members: int, *nodes: tuple[float, int, float]) -> list[int]:
    """Of nodes with score, region and speed."""
    scores, regions, speeds = zip(*nodes, strict=True)
    return choose(np.array(scores, np.float32), np.array(regions, np.int32), np.array(speeds, float), members)


def test_one_region_comes_before_better_scores():
    assert chosen(2, (0.9, 1, 0), (0.8, 2, 0), (0.2, 1, 0)) == [0, 2]


def test_of_regions_the_one_with_the_fastest_slowest_link_is_taken():
    assert chosen(2, (0.9, 1, 10), (0.9, 1, 1), (0.1, 2, 5), (0.2, 2, 5)) == [3, 2]


def test_within_a_region_the_fastest_links_come_before_scores_and_scores_decide_between_equal_ones():
    assert chosen(2, (0.9, 1, 1), (0.1, 1, 10), (0.2, 1, 10), (0.3, 1, 10)) == [3, 2]


def test_a_gang_that_no_region_holds_is_spread_over_few():
    assert chosen(4, (0.9, 1, 0), (0.1, 2, 0), (0.2, 2, 0), (0.3, 2, 0), (0.95, 3, 0)) == [3, 2, 1, 0]


def test_equal_nodes_are_taken_by_their_rows():
    assert chosen(2, (0.5, 1, 0), (0.5, 1, 0), (0.5, 1, 0)) == [0, 1]


def test_too_few_nodes_hold_no_gang():
    assert chosen(2, (0.5, 1, 0), (NOWHERE, 1, 0)) == []


_nodes = st.tuples(st.sampled_from([NOWHERE, 0.25, 0.5, 1.0]), st.integers(0, 2), st.sampled_from([0.0, 1.0, 2.0]))


@given(st.lists(_nodes, min_size=1, max_size=9), st.integers(2, 5))
def test_a_choice_is_of_different_nodes_that_fit_and_as_near_as_can_be(nodes, members):
    found = chosen(members, *nodes)
    fitting = [row for row, (score, *_) in enumerate(nodes) if score != NOWHERE]
    assert bool(found) == (len(fitting) >= members)
    if not found:
        return
    assert len(set(found)) == members
    assert set(found) <= set(fitting)
    sizes = {region: sum(nodes[row][1] == region for row in fitting) for region in range(3)}
    regions = {nodes[row][1] for row in found}
    fewest = next(n for n in range(1, 4) if sum(sorted(sizes.values(), reverse=True)[:n]) >= members)
    assert len(regions) == fewest
    if fewest == 1:
        slowest = min(nodes[row][2] for row in found)
        best = max(
            sorted((nodes[row][2] for row in fitting if nodes[row][1] == region), reverse=True)[members - 1]
            for region in range(3)
            if sizes[region] >= members
        )
        assert slowest == best


# Reservations -------------------------------------------------------------------------------------------------------


def reserve(placer: Placer, job_id: str, ends: dict[str, float]) -> list[str]:
    """Reserve for a waiting gang as the duty does, at moment 0; where."""
    waiting = placer.backlog.find(job_id)
    assert waiting is not None
    found = able(placer.cluster, waiting.resources, Applicant()).some(placer.cluster, 0, 100)
    current = {claim.key: claim for claim in placer.claims}
    placer.claims.reserve(plan([Blocked(waiting, found)], ends.get, 0.0, current))
    placer.claims.settle(placer.backlog)
    return [claim.node_id for claim in placer.claims.of(job_id)]


def test_the_nodes_that_a_gang_waits_for_are_kept_as_they_become_free():
    cluster = cluster_of(**{name: capability(A100, slots=1) for name in "abc"})
    placer = placer_on(cluster, *[Resources(gpus=1, node=name) for name in "abc"], Resources(nodes=2, gpus=1))
    on_a, on_b, on_c = placer.place(10)
    assert reserve(placer, "job-4", {"job-2": 50.0, "job-3": 10.0}) == ["c", "b"]
    assert {claim.starts_at for claim in placer.claims} == {50.0}, "it starts with the last"
    placer.backlog.add(Waiting("small", 9, Resources(gpus=1), Priority.NORMAL))
    placer.drop(on_c)
    assert placer.place(10, 0.0) == [], "what has become free is kept"
    placer.backlog.add(Waiting("short", 10, Resources(gpus=1), Priority.NORMAL, time_limit_seconds=30))
    [short] = placer.place(10, 0.0)
    assert (short.job_id, short.node_id) == ("short", "c"), "it ends before the gang starts"
    placer.drop(short)
    placer.drop(on_b)
    [gang] = placer.place(10, 0.0)
    assert (gang.job_id, sorted(nodes_of(gang))) == ("job-4", ["b", "c"])
    placer.drop(on_a)
    assert [placement.job_id for placement in placer.place(10, 0.0)] == ["small"]
    assert not placer.claims


def test_a_gang_whose_reserved_node_goes_keeps_nothing_on_the_others():
    cluster = cluster_of(**{name: capability(A100, slots=1) for name in "ab"})
    placer = placer_on(cluster, Resources(gpus=1, node="a"), Resources(nodes=2, gpus=1))
    placer.place(10)
    assert sorted(reserve(placer, "job-2", {})) == ["a", "b"]
    assert cluster.node("b").kept
    cluster.remove_node("a")
    placer.backlog.add(Waiting("small", 9, Resources(gpus=1), Priority.NORMAL))
    assert [placement.job_id for placement in placer.place(10, 0.0)] == ["small"]
    assert reserve(placer, "job-2", {}) == [], "too few nodes are left"


# Places that are being cleared --------------------------------------------------------------------------------------


def clear(placer: Placer, job_id: str, *stopping: str) -> Clearing | None:
    """Clear places for a waiting job as the duty does; these were told to end before."""
    waiting = placer.backlog.find(job_id)
    assert waiting is not None
    known: dict[str, Holder] = {}
    members: dict[str, list[str]] = {}
    for node in placer.cluster:
        for name in node.holdings:
            members.setdefault(name.partition(".")[0], []).append(name)
    for job, names in members.items():
        gang = tuple(names) if len(names) > 1 else ()
        known |= dict.fromkeys(names, Holder(Priority.NORMAL.rank, 9.0, job in stopping, gang=gang))
    nodes = able(placer.cluster, waiting.resources, Applicant()).for_members(placer.cluster, 0, 100)
    promised = placer.claims.promised(waiting.priority.rank, besides=job_id)
    found = preemption.choose(nodes, waiting.priority.rank, known, promised, waiting.resources.nodes)
    if found is not None:
        placer.claims.clear(waiting, found)
    return found


def test_a_gang_is_placed_once_the_last_of_the_places_that_are_cleared_for_it_is_free():
    cluster = cluster_of(**{name: capability(A100, slots=1) for name in "abc"})
    placer = placer_on(cluster, *[Resources(gpus=1, node=name) for name in "ab"])
    on_a, on_b = placer.place(10)
    placer.backlog.add(Waiting("gang", 7, Resources(nodes=3, gpus=1), Priority.CRITICAL))
    found = clear(placer, "gang")
    assert found is not None
    assert {place.node_id for place in found.places} == {"a", "b", "c"}
    assert set(found.victims) == {"job-1", "job-2"}
    placer.backlog.add(Waiting("small", 9, Resources(gpus=1, node="c"), Priority.HIGH))
    assert placer.place(10, 0.0) == [], "the free node is kept"
    placer.undo(on_a)
    assert placer.place(10, 0.0) == [], "and so is what the first gives back"
    placer.undo(on_b)
    [gang] = placer.place(10, 0.0)
    assert (gang.job_id, sorted(nodes_of(gang))) == ("gang", ["a", "b", "c"])
    assert not placer.claims
    placer.drop(gang)
    assert {placement.job_id for placement in placer.place(10, 0.0)} == {"small", "job-1", "job-2"}


def test_a_gang_one_of_whose_cleared_nodes_goes_keeps_nothing_on_the_others():
    cluster = cluster_of(**{name: capability(A100, slots=1) for name in "abc"})
    placer = placer_on(cluster, *[Resources(gpus=1, node=name) for name in "ab"])
    on_a, _ = placer.place(10)
    placer.backlog.add(Waiting("gang", 7, Resources(nodes=3, gpus=1), Priority.CRITICAL))
    clear(placer, "gang")
    placer.undo(on_a)
    assert placer.place(10, 0.0) == []
    cluster.remove_node("b")
    assert [placement.job_id for placement in placer.place(10, 0.0)] == ["job-1"]
    assert not placer.claims
    assert clear(placer, "gang") is None, "too few nodes are left, and nobody goes for it"


# Under everything that can happen -----------------------------------------------------------------------------------

_capabilities = st.builds(
    lambda gpus, slots, region: capability(*[A100] * gpus, slots=slots, cpus=4, region=region),
    st.integers(0, 2),
    st.integers(1, 3),
    st.sampled_from([None, "eu", "us"]),
)
_wishes = st.builds(
    Resources,
    nodes=st.integers(1, 4),
    gpus=st.integers(0, 2),
    cpus=st.integers(0, 3),
    region=st.sampled_from([None, "eu"]),
)
_ids = st.integers(0, 5).map("n{}".format)


class GangMachine(RuleBasedStateMachine):
    """Nodes come and go, jobs end: no gang is ever placed in part, and one that fits does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster, self.backlog = Cluster(), Backlog()
        self.placer = Placer(self.cluster, self.backlog)
        self.running: dict[str, Placement] = {}
        #: of these, those that were asked to leave
        self.stopping: set[str] = set()
        self.number = 0

    @initialize(able=st.lists(_capabilities, min_size=2, max_size=6))
    def start(self, able: list[Capability]) -> None:
        for number, one in enumerate(able):
            self.cluster.upsert_node(f"n{number}", f"n{number}", one, "0")

    @rule(node_id=_ids, able=_capabilities)
    def register(self, node_id: str, able: Capability) -> None:
        if node_id not in self.cluster:
            self.cluster.upsert_node(node_id, node_id, able, "1")

    @rule(node_id=_ids, state=st.sampled_from([NodeState.UP, NodeState.SUSPECT]))
    def change_state(self, node_id: str, state: NodeState) -> None:
        if node_id in self.cluster:
            self.cluster.set_state(node_id, state)

    @rule(node_id=_ids)
    def lose(self, node_id: str) -> None:
        """The whole gang ends, and waits again."""
        if node_id not in self.cluster:
            return
        self.cluster.remove_node(node_id)
        for job_id, placement in list(self.running.items()):
            if any(member.node_id == node_id for member in placement.members):
                self.placer.undo(self.over(job_id))

    def over(self, job_id: str) -> Placement:
        self.stopping.discard(job_id)
        return self.running.pop(job_id)

    @rule(wish=_wishes, priority=st.sampled_from([Priority.NORMAL, Priority.HIGH]))
    def submit(self, wish: Resources, priority: Priority) -> None:
        self.number += 1
        self.backlog.add(Waiting(f"job-{self.number}", self.number, wish, priority))

    @rule(limit=st.sampled_from([1, 1000]))
    def place(self, limit: int) -> None:
        for placement in self.placer.place(limit):
            wanted = placement.waiting.resources.nodes
            assert len({member.node_id for member in placement.members}) == len(placement.members) == wanted
            self.running[placement.job_id] = placement
        if limit > 1:
            for queue in self.backlog:
                assert len(self._fitting(queue.resources)) < queue.resources.nodes

    def _fitting(self, resources: Resources) -> list[str]:
        demand = demand_of(resources)
        return [
            node.node_id
            for node in self.cluster
            if node.state == NodeState.UP
            and node.slots_free > 0
            and node.cpus_free >= demand.cpus
            and node.idle_gpus >= demand.gpus
            and (resources.region is None or node.capability.region == resources.region)
        ]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.placer.drop(self.over(data.draw(st.sampled_from(sorted(self.running)))))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        self.placer.undo(self.over(data.draw(st.sampled_from(sorted(self.running)))))

    @rule(gangs=st.lists(st.integers(2, 3), max_size=4), urgent=st.builds(Resources, nodes=st.integers(1, 3)))
    def crowd(self, gangs: list[int], urgent: Resources) -> None:
        """Every slot is taken, and somebody urgent comes."""
        for nodes in gangs:
            self.submit(Resources(nodes=nodes), Priority.NORMAL)
        self.place(1000)
        for _ in range(sum(node.slots_free for node in self.cluster)):
            self.submit(Resources(), Priority.NORMAL)
        self.submit(urgent, Priority.HIGH)
        self.preempt()

    def preempt(self) -> None:
        """The most urgent that fits nowhere takes the place of others."""
        self.place(1000)
        queue = next(iter(self.backlog), None)
        if queue is None or queue.head is None or queue.priority != Priority.HIGH:
            return
        job_id = queue.head[1]
        if self.placer.claims.clears(job_id):
            return
        high = {id for id, one in self.running.items() if one.waiting.priority == Priority.HIGH}
        found = clear(self.placer, job_id, *self.stopping, *high)
        if found is None:
            return
        asked = {name.partition(".")[0] for name in found.victims}
        assert not asked & (high | self.stopping)
        assert len({place.node_id for place in found.places}) == queue.resources.nodes
        self.stopping |= asked

    @precondition(lambda self: self.stopping)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """One that was asked to has left, and waits again."""
        self.placer.undo(self.over(data.draw(st.sampled_from(sorted(self.stopping)))))

    @invariant()
    def a_gang_has_all_its_claims_or_none(self) -> None:
        claims = list(self.placer.claims)
        for claim in claims:
            own = [other for other in claims if other.job_id == claim.job_id]
            assert len({other.node_id for other in own}) == len(own) == claim.waiting.resources.nodes

    @invariant()
    def every_member_holds_its_place_and_nobody_else_one(self) -> None:
        held = {(node.node_id, name) for node in self.cluster for name in node.holdings}
        assert held == {
            (member.node_id, holder(job_id, member.rank))
            for job_id, placement in self.running.items()
            for member in placement.members
        }

    @invariant()
    def no_node_holds_more_than_it_has(self) -> None:
        for node in self.cluster:
            assert min(node.slots_free, node.cpus_free, node.ram_free_bytes, node.idle_gpus) >= 0


@pytest.mark.parametrize("scalar_rows", [0, 1000], ids=["vectorised", "scalar"])
def test_gangs_under_everything_that_can_happen(scalar_rows, monkeypatch):
    monkeypatch.setattr(candidates, "SCALAR_ROWS", scalar_rows)
    run_state_machine_as_test(
        GangMachine, settings=settings(max_examples=examples(40), stateful_step_count=30, deadline=None)
    )
