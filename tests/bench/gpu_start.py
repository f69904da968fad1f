"""From submit() to the first number out of a GPU, against a Python script that does the same by itself."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from cyxwiz_tasks import Client
from tests.bench.row import Row

ROUNDS = 10
_SCRIPT = "import time, torch; torch.ones(1, device='cuda:0').sum().item(); print(time.time())"


def measure(client: Client) -> Row:
    """Medians in milliseconds; the two sides take turns. Both make a CUDA context; only the script imports torch."""
    import gpu_jobs

    through_job: list[float] = []
    plain: list[float] = []
    for number in range(ROUNDS + 1):
        began = time.time()
        summed_at = client.submit(gpu_jobs.first_sum.s()).result(timeout=60)
        through_job.append((summed_at - began) * 1000)
        began = time.time()
        done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True)
        plain.append((float(done.stdout) - began) * 1000)
        if number == 0:  # both have read torch's files from the disk now
            through_job.clear()
            plain.clear()
    return Row(
        "submit_to_first_gpu_sum_p50",
        statistics.median(through_job),
        "ms",
        target=1.0,
        yardstick=statistics.median(plain),
        lower_is_better=True,
        note="yardstick: the same as a plain script",
    )
