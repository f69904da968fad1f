"""A training whose nodes go away under it ends with the same weights as one that was left alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from cyxwiz_tasks import TrainingJob

JOB = TrainingJob(
    model="cnn",
    dataset="digits",
    epochs=20,
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


def steps_reported(path: Path) -> list[int]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["step"] for row in rows if "val_loss" not in row]


def test_a_killed_and_then_a_preempted_node_cost_a_training_some_steps_and_no_bit(own_stack):
    own_stack.start_scheduler().ready()
    first = own_stack.start_worker("first", "--slots", "1")
    first.ready()
    run = own_stack.client.submit(JOB)

    folder = own_stack.home / "artifacts" / run.id

    def is_past(attempt: int, step: int) -> bool:
        history = folder / f"attempt-{attempt}" / "metrics.jsonl"
        return history.exists() and f'"step": {step},' in history.read_text()

    own_stack.wait_until(lambda: is_past(1, 50))
    first.kill()
    second = own_stack.start_worker("second", "--slots", "1")
    second.ready()
    own_stack.wait_until(lambda: is_past(2, 150))
    assert second.stop() == 0
    stopped_at = max(json.loads(path.read_text())["step"] for path in folder.glob("checkpoints/*/*/manifest.json"))
    own_stack.start_worker("third", "--slots", "1").ready()
    result = run.result(timeout=90)

    log = "".join(run.logs())
    assert log.count("resumes from checkpoint") == 2
    assert f"step {stopped_at} (read in" in log
    steps = result.metrics["steps"]
    assert steps_reported(result.artifacts["metrics"]) == list(range(1, steps + 1))
    alone = own_stack.client.submit(JOB).result(timeout=90)
    assert weights_hash(result) == weights_hash(alone)
    assert result.metrics["test_loss"] == alone.metrics["test_loss"]
