"""Whoever waits for much at once gets a place reserved, and others pass only where that does not delay it."""

from __future__ import annotations

import random
from heapq import heappop, heappush

import pytest

from broker.scheduler.backlog import Backlog, Waiting, coarse
from broker.scheduler.claims import ENDING_SECONDS, Claims
from broker.scheduler.cluster import Cluster
from broker.scheduler.lines import Lines
from broker.scheduler.placement import Placer
from broker.scheduler.places import able
from broker.scheduler.reservations import Blocked, plan
from cyxwiz_tasks.conditions import Applicant
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.property_size import examples
from tests.unit.fleet import A100, RTX_3090, T4, capability, cluster_of

HOUR = 3600.0


#: what is missing of four GPUs and eight cores can become less so often
FEWER = 4 + 8 + 1


class Site:
    """A cluster, a backlog, and attempts that end when their time has come. Moments are seconds."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.backlog, self.claims = cluster, Backlog(), Claims(cluster)
        self.placer = Placer(cluster, self.backlog, self.claims)
        self.now = 0.0
        self.started: dict[str, float] = {}
        self.node_of: dict[str, str] = {}
        self._limits: dict[str, float | None] = {}
        self._number = 0

    def submit(
        self,
        name: str,
        priority: Priority = Priority.NORMAL,
        limit: float | None = None,
        owner: str = "",
        **wish: object,
    ) -> str:
        self._number += 1
        self._limits[name] = coarse(limit)
        self.backlog.add(
            Waiting(name, self._number, Resources.parse(wish), priority, owner, time_limit_seconds=coarse(limit))
        )
        return name

    def place(self) -> dict[str, str]:
        placed = {one.job_id: one.node_name for one in self.placer.place(1000, self.now)}
        for job_id, node in placed.items():
            self.started[job_id], self.node_of[job_id] = self.now, node
        self.check()
        return placed

    def end(self, *job_ids: str) -> dict[str, str]:
        for job_id in job_ids:
            assert self.cluster.release(job_id)
        return self.place()

    def end_of(self, job_id: str) -> float | None:
        limit = self._limits[job_id]
        return None if limit is None else max(self.now, self.started[job_id] + limit + ENDING_SECONDS)

    def reserve(self, *names: str) -> None:
        """As the duty does, for these jobs."""
        blocked = []
        for name in names:
            waiting = self.backlog.find(name)
            if waiting is not None:
                found = able(self.cluster, waiting.resources, Applicant("", "", waiting.priority))
                blocked.append(Blocked(waiting, found.some(self.cluster, 0, 99)))
        claims = {claim.key: claim for claim in self.claims}
        self.claims.reserve(plan(blocked, self.end_of, self.now, claims))

    def look(self, lines: Lines) -> dict[str, str]:
        """As the duty does: by job, the node that is reserved for it."""
        self.claims.reserve(lines.plan(self.backlog, self.cluster, self.claims, self.now, self.end_of, {}))
        self.place()
        return {claim.job_id: claim.node_id for claim in self.claims}

    def check(self) -> None:
        """Nothing is given, or kept, twice: what is free, held and kept adds up, and no GPU is over-booked."""
        for node in self.cluster:
            held = [holding.demand for holding in node.holdings.values()]
            kept = node.kept.values()
            assert node.slots_free == node.slots - len(held) - sum(one.slots for one in kept)
            assert node.cpus_free == node.capability.cpu_cores - sum(d.cpus for d in held) - sum(k.cpus for k in kept)
            for at, memory in enumerate(node.gpu_memory):
                users = [holding.demand for holding in node.holdings.values() if at in holding.positions]
                assert len(users) < 2 or all(demand.shared for demand in users)
                used = sum(demand.gpu_memory_bytes if demand.shared else memory for demand in users)
                aside = sum(size for one in kept for position, size in one.gpu_bytes if position == at)
                assert node.gpu_free[at] == memory - used - aside
            assert min(node.slots_free, node.cpus_free, node.ram_free_bytes, *node.gpu_free, 0) == 0


def four_gpus() -> Site:
    return Site(cluster_of(a=capability(A100, A100, A100, A100, slots=8)))


def test_what_becomes_free_is_kept_until_it_is_enough() -> None:
    site = four_gpus()
    small = [site.submit(f"small {number}", gpus=1) for number in range(4)]
    site.place()
    site.submit("big", gpus=4)
    site.reserve("big")
    site.submit("next", gpus=1)
    for job_id in small[:3]:
        assert site.end(job_id) == {}
        site.reserve("big")
    assert site.end(small[3]) == {"big": "a"}
    assert site.end("big") == {"next": "a"}


def test_who_touches_nothing_that_is_reserved_goes_on() -> None:
    site = four_gpus()
    site.submit("long", gpus=3)
    site.place()
    site.submit("big", gpus=4, cpus=8)
    site.reserve("big")
    site.submit("gpu", gpus=1)
    site.submit("cpu", cpus=8)
    site.submit("too much", cpus=1)
    assert site.place() == {"cpu": "a"}


def test_who_ends_before_the_reservation_starts_is_backfilled() -> None:
    site = four_gpus()
    site.submit("running", gpus=3, limit=HOUR)
    site.place()
    site.submit("big", gpus=4)
    site.reserve("big")
    (claim,) = site.claims
    assert claim.starts_at == HOUR + ENDING_SECONDS
    site.submit("unlimited", gpus=1)
    site.submit("longer", gpus=1, limit=HOUR + 60)
    site.submit("as long", gpus=1, limit=HOUR)
    assert site.place() == {"as long": "a"}
    site.now = 60.0
    assert site.end("as long") == {}
    site.submit("shorter", gpus=1, limit=HOUR - 60)
    assert site.place() == {"shorter": "a"}
    site.now = HOUR
    assert site.end("running", "shorter") == {"big": "a"}


def test_what_the_job_will_not_need_then_is_free_for_anybody() -> None:
    site = four_gpus()
    site.submit("running", gpus=3, limit=HOUR)
    site.place()
    site.submit("two", gpus=2)
    site.reserve("two")
    site.submit("unlimited", gpus=1)
    # Two of the three that are in use will do: the fourth is not touched.
    assert site.place() == {"unlimited": "a"}
    assert site.end("running") == {"two": "a"}


def test_memory_of_a_shared_gpu_is_kept_too() -> None:
    site = Site(cluster_of(a=capability(RTX_3090, slots=8)))
    for name, size in (("twelve", "12GB"), ("six", "6GB")):
        site.submit(name, gpu_memory=size, shared=True)
    site.place()
    site.submit("big", gpu_memory="20GB", shared=True)
    site.reserve("big")
    site.submit("small", gpu_memory="6GB", shared=True)
    assert site.place() == {}
    assert site.end("twelve") == {}
    assert site.end("six") == {"big": "a"}


def test_the_node_is_taken_that_is_clear_soonest() -> None:
    site = Site(cluster_of(a=capability(T4, T4), b=capability(T4, T4), c=capability(T4, T4)))
    for limit in (3 * HOUR, HOUR, None):
        site.submit(f"limit {limit}", gpus=2, limit=limit)
    site.place()
    site.submit("big", gpus=2)
    site.reserve("big")
    (claim,) = site.claims
    assert claim.node_id == site.node_of[f"limit {HOUR}"]


def test_where_no_end_is_known_the_node_is_taken_where_least_is_missing() -> None:
    site = Site(cluster_of(a=capability(T4, T4, T4, T4), b=capability(T4, T4, T4, T4)))
    jobs = [site.submit(f"job {number}", gpus=1) for number in range(8)]
    site.place()
    on_b = [job_id for job_id in jobs if site.node_of[job_id] == "b"]
    site.cluster.release(on_b[0])
    site.submit("big", gpus=4)
    site.reserve("big")
    (claim,) = site.claims
    assert (claim.node_id, claim.starts_at) == ("b", None)
    assert site.end(*on_b[1:]) == {"big": "b"}


def test_a_more_urgent_job_takes_what_is_kept_for_a_lesser_one() -> None:
    site = four_gpus()
    site.submit("running", gpus=3)
    site.place()
    site.submit("big", gpus=4)
    site.reserve("big")
    assert site.place() == {}
    site.submit("urgent", Priority.HIGH, gpus=1)
    assert site.place() == {"urgent": "a"}


def test_fair_shares_do_not_take_a_reservation_away() -> None:
    site = four_gpus()
    site.submit("running", gpus=3)
    site.place()
    site.submit("big", gpus=4, owner="has much")
    site.reserve("big")
    site.submit("small", gpus=1, owner="has nothing")
    assert site.place() == {}
    assert site.end("running") == {"big": "a"}


def test_a_claimant_that_starts_elsewhere_gives_its_reservation_back() -> None:
    site = Site(cluster_of(a=capability(T4, T4), b=capability(T4, T4)))
    one, two = site.submit("one", gpus=1), site.submit("two", gpus=2)
    site.place()
    site.submit("big", gpus=2)
    site.reserve("big")
    assert next(iter(site.claims)).node_id == site.node_of[one]
    site.submit("small", gpus=1)
    placed = site.end(two)
    assert placed == {"big": site.node_of[two], "small": site.node_of[one]}
    assert not site.claims


def test_a_reservation_moves_from_a_node_that_takes_no_work() -> None:
    site = Site(cluster_of(a=capability(T4), b=capability(T4)))
    site.submit("one", gpus=1, limit=60)
    site.submit("two", gpus=1, limit=HOUR)
    site.place()
    site.submit("big", gpus=1)
    site.reserve("big")
    site.cluster.remove_node(site.node_of["one"])
    site.place()
    assert not site.claims
    site.reserve("big")
    assert [claim.node_id for claim in site.claims] == [site.node_of["two"]]


def three_busy_nodes() -> Site:
    """Of four GPUs each; a is clear after one hour, b after two, c after three."""
    site = Site(cluster_of(**{name: capability(*[T4] * 4, slots=8) for name in "abc"}))
    for hours, name in enumerate("abc", start=1):
        site.submit(f"on {name}", gpus=4, node=name, limit=hours * HOUR)
    site.place()
    return site


def test_big_jobs_behind_the_next_in_line_get_a_node_each_and_small_ones_none() -> None:
    site, lines = three_busy_nodes(), Lines(30.0)
    site.submit("next", gpus=1)
    site.submit("all", gpus=4)
    site.submit("small", gpus=1, limit=HOUR)
    site.submit("half", gpus=2)
    site.submit("other half", gpus=2, limit=9 * HOUR)
    assert site.look(lines) == {}, "they might find a place any moment"
    site.now = 30.0
    assert site.look(lines) == {"next": "a", "all": "b", "half": "c"}
    assert site.look(lines) == {"next": "a", "all": "b", "half": "c"}


def test_of_one_line_so_many_have_reservations_and_a_line_of_its_own_has_one_beside() -> None:
    nodes = {f"n{number}": capability(T4, T4) for number in range(10)} | {"other": capability(A100)}
    site, lines = Site(cluster_of(**nodes)), Lines(0.0)
    for name in nodes:
        site.submit(f"on {name}", node=name, gpus=1, limit=HOUR)
    site.place()
    for number in range(10):
        site.submit(f"big {number}", gpus=2, limit=2 * HOUR + 600 * number)
    site.submit("alone", gpus=1, gpu_memory="80GB")
    reserved = site.look(lines)
    assert sorted(reserved) == ["alone", *[f"big {number}" for number in range(8)]]
    assert len(set(reserved.values())) == 9
    assert reserved["alone"] == "other"


def test_where_nobody_knows_when_a_place_becomes_free_only_the_next_in_line_has_it_kept() -> None:
    site, lines = Site(cluster_of(a=capability(T4, T4), b=capability(T4, T4))), Lines(0.0)
    for name in "ab":
        site.submit(f"on {name}", node=name, gpus=1)
    site.place()
    site.submit("first", gpus=2)
    site.submit("second", gpus=2, limit=HOUR)
    site.submit("small", gpus=1)
    assert site.look(lines) == {"first": "a"}
    assert site.node_of["small"] == "b"


def test_who_has_a_reservation_keeps_it_against_all_who_are_not_more_urgent() -> None:
    site, lines = three_busy_nodes(), Lines(0.0)
    site.submit("first", gpus=4)
    site.submit("second", gpus=4, limit=HOUR)
    assert site.look(lines) == {"first": "a", "second": "b"}
    site.submit("urgent", Priority.HIGH, gpus=4)
    # b would be clear sooner than c, but it is the second's.
    assert site.look(lines) == {"urgent": "a", "first": "c", "second": "b"}


@pytest.mark.parametrize(
    ("given", "kept"), [(None, None), (0.2, 1), (59.5, 60), (61, 70), (90 * 60, 90 * 60), (4 * HOUR, 4 * HOUR)]
)
def test_time_limits_are_few_and_never_shorter(given: float | None, kept: float | None) -> None:
    assert coarse(given) == kept
    for seconds in range(1, 50_000, 7):
        assert seconds <= coarse(seconds) <= 1.2 * seconds + 1


@pytest.mark.parametrize("limited", [True, False])
def test_a_big_job_starts_in_time_although_small_ones_never_stop_coming(limited: bool) -> None:
    """It starts once what ran when it got its reservation has ended, and what was backfilled does not delay it."""
    passed = [_start_a_big_job(random.Random(seed), limited) for seed in range(examples(6))]
    if limited:
        # Now and then it finds its place before anybody could have passed it.
        assert sum(count > 0 for count in passed) > len(passed) / 2, "hardly anybody was backfilled"


def _start_a_big_job(chance: random.Random, limited: bool) -> int:
    """How many small jobs started while it waited."""
    cards = [[T4] * 4, [RTX_3090] * 4, [A100] * 8]
    site = Site(cluster_of(**{f"n{at}": capability(*chance.choice(cards), slots=9, cpus=16) for at in range(3)}))
    ends: list[tuple[float, str]] = []
    big = "big"

    def feed() -> None:
        for _ in range(20 - len(site.backlog)):
            site._number += 1
            limit = chance.uniform(60, 600) if limited else None
            site.submit(f"job {site._number}", limit=limit, gpus=chance.choice([1, 1, 2]), cpus=chance.randint(0, 4))

    def begin(placed: dict[str, str]) -> None:
        for job_id in placed:
            heappush(ends, (site.now + chance.uniform(1, site._limits[job_id] or 600), job_id))

    def step() -> None:
        site.now, job_id = heappop(ends)
        feed()
        begin(site.end(job_id))

    feed()
    begin(site.place())
    for _ in range(50):
        step()
    site.submit(big, gpus=4, cpus=8)
    waited_from, places, passed = site.now, list[str](), 0
    while big in site.backlog:
        site.reserve(big)
        reservation = next(iter(site.claims))
        if not limited and places[-1:] != [reservation.node_id]:
            # Where nobody knows when anything ends, it moves to where less is missing, and waits for those there.
            waited_from = site.now
            places.append(reservation.node_id)
            assert len(places) <= FEWER, "it moves to and fro"
        before = reservation.starts_at
        step()
        claim = site.claims.get(big)
        passed += sum(moment == site.now for name, moment in site.started.items() if name != big)
        if limited and claim is not None:
            site.reserve(big)
            assert before is not None
            again = next(iter(site.claims)).starts_at
            assert again is not None
            assert again <= before, "a backfilled job delays it"
        assert site.now - waited_from <= 600 + ENDING_SECONDS, "it starves"
    assert site.cluster.node_of(big) is not None
    return passed
