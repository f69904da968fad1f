"""The simulated fleet: its measures by hand, its clock, the traces that it reads."""

from __future__ import annotations

import json

import pytest

from cyxwiz_tasks.states import Priority
from tests.fleet.__main__ import POLICIES, compare, table
from tests.fleet.measures import Report, Run, jain, judge, middle, percentile, speeds
from tests.fleet.plots import draw
from tests.fleet.policies import Fifo, Ours
from tests.fleet.simulate import Simulation, make_fleet
from tests.fleet.traces import read
from tests.fleet.workload import Job, synthetic, with_time_limits


def test_measures_by_hand():
    assert jain([1, 1, 1, 1]) == 1.0
    assert jain([1, 0, 0, 0]) == 0.25
    assert jain([1, 3]) == pytest.approx(16 / 20)
    assert percentile([5, 1, 4, 2, 3], 0.95) == 5
    assert percentile([5, 1, 4, 2, 3], 0.5) == 3
    # a: 10 s of work in 20 s; b: 10 s in 10 s, and 30 s in 70 s.
    runs = [
        Run(Job("1", 0.0, 10.0, 1, "a"), started=10.0, ended=20.0),
        Run(Job("2", 0.0, 10.0, 8, "b"), started=0.0, ended=10.0, preempted=1),
        Run(Job("3", 10.0, 30.0, 2, "b"), started=50.0, ended=80.0),
    ]
    assert speeds(runs) == {"a": 0.5, "b": 0.5}
    report = judge(runs, 10, 300.0, 200.0, 50.0)
    assert (report.utilisation, report.goodput, report.fairness) == (0.6, 0.4, 1.0)
    assert (report.preemptions, report.makespan_seconds) == (1, 80.0)
    assert report.waits == {"1 GPU": (10, 10), "2-4 GPUs": (40, 40), "5-8 GPUs": (0, 0), "normal": (10, 40)}


def test_of_several_runs_the_median_is_told_and_the_worst_of_promises():
    waits = [{"1 GPU": (float(at), 2.0 * at)} for at in (1, 5, 3)]
    reports = [
        Report(at / 10, at / 20, at, at, 1.0, wait, 60.0 * at, at, 0, at - 1, 7.0 * at)
        for at, wait in zip((1, 5, 3), waits, strict=True)
    ]
    expected = Report(0.3, 0.15, 3, 3, 1.0, {"1 GPU": (3.0, 6.0)}, 180.0, 9, 0, 6, 35.0)
    assert middle(reports) == expected


def test_time_limits_are_never_shorter_than_the_job():
    jobs = with_time_limits(synthetic(1, 200, 24), seed=1, without=0.2)
    limited = [job for job in jobs if job.time_limit is not None]
    assert 140 < len(limited) < 180
    assert all(job.time_limit >= job.seconds for job in limited)


def test_a_reservation_of_a_known_beginning_is_a_promise():
    jobs = with_time_limits(synthetic(2, 150, 12, load=1.2), seed=2)
    report = compare(jobs, 2, Ours, "pack")
    assert report.promised > 10
    assert report.broken_promises == 0
    assert report.longest_after_promise_seconds > 0


def simulate(kind, *jobs):
    """On one node with eight GPUs."""
    cluster, gpus = make_fleet(1)
    simulation = Simulation(jobs, kind(cluster), gpus)
    return simulation.run(), simulation.runs


def test_in_fifo_who_does_not_fit_keeps_everybody_behind_him_waiting():
    jobs = (Job("a", 0.0, 100.0, 4), Job("big", 1.0, 100.0, 8), Job("small", 2.0, 10.0, 1))
    _, runs = simulate(Fifo, *jobs)
    assert [runs[id].started for id in ("a", "big", "small")] == [0.0, 100.0, 200.0]
    _, runs = simulate(Ours, *jobs)
    assert [runs[id].started for id in ("a", "big", "small")] == [0.0, 100.0, 2.0]
    # Who has been the next for long enough has a place reserved, and is not passed any more.
    late = (Job("a", 0.0, 2000.0, 4), Job("big", 1.0, 100.0, 8), Job("b", 2.0, 900.0, 2), Job("c", 903.0, 10.0, 2))
    _, runs = simulate(Ours, *late)
    assert [runs[job.id].started for job in late] == [0.0, 2000.0, 2.0, 2100.0]


def test_a_critical_job_takes_a_place_and_the_other_goes_on_from_its_checkpoint():
    report, runs = simulate(Ours, Job("long", 0.0, 2000.0, 8), Job("now", 1500.0, 100.0, 8, priority=Priority.CRITICAL))
    assert (runs["now"].started, runs["now"].ended) == (1500.0, 1600.0)
    # 1500 s hold two checkpoints: 800 s are left, and 30 s to start again.
    assert runs["long"].ended == 1600.0 + 30.0 + 800.0
    assert report.preemptions == 1
    assert (report.utilisation, report.goodput) == (1.0, 0.8)  # until the last arrival, at 1500 s: 1200 s count


def test_small_jobs_move_together_and_the_big_one_starts_at_once():
    small = [Job(f"small{number}", 0.0, 9000.0, 1) for number in range(4)]
    # Something must happen for anything to be looked at.
    later = [Job("big", 1000.0, 100.0, 8), Job("tick", 1100.0, 1.0, 1), Job("tock", 1700.0, 100.0, 1)]
    cluster, gpus = make_fleet(2)
    simulation = Simulation([*small, *later], Ours(cluster), gpus)
    report, runs = simulation.run(), simulation.runs
    moved = [run for run in runs.values() if run.moved]
    assert len(moved) == report.moves == report.preemptions > 0
    assert runs["big"].started == 1800.0
    # They had just written a checkpoint, and start again in 30 s.
    assert all(run.ended == 9000.0 + 30.0 for run in moved)


def test_one_seed_is_one_workload_and_nobody_is_left_behind():
    jobs = synthetic(3, 60, 24)
    assert jobs == synthetic(3, 60, 24)
    assert jobs != synthetic(4, 60, 24)
    reports = {name: compare(jobs, 4, *policy) for name, policy in POLICIES.items()}
    assert all(0 < report.goodput <= report.utilisation <= 1 for report in reports.values())
    cluster, gpus = make_fleet(4)
    simulation = Simulation(jobs, Ours(cluster), gpus)
    simulation.run()
    assert all(
        run.ended is not None and run.ended >= run.job.arrival + run.job.seconds for run in simulation.runs.values()
    )
    assert "wait 1 GPU, min" in table(reports)


def test_a_trace_of_alibaba(tmp_path):
    tasks = tmp_path / "pai_task_table.csv"
    tasks.write_text(
        "j1,worker,2.0,Terminated,1000.0,1600.0,600.0,29.3,100.0,V100\n"
        "j2,tensorflow,1.0,Terminated,900.0,960.0,600.0,29.3,25.0,T4\n"
        "j3,worker,64.0,Terminated,900.0,960.0,600.0,29.3,100.0,T4\n"
        "j4,worker,1.0,Failed,900.0,960.0,600.0,29.3,100.0,T4\n"
        "j5,ps,1.0,Terminated,900.0,960.0,600.0,29.3,,\n"
    )
    assert read(tasks, 10) == [Job("j2/tensorflow", 0.0, 60.0, 1), Job("j1/worker", 100.0, 600.0, 2)]
    (tmp_path / "pai_job_table.csv").write_text("j1,i1,ann,Terminated,1000.0,1600.0\n")
    assert [job.owner for job in read(tasks, 10)] == ["", "ann"]
    header = "status,job_name,task_name,inst_num,start_time,end_time,plan_gpu\n"
    tasks.write_text(header + "Terminated,j1,worker,2.0,1000.0,1600.0,100.0\n")
    assert read(tasks, 10) == [Job("j1/worker", 0.0, 600.0, 2, "ann")]
    tasks.write_text("job_name,status\n")
    with pytest.raises(ValueError, match="has no column task_name: it has job_name, status"):
        read(tasks, 10)
    tasks.write_text("j1,worker,2.0,Terminated,1000.0,1600.0,600.0,29.3,100.0,V100\nj2,worker\n")
    with pytest.raises(ValueError, match="line 2: 2 columns, not 10"):
        read(tasks, 10)
    tasks.write_text("j1,worker\n")
    with pytest.raises(ValueError, match=r"has the columns j1, worker: expected pai_task_table.csv"):
        read(tasks, 10)


def test_a_trace_of_philly(tmp_path):
    log = tmp_path / "cluster_job_log"
    attempt = {"start_time": "2017-10-01 00:10:00", "end_time": "2017-10-01 01:10:00"}
    place = {"ip": "m1", "gpus": ["gpu0", "gpu1"]}
    entry = {"status": "Pass", "vc": "v", "jobid": "a", "submitted_time": "2017-10-01 00:00:00", "user": "bob"}
    log.write_text(json.dumps([entry | {"attempts": [attempt | {"detail": [place]}]}, entry | {"attempts": []}]))
    assert read(log, 10) == [Job("a", 0.0, 3600.0, 2, "bob")]
    log.write_text("[]")
    with pytest.raises(ValueError, match="has no job with 1 to 8 GPUs"):
        read(log, 10)
    log.write_text("no")
    with pytest.raises(ValueError, match=r"neither a \*.csv nor JSON"):
        read(log, 10)


def test_a_csv_of_philly(tmp_path):
    jobs = tmp_path / "philly_trace.csv"
    jobs.write_text(
        "user,vc,jobname,gpu_num,state,submit_time,duration\n"
        "bob,v,b,2,Pass,2017-10-01 00:10:00,600\n"
        "ann,v,a,1,Pass,2017-10-01 00:00:00,60.5\n"
        "ann,v,c,16,Pass,2017-10-01 00:00:00,60\n"
        "ann,v,d,1,Killed,2017-10-01 00:00:00,60\n"
    )
    assert read(jobs, 10) == [Job("a", 0.0, 60.5, 1, "ann"), Job("b", 600.0, 600.0, 2, "bob")]
    assert [job.id for job in read(jobs, 1)] == ["a"]
    # As the log names them; without a duration, from its beginning to its end.
    jobs.write_text(
        "vc,status,submitted_time,start_time,end_time,num_gpus\nv,Pass,100,2017-10-01 00:00:00,2017-10-01 00:01:00,4\n"
    )
    assert read(jobs, 10) == [Job("2", 0.0, 60.0, 4, "v")]
    jobs.write_text("state,submit_time,duration\n")
    with pytest.raises(ValueError, match="has no column gpu_num or num_gpus: it has state, submit_time, duration"):
        read(jobs, 10)
    jobs.write_text("state,submit_time,start_time,gpu_num\n")
    with pytest.raises(ValueError, match=r"has no column end_time \(or a duration\)"):
        read(jobs, 10)
    jobs.write_text("state,submit_time,duration,gpu_num\nPass,yesterday,60,1\n")
    with pytest.raises(ValueError, match="line 2: time data 'yesterday' does not match"):
        read(jobs, 10)


def test_the_pictures_are_drawn(tmp_path):
    jobs = synthetic(1, 20, 12)
    reports = {name: compare(jobs, 2, *POLICIES[name]) for name in ("ours", "FIFO")}
    drawn = draw(reports, tmp_path / "plots")
    assert [path.name for path in drawn] == ["shares.png", "waits.png"]
    for path in drawn:
        picture = path.read_bytes()
        assert picture.startswith(b"\x89PNG\r\n")
        assert len(picture) > 5_000
