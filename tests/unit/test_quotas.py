"""What projects own, lend and borrow; and that what was borrowed comes back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.claims import Claims
from broker.scheduler.cluster import Cluster
from broker.scheduler.demand import demand_of
from broker.scheduler.giving_back import UNTOUCHED, Borrower, Wish, holders, place_for
from broker.scheduler.holder import holder
from broker.scheduler.placement import Placement, Placer
from broker.scheduler.places import Wanted
from broker.scheduler.preemption import Holder
from broker.scheduler.quotas import Amounts, Quota, Quotas
from broker.scheduler.shares import Totals
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.property_size import examples
from tests.unit.fleet import A100, capability

GPU = Amounts(gpus=1)
MOST = 3


def quotas_of(gpus: int, held: dict[str, int] | None = None, **quotas: Quota) -> Quotas:
    found = Quotas()
    found.resize(Totals(gpus=gpus, cpus=100))
    for project, quota in quotas.items():
        found.set(project, quota)
    for project, count in (held or {}).items():
        found.hold(project, GPU, count)
    return found


def test_without_quotas_everything_may_be() -> None:
    assert Quotas().admits("x", Amounts(1000, 1000))
    assert not Quotas().borrows("x")
    assert not Quotas().is_own("x", GPU)


def test_without_quotas_nothing_is_promised_any_more() -> None:
    quotas = quotas_of(4, {"y": 4}, x=Quota(gpus=4))
    quotas.promised["waiting"] = "x", Amounts(gpus=4)
    quotas.remove("x")
    assert quotas.admits("y", GPU), "and nobody would look at it again"


def test_what_is_idle_is_lent_up_to_a_limit() -> None:
    quotas = quotas_of(8, {"y": 5}, x=Quota(gpus=4, lend_gpus=1))
    assert not quotas.admits("y", GPU), "three are kept for x"
    quotas = quotas_of(8, {"y": 4}, x=Quota(gpus=4, lend_gpus=1))
    assert quotas.admits("y", GPU)
    quotas.hold("x", GPU, 3)
    assert quotas.admits("y", GPU), "x uses what is kept"


def test_borrowing_has_a_limit() -> None:
    quotas = quotas_of(8, {"x": 3}, x=Quota(gpus=2, borrow_gpus=2))
    assert quotas.admits("x", GPU)
    assert not quotas.admits("x", Amounts(gpus=2))
    assert quotas.admits("x", Amounts(cpus=50)), "no word was said of cores"


def test_who_has_something_of_his_own_left_does_not_borrow() -> None:
    quotas = quotas_of(8, {"x": 2, "y": 3}, x=Quota(gpus=4), y=Quota(gpus=3))
    assert [quotas.borrows(name) for name in ("x", "y", "z")] == [False, True, True]
    assert [quotas.is_own(name, GPU) for name in ("x", "y", "z")] == [True, False, False]
    assert not quotas.is_own("x", Amounts(cpus=1)), "nobody owns cores"


def test_what_is_promised_to_an_owner_is_not_lent_again() -> None:
    quotas = quotas_of(8, {"y": 7}, x=Quota(gpus=4))
    assert quotas.admits("y", GPU)
    quotas.promised["job"] = "x", GPU
    assert not quotas.admits("y", GPU)
    assert quotas.admits("x", GPU)


def test_who_wants_his_own_does_not_take_what_another_keeps() -> None:
    quotas = quotas_of(8, {"y": 1, "z": 2}, x=Quota(gpus=4, lend_gpus=0), y=Quota(gpus=3))
    assert not quotas.admits("y", Amounts(gpus=2)), "z gives back first"
    assert quotas.admits("y", GPU)
    assert quotas.supposing([("z", GPU, -1)]).admits("y", Amounts(gpus=2))
    assert quotas.held("z").gpus == 2


def test_of_quotas_that_are_more_than_there_is_the_first_to_ask_gets_it() -> None:
    quotas = quotas_of(8, {"y": 1}, x=Quota(gpus=8, lend_gpus=0), y=Quota(gpus=3), w=Quota(gpus=3))
    assert quotas.admits("y", Amounts(gpus=2))
    assert not quotas.admits("z", GPU)
    quotas.hold("z", GPU)
    assert not quotas.admits("y", Amounts(gpus=2)), "z is there from before"


def test_who_was_passed_over_for_a_promise_is_admitted_once_it_is_kept() -> None:
    lab = Lab(4, {"x": Quota(gpus=3)})
    for project, gpus in (("y", 1), ("y", 1)):
        lab.submit(project, gpus, Priority.NORMAL)
    lab.place()
    lab.submit("x", 2, Priority.LOW)
    lab.submit("y", 1, Priority.NORMAL)
    lab.quotas.promised["3"] = "x", Amounts(gpus=2)
    lab.backlog.reconsider_quotas()
    assert [queue.admitted for queue in lab.backlog] == [False, True]
    lab.place()
    assert sorted(lab.running) == ["1", "2", "3"], "nothing is left for y, and nothing went wrong"


def borrower(job_id: str, project: str = "y", rank: int = 1, seconds: float = 9.0, **values: int) -> Borrower:
    return Borrower(
        job_id, project, Amounts(gpus=values.get("gpus", 1)), Holder(rank, seconds, False), values.get("preempted", 0)
    )


def test_only_who_borrows_may_have_to_go_and_only_what_he_borrowed() -> None:
    quotas = quotas_of(8, {"y": 4, "z": 2}, x=Quota(gpus=4), y=Quota(gpus=3), z=Quota(gpus=4))
    attempts = [borrower("old", seconds=99), borrower("young", seconds=1), borrower("low", rank=0, seconds=50)]
    attempts += [borrower("often", preempted=MOST, rank=0, seconds=0), borrower("owner", "z", seconds=0)]
    found = holders(quotas, "x", GPU, attempts, MOST)
    assert {name for name, holder in found.items() if holder.rank < UNTOUCHED} == {"low"}


def test_who_goes_anyway_counts_as_given_back() -> None:
    quotas = quotas_of(8, {"y": 4}, x=Quota(gpus=4), y=Quota(gpus=3))
    leaving = borrower("leaving", seconds=500)
    attempts = [borrower("young", seconds=1), leaving._replace(holder=leaving.holder._replace(stopping=True))]
    assert holders(quotas, "x", GPU, attempts, MOST)["young"].rank == UNTOUCHED


def test_nobody_borrows_cores_while_quotas_are_of_gpus_alone() -> None:
    both = Amounts(gpus=1, cpus=2)
    quotas = Quotas()
    quotas.resize(Totals(1, 4, 0, 64, 0))
    for project, quota in {"x": Quota(gpus=1), "y": Quota(gpus=2)}.items():
        quotas.set(project, quota)
    quotas.hold("y", both)
    [(_, holder)] = holders(quotas, "x", both, [borrower("own")._replace(amounts=both)], MOST).items()
    assert holder.rank == UNTOUCHED, "y has a GPU of its own, and cores that belong to nobody"
    quotas.set("z", Quota(cpus=8))
    assert holders(quotas, "x", both, [borrower("own")._replace(amounts=both)], MOST)["own"].rank < UNTOUCHED


class Lab:
    """Nodes with some GPUs each, and projects that own parts of them."""

    def __init__(self, gpus: int, quotas: dict[str, Quota], nodes: str = "a") -> None:
        self.cluster = Cluster()
        for name in nodes:
            self.cluster.upsert_node(name, name, capability(*[A100] * gpus, slots=99, cpus=99), "1")
        self.backlog = Backlog()
        self.backlog.settle(0.0, self.cluster.totals)
        for project, quota in quotas.items():
            self.backlog.shares.set_quota(project, quota)
        self.quotas = self.backlog.shares.quotas
        self.placer = Placer(self.cluster, self.backlog)
        self.running: dict[str, Placement] = {}
        self.preempted: Counter[str] = Counter()
        self.number = 0

    def submit(self, project: str, gpus: int, priority: Priority, nodes: int = 1) -> None:
        self.number += 1
        wish = Resources(gpus=gpus, nodes=nodes)
        self.backlog.add(Waiting(f"{self.number}", self.number, wish, priority, "", project))

    def place(self) -> None:
        for placement in self.placer.place(99):
            self.running[placement.job_id] = placement

    def end(self, job_id: str) -> Placement:
        self.placer.drop(self.running[job_id])
        return self.running.pop(job_id)

    def give_back(self) -> int:
        """One owner takes his place back; how many had to go."""
        attempts = [
            Borrower(
                name,
                one.waiting.project,
                Amounts(gpus=gpus_of(one)),
                Holder(one.waiting.priority.rank, float(self.number - one.waiting.sequence), False, gang=names),
                self.preempted[id],
                id,
            )
            for id, one in self.running.items()
            for names in [tuple(holder(id, member.rank) for member in one.members)]
            for name in names
        ]
        for queue in list(self.backlog):
            if not self.quotas.is_own(queue.project, queue.amounts):
                continue
            demand = demand_of(queue.resources)
            nodes = [(node, Wanted(demand, range(len(node.gpu_indexes)))) for node in self.cluster]
            wish = Wish(queue.project, queue.amounts, nodes, demand.nodes)
            clearing = place_for(wish, self.quotas, attempts, MOST, {}, ())
            if clearing is None or not clearing.victims:
                continue
            assert queue.head is not None
            self.quotas.promised[queue.head[1]] = queue.project, queue.amounts
            for victim in {name.partition(".")[0] for name in clearing.victims}:
                self.preempted[victim] += 1
                self.backlog.add(self.end(victim).waiting)
            self.backlog.reconsider_quotas()
            return len(clearing.victims)
        return 0

    def move(self, move: Any, most_rounds: int) -> None:
        """Submit a job, or end one; then place, and give back until nobody has to any more."""
        if isinstance(move, tuple):
            self.submit(*move)
        elif self.running:
            self.end(sorted(self.running)[move % len(self.running)])
        self.place()
        self.check()
        rounds = 0
        while self.give_back():
            self.place()
            self.check()
            rounds += 1
            assert rounds <= most_rounds, "places go to and fro"

    def check(self) -> None:
        total = sum(gpus_of(one) for one in self.running.values())
        for project in ("x", "y", "z"):
            quota = self.quotas.of(project)
            mine = sum(gpus_of(one) for one in self.running.values() if one.waiting.project == project)
            assert self.quotas.held(project).gpus == mine
            if quota.borrow_gpus is not None:
                assert mine <= quota.gpus + quota.borrow_gpus
        idle = {name: max(0, self.quotas.of(name).kept.gpus - self.quotas.held(name).gpus) for name in ("x", "y", "z")}
        assert total + sum(idle.values()) <= self.quotas.total.gpus
        assert max(self.preempted.values(), default=0) <= MOST

    def check_sums(self) -> None:
        """What is kept up as projects change is what it would be if it were counted anew."""
        new, kept_up = Quotas(), self.quotas.supposing(())
        new.resize(Totals(*self.cluster.totals))
        for project in ("x", "y"):
            new.set(project, self.quotas.of(project))
        for project in ("x", "y", "z"):
            new.hold(project, self.quotas.held(project))
        wishes = [(project, Amounts(gpus)) for project in ("x", "y", "z") for gpus in range(1, 9)]
        assert [new.admits(*wish) for wish in wishes] == [kept_up.admits(*wish) for wish in wishes]
        kept_up.hold_only([("x", GPU, 2)])
        new.hold_only([("x", GPU, 1), ("x", GPU, 1)])
        kept_up.remove("y")
        new.remove("y")
        assert [new.admits(*wish) for wish in wishes] == [kept_up.admits(*wish) for wish in wishes]


def gpus_of(placement: Placement) -> int:
    return sum(len(member.gpu_indexes) for member in placement.members)


few = st.one_of(st.none(), st.integers(0, 3))


@given(
    owns=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    lends=st.tuples(few, few),
    borrows=st.tuples(few, few),
    moves=st.lists(
        st.one_of(
            st.tuples(st.sampled_from("xyz"), st.integers(1, 2), st.sampled_from(Priority)),
            st.integers(0, 30),
        ),
        max_size=40,
    ),
)
@settings(max_examples=examples(300), deadline=None)
def test_what_is_borrowed_comes_back_and_what_is_kept_stays_free(
    owns: tuple[int, int], lends: tuple[int | None, int | None], borrows: tuple[int | None, int | None], moves: list
) -> None:
    quotas = {
        name: Quota(gpus=own, lend_gpus=lend, borrow_gpus=borrow)
        for name, own, lend, borrow in zip("xy", owns, lends, borrows, strict=True)
    }
    lab = Lab(8, quotas)
    for move in moves:
        lab.move(move, 8 * MOST)
        # An owner waits only while nobody borrows, but for those who have given their place back often enough.
        waits = [queue for queue in lab.backlog if lab.quotas.is_own(queue.project, queue.amounts)]
        for queue in waits:
            borrowed = sum(
                len(one.gpu_indexes)
                for id, one in lab.running.items()
                if lab.quotas.borrowed(one.waiting.project).gpus
                and one.waiting.project != queue.project
                and lab.preempted[id] < MOST
            )
            excess = sum(lab.quotas.borrowed(name).gpus for name in "xyz" if name != queue.project)
            assert not borrowed or excess < queue.amounts.gpus, (queue.project, lab.running)
    lab.check_sums()


@given(
    owns=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    lends=st.tuples(few, few),
    moves=st.lists(
        st.one_of(
            st.tuples(st.sampled_from("xyz"), st.integers(1, 2), st.sampled_from(Priority), st.integers(1, 3)),
            st.integers(0, 30),
        ),
        max_size=30,
    ),
)
@settings(max_examples=examples(100), deadline=None)
def test_gangs_take_back_what_they_own_together_and_go_together(
    owns: tuple[int, int], lends: tuple[int | None, int | None], moves: list
) -> None:
    quotas = {name: Quota(gpus=own, lend_gpus=lend) for name, own, lend in zip("xy", owns, lends, strict=True)}
    lab = Lab(3, quotas, nodes="abc")
    for move in moves:
        lab.move(move, 9 * MOST)
        for placement in lab.running.values():
            assert len({member.node_id for member in placement.members}) == placement.waiting.resources.nodes


def test_of_a_gang_all_members_may_have_to_go_or_none() -> None:
    quotas = quotas_of(8, {"y": 5}, x=Quota(gpus=4), y=Quota(gpus=3))
    gang = [borrower(name, gpus=2, seconds=50)._replace(lead="gang") for name in ("gang", "gang.1")]
    attempts = [borrower("old", seconds=99), *gang, borrower("young", seconds=1)]
    found = holders(quotas, "x", GPU, attempts, MOST)
    assert {name for name, one in found.items() if one.rank < UNTOUCHED} == {"young", "gang", "gang.1"}


def test_a_gang_gets_its_own_back_on_all_its_nodes_or_asks_for_nothing() -> None:
    lab = Lab(2, {"x": Quota(gpus=2)}, nodes="ab")
    for _ in range(4):
        lab.submit("y", 1, Priority.NORMAL)
    lab.place()
    lab.submit("x", 2, Priority.NORMAL, nodes=2)
    assert lab.give_back() == 0, "it wants more than x owns"
    lab.submit("x", 1, Priority.NORMAL, nodes=2)
    assert lab.give_back() == 2
    lab.place()
    assert Counter(one.waiting.project for one in lab.running.values()) == {"x": 1, "y": 2}
    lab.check()


@pytest.mark.parametrize("priority", [Priority.LOW, Priority.HIGH])
def test_an_owner_gets_his_own_back_whatever_the_priority_of_who_borrowed_it(priority: Priority) -> None:
    lab = Lab(4, {"x": Quota(gpus=2)})
    for _ in range(6):
        lab.submit("y", 1, priority)
    lab.place()
    assert len(lab.running) == 4
    lab.submit("x", 1, Priority.NORMAL)
    lab.submit("x", 1, Priority.NORMAL)
    lab.submit("x", 1, Priority.NORMAL)
    lab.place()
    while lab.give_back():
        lab.place()
    assert Counter(one.waiting.project for one in lab.running.values()) == {"x": 2, "y": 2}


def test_borrowers_make_room_for_an_owner_rather_than_that_he_takes_what_another_keeps() -> None:
    lab = Lab(8, {"x": Quota(gpus=4, lend_gpus=0), "y": Quota(gpus=3)})
    for project, gpus in (("y", 1), ("z", 2), ("y", 2)):
        lab.submit(project, gpus, Priority.NORMAL)
        lab.place()
    assert Counter(one.waiting.project for one in lab.running.values()) == {"y": 1, "z": 1}, "four are kept for x"
    assert lab.give_back() == 1
    lab.place()
    lab.check()
    assert Counter(one.waiting.project for one in lab.running.values()) == {"y": 2}
    for _ in range(4):
        lab.submit("x", 1, Priority.NORMAL)
    lab.place()
    assert lab.give_back() == 0
    assert lab.quotas.held("x").gpus == 4


def two_nodes() -> tuple[Placer, Wish]:
    """z has borrowed two GPUs of node b, and x keeps four: y's job for two of his own fits, and is not admitted."""
    cluster, backlog = Cluster(), Backlog()
    for name in "ab":
        cluster.upsert_node(name, name, capability(*[A100] * 4, slots=8, cpus=99), "1")
    backlog.settle(0.0, cluster.totals)
    backlog.shares.set_quota("x", Quota(gpus=4, lend_gpus=0))
    backlog.shares.set_quota("y", Quota(gpus=3))
    placer = Placer(cluster, backlog, Claims(cluster))
    for number, (project, on) in enumerate([("y", "a"), ("z", "b"), ("z", "b")]):
        one = Resources(gpus=1)
        cluster.take_at(cluster.node(on), f"{project}{number}", demand_of(one), (number,))
        backlog.charge(Waiting(f"{project}{number}", number, one, Priority.NORMAL, "", project), (1, 1, 0, 0))
    two = Resources(gpus=2)
    backlog.add(Waiting("own", 9, two, Priority.NORMAL, "", "y"))
    nodes = [(cluster.node(name), Wanted(demand_of(two), range(4))) for name in "ab"]
    return placer, Wish("y", Amounts(gpus=2), nodes)


def test_an_owners_place_is_kept_while_borrowers_on_another_node_go() -> None:
    placer, wish = two_nodes()
    backlog, cluster, claims = placer.backlog, placer.cluster, placer.claims
    quotas = backlog.shares.quotas
    assert placer.place(9) == []
    attempts = [borrower("z1", "z", seconds=9), borrower("z2", "z", seconds=5), borrower("y0", "y")]
    clearing = place_for(wish, quotas, attempts, MOST, {}, ())
    assert clearing is not None
    assert (clearing.victims, set(clearing.awaited)) == (("z2",), {"z2"})
    own = backlog.find("own")
    assert own is not None
    claims.clear(own, clearing)
    assert placer.place(9) == []
    assert claims.clears("own"), "its place is free, and waits for z2, which has still to end"
    cluster.release("z2")
    backlog.discharge("z2")
    assert [(placed.job_id, placed.node_id) for placed in placer.place(9)] == [("own", clearing.node_id)]
    assert not claims


def test_who_leaves_anyway_is_waited_for_and_nobody_is_asked_in_vain() -> None:
    placer, wish = two_nodes()
    quotas = placer.backlog.shares.quotas
    leaving = borrower("z1", "z", seconds=9)
    leaving = leaving._replace(holder=leaving.holder._replace(stopping=True))
    clearing = place_for(wish, quotas, [leaving, borrower("z2", "z")], MOST, {}, ())
    assert clearing is not None
    assert not clearing.victims
    assert set(clearing.awaited) == {"z1"}
    left_alone = [borrower("z1", "z", preempted=MOST), borrower("z2", "z", preempted=MOST)]
    assert place_for(wish, quotas, left_alone, MOST, {}, ()) is None
    promises = [("y", GPU)]
    more = place_for(wish, quotas, [leaving, borrower("z2", "z")], MOST, {}, promises)
    assert more is not None
    assert more.victims == ("z2",), "what was promised to another job of y's needs room, too"


def test_of_a_gang_all_give_back_what_it_holds_together() -> None:
    placer, wish = two_nodes()
    gang = [borrower(name, "z", gpus=2)._replace(lead="z1") for name in ("z1", "z1.1")]
    clearing = place_for(wish, placer.backlog.shares.quotas, gang, MOST, {}, ())
    assert clearing is not None
    assert clearing.victims == ("z1",)
