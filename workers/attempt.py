"""One attempt: everything that the steps of `workers.executor` hand on to each other."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from celery.app.task import Context

from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.headers import Assignment, JobHeader
from cyxwiz_tasks.resources import NOMINAL_SHARE
from cyxwiz_tasks.runtime.pipe import Frame
from cyxwiz_tasks.states import Memory
from workers.attempt_artifacts import AttemptArtifacts
from workers.attempt_reports import AttemptReports
from workers.attempts import StopRequest
from workers.joblog import JobLog
from workers.limits import Reason
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
    header: JobHeader
    assignment: Assignment
    reports: AttemptReports
    artifacts: AttemptArtifacts
    log: JobLog
    stop_request: StopRequest
    #: when its message came, by the monotonic clock, and when its process got the job
    arrived_at: float
    started_at: float

    # what `workers.supervise` finds out
    #: the process's last word, if it had one
    last_frame: Frame | None = None
    exit_code: int | None = None
    #: why we ended it, if we did
    stopped: Stop | None = None
    ended_for: Reason | None = None
    ran_out_of_memory: bool = False
    #: pids that would not die
    undead: list[int] = field(default_factory=list)

    @property
    def device(self) -> str:
        return self.node.device_of(self.assignment)

    @property
    def time_limit_seconds(self) -> float | None:
        """The tighter of our own limit and Celery's `time_limit`."""
        celery_limit = (self.request.timelimit or (None, None))[0]
        limits = [limit for limit in (self.header.time_limit_seconds, celery_limit) if limit]
        return min(limits, default=None)

    @property
    def gpu_fault(self) -> str | None:
        """What the driver says against the attempt's GPUs, if anything."""
        return self.node.gpus.fault([gpu.index for gpu in self.node.gpus_of(self.assignment) if not gpu.fake])

    @property
    def is_going_on(self) -> bool:
        """Whether nothing has ended it or begun to."""
        return self.last_frame is None and self.exit_code is None and self.stopped is None and self.ended_for is None

    def had_memory_bytes(self, memory: Memory) -> int:
        """Of the host, or of its smallest GPU; of GPUs that it shares, what it asked for."""
        if memory == "ram":
            return self.node.capability.ram_bytes
        if self.assignment.gpu_share_bytes is not None:
            return round(self.assignment.gpu_share_bytes / NOMINAL_SHARE)
        return min(gpu.memory_bytes for gpu in self.node.gpus_of(self.assignment))

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.monotonic() - self.started_at
