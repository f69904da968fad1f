"""A node's scores: measured once by `workers.measure`, then kept in the node's folder until the hardware changes."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from pydantic import BaseModel, ValidationError

from cyxwiz_tasks.capability import Capability, Gpu

log = logging.getLogger(__name__)

#: Raise it when what is measured, or how, changes.
_VERSION = 1
_FILE_NAME = "measurements.json"
_TIMEOUT_SECONDS = 20.0
#: importing torch with CUDA for the first time reads gigabytes from disk
_GPU_TIMEOUT_SECONDS = 120.0


class GpuScore(BaseModel):
    """See `cyxwiz_tasks.capability.Gpu` for what these are."""

    matmul_tflops: float
    memory_bandwidth_bytes_per_second: float


class Measurements(BaseModel):
    """See `cyxwiz_tasks.capability.Capability`. `gpus` holds the real ones, in the node's order."""

    fingerprint: str = ""
    memory_bandwidth_bytes_per_second: float
    matmul_gflops: float
    gpus: list[GpuScore]


def measured(capability: Capability, folder: Path) -> Capability:
    """The same node with its scores, from the cache in `folder` or measured now (about a second; with GPUs, ten).

    Without scores if measuring fails: a node that cannot be scored can still work.
    """
    real = [gpu for gpu in capability.gpus if not gpu.fake]
    fingerprint = _fingerprint(capability, real)
    found = _cached(folder, fingerprint)
    if found is None:
        found = _measure(capability, real)
        if found is None:
            return capability
        if len(found.gpus) == len(real):
            _keep(found.model_copy(update={"fingerprint": fingerprint}), folder)
        else:
            log.warning("torch sees %d of %d GPUs: they get no scores", len(found.gpus), len(real))
            found.gpus = []
    scores = dict(zip((gpu.uuid for gpu in real), found.gpus, strict=False))
    return capability.model_copy(
        update={
            "memory_bandwidth_bytes_per_second": found.memory_bandwidth_bytes_per_second,
            "matmul_gflops": found.matmul_gflops,
            "gpus": [_scored(gpu, scores.get(gpu.uuid)) for gpu in capability.gpus],
        }
    )


def _scored(gpu: Gpu, score: GpuScore | None) -> Gpu:
    return gpu if score is None else gpu.model_copy(update=score.model_dump())


def _fingerprint(capability: Capability, real: list[Gpu]) -> str:
    facts = [
        _VERSION,
        capability.cpu_model,
        capability.cpu_cores,
        capability.architecture,
        capability.os_version,
        capability.python,
        capability.torch,
        capability.driver,
        [gpu.uuid for gpu in real],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _cached(folder: Path, fingerprint: str) -> Measurements | None:
    try:
        kept = Measurements.model_validate_json((folder / _FILE_NAME).read_bytes())
    except (OSError, ValidationError):
        return None
    return kept if kept.fingerprint == fingerprint else None


def _keep(found: Measurements, folder: Path) -> None:
    temporary = folder / f"{_FILE_NAME}.{os.getpid()}"
    try:
        temporary.write_text(found.model_dump_json())
        temporary.replace(folder / _FILE_NAME)
    except OSError as error:
        log.warning("the node's scores are not kept, and are measured again at the next start: %s", error)


def _measure(capability: Capability, real: list[Gpu]) -> Measurements | None:
    # Not from the user's working directory: it may hold a folder `workers` of its own.
    code_folder = Path(__file__).resolve().parent.parent
    threads = str(capability.cpu_cores)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CYXWIZ_")}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    # Named by uuid, in the node's order: then the scores come in that order too.
    environment |= {"CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in real)}
    command = [sys.executable, "-m", "workers.measure", *(["--gpu"] if real else [])]
    try:
        done = subprocess.run(
            command,
            cwd=code_folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_GPU_TIMEOUT_SECONDS if real else _TIMEOUT_SECONDS,
        )
        return Measurements.model_validate_json(done.stdout)
    except subprocess.CalledProcessError as error:
        log.warning("the node gets no scores: %s", error.stderr.decode(errors="replace").strip()[-500:])
    except (OSError, subprocess.TimeoutExpired, ValidationError) as error:
        log.warning("the node gets no scores: %s", error)
    return None
