"""The built-in training on a real GPU: it learns in every number format, repeats its bits, and changes device."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cyxwiz_tasks.training.batches import Batches, memory_for_data_bytes
from cyxwiz_tasks.training.datasets import load_dataset
from cyxwiz_tasks.training.loop import train
from cyxwiz_tasks.training_job import TrainingJob
from tests.unit.test_checkpoint_training import JOBS, Fateful, Killed, history, job_of, weights_hash

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda:0")
DIGITS = {"model": "cnn", "dataset": "digits", "epochs": 6, "batch_size": 64, "learning_rate": 4e-3}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def context(folder: Path, cache: Path, **fate: int) -> Fateful:
    folder.mkdir()
    made = Fateful(artifacts=folder, cache=cache, device="cuda:0")
    for name, step in fate.items():
        setattr(made, name, step)
    return made


@pytest.mark.parametrize(
    "change", [{}, {"precision": "fp32"}, {"precision": "fp16", "clip_norm": 1.0}, {"compile": True}]
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, where it compiles
def test_it_reads_digits(tmp_path, cache, change):
    ctx = context(tmp_path / "run", cache)
    metrics = train(TrainingJob(**DIGITS | change), ctx)["metrics"]
    assert metrics["test_accuracy"] >= 0.96
    assert ctx.reports[-1]["gpu_memory_bytes"] > 0


@pytest.mark.parametrize("name", JOBS)
def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path, cache, name):
    whole = context(tmp_path / "whole", cache)
    job = job_of(name)
    train(job, whole)
    last = whole.reports[-1]["step"]
    killed = context(tmp_path / "killed", cache, killed_at=last // 2 | 1)
    job = job.model_copy(update={"checkpoint_steps": 2})
    with pytest.raises(Killed):
        train(job, killed)
    resumed = context(tmp_path / "resumed", cache)
    resumed.attempt = 2
    shutil.copytree(killed.artifacts / "checkpoints", resumed.artifacts / "checkpoints")
    train(job, resumed)
    assert resumed.reports[0]["step"] > 1
    assert weights_hash(resumed) == weights_hash(whole)
    without_memory = [{name: row[name] for name in row if name != "gpu_memory_bytes"} for row in history(resumed)]
    assert without_memory == [{name: row[name] for name in row if name != "gpu_memory_bytes"} for row in history(whole)]


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda:0"), ("cuda:0", "cpu")])
def test_it_goes_on_on_another_kind_of_device(tmp_path, cache, first, second):
    begun, ended = context(tmp_path / "begun", cache, stopped_at=40), context(tmp_path / "ended", cache)
    begun.device, ended.device, ended.attempt = first, second, 2
    job = TrainingJob(**DIGITS | {"checkpoint_steps": 10, "report_every_seconds": 0, "schedule": "onecycle"})
    assert train(job, begun)["stopped"] == "stop_requested"
    shutil.copytree(begun.artifacts / "checkpoints", ended.artifacts / "checkpoints")
    metrics = train(job, ended)["metrics"]
    assert ended.reports[0]["step"] == 41
    assert metrics["test_accuracy"] >= 0.96


def test_streamed_batches_are_the_resident_ones(cache):
    dataset = load_dataset(TrainingJob(**DIGITS), cache, ())
    order = dataset.train.rows[:100]
    resident = Batches(dataset, CUDA, threads=3, channels_last=True)
    streamed = Batches(replace(dataset), CUDA, threads=3, channels_last=True, memory_bytes=0)
    for here, there in zip(resident.of(dataset.train, order, 32), streamed.of(dataset.train, order, 32), strict=True):
        assert torch.equal(here[0], there[0])
        assert torch.equal(here[1], there[1])
        assert here[0].is_cuda


def test_data_takes_no_more_of_a_shared_gpu_than_its_part_of_the_share():
    free, total = torch.cuda.mem_get_info(CUDA)
    assert memory_for_data_bytes(CUDA) <= 0.4 * free
    torch.cuda.set_per_process_memory_fraction(0.05, CUDA)
    try:
        assert memory_for_data_bytes(CUDA) <= 0.4 * 0.05 * total
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, CUDA)
