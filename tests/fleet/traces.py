"""Published traces, from files that lie here already: nothing is downloaded.

`pai_task_table.csv` of Alibaba's cluster-trace-gpu-v2020, which has no header line, with `pai_job_table.csv` beside it
for the users; and Microsoft's Philly `cluster_job_log`, which is JSON. Of Alibaba's jobs the trace tells when they
began and not when they were sent, so they arrive when they began; all instances of a task are one job, and a part of a
GPU is a whole one. A job that no node here could hold is left out.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.fleet.workload import Job

#: of a node
_GPUS_LIMIT = 8
_TIME = "%Y-%m-%d %H:%M:%S"


def read(path: Path, limit: int) -> list[Job]:
    """Up to `limit` jobs with GPUs, the first ones first. Raises ValueError that says what the file should be."""
    jobs = sorted(_pai(path) if path.suffix == ".csv" else _philly(path), key=lambda job: job.arrival)[:limit]
    if not jobs:
        raise ValueError(
            f"{path} has no job with 1 to {_GPUS_LIMIT} GPUs: is it pai_task_table.csv or cluster_job_log?"
        )
    first = jobs[0].arrival
    return [Job(job.id, job.arrival - first, job.seconds, job.gpus, job.owner) for job in jobs]


def _pai(path: Path) -> Iterator[Job]:
    """job_name, task_name, inst_num, status, start_time, end_time, plan_cpu, plan_mem, plan_gpu (percent), gpu_type."""
    users = _pai_users(path.with_name("pai_job_table.csv"))
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file)):
            if len(row) != 10:
                raise ValueError(f"{path}, line {number + 1}: a task of the trace has 10 columns, not {len(row)}")
            name, task, instances, status, start, end, _, _, gpu_percent, _ = row
            if status != "Terminated" or not (start and end and gpu_percent):
                continue
            gpus = math.ceil(float(gpu_percent) / 100 * float(instances or 1))
            seconds = float(end) - float(start)
            if 1 <= gpus <= _GPUS_LIMIT and seconds > 0:
                yield Job(f"{name}/{task}", float(start), seconds, gpus, users.get(name, ""))


def _pai_users(path: Path) -> dict[str, str]:
    """By job: job_name, inst_id, user, status, start_time, end_time."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {row[0]: row[2] for row in csv.reader(file)}


def _philly(path: Path) -> Iterator[Job]:
    try:
        log: list[dict[str, Any]] = json.loads(path.read_text())
    except ValueError:
        raise ValueError(
            f"{path} is neither a *.csv nor JSON: expected pai_task_table.csv or cluster_job_log"
        ) from None
    for entry in log:
        attempts = [one for one in entry["attempts"] if one.get("start_time") and one.get("end_time")]
        if entry.get("status") != "Pass" or not attempts:
            continue
        gpus = sum(len(place["gpus"]) for place in attempts[-1]["detail"])
        seconds = (_moment(attempts[-1]["end_time"]) - _moment(attempts[-1]["start_time"])).total_seconds()
        if 1 <= gpus <= _GPUS_LIMIT and seconds > 0:
            arrival = _moment(entry["submitted_time"]).timestamp()
            yield Job(entry["jobid"], arrival, seconds, gpus, entry.get("user") or "")


def _moment(text: str) -> datetime:
    # The trace has no timezone, and only differences count.
    return datetime.strptime(text, _TIME)
