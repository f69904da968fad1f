import hashlib
import json
import math
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cyxwiz_tasks.errors import InvalidJob, TrainingDiverged
from cyxwiz_tasks.runtime.context import LocalContext
from cyxwiz_tasks.training.artifacts import MetricsLog
from cyxwiz_tasks.training.batches import Batches
from cyxwiz_tasks.training.checkpointing import TrainingCheckpoints
from cyxwiz_tasks.training.datasets import load_dataset
from cyxwiz_tasks.training.loop import fit, train
from cyxwiz_tasks.training.optimizers import build_optimizer, build_schedule
from cyxwiz_tasks.training.reproducibility import reproducible
from cyxwiz_tasks.training.state import TrainingState
from cyxwiz_tasks.training_job import TrainingJob

CPU = torch.device("cpu")
SMALL = {"model": "mlp", "dataset": "digits", "batch_size": 64, "deterministic": True}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def ctx(tmp_path, cache):
    return LocalContext(artifacts=tmp_path, cache=cache)


def weights(result):
    return load_file(result["artifacts"]["model"])


def test_cnn_reads_digits(ctx):
    job = TrainingJob(model="cnn", dataset="digits", epochs=10, batch_size=64, learning_rate=2e-3, schedule="onecycle")
    result = train(job, ctx)
    assert result["metrics"]["test_accuracy"] >= 0.97
    assert result["metrics"]["tested_on"] == "validation split"
    assert result["stopped"] is None
    assert result["metrics"]["steps"] == 10 * math.ceil(1617 / 64)


def test_reports_and_files_agree(ctx, tmp_path):
    result = train(TrainingJob(**SMALL, epochs=3, report_every_seconds=0), ctx)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == ctx.reports
    assert [line["epoch"] for line in lines if "val_loss" in line] == [1, 2, 3]
    assert {line["step"] for line in lines} == set(range(1, 79))
    assert lines[-1]["step"] == lines[-1]["total"] == 78
    assert lines[-1]["eta_seconds"] == 0
    assert lines[-1]["loss"] == result["metrics"]["loss"] < lines[0]["loss"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for name, entry in manifest["files"].items():
        content = (tmp_path / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["size_bytes"], entry["sha256"])
    assert TrainingJob(**manifest["job"]).epochs == 3
    assert manifest["input"]["shape"] == [1, 8, 8]
    assert not list(tmp_path.glob(".*.partial"))


def test_same_seed_gives_the_same_bits_and_another_seed_does_not(ctx):
    job = TrainingJob(**SMALL, model_options={"dropout": 0.2})
    first, again = weights(train(job, ctx)), weights(train(job, ctx))
    other = weights(train(job.model_copy(update={"seed": 1}), ctx))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert not torch.are_deterministic_algorithms_enabled()


def test_uneven_micro_batches_count_as_one_batch(ctx):
    options = {**SMALL, "optimizer": "sgd", "epochs": 2}
    whole = weights(train(TrainingJob(**(options | {"batch_size": 150})), ctx))
    pieces = weights(train(TrainingJob(**(options | {"batch_size": 50, "gradient_accumulation": 3})), ctx))
    for name, value in whole.items():
        torch.testing.assert_close(pieces[name], value, rtol=1e-4, atol=1e-6)


class StopsAt(LocalContext):
    """Asks for a stop as soon as a step was reported."""

    at = 0

    @property
    def should_stop(self):
        return bool(self.reports) and self.reports[-1]["step"] >= self.at

    @should_stop.setter
    def should_stop(self, _value):
        pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_saved_state_goes_on_to_the_same_bits(tmp_path, cache, optimizer):
    job = TrainingJob(
        **SMALL,
        epochs=3,
        optimizer=optimizer,
        schedule="onecycle",
        model_options={"dropout": 0.3},
        report_every_seconds=0,
    )

    def start(ctx, saved=None):
        with reproducible(job.seed, True, CPU), MetricsLog(ctx) as log:
            dataset = load_dataset(job, ctx.cache, ())
            state = TrainingState.start(job, dataset, CPU, channels_last=False)
            if saved is not None:
                state.load_state_dict(saved)
            batches = Batches(dataset, CPU, threads=1, channels_last=False)
            stopped = fit(job, ctx, state, batches, log, TrainingCheckpoints(job, ctx, state, log))
        return state, stopped

    whole, _ = start(LocalContext(artifacts=tmp_path, cache=cache))
    stopping = StopsAt(artifacts=tmp_path, cache=cache)
    stopping.at = 40
    half, stopped = start(stopping)
    assert (stopped, half.step, half.epoch, half.position) == ("stop_requested", 40, 1, 14 * 64)
    torch.save(half.state_dict(), tmp_path / "trainer.pt")
    ctx = LocalContext(artifacts=tmp_path, cache=cache)
    resumed, _ = start(ctx, torch.load(tmp_path / "trainer.pt", weights_only=True))
    assert resumed.step == whole.step
    assert ctx.reports[0]["step"] == 41
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)
    assert resumed.last_epoch == whole.last_epoch


def test_a_stop_request_leaves_files_and_no_test_result(tmp_path, cache):
    ctx = StopsAt(artifacts=tmp_path, cache=cache)
    ctx.at = 1
    result = train(TrainingJob(**SMALL, epochs=50), ctx)
    assert result["stopped"] == "stop_requested"
    assert "test_loss" not in result["metrics"]
    assert (tmp_path / "manifest.json").exists()


def test_max_steps(ctx):
    result = train(TrainingJob(**SMALL, epochs=9, max_steps=30, schedule="cosine"), ctx)
    assert result["stopped"] == "max_steps"
    assert result["metrics"]["steps"] == ctx.reports[-1]["total"] == 30
    assert ctx.reports[-1]["learning_rate"] == pytest.approx(0, abs=1e-9)
    assert "val_loss" in ctx.reports[-1]


def test_early_stopping_keeps_the_best_weights(ctx):
    job = TrainingJob(**SMALL, epochs=60, learning_rate=0.02, early_stopping_patience=2, validation_split=0.3)
    result = train(job, ctx)
    losses = [report["val_loss"] for report in ctx.reports if "val_loss" in report]
    best = losses.index(min(losses)) + 1
    assert result["stopped"] == "early_stopping"
    assert len(losses) == best + 2
    assert result["metrics"]["best_epoch"] == best
    assert result["metrics"]["test_loss"] == pytest.approx(min(losses))


def test_a_loss_of_nan_is_an_error_that_says_what_to_try(ctx):
    job = TrainingJob(**SMALL, optimizer="sgd", learning_rate=1e6, epochs=5)
    with pytest.raises(TrainingDiverged, match=r"epoch \d, by step \d+: .*learning_rate.*clip_norm=1.0") as caught:
        train(job, ctx)
    assert caught.value.epoch >= 1


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"precision": "fp16", "clip_norm": 1.0},
        {"optimizer": "adam", "weight_decay": 1e-4, "schedule": "cosine", "warmup": 0.2},
        {"optimizer": "sgd", "learning_rate": 0.05, "schedule": "onecycle", "warmup": 0.0},
        {"model": "cnn", "channels_last": True},
    ],
)
def test_every_way_to_train_learns(ctx, change):
    result = train(TrainingJob(**({**SMALL, "epochs": 3, "learning_rate": 3e-3} | change)), ctx)
    assert result["metrics"]["test_accuracy"] > 0.8


def test_warmup_rises_to_the_peak(ctx):
    train(TrainingJob(**SMALL, epochs=2, warmup=0.5, report_every_seconds=0), ctx)
    rates = [report["learning_rate"] for report in ctx.reports]
    assert rates == sorted(rates)
    assert rates[0] < 1e-4
    assert rates[-1] == pytest.approx(1e-3)


def test_transformer_learns_tokens_without_seeing_ahead(ctx):
    job = TrainingJob(
        model="transformer",
        dataset="synthetic://tokens?vocabulary=8&length=6000",
        dataset_options={"context": 16},
        model_options={"layers": 1, "width": 32, "heads": 2},
        epochs=3,
        batch_size=16,
        learning_rate=1e-2,
    )
    result = train(job, ctx)
    assert 0.4 < result["metrics"]["test_loss"] < math.log(8) - 0.5


def test_a_last_batch_of_one_is_left_out_for_batch_norm(ctx):
    job = TrainingJob(
        model="cnn", dataset="synthetic://images?shape=1x2x2&samples=18&classes=2", batch_size=16, validation_split=0.05
    )
    assert train(job, ctx)["metrics"]["steps"] == 1


def test_nothing_held_out(ctx):
    metrics = train(TrainingJob(**SMALL, validation_split=0), ctx)["metrics"]
    assert "test_loss" not in metrics
    assert metrics["best_epoch"] is None


def test_a_model_of_the_users_own(ctx, tmp_path, monkeypatch):
    (tmp_path / "lab_models.py").write_text(
        "from torch import nn\n"
        "def tiny(input_shape, classes, width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))\n"
        "def wrong(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
        "def crash():\n"
        "    return nn.Linear(3, 3)\n"
        "def nothing():\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "lab_models", raising=False)
    job = TrainingJob(**(SMALL | {"model": "lab_models:tiny"}), model_options={"width": 9})
    assert weights(train(job, ctx))["1.weight"].shape == (9, 64)
    for model, says in {
        "lab_models:wrong": r"logits of shape \(2, 7\).*\(2, 10\)",
        "lab_models:crash": r"fails on inputs of shape \(2, 1, 8, 8\)",
        "lab_models:nothing": "returned int",
        "lab_models:absent": "has no 'absent'",
        "no_such_lab:tiny": "cannot be imported",
    }.items():
        with pytest.raises(InvalidJob, match=says) as caught:
            train(job.model_copy(update={"model": model, "model_options": {}}), ctx)
        assert caught.value.field == "model"


def test_streamed_batches_are_the_resident_ones(cache):
    dataset = load_dataset(TrainingJob(**SMALL), cache, ())
    order = dataset.train.rows[:100]
    resident = Batches(dataset, CPU, threads=1, channels_last=False)
    streamed = Batches(replace(dataset), CPU, threads=1, channels_last=False, memory_bytes=0)
    pairs = list(zip(resident.of(dataset.train, order, 32), streamed.of(dataset.train, order, 32), strict=True))
    assert [len(pair[0][1]) for pair in pairs] == [32, 32, 32, 4]
    for (inputs, targets), (streamed_inputs, streamed_targets) in pairs:
        assert torch.equal(inputs, streamed_inputs)
        assert torch.equal(targets, streamed_targets)
    assert abs(float(torch.cat([pair[0][0] for pair in pairs]).mean())) < 0.1


@pytest.mark.parametrize(("steps", "warmup"), [(9, 0.1), (1, 0.5), (4, 0.2), (1, 0.0), (3, 0.99), (10, None)])
def test_a_onecycle_schedule_of_any_length(steps, warmup):
    job = TrainingJob(**SMALL, schedule="onecycle", warmup=warmup, learning_rate=0.5)
    optimizer = build_optimizer(job, torch.nn.Linear(1, 1), CPU)
    schedule = build_schedule(job, optimizer, steps)
    rates = schedule.get_last_lr()
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates += schedule.get_last_lr()
    assert all(0 < rate <= 0.5 for rate in rates)


@pytest.mark.parametrize(("precision", "fused"), [("fp16", False), ("bf16", True)])
def test_fused_sgd_never_meets_a_step_that_fp16_leaves_out(precision, fused):
    job = TrainingJob(**SMALL, optimizer="sgd", precision=precision)
    made = build_optimizer(job, torch.nn.Linear(2, 2), torch.device("cuda"))
    assert made.param_groups[0]["fused"] is fused


def test_judging_takes_batches_near_those_of_the_training(ctx, monkeypatch):
    sizes = []
    of = Batches.of

    def watched(self, part, order, batch_size):
        sizes.append(batch_size)
        return of(self, part, order, batch_size)

    monkeypatch.setattr(Batches, "of", watched)
    train(TrainingJob(**SMALL | {"batch_size": 8}, max_steps=2), ctx)
    assert set(sizes) == {8, 32}
