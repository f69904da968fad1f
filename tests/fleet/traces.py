"""Published traces, from files that lie here already: nothing is downloaded.

Which one a file is shows by itself: `pai_trace.py` and `philly_trace.py` say what it may look like. A job that no node
here could hold is left out.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tests.fleet import pai_trace, philly_trace
from tests.fleet.workload import Job

#: of a node
_GPUS_LIMIT = 8


def read(path: Path, limit: int) -> list[Job]:
    """Up to `limit` jobs with GPUs, the first ones first. Raises ValueError that says what the file should be."""
    able = (job for job in _jobs(path) if 1 <= job.gpus <= _GPUS_LIMIT and job.seconds > 0)
    jobs = sorted(able, key=lambda job: job.arrival)[:limit]
    if not jobs:
        raise ValueError(
            f"{path} has no job with 1 to {_GPUS_LIMIT} GPUs: is it pai_task_table.csv, cluster_job_log or a CSV of it?"
        )
    first = jobs[0].arrival
    return [replace(job, arrival=job.arrival - first) for job in jobs]


def _jobs(path: Path) -> Iterator[Job]:
    if path.suffix != ".csv":
        return philly_trace.log_jobs(path)
    with path.open(newline="") as file:
        first = next(csv.reader(file), [])
    if philly_trace.is_header(first):
        return philly_trace.csv_jobs(path)
    if "job_name" in first or len(first) == len(pai_trace.TASK_COLUMNS):
        return pai_trace.jobs(path)
    raise ValueError(
        f"{path} has the columns {', '.join(first)}: expected pai_task_table.csv ({', '.join(pai_trace.TASK_COLUMNS)}; "
        f"a header line is not needed) or a CSV of Philly with a header line (submit_time, gpu_num, duration, state)"
    )
