"""Placing, step by step on small clusters."""

from typing import Any

import pytest

from broker.scheduler.backlog import Backlog, Waiting
from broker.scheduler.cluster import ChangeLog, Cluster
from broker.scheduler.demand import demand_of
from broker.scheduler.placement import Placement, Placer
from broker.scheduler.scoring import Parts
from cyxwiz_tasks.errors import NotFound
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from db.models import Cordon, NodeState
from tests.unit.fleet import A100, RTX_3090, T4, capability, cluster_of

GB = 2**30


class Bench:
    """A cluster, a backlog and a placer; jobs are numbered."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.backlog = cluster, Backlog()
        self.placer = Placer(cluster, self.backlog)
        self._number = 0

    def submit(self, priority: Priority = Priority.NORMAL, **wish: Any) -> str:
        self._number += 1
        job_id = f"job-{self._number}"
        assert self.backlog.add(Waiting(job_id, self._number, Resources.parse(wish), priority))
        return job_id

    def place(self, limit: int = 100) -> dict[str, str]:
        return {placement.job_id: placement.node_name for placement in self.placer.place(limit)}


def test_a_node_takes_as_many_jobs_as_it_has_slots() -> None:
    bench = Bench(cluster_of(a=capability(slots=2)))
    jobs = [bench.submit() for _ in range(3)]
    assert list(bench.place()) == jobs[:2]
    assert bench.place() == {}
    assert bench.cluster.release(jobs[0])
    assert list(bench.place()) == jobs[2:]


def test_exclusive_gpus_are_given_once() -> None:
    bench = Bench(cluster_of(a=capability(T4, RTX_3090, slots=4)))
    big, small, third = bench.submit(gpu_memory="20GB"), bench.submit(gpus=1), bench.submit(gpus=1)
    placed = {placement.job_id: placement for placement in bench.placer.place(9)}
    assert placed[big].gpu_indexes == (1,)
    assert placed[big].gpu_memory_bytes == 24 * GB
    assert placed[small].gpu_indexes == (0,)
    assert third in bench.backlog


def test_a_shared_gpu_takes_jobs_until_its_memory_is_given_away() -> None:
    bench = Bench(cluster_of(a=capability(RTX_3090, slots=4)))
    jobs = [bench.submit(gpu_memory="12GB", shared=True) for _ in range(3)]
    placed = bench.placer.place(9)
    # two of a nominal 12 GB fill a card of 24 GB
    assert [placement.job_id for placement in placed] == jobs[:2]
    assert {placement.gpu_indexes for placement in placed} == {(0,)}
    assert placed[0].gpu_memory_bytes == pytest.approx(0.93 * 12 * GB, abs=2)
    exclusive = bench.submit(gpus=1)
    bench.cluster.release(jobs[0])
    bench.backlog.remove(jobs[2])
    # a GPU that anybody uses is nobody's alone
    assert bench.place() == {}
    bench.cluster.release(jobs[1])
    assert bench.place() == {exclusive: "a"}


def test_cpus_and_memory_are_taken_while_a_job_runs() -> None:
    bench = Bench(cluster_of(a=capability(cpus=8, ram="64GB", slots=9)))
    first, second = bench.submit(cpus=6), bench.submit(cpus=6)
    assert list(bench.place()) == [first]
    hungry, modest = bench.submit(ram="60GB"), bench.submit(ram="10GB")
    assert list(bench.place()) == [hungry]
    bench.cluster.release(first)
    assert list(bench.place()) == [second]
    bench.cluster.release(hungry)
    assert list(bench.place()) == [modest]


def test_a_blocked_shape_does_not_hold_up_the_others() -> None:
    bench = Bench(cluster_of(a=capability(T4, slots=4)))
    blocked, fits = bench.submit(gpu_memory="80GB"), bench.submit(gpus=1)
    assert list(bench.place()) == [fits]
    assert blocked in bench.backlog
    bench.cluster.upsert_node("b", "b", capability(A100), "1")
    assert bench.place() == {blocked: "b"}


def test_a_shape_that_slept_while_nobody_of_it_waited_is_not_overlooked() -> None:
    bench = Bench(cluster_of(a=capability(T4), b=capability(A100)))
    running = [bench.submit(gpu_memory="15GB"), bench.submit(gpu_memory="15GB")]
    assert len(bench.place()) == 2
    blocked = bench.submit(gpu_memory="40GB")
    assert bench.place() == {}
    assert bench.backlog.remove(blocked)
    for job in running:
        bench.cluster.release(job)
    assert bench.place() == {}
    again = bench.submit(gpu_memory="40GB")
    assert bench.place() == {again: "b"}


def test_a_freed_node_goes_to_the_most_urgent_of_those_that_fit_it() -> None:
    bench = Bench(cluster_of(a=capability(T4, T4, slots=2), b=capability(A100)))
    running = [bench.submit(gpus=2), bench.submit(gpu_memory="40GB")]
    assert len(bench.place()) == 2
    too_big, pair = bench.submit(Priority.HIGH, gpu_memory="100GB"), bench.submit(gpus=2)
    urgent, younger = bench.submit(Priority.HIGH, gpus=1), bench.submit(gpus=1)
    assert bench.place() == {}
    bench.cluster.release(running[0])
    assert list(bench.place().items()) == [(urgent, "a"), (younger, "a")]
    bench.cluster.release(running[1])
    assert bench.place() == {}
    assert too_big in bench.backlog
    assert pair in bench.backlog


def test_many_nodes_freed_at_once_are_all_filled_again() -> None:
    bench = Bench(cluster_of(**{f"n{number}": capability(T4, slots=1) for number in range(40)}))
    running = [bench.submit(gpus=1) for _ in range(40)]
    assert len(bench.place()) == 40
    waiting = [bench.submit(gpus=1) for _ in range(30)]
    others = [bench.submit(Priority.LOW) for _ in range(30)]
    assert bench.place() == {}
    for job in running:
        bench.cluster.release(job)
    assert list(bench.place(25)) == waiting[:25]
    assert list(bench.place()) == [*waiting[25:], *others[:10]]
    assert bench.place() == {}


def test_the_more_urgent_and_then_the_older_job_goes_first() -> None:
    bench = Bench(cluster_of(a=capability(T4, slots=9)))
    old, urgent = bench.submit(gpus=1), bench.submit(Priority.CRITICAL, gpu_memory="8GB")
    assert list(bench.place()) == [urgent]
    bench.cluster.release(urgent)
    assert list(bench.place()) == [old]


def test_only_nodes_that_are_up_get_work() -> None:
    bench = Bench(cluster_of(a=capability(slots=3), b=capability(T4, slots=3)))
    bench.cluster.set_state("a", NodeState.SUSPECT)
    first, second = bench.submit(), bench.submit()
    assert bench.place(1) == {first: "b"}
    bench.cluster.set_state("a", NodeState.UP)
    assert bench.place() == {second: "a"}


def test_a_node_in_quarantine_is_the_last_resort_of_jobs_that_no_other_could_ever_run() -> None:
    bench = Bench(cluster_of(a=capability(slots=1), bad=capability(T4, slots=4), drained=capability(T4)))
    bench.cluster.set_cordon("bad", Cordon.QUARANTINED)
    bench.cluster.set_cordon("drained", Cordon.DRAINING)
    gpu_jobs, jobs = [bench.submit(gpus=1), bench.submit(gpus=1)], [bench.submit(), bench.submit()]
    placed = {placement.job_id: placement for placement in bench.placer.place(9)}
    assert {job: (found.node_name, found.last_resort) for job, found in placed.items()} == {
        gpu_jobs[0]: ("bad", True),
        jobs[0]: ("a", False),
    }, "one at a time there; and whoever could run elsewhere waits, although that is busy"
    bench.cluster.release(gpu_jobs[0])
    assert bench.place() == {gpu_jobs[1]: "bad"}
    bench.cluster.release(gpu_jobs[1])
    bench.cluster.set_state("a", NodeState.SUSPECT)
    assert bench.place() == {}, "one that is silent may come back"
    bench.cluster.remove_node("a")
    assert bench.place() == {jobs[1]: "bad"}


def test_what_sleeps_wakes_when_a_node_in_quarantine_becomes_its_last_resort_and_waits_when_another_comes() -> None:
    bench = Bench(cluster_of(good=capability(T4, slots=1), bad=capability(T4), other=capability(slots=1)))
    bench.cluster.set_cordon("bad", Cordon.QUARANTINED)
    running = bench.submit(gpus=1), bench.submit(cpus=1)
    assert len(bench.place()) == 2
    first, second, cpu_job = bench.submit(gpus=1), bench.submit(gpus=1), bench.submit(cpus=1)
    assert bench.place() == {}
    assert bench.cluster.remove_node("good") == [running[0]]
    assert bench.place() == {first: "bad"}
    bench.cluster.upsert_node("good", "good", capability(T4), "2", state=NodeState.SUSPECT)
    bench.cluster.release(first)
    assert bench.place() == {}
    bench.cluster.set_cordon("good", Cordon.DRAINING)
    assert bench.place() == {second: "bad"}
    assert cpu_job in bench.backlog


def test_a_new_node_gets_no_big_job_while_one_that_is_tried_has_room() -> None:
    cluster = Cluster()
    cluster.upsert_node("new", "new", capability(A100, A100, slots=4), "1", tried=False)
    cluster.upsert_node("worn", "worn", capability(T4, T4, slots=4), "1", reputation=0.1, uptime=0.1)
    bench = Bench(cluster)
    big, small = bench.submit(gpus=2, gpu_model="A100|T4", prefer={"gpu_model=A100": 1.0}), bench.submit(gpus=1)
    assert bench.place() == {big: "worn", small: "new"}
    for job_id in (big, small):
        cluster.release(job_id)
    cluster.set_tried("new")
    again = bench.submit(gpus=2, gpu_model="A100|T4", prefer={"gpu_model=A100": 1.0})
    assert bench.place() == {again: "new"}


def test_a_big_job_does_not_wait_for_a_node_that_is_tried() -> None:
    cluster = Cluster()
    cluster.upsert_node("new", "new", capability(A100, A100, slots=4), "1", tried=False)
    cluster.upsert_node("small", "small", capability(T4, slots=4), "1")
    bench = Bench(cluster)
    only_there = bench.submit(gpus=2)
    assert bench.place() == {only_there: "new"}
    cluster.release(only_there)
    cluster.upsert_node("full", "full", capability(T4, T4, slots=4), "1")
    first, second = bench.submit(gpus=2), bench.submit(gpus=2)
    assert bench.place() == {first: "full", second: "new"}


def test_a_removed_node_gives_its_row_to_the_next() -> None:
    bench = Bench(cluster_of(a=capability(T4)))
    job = bench.submit(gpus=1)
    bench.place()
    assert bench.cluster.remove_node("a") == [job]
    assert not bench.cluster.release(job)
    with pytest.raises(NotFound, match="cyxwiz nodes"):
        bench.cluster.set_state("a", NodeState.UP)
    gpu_job, next_job = bench.submit(gpus=1), bench.submit()
    bench.cluster.upsert_node("b", "b", capability(), "1")
    assert bench.place() == {next_job: "b"}
    assert gpu_job in bench.backlog


def test_a_node_that_comes_back_smaller_keeps_its_jobs_and_gets_no_more() -> None:
    bench = Bench(cluster_of(a=capability(T4, T4, slots=4)))
    jobs = [bench.submit(gpus=1), bench.submit(gpus=1)]
    bench.place()
    bench.cluster.upsert_node("a", "a", capability(T4, slots=1), "2")
    waiting = bench.submit()
    assert bench.place() == {}
    bench.cluster.release(jobs[0])
    assert bench.place() == {}
    bench.cluster.release(jobs[1])
    assert bench.place() == {waiting: "a"}


def test_jobs_that_run_after_a_restart_are_booked_again() -> None:
    bench = Bench(cluster_of(a=capability(T4, RTX_3090)))
    resources = Resources(gpu_memory="20GB", gpus=1)
    bench.cluster.take("a", "old", demand_of(resources), (1, 7))
    waiting = bench.submit(gpu_memory="20GB")
    assert bench.place() == {}
    assert bench.cluster.release("old")
    assert not bench.cluster.release("old")
    assert bench.place() == {waiting: "a"}


def test_a_placement_that_the_record_refuses_is_undone() -> None:
    bench = Bench(cluster_of(a=capability(T4)))
    job = bench.submit(gpus=1)
    [placement] = bench.placer.place(1)
    assert bench.cluster.node_of(job) is bench.cluster.node("a")
    bench.placer.undo(placement)
    assert bench.cluster.node_of(job) is None
    assert bench.place() == {job: "a"}


def test_placements_stop_at_the_limit_and_go_on_from_there() -> None:
    bench = Bench(cluster_of(a=capability(slots=9)))
    jobs = [bench.submit() for _ in range(5)]
    assert list(bench.place(2)) == jobs[:2]
    assert list(bench.place(2)) == jobs[2:4]


def test_what_a_placement_says() -> None:
    cluster = Cluster((1, 1, 1, 1))
    cluster.upsert_node("id-a", "a", capability(RTX_3090), "boot-7", reputation=0.5, uptime=0.5)
    bench = Bench(cluster)
    bench.submit(gpu_memory="12GB", cpus=2, ram="10GB")
    [placement] = bench.placer.place(1)
    assert placement == Placement(
        waiting=placement.waiting,
        node_id="id-a",
        node_name="a",
        incarnation="boot-7",
        gpu_indexes=(0,),
        gpu_memory_bytes=24 * GB,
        cpus=2,
        ram_bytes=demand_of(placement.waiting.resources).ram_bytes,
        # (0.5 + 1 + 0.5 + 0.5) / 4
        score=0.625,
        parts=Parts(0.5, 1.0, 0.5, 0.5),
        runners_up=(),
    )


def test_scores_of_shapes_that_nobody_waits_for_are_dropped() -> None:
    bench = Bench(cluster_of(a=capability(slots=1000, cpus=1000)))
    for cpus in range(200):
        bench.submit(cpus=cpus % 3)
        bench.submit(ram=f"{cpus}KB")
        bench.place()
    assert len(bench.placer._shapes) < 150


def test_a_log_that_forgot_says_so() -> None:
    log = ChangeLog()
    for row in range(20_000):
        log.append(row)
    assert log.since(0) is None
    assert log.since(19_990) == list(range(19_990, 20_000))
