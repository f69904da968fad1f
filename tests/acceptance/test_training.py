"""A real model trains through the queue."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cyxwiz_tasks import TrainingJob

DIGITS = TrainingJob(
    model="cnn", dataset="digits", epochs=12, batch_size=64, learning_rate=4e-3, schedule="onecycle", seed=1
)


def test_a_model_trains_and_everything_about_it_is_kept(laboratory):
    handle = laboratory.client.submit(DIGITS)
    updates = list(handle.progress())
    result = handle.result(timeout=60)

    assert result.metrics["test_accuracy"] >= 0.97
    epochs = [update.epoch for update in updates if update.kind == "progress"]
    assert epochs == sorted(epochs)
    assert epochs[-1] == 12
    assert {"state", "progress", "end"} == {update.kind for update in updates}

    folder = Path(laboratory.home) / "artifacts" / handle.id / "attempt-1"
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == entry["sha256"]
    assert (folder / "model.safetensors").stat().st_size > 10_000
    assert len((folder / "metrics.jsonl").read_text().splitlines()) >= 12


def test_the_history_of_a_training_is_in_the_record(laboratory):
    handle = laboratory.client.submit(DIGITS.model_copy(update={"epochs": 2}), priority="high")
    handle.result(timeout=60)
    rows = laboratory.client.metrics(handle.id)
    assert rows[-1]["epoch"] == 2
    states = [event["to_state"] for event in laboratory.client.events(handle.id)]
    assert states == ["pending", "assigned", "running", "completed"]
