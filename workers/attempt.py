"""One attempt: everything that the steps of `workers.executor` hand on to each other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery.app.task import Context

from cyxwiz_tasks.protocol import Assignment, JobHeader, Stop
from cyxwiz_tasks.runtime.pipe import Frame
from workers.attempt_reports import AttemptReports
from workers.attempts import StopRequest
from workers.joblog import JobLog
from workers.node import Node
from workers.warm_process import WarmProcess


@dataclass
class Attempt:
    """Made by `executor.run`; only the thread that runs the attempt touches it."""

    node: Node
    process: WarmProcess
    #: Celery's request of the job's message
    request: Context
    task_name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    header: JobHeader
    assignment: Assignment
    folder: Path
    reports: AttemptReports
    log: JobLog
    stop_request: StopRequest
    started_at: float = field(default_factory=time.monotonic)

    # what `workers.supervise` finds out
    #: the process's last word, if it had one
    last_frame: Frame | None = None
    exit_code: int | None = None
    #: why we ended it, if we did
    stopped: Stop | None = None
    overstayed: bool = False
    ran_out_of_memory: bool = False
    #: pids that would not die
    undead: list[int] = field(default_factory=list)

    @property
    def device(self) -> str:
        """ "cuda:0" if the attempt has a real GPU, which is then the first that its process sees."""
        return "cuda:0" if self.gpu_uuids else "cpu"

    @property
    def gpu_uuids(self) -> list[str]:
        """The real ones: a declared GPU is a place for a job, and computes nothing."""
        return [gpu.uuid for gpu in self.node.gpus_of(self.assignment) if not gpu.fake]

    @property
    def time_limit_seconds(self) -> float | None:
        """The tighter of our own limit and Celery's `time_limit`."""
        celery_limit = (self.request.timelimit or (None, None))[0]
        limits = [limit for limit in (self.header.time_limit_seconds, celery_limit) if limit]
        return min(limits, default=None)

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.started_at

    def spec(self) -> Frame:
        """The frame that gives the process its job, without the arguments."""
        return {
            "kind": "run",
            "task": self.task_name,
            "entry": self.header.entry,
            "paths": self.node.code_paths(self.header),
            "node": self.node.name,
            "job": self.assignment.job,
            "attempt": self.assignment.attempt,
            "device": self.device,
            "gpus": self.gpu_uuids,
            "threads": self.node.threads_per_job,
            "folder": str(self.folder),
            "artifacts": str(self.node.artifacts_folder(self.assignment.job)),
            "cache": str(self.node.cache_folder),
            "data_roots": self.node.data_roots(self.header),
            "result_limit_bytes": self.node.settings.result_limit_bytes,
        }
