"""A training that was interrupted ends with the very bits of one that was not, and tells one history."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cyxwiz_tasks.checkpoints.manifest import describe
from cyxwiz_tasks.errors import CheckpointUnusable
from cyxwiz_tasks.runtime.context import LocalContext
from cyxwiz_tasks.training import batches, checkpointing
from cyxwiz_tasks.training.artifacts import MetricsLog
from cyxwiz_tasks.training.datasets import load_dataset
from cyxwiz_tasks.training.loop import train
from cyxwiz_tasks.training.state import TrainingState
from cyxwiz_tasks.training_job import TrainingJob

IMAGES = "synthetic://images?shape=3x8x8&classes=4&samples=60"
MLP = {"model": "mlp", "dataset": "digits", "batch_size": 128, "model_options": {"dropout": 0.3}}
JOBS: dict[str, dict[str, Any]] = {
    "mlp": MLP | {"epochs": 3},
    "accumulation": MLP | {"epochs": 3, "batch_size": 50, "gradient_accumulation": 3, "clip_norm": 1.0},
    "cosine with warmup": MLP | {"epochs": 3, "schedule": "cosine", "warmup": 0.2, "optimizer": "sgd"},
    "onecycle": MLP | {"epochs": 3, "schedule": "onecycle", "optimizer": "adam", "max_steps": 30},
    "early stopping": MLP | {"epochs": 30, "learning_rate": 0.05, "early_stopping_patience": 1},
    "fp16": MLP | {"epochs": 3, "precision": "fp16"},
    "cnn": {"model": "cnn", "dataset": "digits", "epochs": 2, "batch_size": 200, "model_options": {"dropout": 0.2}},
    "resnet18": {"model": "resnet18", "dataset": IMAGES, "epochs": 2, "batch_size": 16, "optimizer": "sgd"},
    "transformer": {
        "model": "transformer",
        "dataset": "synthetic://tokens?vocabulary=8&length=3000",
        "dataset_options": {"context": 16},
        "model_options": {"layers": 1, "width": 32, "heads": 2, "dropout": 0.1},
        "epochs": 2,
        "batch_size": 16,
    },
}


class Killed(BaseException):
    """Ends a training as a SIGKILL would: nothing more is saved."""


class Fateful(LocalContext):
    """Is killed, or asked to stop, as soon as a certain step is reported."""

    killed_at = stopped_at = 10**9

    def report(self, **values: Any) -> None:
        super().report(**values)
        if values["step"] >= self.killed_at:
            raise Killed
        self.should_stop = values["step"] >= self.stopped_at


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def attempt(tmp_path, cache):
    """Makes the context of a next attempt, which has the checkpoints of the one before and nothing else of it."""
    made: list[Fateful] = []

    def make(**fate: int) -> Fateful:
        folder = tmp_path / f"attempt-{len(made) + 1}"
        folder.mkdir()
        if made and (made[-1].artifacts / "checkpoints").exists():
            shutil.copytree(made[-1].artifacts / "checkpoints", folder / "checkpoints")
        made.append(Fateful(attempt=len(made) + 1, artifacts=folder, cache=cache))
        for name, step in fate.items():
            setattr(made[-1], name, step)
        return made[-1]

    return make


def job_of(key: str, /, **changes: Any) -> TrainingJob:
    return TrainingJob(**JOBS[key] | {"deterministic": True, "report_every_seconds": 0, "seed": 5} | changes)


def history(context: LocalContext) -> list[dict[str, Any]]:
    """All that is reported but times."""
    lines = (context.artifacts / "metrics.jsonl").read_text().splitlines()
    timed = {"samples_per_second", "eta_seconds"}
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def weights_hash(context: LocalContext) -> str:
    return describe(context.artifacts / "model.safetensors").sha256


@pytest.mark.parametrize("name", JOBS)
def test_killed_and_stopped_and_resumed_it_ends_with_the_same_bits(attempt, tmp_path, cache, name):
    (tmp_path / "whole").mkdir()
    whole = LocalContext(artifacts=tmp_path / "whole", cache=cache)
    job = job_of(name)
    expected = train(job, whole)
    last = whole.reports[-1]["step"]

    job = job.model_copy(update={"checkpoint_steps": 2})
    with pytest.raises(Killed):
        train(job, attempt(killed_at=last // 3 | 1))
    stopped = attempt(stopped_at=last * 2 // 3)
    assert train(job, stopped)["stopped"] == "stop_requested"
    assert stopped.reports[0]["step"] == (last // 3 | 1) // 2 * 2 + 1
    with pytest.raises(Killed):
        train(job, attempt(killed_at=last - 1))
    resumed = attempt()
    result = train(job, resumed)

    assert resumed.reports[0]["step"] > last * 2 // 3
    assert weights_hash(resumed) == weights_hash(whole)
    assert history(resumed) == history(whole)
    assert result["stopped"] == expected["stopped"]
    timeless = {name: value for name, value in expected["metrics"].items() if not name.endswith(("second", "seconds"))}
    assert {name: result["metrics"][name] for name in timeless} == timeless


def test_batches_that_are_streamed_by_other_processes_resume_to_the_same_bits(attempt, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(batches, "memory_for_data_bytes", lambda _: 0)
    (tmp_path / "whole").mkdir()
    whole = LocalContext(artifacts=tmp_path / "whole", cache=cache)
    train(job_of("mlp"), whole)
    train(job_of("mlp"), attempt(stopped_at=17))
    resumed = attempt()
    train(job_of("mlp"), resumed)
    assert resumed.reports[0]["step"] == 18
    assert weights_hash(resumed) == weights_hash(whole)


def test_it_saves_so_often_as_asked_and_otherwise_once_a_minute(attempt, monkeypatch):
    saved: list[int] = []

    class Counting(Fateful):
        def checkpoint(self, *, step: int, **state: Any) -> bool:
            saved.append(step)
            return True

    def steps_saved(**changes: Any) -> list[int]:
        saved.clear()
        context = attempt()
        train(job_of("mlp", **changes), Counting(artifacts=context.artifacts, cache=context.cache))
        return list(saved)

    assert steps_saved() == []
    assert steps_saved(checkpoint_steps=10) == [10, 20, 30]
    assert steps_saved(checkpoint_seconds=0) == list(range(1, 40))
    assert steps_saved(checkpoint_seconds=1000, checkpoint_steps=20) == [20]
    monkeypatch.setattr(checkpointing, "_EVERY_SECONDS", 0)
    assert steps_saved()[:1] == [1]


def test_saving_takes_no_more_than_its_share_of_the_time(attempt, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: now[0])

    class Slow:
        step = 0

        def state_dict(self) -> dict[str, Any]:
            return {}

        def history(self) -> str:
            return ""

        def checkpoint(self, **_: Any) -> bool:
            now[0] += 1.5
            return True

    slow = Slow()
    checkpoints = checkpointing.TrainingCheckpoints(job_of("mlp"), slow, slow, slow)
    times = []
    while now[0] < 1000:
        now[0] += 1
        slow.step += 1
        before = now[0]
        checkpoints.save_if_due()
        if now[0] > before:
            times.append(round(before))
    assert times[:4] == [60, 362, 663, 964]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 0.5}, r"learning_rate=0.001 \(now 0.5\): submit the changed job as a new one"),
        ({"model_options": {"hidden": [7]}}, r"model_options=\{'dropout': 0.3\} \(now \{'hidden': \[7\]\}\)"),
        ({"schedule": "onecycle", "epochs": 9}, r"epochs=3 .*, schedule='constant'|schedule"),
        ({"seed": 6}, "seed=5"),
    ],
)
def test_a_changed_job_is_refused_where_the_checkpoint_would_make_it_wrong(attempt, change, says):
    train(job_of("mlp"), attempt(stopped_at=5))
    with pytest.raises(CheckpointUnusable, match=says):
        train(job_of("mlp", **change), attempt())


def test_more_epochs_and_other_reports_are_no_other_job(attempt):
    train(job_of("mlp"), attempt(stopped_at=20))
    more = attempt()
    result = train(job_of("mlp", epochs=4, name="longer", checkpoint_steps=9), more)
    assert result["metrics"]["epochs"] == 4
    assert [line["step"] for line in history(more) if "val_loss" not in line] == list(range(1, 53))


def test_a_model_whose_code_has_changed_is_refused(attempt, tmp_path, monkeypatch):
    def write(width: int) -> None:
        (tmp_path / "changing_model.py").write_text(
            "from torch import nn\n"
            f"def make(): return nn.Sequential(nn.Flatten(), nn.Linear(64, {width}), nn.Linear({width}, 10))\n"
        )
        monkeypatch.delitem(sys.modules, "changing_model", raising=False)
        monkeypatch.setattr("sys.dont_write_bytecode", True)

    monkeypatch.syspath_prepend(tmp_path)
    write(9)
    job = job_of("mlp", model="changing_model:make", model_options={})
    train(job, attempt(stopped_at=5))
    write(11)
    with pytest.raises(CheckpointUnusable, match=r"does not fit its model .*Error"):
        train(job, attempt())


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(attempt, monkeypatch, capsys):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cyxwiz_tasks.checkpoints.checkpoints.write_contents", full)
    assert train(job_of("mlp", epochs=1, checkpoint_steps=5), attempt())["stopped"] is None
    assert capsys.readouterr().out.count("not saved ([Errno 28] No space left on device)") == 2


def test_a_very_long_history_is_thinned_and_keeps_its_epochs(attempt, monkeypatch):
    monkeypatch.setattr("cyxwiz_tasks.training.artifacts._HISTORY_CHARACTERS", 2000)
    with MetricsLog(attempt()) as log:
        for step in range(1, 501):
            log.report(step=step, loss=0.5)
            if step % 100 == 0:
                log.report(step=step, val_loss=0.25)
        text = log.history()
    kept = [json.loads(line) for line in text.splitlines()]
    assert 1000 < len(text) <= 2000
    assert [line["step"] for line in kept if "val_loss" in line] == [100, 200, 300, 400, 500]


def test_what_the_device_decides_stays_as_the_device_has_it(attempt, cache):
    """A GPU's optimizer is fused; a CPU has no loss scale to save."""
    job, context = job_of("mlp"), attempt(stopped_at=5)
    train(job, context)
    saved = context.restore()
    assert (saved["optimizer"]["param_groups"][0]["fused"], saved["scaler"]) == (False, {})

    cpu = torch.device("cpu")
    on_gpu = TrainingState.start(
        job.model_copy(update={"precision": "fp16"}), load_dataset(job, cache, ()), cpu, channels_last=False
    )
    on_gpu.optimizer = torch.optim.AdamW(on_gpu.model.parameters(), fused=True)
    on_gpu.load_state_dict(saved)
    assert on_gpu.optimizer.param_groups[0]["fused"] is True
    assert (on_gpu.step, on_gpu.scaler.get_scale()) == (5, 65536.0)
    on_gpu.model(torch.ones(2, 64)).sum().backward()
    on_gpu.optimizer.step()


def test_moments_take_the_memory_format_of_the_parameters(attempt, cache):
    """A CPU saves them contiguous; a GPU has them channels last, and its fused optimizer takes no others."""
    job, context = job_of("cnn"), attempt(stopped_at=5)
    train(job, context)
    saved = context.restore()
    state = TrainingState.start(job, load_dataset(job, cache, ()), torch.device("cpu"), channels_last=True)
    state.load_state_dict(saved)
    for index, (parameter, moments) in enumerate(state.optimizer.state.items()):
        for name in ("exp_avg", "exp_avg_sq"):
            assert moments[name].stride() == parameter.stride()
            assert torch.equal(moments[name], saved["optimizer"]["state"][index][name])


def test_a_training_that_is_made_shorter_than_its_checkpoint_ends_soon(attempt):
    train(job_of("mlp", checkpoint_steps=1, max_steps=9), attempt())
    shorter = attempt()
    result = train(job_of("mlp", checkpoint_steps=1, max_steps=4), shorter)
    assert (result["stopped"], result["metrics"]["steps"]) == ("max_steps", 9)
