"""Training through a job against the same loop as a plain script, in samples a second."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile

from cyxwiz_tasks import Client, TrainingJob
from tests.bench.row import Row

#: single runs differ by 5 to 10 % on a shared machine; a GPU is not shared
ROUNDS, GPU_ROUNDS = 11, 5
#: on CPU; with a GPU, ResNet-18 on the same shape
CPU_JOB: dict[str, object] = {
    "model": "cnn",
    "dataset": "synthetic://images?shape=3x32x32&classes=10&samples=4000",
    "batch_size": 64,
    "epochs": 2,
}
GPU_JOB: dict[str, object] = {
    "model": "resnet18",
    "dataset": "synthetic://images?shape=3x32x32&classes=10&samples=50000",
    "batch_size": 256,
    "epochs": 4,
}


def measure(client: Client) -> Row:
    """Medians of runs that take turns, each side first every other time, with equal threads on the same device."""
    [node] = [node for node in client.nodes() if node["state"] == "up" and not node["name"].startswith("declared")]
    real_gpus = [gpu for gpu in node["capability"]["gpus"] if not gpu["fake"]]
    fields = GPU_JOB if real_gpus else CPU_JOB
    device = "cuda:0" if real_gpus else "cpu"
    threads = max(1, node["capability"]["cpu_cores"] // node["capability"]["slots"])
    through_job: list[float] = []
    plain: list[float] = []
    need = {"gpus": 1} if real_gpus else {}

    def as_job() -> None:
        result = client.submit(TrainingJob(**fields), resources=need).result(timeout=300)
        through_job.append(result.metrics["samples_per_second"])

    def as_script() -> None:
        plain.append(_plain_script(fields, device, threads))

    for number in range(GPU_ROUNDS if real_gpus else ROUNDS):
        for run in (as_job, as_script) if number % 2 else (as_script, as_job):
            run()
    return Row(
        "training_through_a_job",
        statistics.median(through_job),
        "samples/s",
        target=0.99,
        yardstick=statistics.median(plain),
        note=f"{fields['model']} on {device}, {threads} threads",
    )


def _plain_script(fields: dict[str, object], device: str, threads: int) -> float:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", "cyxwiz_tasks.training", *words, f"--device={device}", f"--threads={threads}"]
            + [f"--artifacts={folder}"],
            env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
            capture_output=True,
            text=True,
            check=True,
        )
    text = done.stdout
    return float(json.loads(text[text.index("\n{") :])["metrics"]["samples_per_second"])
