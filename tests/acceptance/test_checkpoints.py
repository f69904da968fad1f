"""Checkpoints: a training whose nodes go away ends with the same weights as one that was left alone; who has just saved
gives his place to an urgent job, or moves for a bigger one.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import lab_jobs
import psutil

from cyxwiz_tasks import Resources, TrainingJob
from tests.acceptance.processes import WorkerProcess

JOB = TrainingJob(
    model="cnn",
    dataset="digits",
    epochs=12,
    batch_size=32,
    schedule="cosine",
    model_options={"dropout": 0.2},
    seed=3,
    deterministic=True,
    checkpoint_steps=20,
    report_every_seconds=0,
)


def weights_hash(result: Any) -> str:
    return hashlib.sha256(result.artifacts["model"].read_bytes()).hexdigest()


def is_past(step: int, artifacts: Path) -> bool:
    history = artifacts / "metrics.jsonl"
    return history.exists() and f'"step": {step},' in history.read_text()


def steps_reported(path: Path) -> list[int]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["step"] for row in rows if "val_loss" not in row]


def job_process(worker: WorkerProcess) -> psutil.Process:
    for process in psutil.Process(worker.pid).children(recursive=True):
        with suppress(psutil.Error):  # others come and go
            if "/attempts/" in process.cwd():
                return process
    raise AssertionError(f"{worker.name} runs no job")


def test_a_killed_node_a_preemption_and_a_crash_cost_a_training_some_steps_and_no_bit(own_stack):
    own_stack.start_scheduler().ready()
    first = own_stack.start_worker("first", "--slots", "1")
    first.ready()
    run = own_stack.client.submit(JOB, max_retries=1)

    folder = own_stack.home / "artifacts" / run.id
    own_stack.wait_until(lambda: is_past(50, folder / "attempt-1"))
    first.kill()
    second = own_stack.start_worker("second", "--slots", "1")
    second.ready()
    own_stack.wait_until(lambda: is_past(150, folder / "attempt-2"))
    assert second.stop() == 0
    stopped_at = max(json.loads(path.read_text())["step"] for path in folder.glob("checkpoints/*/*/manifest.json"))
    third = own_stack.start_worker("third", "--slots", "1")
    third.ready()
    own_stack.wait_until(lambda: is_past(250, folder / "attempt-3"))
    job_process(third).kill()
    result = run.result(timeout=90)

    log = "".join(run.logs())
    assert log.count("resumes from checkpoint") == 3
    assert f"step {stopped_at} (read in" in log
    steps = result.metrics["steps"]
    assert steps_reported(result.artifacts["metrics"]) == list(range(1, steps + 1))
    alone = own_stack.client.submit(JOB).result(timeout=90)
    assert weights_hash(result) == weights_hash(alone)
    assert result.metrics["test_loss"] == alone.metrics["test_loss"]
    assert not (folder / "checkpoints").exists()


def test_a_node_with_a_disk_of_its_own_goes_on_from_the_artifact_store(own_stack, tmp_path, monkeypatch):
    monkeypatch.setenv("CYXWIZ_ARTIFACT_STORE", f"file://{tmp_path}/store")
    own_stack.start_scheduler().ready()
    first = own_stack.start_worker("first", "--slots", "1", "--home", str(tmp_path / "one"))
    first.ready()
    run = own_stack.client.submit(JOB)
    own_stack.wait_until(lambda: is_past(50, tmp_path / "one" / "artifacts" / run.id / "attempt-1"))
    assert first.stop() == 0
    own_stack.start_worker("second", "--slots", "1", "--home", str(tmp_path / "two")).ready()
    result = run.result(timeout=90)

    assert "".join(run.logs()).count("resumes from checkpoint") == 1
    assert result.artifacts["model"].is_relative_to(tmp_path / "two")
    assert steps_reported(result.artifacts["metrics"]) == list(range(1, result.metrics["steps"] + 1))
    stored = tmp_path / "store" / run.id
    for file in result.artifacts.values():
        assert (stored / file.parent.name / file.name).read_bytes() == file.read_bytes()
    own_stack.wait_until(lambda: not list(stored.glob("checkpoints/*/*/*")))


def test_an_urgent_job_takes_the_place_of_the_one_that_has_just_saved(laboratory, tmp_path):
    here = {"resources": Resources(labels={"rack": "a1"})}  # one node of two slots
    save, end = tmp_path / "save", tmp_path / "end"
    saves = lab_jobs.saves_once_and_stops_when_asked.options(**here).submit(str(save))
    laboratory.wait_until(Path(f"{save}.started").exists)
    younger = lab_jobs.waits_for.options(**here).submit(str(end))
    laboratory.wait_until(Path(f"{end}.started").exists)
    save.touch()
    laboratory.wait_until(lambda: "Its last checkpoint was" in str(saves.why()))
    assert "It has told of no checkpoint yet." in str(younger.why())

    urgent = lab_jobs.add.options(**here, priority="critical").submit(1, 2)
    assert urgent.result(timeout=30) == 3
    assert saves.result(timeout=30) == 7, "it went on from its checkpoint"
    end.touch()
    younger.result(timeout=30)
    assert [len(run.record()["attempts"]) for run in (saves, younger, urgent)] == [2, 1, 1]
    assert saves.record()["attempts"][0]["cause"] == "preempted"


def test_a_job_moves_with_its_checkpoint_so_that_a_bigger_one_has_its_place(own_stack, tmp_path):
    """Two nodes with two GPUs: after one that stays and one that saves, no node has two free."""
    own_stack.start_scheduler(CYXWIZ_RESERVE_AFTER_SECONDS="0").ready()
    for name in ("one", "two"):
        own_stack.start_worker(name, "--slots", "4", fake_gpus="2x24GB:8.9").ready()
    save, end = tmp_path / "save", tmp_path / "end"
    one, two = Resources(gpus=1, prefer={"node=one": 5}), Resources(gpus=1, node="two")
    saves = lab_jobs.saves_once_and_stops_when_asked.options(resources=one).submit(str(save))
    stays = lab_jobs.waits_for.options(resources=two).submit(str(end))
    own_stack.wait_until(lambda: Path(f"{save}.started").exists() and Path(f"{end}.started").exists())
    big = lab_jobs.add.options(resources=Resources(gpus=2), time_limit="1h").submit(1, 2)
    own_stack.wait_until(lambda: "is kept for it" in str(big.why()))
    save.touch()
    assert big.result(timeout=30) == 3
    assert saves.result(timeout=30) == 7, "it went on from its checkpoint"
    end.touch()
    stays.result(timeout=30)
    first, second = saves.record()["attempts"]
    assert (first["node"], first["cause"], second["node"]) == ("one", "preempted", "two")
    assert f"job {big.id} needs more of this node at once" in first["message"]
