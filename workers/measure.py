"""Measure this machine and print one JSON object: `python -m workers.measure [--gpu]`.

A program of its own, so the agent imports neither numpy nor torch, and no CUDA context outlives the measurement.
Everything is the best of several runs: other load only ever makes a run slower.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy

_CPU_SECONDS = 0.1
_CPU_COPY_BYTES = 64 * 2**20
_CPU_MATRIX = 512
_GPU_COPY_BYTES = 256 * 2**20
_GPU_MATRIX = 4096
_GPU_RUNS = 10


def memory_bandwidth_bytes_per_second() -> float:
    """Copy 64 MB in main memory by one thread; reads plus writes."""
    source = numpy.ones(_CPU_COPY_BYTES, dtype=numpy.uint8)
    target = numpy.empty_like(source)
    return 2 * _CPU_COPY_BYTES / _best_seconds(lambda: numpy.copyto(target, source))


def matmul_gflops() -> float:
    """Multiply two dense 512 x 512 float32 matrices on all cores that this process may use; 10^9 operations/s."""
    random = numpy.random.default_rng(0)
    left, right = (random.random((_CPU_MATRIX, _CPU_MATRIX), dtype=numpy.float32) for _ in range(2))
    product = numpy.empty_like(left)
    return 2 * _CPU_MATRIX**3 / _best_seconds(lambda: numpy.matmul(left, right, out=product)) / 1e9


def gpu_scores() -> list[dict[str, float]]:
    """`matmul_tflops` (4096 x 4096 float16) and `memory_bandwidth_bytes_per_second` of each visible GPU, in order."""
    import torch

    scores = []
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            left, right = (torch.rand(_GPU_MATRIX, _GPU_MATRIX, device="cuda").half() for _ in range(2))
            product = torch.empty_like(left)
            source = torch.ones(_GPU_COPY_BYTES, dtype=torch.uint8, device="cuda")
            target = torch.empty_like(source)
            matmul_seconds = _best_gpu_seconds(torch, partial(torch.matmul, left, right, out=product))
            copy_seconds = _best_gpu_seconds(torch, partial(target.copy_, source))
        scores.append(
            {
                "matmul_tflops": 2 * _GPU_MATRIX**3 / matmul_seconds / 1e12,
                "memory_bandwidth_bytes_per_second": 2 * _GPU_COPY_BYTES / copy_seconds,
            }
        )
    return scores


def _best_seconds(run: Callable[[], Any]) -> float:
    run()  # touches every page and starts the threads
    best, began = float("inf"), time.perf_counter()
    while (start := time.perf_counter()) - began < _CPU_SECONDS:
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _best_gpu_seconds(torch: Any, run: Callable[[], Any]) -> float:
    best = float("inf")
    for _ in range(_GPU_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1000)
    return best


def main() -> None:
    """Print what was measured."""
    measured = {
        "memory_bandwidth_bytes_per_second": memory_bandwidth_bytes_per_second(),
        "matmul_gflops": matmul_gflops(),
        "gpus": gpu_scores() if "--gpu" in sys.argv[1:] else [],
    }
    sys.stdout.write(json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
