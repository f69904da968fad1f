"""Whose turn it is among owners and projects: the arithmetic, the order, and what everybody gets over time."""

from __future__ import annotations

import math
import random
from heapq import heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import Cluster
from broker.scheduler.fair_share import FairShare
from broker.scheduler.limits import Limits, OwnerLimits
from broker.scheduler.placement import Placer
from broker.scheduler.position import ahead_of
from broker.scheduler.shares import Totals, dominant_share
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.property_size import examples
from tests.unit.fleet import A100, capability

HALF_LIFE = 3600.0
GB = 2**30
TOTALS = Totals(slots=100, gpus=8, gpu_memory_bytes=800 * GB, cpus=64, ram_bytes=1000 * GB)


def test_the_dominant_share_is_the_largest() -> None:
    assert dominant_share((0, 0, 0, 0), TOTALS) == 0.01, "a slot"
    assert dominant_share((1, 10 * GB, 16, 10 * GB), TOTALS) == 0.25, "cores"
    assert dominant_share((1, 400 * GB, 16, 10 * GB), TOTALS) == 0.5, "GPU memory"
    assert dominant_share((1, 10, 1, 1), Totals()) == 0.0, "there is no node"


@given(
    share=st.integers(1, 8),
    pauses=st.lists(st.floats(1.0, 20_000.0), min_size=1, max_size=8),
    after=st.floats(0.0, 20_000.0),
)
@settings(max_examples=examples(500), deadline=None)
def test_what_was_held_counts_half_after_a_half_life(share: int, pauses: list[float], after: float) -> None:
    """However often it is settled in between."""
    shares, now = FairShare(HALF_LIFE), 0.0
    shares.settle(now, TOTALS)
    shares.take("job", shares.account("lab", "ann"), (share, 0, 0, 0))
    for pause in pauses:
        now += pause
        shares.settle(now, TOTALS)
    shares.release("job")
    held = now
    shares.settle(now + after, TOTALS)
    expected = share / 8 * (1 - 2 ** (-held / HALF_LIFE)) * 2 ** (-after / HALF_LIFE)
    for account in (shares.account("lab", "ann"), shares.account("lab", None)):
        assert account.past == pytest.approx(expected)
        assert (account.present, account.running) == (0.0, 0)


@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.sampled_from("xy"),
            st.integers(0, 12),
            st.booleans(),
            st.integers(0, 3),
            st.integers(1, 3),
        ),
        max_size=40,
    )
)
@settings(max_examples=examples(500), deadline=None)
def test_what_is_held_adds_up_in_a_cluster_that_changes(
    moves: list[tuple[str, str, int, bool, int, int]],
) -> None:
    shares, held = FairShare(HALF_LIFE), {}
    totals = TOTALS
    for now, (owner, project, job, takes, gpus, nodes) in enumerate(moves):
        if takes:
            shares.take(f"{job}", shares.account(project, owner), (gpus, 0, 1, 0))
            held[job] = (owner, project, gpus)
        else:
            assert (shares.release(f"{job}") is not None) == (held.pop(job, None) is not None)
        totals = TOTALS._replace(gpus=8 * nodes)
        shares.settle(float(now), totals)
    for account in shares:
        mine = [
            dominant_share((gpus, 0, 1, 0), totals)
            for owner, project, gpus in held.values()
            if project == account.project and account.owner in (None, owner)
        ]
        assert (account.running, account.present) == (len(mine), pytest.approx(sum(mine)))


def test_accounts_without_a_past_are_forgotten() -> None:
    shares = FairShare(HALF_LIFE)
    shares.settle(0.0, TOTALS)
    shares.take("job", shares.account("lab", "ann"), (1, 0, 0, 0))
    shares.account("lab", "bob")
    waits = shares.account("office", "cem")
    shares.forget({waits})
    assert {(one.project, one.owner) for one in shares} == {
        ("lab", None),
        ("lab", "ann"),
        ("office", None),
        ("office", "cem"),
    }


def backlog_of(**jobs: list[tuple[str, int]]) -> Backlog:
    backlog = Backlog(FairShare(HALF_LIFE))
    backlog.settle(0.0, TOTALS)
    for owner, numbers in jobs.items():
        for job_id, number in numbers:
            backlog.add(Waiting(job_id, number, Resources(gpus=1), Priority.NORMAL, owner))
    return backlog


def test_who_holds_something_lets_others_go_first() -> None:
    backlog = backlog_of(ann=[("a1", 1), ("a2", 2), ("a3", 3)], bob=[("b1", 10), ("b2", 11)])
    order = []
    while queue := next(iter(backlog), None):
        job = backlog.pop(queue)
        order.append(job.job_id)
        backlog.charge(job, (1, 0, 0, 0))
    assert order == ["a1", "b1", "a2", "b2", "a3"]


def test_projects_share_first_and_then_their_owners() -> None:
    backlog = Backlog(FairShare(HALF_LIFE))
    backlog.settle(0.0, TOTALS)
    jobs = [("x", "ann"), ("x", "bob"), ("x", "cem"), ("y", "dan")]
    for number in range(12):
        project, owner = jobs[number % 4]
        backlog.add(Waiting(f"{owner}{number}", number, Resources(gpus=1), Priority.NORMAL, owner, project))
    order = []
    for _ in range(6):
        job = backlog.pop(next(iter(backlog)))
        order.append(job.owner)
        backlog.charge(job, (1, 0, 0, 0))
    assert order == ["ann", "dan", "bob", "dan", "cem", "dan"]


def test_priority_comes_before_shares() -> None:
    backlog = backlog_of(ann=[("a1", 1)])
    backlog.add(Waiting("urgent", 9, Resources(gpus=1), Priority.HIGH, "bob"))
    backlog.charge(Waiting("old", 0, Resources(gpus=1), Priority.NORMAL, "bob"), (8, 0, 0, 0))
    assert next(iter(backlog)).owner == "bob"


def test_yesterday_counts_less_than_today() -> None:
    shares = FairShare(HALF_LIFE)
    shares.settle(0.0, TOTALS)
    shares.remember([("", "ann", 0.8), ("", "bob", 0.3)])
    assert shares.account("", None).past == pytest.approx(1.1)
    shares.take("job", shares.account("", "bob"), (4, 0, 0, 0))
    assert shares.account("", "ann").standing == shares.account("", "bob").standing == 0.8
    shares.settle(HALF_LIFE, TOTALS)
    assert shares.account("", "ann").standing < shares.account("", "bob").standing


def test_who_is_ahead_is_told_by_what_each_has() -> None:
    backlog = backlog_of(ann=[(f"a{n}", n) for n in range(10)], bob=[(f"b{n}", 100 + n) for n in range(10)])
    assert ahead_of(backlog, Priority.NORMAL, 109, "bob") == (0, 9, ((backlog.shares.account("", "ann"), 10),))
    backlog.charge(Waiting("old", 0, Resources(gpus=1), Priority.NORMAL, "ann"), (4, 0, 0, 0))
    # bob places four jobs before it is ann's turn, who goes on in turns with him
    assert ahead_of(backlog, Priority.NORMAL, 0, "ann").jobs in (4, 5)
    assert ahead_of(backlog, Priority.NORMAL, 100, "bob").jobs == 0
    assert ahead_of(backlog, Priority.NORMAL, 105, "bob").jobs in (6, 7)


def test_weights_divide_in_proportion() -> None:
    backlog = backlog_of(ann=[(f"a{n}", n) for n in range(9)], bob=[(f"b{n}", 100 + n) for n in range(9)])
    backlog.shares.set_limits("ann", OwnerLimits(weight=2.0))
    order = []
    for _ in range(9):
        job = backlog.pop(next(iter(backlog)))
        order.append(job.owner)
        backlog.charge(job, (1, 0, 0, 0))
    assert (order.count("ann"), order.count("bob")) == (6, 3)


@given(
    jobs=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.booleans()), max_size=30),
    limit=st.integers(0, 3),
    ends=st.lists(st.integers(0, 30), max_size=30),
)
@settings(max_examples=examples(200), deadline=None)
def test_no_owner_runs_more_than_he_may_and_nobody_else_waits_for_that(
    jobs: list[tuple[str, str, bool]], limit: int, ends: list[int]
) -> None:
    cluster = Cluster()
    cluster.upsert_node("a", "a", capability(slots=6, cpus=100), "1")
    backlog = Backlog(FairShare(HALF_LIFE, Limits(OwnerLimits(running=limit))))
    placer = Placer(cluster, backlog)
    backlog.shares.set_limits("c", OwnerLimits())
    running: list[str] = []
    for number, (owner, project, large) in enumerate(jobs):
        wish = Resources(cpus=2 if large else 1)
        backlog.add(Waiting(f"{owner}{number}", number, wish, Priority.NORMAL, owner, project))
    for end in [0, *ends]:
        running += [placement.job_id for placement in placer.place(100)]
        counts = {owner: sum(job_id[0] == owner for job_id in running) for owner in "abc"}
        assert max(counts["a"], counts["b"]) <= limit
        assert {owner: backlog.shares.person(owner).running for owner in "abc"} == counts
        may = [owner for owner in "abc" if backlog.waiting_of(owner) and (owner == "c" or counts[owner] < limit)]
        assert not may or len(running) == 6
        if running:
            job_id = running.pop(end % len(running))
            cluster.release(job_id)
            backlog.discharge(job_id)


def test_submissions_are_counted_by_the_minute() -> None:
    limits = Limits(OwnerLimits(per_minute=6))
    assert limits.submissions_left("ann", 0.0) == 6
    limits.count_submissions("ann", 6, 0.0)
    assert limits.submissions_left("ann", 5.0) < 1
    assert limits.submissions_left("ann", 10.0) == 1
    assert limits.submissions_left("ann", 1000.0) == 6
    assert limits.submissions_left("bob", 10.0) == 6
    limits.set("bob", OwnerLimits())
    assert limits.submissions_left("bob", 10.0) > 1e9


class Fair:
    """Owners who always have jobs waiting, on a cluster of `slots` places of one node, in simulated time."""

    def __init__(self, owners: dict[str, float], slots: int, chance: random.Random) -> None:
        cluster = Cluster()
        cluster.upsert_node("a", "a", capability(*[A100] * slots, slots=slots, cpus=256), "1")
        self.backlog = Backlog(FairShare(HALF_LIFE))
        self.placer = Placer(cluster, self.backlog)
        self.mean_seconds, self.chance = owners, chance
        self.ends: list[tuple[float, str]] = []
        self.owner_of: dict[str, str] = {}
        self.got = dict.fromkeys(owners, 0.0)
        self.waited = dict.fromkeys(owners, 0.0)
        self.number = 0

    def submit(self, owner: str) -> None:
        self.number += 1
        wish = Resources(gpus=1, cpus=self.number % 2)
        self.backlog.add(Waiting(f"{self.number}", self.number, wish, Priority.NORMAL, owner))

    def run(self, seconds: float) -> None:
        """Each ends after its owner's mean time, more or less. What it holds beyond the run is not counted."""
        now = 0.0
        last = dict.fromkeys(self.got, 0.0)
        for owner in self.got:
            for _ in range(len(self.got) + 4):
                self.submit(owner)
        while now < seconds:
            self.backlog.settle(now, self.placer.cluster.totals)
            for placement in self.placer.place(100):
                owner = placement.waiting.owner
                length = self.mean_seconds[owner] * self.chance.uniform(0.5, 1.5)
                heappush(self.ends, (now + length, placement.job_id))
                self.owner_of[placement.job_id] = owner
                self.got[owner] += min(length, seconds - now)
                self.waited[owner], last[owner] = max(self.waited[owner], now - last[owner]), now
                self.submit(owner)
            now, job_id = heappop(self.ends)
            self.backlog.settle(now, self.placer.cluster.totals)
            self.placer.cluster.release(job_id)
            self.backlog.discharge(job_id)


def forgiven(lengths: list[float], slots: int) -> list[float]:
    """By owner, how much less of the cluster than his part his jobs' lengths bring him, at most. It is the price of
    forgetting.

    Who has his turn has had least, and is ahead by a whole job after it: by half a job on average, the longer the more.
    In a mean life as much is forgotten as one is ahead by, so he gets that much more in each, and those with shorter
    jobs less. What runs at a random moment is 13/12 of the mean long, as lengths are spread evenly from half of it to
    one and a half. With several slots what is held now counts too, whatever its length, and it is less.
    """
    ahead = [length * 13 / 12 / 2 for length in lengths]
    mean_life = HALF_LIFE / math.log(2)
    return [max(0.0, sum(ahead) / len(ahead) - own) / mean_life / slots for own in ahead]


def jain(amounts: list[float]) -> float:
    return sum(amounts) ** 2 / (len(amounts) * sum(amount**2 for amount in amounts))


@given(
    seed=st.integers(0, 2**32),
    lengths=st.lists(st.sampled_from([100.0, 200.0, 600.0]), min_size=2, max_size=6),
    slots=st.integers(1, 6),
)
@settings(max_examples=examples(40), deadline=None)
def test_everybody_gets_his_part_and_nobody_waits_for_ever(seed: int, lengths: list[float], slots: int) -> None:
    """With k owners who always wait, each gets 1/k, but for what is forgiven and one job when time is up."""
    owners = {f"owner-{number}": length for number, length in enumerate(lengths)}
    fair = Fair(owners, slots, random.Random(seed))
    seconds = 8 * HALF_LIFE
    fair.run(seconds)
    amounts = list(fair.got.values())
    # In 27,000 runs, of all mixtures of lengths, nobody was behind by more than 0.71 of the longest job.
    one_job = 1.5 * max(lengths) / (seconds * slots)
    for owner, (amount, less) in enumerate(zip(amounts, forgiven(lengths, slots), strict=True)):
        assert amount / sum(amounts) >= 1 / len(owners) - less - one_job, owner
    assert jain(amounts) >= 0.95
    # The line goes round once: between two turns of one owner each other one has his part of the time.
    assert max(fair.waited.values()) <= 4 * len(owners) * max(lengths)


def test_jobs_that_are_short_against_the_half_life_bring_nobody_less_for_their_length() -> None:
    fair = Fair({"short": 1.0, **{f"long-{number}": 6.0 for number in range(4)}}, 1, random.Random(0))
    fair.run(4 * HALF_LIFE)
    assert fair.got["short"] / sum(fair.got.values()) == pytest.approx(1 / 5, abs=0.002)


def test_a_newcomer_catches_up_without_shutting_the_others_out() -> None:
    fair = Fair({"old": 60.0, "new": 60.0}, 8, random.Random(1))
    fair.backlog.settle(0.0, fair.placer.cluster.totals)
    fair.backlog.shares.remember([("", "old", 1.0)])
    fair.run(HALF_LIFE)
    assert fair.got["new"] > 1.3 * fair.got["old"] > 0
    assert fair.waited["old"] < HALF_LIFE / 4
