"""The node: who it is, what it may do, and the parts that its jobs share."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from cyxwiz_tasks.capability import Capability, Gpu
from cyxwiz_tasks.protocol.headers import Assignment, JobHeader
from cyxwiz_tasks.protocol.names import PROGRESS_EVENT
from cyxwiz_tasks.settings import Settings
from workers.artifact_store import ArtifactStore
from workers.attempts import Attempts
from workers.gpus import GpuProvider
from workers.journal import Journal
from workers.link import Link
from workers.node_folder import NodeFolder
from workers.reporter import Reporter

if TYPE_CHECKING:
    from workers.courier import Courier

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobPaths:
    """Where the jobs of a node find code and data."""

    #: first on sys.path of a job's process
    code: tuple[str, ...]
    #: folders below which local data sets may lie
    data: tuple[str, ...]
    #: whether a submitter's own folder is used: only where node and submitter are the same person
    trust_submitters: bool
    #: modules that are imported once, for all jobs
    preload: tuple[str, ...] = ()


@dataclass
class Node:
    """One run of one node. `incarnation` is new at each start."""

    folder: NodeFolder
    incarnation: str
    hostname: str
    capability: Capability
    settings: Settings
    paths: JobPaths
    app: Celery
    redis: redis.Redis
    reporter: Reporter
    gpus: GpuProvider
    journal: Journal
    link: Link = field(default_factory=Link)
    #: None: checkpoints and artifacts stay on this disk
    artifact_store: ArtifactStore | None = None
    attempts: Attempts = field(default_factory=Attempts)
    #: Celery's consumer, once there is one: it sends the events that Flower shows
    consumer: Any = None
    #: tells of ends for which no thread waits
    courier: Courier = field(init=False)
    stopping: bool = False
    #: set once the scheduler has this incarnation in the record
    registered: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.app.cyxwiz_node = self

    @property
    def id(self) -> str:
        return self.folder.id

    @property
    def name(self) -> str:
        return self.folder.name

    def open_tokens(self) -> tuple[int, ...]:
        """Tokens of attempts that run here, or whose end the scheduler has not confirmed."""
        return tuple({*self.attempts.tokens(), *self.courier.tokens()})

    @property
    def threads_per_job(self) -> int:
        return max(1, self.capability.cpu_cores // self.capability.slots)

    def gpus_of(self, assignment: Assignment) -> list[Gpu]:
        """The GPUs that an attempt may use."""
        return [gpu for gpu in self.capability.gpus if gpu.index in assignment.gpus]

    def gpu_uuids_of(self, assignment: Assignment) -> list[str]:
        """The real ones of them: a declared GPU is a place for a job, and computes nothing."""
        return [gpu.uuid for gpu in self.gpus_of(assignment) if not gpu.fake]

    def device_of(self, assignment: Assignment) -> str:
        """ "cuda:0" if an attempt has a real GPU, which is then the first that its process sees."""
        return "cuda:0" if self.gpu_uuids_of(assignment) else "cpu"

    def code_paths(self, header: JobHeader) -> list[str]:
        """What goes first on sys.path of a job."""
        submitted = [header.path] if header.path and self.paths.trust_submitters else []
        return [*submitted, *self.paths.code]

    def data_roots(self, header: JobHeader) -> list[str]:
        """Below which folders a job may read local data sets."""
        submitted = [header.path] if header.path and self.paths.trust_submitters else []
        return [*submitted, *self.paths.data]

    def artifacts_path(self, assignment: Assignment) -> Path:
        """The folder of one attempt's artifacts, which its process makes. No other attempt writes there."""
        rank = f".rank-{assignment.gang.rank}" if assignment.gang is not None and assignment.gang.rank else ""
        return self.settings.home / "artifacts" / assignment.job / f"attempt-{assignment.attempt}{rank}"

    def checkpoints_path(self, job_id: str) -> Path:
        """The folder of one job's checkpoints, over all its attempts."""
        return self.settings.home / "artifacts" / job_id / "checkpoints"

    def show_progress(self, job_id: str, text: str) -> None:
        """A line in Flower beside a running job. Never raises: nobody's job depends on it."""
        dispatcher = getattr(self.consumer, "event_dispatcher", None)
        if dispatcher is None:
            return
        try:
            dispatcher.send(PROGRESS_EVENT, uuid=job_id, result=text)
        except (OSError, OperationalError, redis.RedisError) as error:
            log.debug("no progress event for %s: %s", job_id, error)

    @property
    def cache_path(self) -> Path:
        """The folder for data sets that all jobs of this node share, which their processes make."""
        return self.settings.home / "cache"


def node_of(app: Celery) -> Node:
    """The node whose application this is."""
    return cast(Node, cast(Any, app).cyxwiz_node)
