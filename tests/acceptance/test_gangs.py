"""Jobs on several real nodes at once, whose processes talk to each other."""

from __future__ import annotations

import os
import signal

import gang_jobs
import psutil
import pytest

from cyxwiz_tasks.errors import InvalidJob, JobCancelled
from cyxwiz_tasks.training_job import TrainingJob


def pids_in(folder, laboratory) -> dict[int, int]:
    """By rank, once all three have said theirs."""
    files = {rank: folder / f"rank-{rank}" for rank in range(3)}
    laboratory.wait_until(lambda: all(file.exists() and file.read_text() for file in files.values()))
    return {rank: int(file.read_text()) for rank, file in files.items()}


def test_the_processes_of_a_gang_reduce_over_three_nodes(laboratory):
    run = gang_jobs.sums_ranks.submit()
    result = run.result(timeout=60)
    assert result["sum"] == 0 + 1 + 2
    assert (result["rank"], result["world"]) == (0, [0, 3])
    assert sorted(result["nodes"]) == ["big", "mid", "small"]
    assert [update.values["by_rank"] for update in run.progress() if update.values] == [0]
    assert "rank 0 is done" in "".join(run.logs())
    assert "rank 2 is done" in "".join(run.logs(follow=True, rank=2))
    record = run.record()
    assert (record["state"], len(record["attempts"])) == ("completed", 1)
    assert [member["outcome"] for member in record["members"]] == 3 * ["completed"]
    assert len({member["pid"] for member in record["members"]}) == 3
    assert laboratory.cyxwiz("job", run.id).stdout.count("\n  rank ") == 3


def test_a_killed_member_ends_the_others_and_the_gang_is_tried_again_as_a_whole(laboratory, tmp_path):
    run = gang_jobs.waits_for_a_peer.submit(str(tmp_path))
    pids = pids_in(tmp_path, laboratory)
    os.kill(pids[1], signal.SIGKILL)
    laboratory.wait_until(lambda: not any(map(psutil.pid_exists, pids.values())), seconds=10)
    assert run.result(timeout=60) == 2
    first, second = run.record()["attempts"]
    assert (first["state"], first["cause"], second["state"]) == ("failed", "crashed", "completed")
    assert first["message"].startswith("rank 1 of 3")


def test_a_cancellation_ends_every_process_of_a_gang(laboratory, tmp_path):
    run = gang_jobs.waits_for_ever.submit(str(tmp_path))
    pids = pids_in(tmp_path, laboratory)
    run.cancel("enough")
    with pytest.raises(JobCancelled):
        run.result(timeout=30)
    assert not any(map(psutil.pid_exists, pids.values())), "it is over when its last process is"
    assert len(run.record()["attempts"]) == 1


def test_a_running_gang_saves_and_gives_way_to_a_critical_one_and_goes_on_where_it_was(laboratory, tmp_path):
    everything = {"nodes": 3, "cpus": min(node["capability"]["cpu_cores"] for node in laboratory.client.nodes())}
    run = laboratory.client.submit(gang_jobs.saves_when_asked_to_stop.s(str(tmp_path)), resources=everything)
    pids = pids_in(tmp_path, laboratory)
    urgent = laboratory.client.submit(gang_jobs.sums_ranks.s(), resources=everything, priority="critical")
    assert urgent.result(timeout=60)["sum"] == 0 + 1 + 2
    assert not any(map(psutil.pid_exists, pids.values()))
    result = run.result(timeout=60)
    assert (result["step"] > 0, result["attempt"]) == (True, 2)
    [other] = urgent.record()["attempts"]
    first, second = run.record()["attempts"]
    assert (first["state"], first["cause"], second["state"]) == ("preempted", "preempted", "completed")
    assert first["ended_at"] <= other["assigned_at"] <= other["ended_at"] <= second["assigned_at"]


def test_a_node_that_is_told_to_stop_gives_its_whole_gang_back_which_goes_on_once_it_is_there_again(
    laboratory, tmp_path
):
    run = gang_jobs.saves_when_asked_to_stop.submit(str(tmp_path))
    pids = pids_in(tmp_path, laboratory)
    name = next(member["node"] for member in run.record()["members"] if member["rank"] == 1)
    worker = next(process for process in laboratory.processes if process.name == name)
    assert worker.stop() == 0
    laboratory.wait_until(lambda: run.record()["state"] == "pending")
    assert not any(map(psutil.pid_exists, pids.values()))
    worker.start()
    worker.ready()
    result = run.result(timeout=60)
    assert (result["step"] > 0, result["attempt"]) == (True, 2)
    first, second = run.record()["attempts"]
    assert (first["state"], first["cause"], second["state"]) == ("preempted", "preempted", "completed")


def test_a_declared_training_is_refused_on_several_nodes(laboratory):
    with pytest.raises(InvalidJob, match=r"resources\.nodes: a TrainingJob trains on one node"):
        laboratory.client.submit(TrainingJob(model="cnn", dataset="digits"), resources={"nodes": 2})
