"""Jobs on a real GPU, through a real stack: they get the one that was promised, keep to their share, give it back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import gpu_jobs
import psutil
import pynvml
import pytest
import touches_gpu

from cyxwiz_tasks import Resources, TrainingJob
from cyxwiz_tasks.errors import JobCancelled, JobFailed
from tests.acceptance.test_checkpoints import is_past, steps_reported, weights_hash

pytestmark = pytest.mark.gpu

GIB = 2**30
IMAGES = "synthetic://images?shape=3x32x32&classes=10&samples=6000"
#: what the driver may keep for a moment, and other tests' noise
SLACK_BYTES = 256 * 2**20


@pytest.fixture(scope="module")
def gpu() -> Iterator[object]:
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()


def used_bytes(gpu: object) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(gpu).used)


def told_bytes(stack) -> int:
    """What the node's last heartbeat has told."""
    [node] = stack.client.nodes()
    return 0 if node["telemetry"] is None else node["telemetry"]["gpus"][0]["memory_used_bytes"]


@pytest.fixture
def stack(own_stack):
    own_stack.start_scheduler().ready()
    own_stack.start_worker("lab", "--slots", "4", "--preload", "gpu_jobs").ready(180)
    return own_stack


def test_a_job_finds_the_gpu_that_its_node_told_of(stack):
    [node] = stack.cyxwiz_json("nodes")
    told = node["capability"]["gpus"][0]
    seen = gpu_jobs.looks_around.submit().result(timeout=60)
    assert (seen["device"], seen["count"], seen["sum"]) == ("cuda:0", 1, 499500)
    assert (seen["model"], seen["uuid"]) == (told["model"], told["uuid"])
    assert seen["compute_capability"] == told["compute_capability"]
    # NVML counts what the driver keeps for itself, CUDA does not.
    assert 0.93 * told["memory_bytes"] < seen["memory_bytes"] <= told["memory_bytes"]
    assert told["matmul_tflops"] > 1
    assert told["memory_bandwidth_bytes_per_second"] > 1e10
    assert not told["fake"]


def test_a_job_that_asks_for_none_sees_none_and_one_that_uses_it_all_the_same_fails_by_its_own_error(stack):
    assert gpu_jobs.asks_for_none.submit().result(timeout=60) == {"available": False, "count": 0}
    with pytest.raises(Exception, match="CUDA"):
        gpu_jobs.uses_one_without_asking.submit().result(timeout=60)


def test_causes_of_what_goes_wrong_on_a_gpu_and_the_node_is_well_after_each(stack):
    def cause_of(task, seconds=60):
        handle = task.submit()
        with pytest.raises(Exception, match=r"."):
            handle.result(timeout=seconds)
        first = handle.record()["attempts"][0]
        return first["cause"], first["message"]

    cause, message = cause_of(gpu_jobs.takes_more_than_there_is)
    assert cause == "out_of_memory"
    assert "ran out of GPU memory" in message
    assert cause_of(gpu_jobs.breaks_its_context)[0] == "error"
    assert cause_of(gpu_jobs.chooses_another)[0] == "error"
    assert gpu_jobs.looks_around.submit().result(timeout=60)["sum"] == 499500
    assert [node["state"] for node in stack.client.nodes()] == ["up"]


@pytest.mark.parametrize("end", ["kill", "cancel", "worker"])
def test_the_memory_of_a_job_that_is_ended_is_free_again(stack, gpu, tmp_path, end):
    before = used_bytes(gpu)
    path = tmp_path / "go"
    handle = gpu_jobs.holds.submit(str(path), 8 * GIB)
    stack.wait_until(Path(f"{path}.started").exists, 60)
    assert used_bytes(gpu) - before > 8 * GIB
    stack.wait_until(lambda: told_bytes(stack) > 8 * GIB)
    pid = int(Path(f"{path}.started").read_text())
    if end == "kill":
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(JobFailed):
            handle.result(timeout=30)
    elif end == "cancel":
        handle.cancel()
        with pytest.raises(JobCancelled):
            handle.result(timeout=30)
    else:
        stack.processes[-1].kill()
    stack.wait_until(lambda: not psutil.pid_exists(pid), 10)
    assert used_bytes(gpu) - before < SLACK_BYTES


def test_jobs_that_share_a_gpu_run_at_once_and_each_keeps_to_its_share(stack, tmp_path):
    go = tmp_path / "go"
    half = Resources(shared=True, gpu_memory="8GB")
    first = gpu_jobs.holds.options(resources=half).submit(str(go), 6 * GIB)
    stack.wait_until(Path(f"{go}.started").exists, 60)
    got = gpu_jobs.how_much_it_gets.options(resources=half).submit().result(timeout=60)
    assert 0.9 * half.gpu_share_bytes < got <= half.gpu_share_bytes
    trained = stack.client.submit(
        TrainingJob(model="resnet18", dataset=IMAGES, batch_size=256, max_steps=5), resources=half
    )
    assert trained.result(timeout=90).metrics["steps"] == 5
    go.touch()
    assert first.result(timeout=30) == 6 * GIB


def test_a_module_that_uses_the_gpu_while_it_is_imported_is_not_imported_ahead(own_stack):
    own_stack.start_scheduler().ready()
    node = own_stack.start_worker("lab", "--preload", "touches_gpu", "--preload", "gpu_jobs")
    node.ready(180)
    assert touches_gpu.adds_up.submit().result(timeout=60) == 6
    assert gpu_jobs.looks_around.submit().result(timeout=60)["sum"] == 499500
    assert "--preload touches_gpu uses the GPU while it is imported" in node.logs()
    assert "--preload gpu_jobs" not in node.logs()


def test_a_training_on_the_gpu_goes_on_after_its_worker_was_killed_and_gives_way_to_an_urgent_job(own_stack):
    job = TrainingJob(
        model="resnet18",
        dataset=IMAGES,
        epochs=8,
        batch_size=64,
        schedule="cosine",
        seed=3,
        deterministic=True,
        checkpoint_steps=20,
        report_every_seconds=0,
    )
    gpu = Resources(gpus=1)
    own_stack.start_scheduler().ready()
    first = own_stack.start_worker("first", "--slots", "1")
    first.ready(180)
    run = own_stack.client.submit(job, resources=gpu)
    folder = own_stack.home / "artifacts" / run.id
    own_stack.wait_until(lambda: is_past(50, folder / "attempt-1"), 90)
    first.kill()
    own_stack.start_worker("second", "--slots", "1").ready(180)
    own_stack.wait_until(lambda: is_past(200, folder / "attempt-2"), 90)
    urgent = gpu_jobs.looks_around.options(priority="critical").submit()
    assert urgent.result(timeout=60)["sum"] == 499500
    result = run.result(timeout=120)

    assert "".join(run.logs()).count("resumes from checkpoint") == 2
    assert [attempt["cause"] for attempt in run.record()["attempts"]][1] == "preempted"
    assert steps_reported(result.artifacts["metrics"]) == list(range(1, result.metrics["steps"] + 1))
    alone = own_stack.client.submit(job, resources=gpu).result(timeout=120)
    assert weights_hash(result) == weights_hash(alone)
    assert result.metrics["test_loss"] == alone.metrics["test_loss"]
