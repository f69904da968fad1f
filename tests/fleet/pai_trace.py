"""Alibaba's cluster-trace-gpu-v2020: `pai_task_table.csv`, and `pai_job_table.csv` beside it for the users.

The published tables have no header line; one with the names below may be there, and then its order counts. When a job
was sent is not told, so it arrives when it began. All instances of a task are one job, and a part of a GPU is a whole
one.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from tests.fleet.workload import Job

TASK_COLUMNS = (
    "job_name",
    "task_name",
    "inst_num",
    "status",
    "start_time",
    "end_time",
    "plan_cpu",
    "plan_mem",
    "plan_gpu",
    "gpu_type",
)
_NEEDED = ("job_name", "task_name", "inst_num", "status", "start_time", "end_time", "plan_gpu")
_JOB_COLUMNS = ("job_name", "inst_id", "user", "status", "start_time", "end_time")


def jobs(path: Path) -> Iterator[Job]:
    """Those that ended well. Raises ValueError if a column is missing."""
    users = {row["job_name"]: row["user"] for row in _rows(path.with_name("pai_job_table.csv"), _JOB_COLUMNS, ())}
    for row in _rows(path, TASK_COLUMNS, _NEEDED):
        if row["status"] != "Terminated" or not (row["start_time"] and row["end_time"] and row["plan_gpu"]):
            continue
        gpus = math.ceil(float(row["plan_gpu"]) / 100 * float(row["inst_num"] or 1))
        start = float(row["start_time"])
        name = row["job_name"]
        yield Job(f"{name}/{row['task_name']}", start, float(row["end_time"]) - start, gpus, users.get(name, ""))


def _rows(path: Path, columns: tuple[str, ...], needed: tuple[str, ...]) -> Iterator[dict[str, str]]:
    if not path.exists():
        return
    with path.open(newline="") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1 and "job_name" in row:
                columns = tuple(row)
                if missing := [name for name in needed if name not in columns]:
                    raise ValueError(f"{path} has no column {missing[0]}: it has {', '.join(columns)}")
                continue
            if len(row) != len(columns):
                raise ValueError(f"{path}, line {number}: {len(row)} columns, not {len(columns)}: {', '.join(columns)}")
            yield dict(zip(columns, row, strict=True))
