"""Smaller attempts move together for a big job: all of them find room elsewhere, and little is lost."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from broker.scheduler.backlog import Waiting
from broker.scheduler.claims import claim_on
from broker.scheduler.consolidation import RESTART_SECONDS, Mover, consolidate
from broker.scheduler.demand import demand_of
from broker.scheduler.node import Kept
from broker.scheduler.places import Wanted, able, take, without
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.property_size import examples
from tests.unit.fleet import A100, T4, capability, cluster_of

HOUR = 3600.0


class Yard:
    """Nodes, attempts that write checkpoints, and one job that waits for a place which it has reserved."""

    def __init__(self, **nodes):
        self.cluster = cluster_of(
            **{name: able.model_copy(update={"checkpoint_place": "store"}) for name, able in nodes.items()}
        )
        self.movers: dict[str, Mover] = {}
        self.stopping: set[str] = set()

    def run(self, name, node_id, *gpus, lost=10.0, priority=Priority.NORMAL, moves=True, **wish):
        resources = Resources.parse({"gpus": len(gpus)} | wish)
        self.cluster.take(node_id, name, demand_of(resources), gpus)
        if moves:
            self.movers[name] = Mover(Waiting(name, len(self.movers), resources, priority), lost, "store")

    def move(self, at="a", starts_at=HOUR, taken=(), priority=Priority.NORMAL, **wish):
        resources = Resources.parse(wish)
        waiting = Waiting("big", 99, resources, priority)
        nodes = able(self.cluster, resources, Applicant("", "", priority)).some(self.cluster, 0, 99)
        node, wanted = next(one for one in nodes if one[0].node_id == at)
        claim = claim_on(node, waiting, wanted, list(node.holdings), starts_at=starts_at)
        movers = {name: mover for name, mover in self.movers.items() if name not in self.stopping}
        return consolidate(claim, nodes, self.cluster, movers, self.stopping, taken, 0.0)


def scattered(**given) -> Yard:
    """Two nodes with four GPUs, and one GPU is in use on each."""
    yard = Yard(a=capability(*[A100] * 4), b=capability(*[A100] * 4))
    yard.run("one", "a", 0, **given)
    yard.run("two", "b", 3)
    return yard


def test_who_stands_in_the_way_moves_into_a_gap():
    found = scattered().move(gpus=4)
    assert (found.node_id, found.victims, found.awaited) == ("a", ("one",), {"one"})


def test_the_place_is_cleared_where_least_is_lost():
    assert scattered(lost=60.0).move(gpus=4).node_id == "b"


@pytest.mark.parametrize(("place", "moves"), [("store", True), ("folder", False)])
def test_what_was_kept_for_the_job_on_another_node_may_be_where_who_moves_goes_on(place, moves):
    yard = scattered()
    yard.cluster.upsert_node("c", "c", capability(A100, checkpoint_place="store"), "1")
    yard.cluster.upsert_node("b", "b", capability(*[A100] * 4, checkpoint_place=place), "1")
    yard.movers.pop("two")
    node = yard.cluster.node("b")
    yard.cluster.keep(node, "big", Kept(1, 0, 0, tuple((at, node.gpu_memory[at]) for at in range(3))))
    found = yard.move(at="b", gpus=4)
    assert (found is not None and found.node_id == "a") == moves


def test_nobody_moves_whose_work_would_be_lost():
    # A tenth of four GPU hours, less the time in which it starts again
    most = 4 * HOUR / 10 - RESTART_SECONDS
    yard = scattered(lost=most)
    yard.cluster.set_cordon("b", "draining")
    assert yard.move(gpus=4) is None, "there is no other node to go to"
    yard.cluster.set_cordon("b", None)
    assert yard.move(gpus=4, taken={"b"}) is None, "what is free there is kept for others"
    yard.movers["two"] = yard.movers["two"]._replace(lost_seconds=HOUR)
    assert yard.move(gpus=4).victims == ("one",)
    yard.movers["one"] = yard.movers["one"]._replace(lost_seconds=most + 1)
    assert yard.move(gpus=4) is None
    assert yard.move(gpus=4, starts_at=None) is None, "taken for an hour"
    assert yard.move(gpus=4, starts_at=2 * HOUR).victims == ("one",)


def test_nobody_moves_to_where_its_checkpoints_may_not_be_found():
    yard = scattered()
    yard.movers["two"] = yard.movers["two"]._replace(lost_seconds=HOUR)
    for place in (None, "another disk"):
        yard.cluster.upsert_node("c", "c", capability(A100, checkpoint_place=place), "1")
        assert yard.move(gpus=4) is None, "it might get the GPU of that node"
    yard.cluster.upsert_node("c", "c", capability(A100, checkpoint_place="store"), "2")
    assert yard.move(gpus=4).victims == ("one",)


def test_nobody_moves_for_a_job_that_starts_soon():
    yard = scattered()
    assert yard.move(gpus=4, starts_at=30.0) is None
    assert yard.move(gpus=4, starts_at=-5.0) is None


@pytest.mark.parametrize(("moves", "priority"), [(False, Priority.NORMAL), (True, Priority.HIGH)])
def test_who_writes_no_checkpoints_or_is_more_urgent_stays(moves, priority):
    yard = scattered(moves=moves, priority=priority)
    assert yard.move(gpus=4).victims == ("two",)
    yard.movers.pop("two")
    assert yard.move(gpus=4) is None


def test_jobs_of_the_same_size_do_not_chase_each_other():
    yard = Yard(a=capability(*[A100] * 4), b=capability(*[A100] * 4))
    yard.run("one", "a", 0, 1)
    yard.run("two", "b", 0, 1, 2)
    assert yard.move(gpus=2, at="a") is None, "it fits without that"
    yard.run("three", "a", 2, 3)
    assert yard.move(gpus=2, at="a") is None


@pytest.mark.parametrize(("gaps", "victims"), [(1, None), (2, ("one", "two"))])
def test_all_who_move_find_room_at_the_same_time(gaps, victims):
    yard = Yard(a=capability(T4, T4), b=capability(*[T4] * (1 + gaps)))
    yard.run("one", "a", 0)
    yard.run("two", "a", 1)
    yard.run("stays", "b", 0, moves=False)
    found = yard.move(gpus=2, node="a")
    assert (found and found.victims) == victims


def test_who_ends_already_is_waited_for():
    yard = scattered()
    yard.stopping.add("one")
    assert yard.move(gpus=4).victims == ("two",), "not for nothing: that node becomes free"
    yard.stopping.add("two")
    assert yard.move(gpus=4) is None


@st.composite
def yards(draw):
    nodes = {f"n{at}": capability(*[A100] * draw(st.sampled_from([2, 4, 4])), slots=4, cpus=8) for at in range(3)}
    yard = Yard(**nodes)
    for number in range(draw(st.integers(2, 6))):
        node = yard.cluster.node(f"n{draw(st.integers(0, 2))}")
        gpus, cpus = draw(st.sampled_from([0, 1, 1, 2])), draw(st.integers(0, 2))
        resources = Resources.parse({"gpus": gpus, "cpus": cpus})
        free = [at for at, size in enumerate(node.gpu_free) if size == node.gpu_memory[at]]
        if len(free) < gpus or not node.has_room(demand_of(resources)):
            continue
        yard.run(
            f"j{number}",
            node.node_id,
            *free[:gpus],
            cpus=cpus,
            lost=draw(st.sampled_from([0.0, 10.0, 100.0, 2000.0])),
            priority=draw(st.sampled_from([Priority.LOW, Priority.NORMAL, Priority.NORMAL, Priority.HIGH])),
            moves=draw(st.sampled_from([True] * 5 + [False])),
        )
    return yard


@settings(max_examples=examples(100), deadline=None)
@given(yards(), st.integers(2, 4), st.sampled_from(Priority))
def test_after_a_move_there_is_room_for_everybody(yard, gpus, priority):
    able_nodes = [node for node in yard.cluster if len(node.gpu_indexes) >= gpus]
    found = yard.move(at=able_nodes[0].node_id, gpus=gpus, priority=priority) if able_nodes else None
    if found is None:
        return
    event("somebody moves")
    movers = [yard.movers[name] for name in found.victims]
    for mover in movers:
        assert mover.waiting.priority.rank <= priority.rank
        assert mover.waiting.resources.gpus < gpus
    loss = sum(max(1, one.waiting.resources.gpus) * (one.lost_seconds + RESTART_SECONDS) for one in movers)
    assert loss <= gpus * HOUR / 10
    for name in found.victims:
        assert yard.cluster.node_of(name).node_id == found.node_id
        yard.cluster.release(name)
    demand = demand_of(Resources(gpus=gpus))
    node = yard.cluster.node(found.node_id)
    gpus_there = node.best_gpus(demand, range(len(node.gpu_indexes)))
    yard.cluster.take_at(node, "big", demand, gpus_there)
    others = [one for one in yard.cluster if one is not node]
    assert any(_all_fit(movers, places) for places in product(others, repeat=len(movers)))


def _all_fit(movers, places):
    rooms = {place.node_id: without(place, ()) for place in places}
    return all(
        take(
            rooms[place.node_id], f"{number}", Wanted(demand_of(mover.waiting.resources), range(len(place.gpu_indexes)))
        )
        for number, (mover, place) in enumerate(zip(movers, places, strict=True))
    )
