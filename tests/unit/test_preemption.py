"""Whose place an urgent job takes: the fewest, the least urgent, the cheapest, and nobody for nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.scheduler.backlog import Waiting
from broker.scheduler.claims import Claims, claim_on
from broker.scheduler.cluster import Cluster
from broker.scheduler.demand import demand_of
from broker.scheduler.holder import holder
from broker.scheduler.places import Wanted
from broker.scheduler.preemption import Clearing, Holder, Place, choose, with_their_gangs
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.property_size import examples
from tests.unit.fleet import A100, RTX_4090, T4, capability, cluster_of, light_requirements

CRITICAL = 3


class Board:
    """A cluster and who holds what there; jobs are placed on the GPUs that are named."""

    def __init__(self, **nodes):
        self.cluster = cluster_of(**nodes)
        self.holders = {}

    def place(self, job_id, node_id, gpus=(), rank=1, seconds=10.0, stopping=False, restarts=0, **resources):
        demand = demand_of(Resources.parse(resources or ({"gpus": len(gpus)} if gpus else {})))
        self.cluster.take(node_id, job_id, demand, tuple(gpus))
        self.holders[job_id] = Holder(rank, seconds, stopping, restarts)

    def place_gang(self, job_id, node_ids, gpus=(0,), **values):
        names = tuple(holder(job_id, member) for member in range(len(node_ids)))
        for name, node_id in zip(names, node_ids, strict=True):
            self.place(name, node_id, gpus, **values)
            self.holders[name] = self.holders[name]._replace(gang=names)

    def choose(self, rank=CRITICAL, promised=None, **resources):
        members = resources.get("nodes", 1)
        return choose(self.nodes(**resources), rank, self.holders, promised or {}, members)

    def nodes(self, **resources):
        demand = demand_of(Resources.parse(resources))
        return [(node, Wanted(demand, range(len(node.gpu_indexes)))) for node in self.cluster]


def test_one_victim_is_better_than_two():
    board = Board(a=capability(T4, T4), b=capability(A100, A100))
    board.place("a0", "a", [0])
    board.place("a1", "a", [1])
    board.place("b0", "b", [0, 1])
    assert board.choose(gpus=2).victims == ("b0",)


def test_the_least_urgent_goes_and_then_who_loses_least():
    board = Board(a=capability(T4, T4, T4, T4, slots=5))
    board.place("else", "a", [3], rank=CRITICAL)
    board.place("high", "a", [0], rank=2, seconds=1)
    board.place("old", "a", [1], rank=1, seconds=500)
    board.place("young", "a", [2], rank=1, seconds=5)
    assert board.choose(gpus=1).victims == ("young",)
    board.place("low", "a", [3], rank=0, seconds=900)
    board.cluster.release("else")
    assert board.choose(gpus=1).victims == ("low",)


def test_of_those_who_lose_the_same_the_one_goes_that_was_restarted_least():
    board = Board(a=capability(T4), b=capability(T4), c=capability(T4))
    board.place("often", "a", [0], seconds=1, restarts=4)
    board.place("once", "b", [0], seconds=8, restarts=1)
    board.place("never", "c", [0], seconds=60)
    assert board.choose(gpus=1).victims == ("once",)


def test_nobody_of_equal_or_higher_priority_goes():
    board = Board(a=capability(T4, T4))
    board.place("one", "a", [0], rank=CRITICAL)
    board.place("two", "a", [1], rank=2)
    assert board.choose(gpus=2) is None
    assert board.choose(rank=2, gpus=1) is None
    assert board.choose(gpus=1).victims == ("two",)


def test_those_who_do_not_stand_in_the_way_stay():
    board = Board(a=capability(T4, T4, slots=8, cpus=16))
    board.place("cpu", "a", rank=0, cpus=2)
    board.place("gpu", "a", [0], rank=1)
    board.place("other", "a", [1], rank=1, seconds=99)
    assert board.choose(gpus=1).victims == ("gpu",)
    assert set(board.choose(gpus=2).victims) == {"gpu", "other"}


def test_a_shared_gpu_is_matched_by_what_is_free_on_it():
    board = Board(a=capability(RTX_4090, RTX_4090))
    for at in (0, 1):
        board.place(f"big{at}", "a", [at], gpu_memory="20GB", shared=True, seconds=50 + at)
    board.place("small", "a", [0], gpu_memory="2GB", shared=True, rank=0)
    assert board.choose(gpu_memory="12GB", shared=True).victims == ("big0",)


def test_a_place_that_becomes_free_anyway_is_waited_for():
    board = Board(a=capability(T4), b=capability(T4))
    board.place("ends", "a", [0], stopping=True)
    board.place("runs", "b", [0])
    found = board.choose(gpus=1)
    assert (found.node_id, found.victims, found.awaited) == ("a", (), {"ends"})
    again = board.choose(gpus=1, promised={"a": [found.wanted]})
    assert (again.node_id, again.victims) == ("b", ("runs",))
    assert board.choose(gpus=1, promised={"a": [found.wanted], "b": [found.wanted]}) is None


@st.composite
def boards(draw):
    board = Board(**{f"n{at}": capability(*draw(st.lists(st.sampled_from([T4, A100]), max_size=3))) for at in range(2)})
    for number in range(draw(st.integers(0, 7))):
        node = board.cluster.node(f"n{draw(st.integers(0, 1))}")
        resources = draw(light_requirements)
        demand = demand_of(resources)
        positions = node.best_gpus(demand, list(range(len(node.gpu_indexes)))) if demand.gpus else ()
        if positions is None or not node.has_room(demand):
            continue
        board.cluster.take_at(node, f"j{number}", demand, positions)
        holder = Holder(draw(st.integers(0, 3)), draw(st.floats(0, 1000)), draw(st.sampled_from([False, False, True])))
        board.holders[f"j{number}"] = holder
    return board


def fits_without(board, node_id, gone, resources):
    """The specification: whether a job fits once these have gone, tried out on a cluster of its own."""
    node = board.cluster.node(node_id)
    alone = Cluster()
    copied = alone.upsert_node(node_id, node_id, node.capability, "1")
    for job_id, holding in node.holdings.items():
        if job_id not in gone:
            alone.take_at(copied, job_id, *holding)
    demand = demand_of(resources)
    room = copied.slots_free > 0 and copied.cpus_free >= demand.cpus and copied.ram_free_bytes >= demand.ram_bytes
    every = list(range(len(copied.gpu_indexes)))
    return room and (not demand.gpus or copied.best_gpus(demand, every) is not None)


@settings(max_examples=examples(100))
@given(boards(), light_requirements, st.integers(1, 3))
def test_victims_make_room_and_each_of_them_is_needed(board, resources, rank):
    demand = demand_of(resources)
    nodes = [(node, Wanted(demand, range(len(node.gpu_indexes)))) for node in board.cluster]
    found = choose(nodes, rank, board.holders, {})
    for node in board.cluster:
        stopping = {id for id in node.holdings if board.holders[id].stopping}
        lesser = {id for id in node.holdings if board.holders[id].rank < rank}
        if found is None:
            assert not fits_without(board, node.node_id, stopping | lesser, resources)
        elif node.node_id == found.node_id:
            victims = set(found.victims)
            assert victims <= lesser - stopping
            assert fits_without(board, node.node_id, stopping | victims, resources)
            for fewer in combinations(victims, len(victims) - 1) if victims else ():
                assert not fits_without(board, node.node_id, stopping | set(fewer), resources)


# Gangs --------------------------------------------------------------------------------------------------------------


def four():
    return Board(**{name: capability(T4, slots=2) for name in "abcd"})


def node_ids(found):
    return [place.node_id for place in found.places]


def test_the_places_of_a_gang_are_those_where_the_least_is_lost_and_who_is_free_stays_so():
    board = four()
    for name, seconds in zip("abc", (500, 20, 300), strict=True):
        board.place(name, name, [0], seconds=seconds)
    found = board.choose(nodes=3, gpus=1)
    assert sorted(node_ids(found)) == ["b", "c", "d"]
    assert sorted(found.victims) == ["b", "c"]
    assert found.awaited == {"b", "c"}
    assert board.choose(nodes=4, gpus=1).awaited == {"a", "b", "c"}


def test_a_gang_gets_all_its_places_or_clears_none():
    board = four()
    board.place("else", "a", [0], rank=CRITICAL)
    for name in "bcd":
        board.place(name, name, [0])
    assert board.choose(nodes=4, gpus=1) is None
    assert len(board.choose(nodes=3, gpus=1).victims) == 3


def test_a_gang_that_goes_with_all_members_is_one_victim_where_two_single_jobs_are_two():
    board = four()
    board.place_gang("gang", "bd", seconds=60)
    board.place("one", "a", [0], seconds=20)
    board.place("two", "c", [0], seconds=20)
    found = board.choose(nodes=2, gpus=1)
    assert (sorted(node_ids(found)), found.victims) == (["b", "d"], ("gang",))
    assert found.awaited == {"gang", "gang.1"}
    assert board.choose(gpus=1).victims == ("one",), "for one place, it loses more than others do"


def test_of_a_gang_that_goes_for_one_place_the_other_nodes_are_used_too():
    board = Board(a=capability(T4), b=capability(T4, T4), c=capability(T4))
    board.place_gang("gang", "ab", seconds=60)
    board.place("beside", "b", [1], rank=CRITICAL)
    board.place("single", "c", [0], rank=2)
    found = board.choose(nodes=2, gpus=1)
    assert (sorted(node_ids(found)), found.victims) == (["a", "b"], ("gang",))


def test_nobody_goes_for_a_place_that_a_gang_which_goes_anyway_would_free():
    board = Board(**{name: capability(T4, T4) for name in "abcd"})
    for one, other in ("ab", "cd"):
        board.place(f"cheap-{one}", one, [0], rank=0, seconds=1)
        board.place(f"dear-{other}", other, [0], rank=CRITICAL)
        board.place_gang(f"gang-{one}", one + other, gpus=(1,))
    found = board.choose(nodes=4, gpus=1)
    assert len(found.victims) == 2
    assert found.awaited == {"gang-a", "gang-a.1", "gang-c", "gang-c.1"}


def test_of_several_gangs_that_go_each_is_one_victim():
    board = Board(**{name: capability(T4) for name in "abcdef"})
    for pair in ("ab", "cd", "ef"):
        board.place_gang(f"gang-{pair}", pair)
    assert len(board.choose(nodes=6, gpus=1).victims) == 3
    assert len(board.choose(nodes=3, gpus=1).victims) == 2


def test_places_that_are_being_cleared_for_others_are_not_for_a_gang():
    board = four()
    for name in "abcd":
        board.place(name, name, [0])
    wanted = board.choose(gpus=1).wanted
    found = board.choose(nodes=3, gpus=1, promised={"b": [wanted]})
    assert sorted(node_ids(found)) == ["a", "c", "d"]
    assert board.choose(nodes=4, gpus=1, promised={"b": [wanted]}) is None


@st.composite
def boards_with_gangs(draw):
    names = [f"n{at}" for at in range(draw(st.integers(2, 5)))]
    board = Board(**{name: capability(*draw(st.sampled_from([(), (T4,), (T4, T4)])), slots=3) for name in names})
    for number in range(draw(st.integers(0, 8))):
        demand, job_id = demand_of(Resources(gpus=draw(st.integers(0, 1)))), f"j{number}"
        found = {}
        for node_id in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
            node = board.cluster.node(node_id)
            positions = node.best_gpus(demand, list(range(len(node.gpu_indexes)))) if demand.gpus else ()
            if positions is not None and node.has_room(demand):
                found[node_id] = positions
        members = tuple(holder(job_id, member) for member in range(len(found)))
        known = Holder(
            draw(st.integers(0, 3)),
            draw(st.sampled_from([5.0, 50.0, 500.0])),
            draw(st.sampled_from([False, False, False, True])),
            gang=members if len(members) > 1 else (),
        )
        for name, (node_id, positions) in zip(members, found.items(), strict=True):
            board.cluster.take(node_id, name, demand, positions)
            board.holders[name] = known
    return board


@settings(max_examples=examples(150), deadline=None)
@given(boards_with_gangs(), st.integers(0, 1), st.integers(1, 3), st.integers(1, 4))
def test_a_gang_gets_different_nodes_or_none_and_each_victim_is_needed(board, gpus, rank, members):
    resources = Resources(gpus=gpus)
    nodes = [(node, Wanted(demand_of(resources), range(len(node.gpu_indexes)))) for node in board.cluster]
    found = choose(nodes, rank, board.holders, {}, members)
    stopping = {name for name, known in board.holders.items() if known.stopping}
    lesser = {name for name, known in board.holders.items() if known.rank < rank}

    def fitting(gone):
        return {node.node_id for node in board.cluster if fits_without(board, node.node_id, gone, resources)}

    if found is None:
        assert len(fitting(stopping | lesser)) < members
        return
    places, gone = set(node_ids(found)), with_their_gangs(found.victims, board.holders)
    assert len(places) == len(found.places) == members
    assert gone <= lesser - stopping
    assert places <= fitting((stopping | gone) & found.awaited), "nobody else is waited for"
    jobs = [board.holders[name].gang or (name,) for name in found.victims]
    assert len(set(jobs)) == len(jobs), "of a gang one is named"
    for name in found.victims:
        less = with_their_gangs(set(found.victims) - {name}, board.holders)
        assert not places <= fitting(stopping | less), f"{name} goes for nothing"


def claim(board, *victims, **resources):
    claims = Claims(board.cluster)
    wanted = Wanted(demand_of(Resources.parse(resources)), range(2))
    waiting = Waiting("urgent", 1, Resources.parse(resources), Priority.CRITICAL)
    claims.clear(waiting, Clearing("a", wanted, victims, frozenset(victims)))
    return claims


def two_victims():
    board = Board(a=capability(T4, T4))
    board.place("one", "a", [0])
    board.place("two", "a", [1])
    return board, claim(board, "one", "two", gpus=2), board.cluster.node("a")


def test_what_the_first_victim_gives_back_is_kept_until_the_last_has():
    board, claims, node = two_victims()
    assert list(claims.promised(CRITICAL)) == ["a"]
    board.cluster.release("one")
    assert claims.settle({"urgent"}) == []
    assert node.idle_gpus == 0
    board.cluster.release("two")
    assert [clear.job_id for clear in claims.settle({"urgent"})] == ["urgent"]
    assert node.idle_gpus == 0
    claims.drop("urgent")
    assert (node.idle_gpus, node.slots_free, node.kept, node.holdings) == (2, 4, {}, {})
    assert "urgent" not in claims


def test_who_has_gone_and_come_back_is_not_waited_for():
    board = Board(a=capability(T4, T4, T4))
    for at, name in enumerate(("one", "two", "other")):
        board.place(name, "a", [at])
    claims, node = claim(board, "one", "two", gpus=2), board.cluster.node("a")
    board.cluster.release("one")
    assert claims.settle({"urgent"}) == []
    # Somebody more urgent takes what is kept by now, and the one who gave it back finds another place there.
    board.cluster.keep(node, "urgent", None)
    board.place("higher", "a", [0], rank=CRITICAL)
    board.cluster.release("other")
    assert claims.settle({"urgent", "one"}) == []
    board.place("one", "a", [2])
    claims.keep_on("a")
    assert claims.clears("urgent"), "the second one is still to go"
    board.cluster.release("two")
    assert claims.settle({"urgent"}) == []
    assert not claims.clears("urgent"), "nobody goes for it any more: another place is looked for"
    assert node.kept == {}


def test_who_finds_his_gpu_taken_by_another_for_whom_a_place_is_cleared_keeps_the_one_that_is_left_instead():
    board = Board(a=capability(T4, T4, T4, slots=8))
    for at, name in enumerate(("one", "two", "three")):
        board.place(name, "a", [at])
    claims, node = Claims(board.cluster), board.cluster.node("a")
    for job_id, rank, awaited, gpus in (
        ("first", Priority.CRITICAL, ["one"], 1),
        ("second", Priority.HIGH, ["two"], 2),
    ):
        resources = Resources(gpus=gpus)
        wanted = Wanted(demand_of(resources), range(3))
        waiting, victims = Waiting(job_id, 1, resources, rank), frozenset([*awaited, "three"][:gpus])
        claims.clear(waiting, Clearing("a", wanted, tuple(victims), victims))
    board.cluster.release("two")
    assert [clear.job_id for clear in claims.settle({"first", "second"})] == ["first"]
    claims.drop("first")
    board.place("first", "a", [1], rank=CRITICAL)
    board.cluster.release("one")
    assert claims.settle({"second"}) == []
    assert (node.idle_gpus, claims.clears("second")) == (0, True)
    board.cluster.release("three")
    assert [clear.job_id for clear in claims.settle({"second"})] == ["second"]


def test_nothing_is_cleared_on_a_node_that_closes():
    board, claims, _ = two_victims()
    board.cluster.set_opening("a", datetime(2026, 6, 1, 18, tzinfo=UTC))
    assert claims.settle({"urgent"}) == []
    assert not claims.clears("urgent"), "another place is looked for"


def test_nothing_is_kept_for_a_job_that_waits_no_longer():
    board, claims, node = two_victims()
    board.cluster.release("one")
    claims.settle({"urgent"})
    assert claims.settle(set()) == []
    assert (node.idle_gpus, "urgent" in claims) == (1, False)
    board.cluster.release("two")
    assert node.idle_gpus == 2


def test_a_place_that_somebody_else_has_taken_is_given_up():
    board, claims, node = two_victims()
    board.cluster.release("one")
    board.place("other", "a", [0])
    board.cluster.release("two")
    assert claims.settle({"urgent"}) == []
    assert (node.idle_gpus, "urgent" in claims) == (1, False)


def test_a_node_that_is_lost_takes_what_was_kept_with_it():
    board, claims, _ = two_victims()
    board.cluster.release("one")
    claims.settle({"urgent"})
    board.cluster.remove_node("a")
    assert claims.settle({"urgent"}) == []
    assert "urgent" not in claims
    claims.drop("urgent")


def test_a_node_that_describes_itself_anew_keeps_nothing():
    board, claims, node = two_victims()
    board.cluster.release("one")
    claims.settle({"urgent"})
    board.cluster.upsert_node("a", "a", capability(T4, T4, T4), "2")
    assert claims.settle({"urgent"}) == []
    assert (node.idle_gpus, node.slots_free, node.kept) == (2, 3, {})


def test_what_is_reserved_on_a_node_does_not_take_the_place_that_is_being_cleared_there():
    board = Board(a=capability(T4, T4, slots=1), b=capability(T4, T4, slots=1))
    board.place("victim", "b", [0])
    claims, resources = Claims(board.cluster), Resources(nodes=2, gpus=1)
    wanted = Wanted(demand_of(resources), range(2))
    urgent = Waiting("reserved", 1, resources, Priority.CRITICAL)
    places = [claim_on(node, urgent, wanted, node.holdings) for node in board.cluster]
    claims.reserve([place._replace(member=member) for member, place in enumerate(places)])
    owner = Waiting("owner", 2, resources, Priority.NORMAL)
    claims.clear(owner, Clearing("a", wanted, ("victim",), frozenset({"victim"}), (Place("b", wanted),)))
    both = {"reserved", "owner"}
    assert [clear.job_id for clear in claims.settle(both)] == ["owner"]
    board.cluster.release("victim")
    assert [clear.job_id for clear in claims.settle(both)] == ["owner", "owner"]
