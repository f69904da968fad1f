"""Microsoft's Philly trace: `cluster_job_log`, which is JSON, or a CSV made of it.

The CSV has a header line, in any order, and a line for each job. Its names are those of HeliosArtifact's
`cluster_log.csv` and `philly_trace.csv`, or those of the log. SenseTime's Helios trace has the same layout.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.fleet.workload import Job

#: what a column may be called, in the order in which it is looked for
CSV_COLUMNS = {
    "id": ("job_id", "jobid", "jobname"),
    "arrival": ("submit_time", "submitted_time"),
    "gpus": ("gpu_num", "num_gpus"),
    "seconds": ("duration",),
    "began": ("start_time",),
    "ended": ("end_time",),
    "state": ("state", "status"),
    "owner": ("user", "vc"),
}
#: without an id, a job is known by its line; who sent it may be nobody
_OPTIONAL = ("id", "owner")
_PASSED = ("pass", "completed")
_TIME = "%Y-%m-%d %H:%M:%S"


def is_header(row: list[str]) -> bool:
    """Whether a CSV with such a first line is meant to be one of these."""
    return any(name in row for of in ("arrival", "gpus") for name in CSV_COLUMNS[of])


def csv_jobs(path: Path) -> Iterator[Job]:
    """Those that ended well. Raises ValueError if a column is missing, or a line cannot be read."""
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        at = _columns(path, rows.fieldnames or ())
        for number, row in enumerate(rows, start=2):
            if row[at["state"]].lower() not in _PASSED:
                continue
            try:
                arrival, gpus, seconds = _moment(row[at["arrival"]]), int(float(row[at["gpus"]])), _seconds(row, at)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            name = row[at["id"]] if "id" in at else str(number)
            yield Job(name, arrival, seconds, gpus, row[at["owner"]] if "owner" in at else "")


def _columns(path: Path, header: Any) -> dict[str, str]:
    """By what is needed, the name of its column."""
    at = {of: name for of, names in CSV_COLUMNS.items() for name in reversed(names) if name in header}
    needed = [of for of in CSV_COLUMNS if of not in _OPTIONAL]
    needed = [of for of in needed if of not in (("began", "ended") if "seconds" in at else ("seconds",))]
    for of in needed:
        if of not in at:
            either = " or ".join(CSV_COLUMNS[of])
            without = " (or a duration)" if of in ("began", "ended") else ""
            raise ValueError(f"{path} has no column {either}{without}: it has {', '.join(header)}")
    return at


def _seconds(row: dict[str, str], at: dict[str, str]) -> float:
    if "seconds" in at:
        return float(row[at["seconds"]])
    return _moment(row[at["ended"]]) - _moment(row[at["began"]])


def log_jobs(path: Path) -> Iterator[Job]:
    """Those that ended well, as their last attempt was. Raises ValueError if it is no JSON."""
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
        last = attempts[-1]
        gpus = sum(len(place["gpus"]) for place in last["detail"])
        seconds = _moment(last["end_time"]) - _moment(last["start_time"])
        yield Job(entry["jobid"], _moment(entry["submitted_time"]), seconds, gpus, entry.get("user") or "")


def _moment(text: str) -> float:
    """Seconds. The trace has no timezone, and only differences count."""
    try:
        return float(text)
    except ValueError:
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp()
