"""What a job's function gets as `ctx`: where it runs, how it reports, whether it should stop."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cyxwiz_tasks.checkpoints.checkpoints import Checkpoints
from cyxwiz_tasks.runtime.pipe import Pipe

#: A report is for numbers; what is larger belongs into a file in `ctx.artifacts`.
REPORT_LIMIT_BYTES = 32 * 1024


class FolderUnusable(OSError):
    """A folder of the node's own cannot be made: its disk is full, read-only or broken. Another node may do better."""


class JobContext:
    """The context of a job that runs on a node."""

    def __init__(
        self,
        pipe: Pipe,
        *,
        job_id: str,
        attempt: int,
        device: str,
        threads: int,
        artifacts: Path,
        checkpoints: Path,
        token: int,
        cache: Path,
        data_roots: tuple[Path, ...],
        rank: int = 0,
        nodes: tuple[str, ...] = ("",),
    ) -> None:
        self._pipe = pipe
        self._pid = os.getpid()
        self._stop_asked = False
        #: whether the function has ever asked `should_stop`: only then is it worth waiting for
        self.heeds_stop = False
        self.job_id = job_id
        #: 1 for the first
        self.attempt = attempt
        #: "cuda:0" or "cpu"
        self.device = device
        #: CPU threads that this job may use
        self.threads = threads
        self._artifacts = artifacts
        self._checkpoints = Checkpoints(checkpoints, token, self.log)
        self._cache = cache
        #: the folders below which local data sets may lie
        self.data_roots = data_roots
        #: of a gang: which member this is, and the names of all members' nodes, by rank
        self.rank = rank
        self.nodes = nodes

    @property
    def world_size(self) -> int:
        """How many members the gang has, each on a node of its own; 1 for a job on one node."""
        return len(self.nodes)

    @property
    def artifacts(self) -> Path:
        """This attempt's own folder for what the job leaves behind. Raises FolderUnusable."""
        return _made(self._artifacts)

    @property
    def cache(self) -> Path:
        """A folder that all jobs of this node share, for data sets. Raises FolderUnusable."""
        return _made(self._cache)

    @property
    def should_stop(self) -> bool:
        """Whether the job was cancelled or its place is needed. Return soon after it turns True."""
        self.heeds_stop = True
        return self._stop_asked

    def ask_to_stop(self) -> None:
        self._stop_asked = True

    def report(self, **values: Any) -> None:
        """Publish progress: numbers, texts, booleans. Tensors and arrays of one element count as their number.

        Of a gang only what rank 0 reports is published: it speaks for the job. Costs microseconds. Raises ValueError
        above 32 KB, TypeError for what JSON cannot carry, RuntimeError in a process that the job forked.
        """
        frame = progress_frame(values)
        self._must_be_the_jobs_process("ctx.report")
        self._pipe.send_encoded(frame)

    def checkpoint(self, *, step: int, **state: Any) -> bool:
        """Save where the job is: tensors, state_dicts, numbers, texts, and containers of them.

        Of a gang rank 0 saves; for all others this does nothing and returns True. Returns False, and says so in the log
        and as a report, where it could not be written (a full disk, say): what was saved before is still there, and the
        job should go on. Raises TypeError that names what cannot be saved, and RuntimeError in a process that the job
        forked.
        """
        self._must_be_the_jobs_process("ctx.checkpoint")
        if self.rank:
            return True
        began = time.monotonic()
        try:
            made = self._checkpoints.save(step, state)
        except OSError as error:
            self.log(not_saved(step, error))
            self.report(step=step, checkpoint_error=str(error))
            self._pipe.send({"kind": "checkpoint", "step": step, "error": str(error)})
            return False
        seconds = time.monotonic() - began
        self._pipe.send({"kind": "checkpoint", "step": step, "folder": str(made.folder), "seconds": seconds})
        return True

    def restore(self) -> dict[str, Any] | None:
        """What `checkpoint` saved last, on whatever node: `step` and the state by its names, tensors on the CPU.

        All members of a gang get what rank 0 saved in an earlier attempt. None if nothing was saved. A checkpoint that
        is damaged is passed over for the one before it, with a line in the log. Raises CheckpointUnusable for one that
        this node's version of torch cannot read.
        """
        return self._checkpoints.load()

    def _must_be_the_jobs_process(self, call: str) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(f"{call} works in the job's own process only: pass the values back to it")

    def log(self, *values: Any) -> None:
        """A line in the job's log; `print` does the same."""
        print(*values, flush=True)  # noqa: T201


class _FolderOnDemand:
    """A field of a dataclass: the folder that was given, or else a new one, made when it is first asked for."""

    def __get__(self, context: LocalContext | None, _: type) -> Path:
        if context is None:
            return _ON_DEMAND  # the field's default
        if context._folder is _ON_DEMAND:
            context._folder = Path(tempfile.mkdtemp(prefix="cyxwiz-artifacts-"))
        return context._folder

    def __set__(self, context: LocalContext, folder: Path) -> None:
        context._folder = folder


#: stands for a folder that nobody has asked for yet
_ON_DEMAND = Path()


@dataclass(repr=False)
class LocalContext:
    """The same for a job that is called directly, without any service: reports are kept, and given to `on_report`."""

    job_id: str = "local"
    attempt: int = 1
    device: str = "cpu"
    threads: int = 1
    artifacts: _FolderOnDemand = _FolderOnDemand()
    cache: Path = field(default_factory=lambda: Path(tempfile.gettempdir()) / f"cyxwiz-cache-{os.getuid()}")
    data_roots: tuple[Path, ...] = field(default_factory=lambda: (Path.cwd(),))
    rank: int = 0
    nodes: tuple[str, ...] = ("local",)
    should_stop: bool = False
    on_report: Callable[[dict[str, Any]], None] | None = None
    reports: list[dict[str, Any]] = field(default_factory=list)
    #: behind `artifacts`
    _folder: Path = field(init=False)

    @property
    def world_size(self) -> int:
        return len(self.nodes)

    def report(self, **values: Any) -> None:
        """Keep the values as a node would send them. Raises what `JobContext.report` raises."""
        sent = json.loads(progress_frame(values))["values"]
        self.reports.append(sent)
        if self.on_report is not None:
            self.on_report(sent)

    def checkpoint(self, *, step: int, **state: Any) -> bool:
        """Save into `checkpoints` below the artifacts. Returns and raises what `JobContext.checkpoint` does."""
        try:
            self._checkpoints.save(step, state)
        except OSError as error:
            self.log(not_saved(step, error))
            return False
        return True

    def restore(self) -> dict[str, Any] | None:
        """What `checkpoint` saved last into these artifacts, or None."""
        return self._checkpoints.load()

    def log(self, *values: Any) -> None:
        """A line on standard output."""
        print(*values, flush=True)  # noqa: T201

    @property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.artifacts / "checkpoints", self.attempt, self.log)


def _made(folder: Path) -> Path:
    # Not before somebody wants it: folders that most short jobs never use took 0.3 ms of their start.
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderUnusable(error.errno, f"the node's folder cannot be made: {error.strerror}", str(folder)) from error
    return folder


def not_saved(step: int, error: OSError) -> str:
    """The line in the log for a checkpoint that could not be written."""
    return f"checkpoint of step {step} not saved ({error}); the one before it is kept, and the job goes on"


def progress_frame(values: dict[str, Any]) -> bytes:
    """The frame `progress`, with the time of the report. Numbers that are not finite become "nan", "inf", "-inf"."""
    try:
        text = json.dumps(values, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError):
        text = json.dumps(
            {name: _plain(name, value) for name, value in values.items()}, allow_nan=False, ensure_ascii=False
        )
    if len(text) > REPORT_LIMIT_BYTES:
        raise ValueError(
            f"report of {len(text)} bytes, more than {REPORT_LIMIT_BYTES}: write what is large into ctx.artifacts"
        )
    # PostgreSQL stores no NUL characters.
    text = text.replace("\\u0000", "\\ufffd")
    return f'{{"kind":"progress","at":{time.time():.6f},"values":{text}}}'.encode("utf-8", "replace")


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, float):
        # JSON has no such numbers, and a diverged loss must not end the training.
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(f"{name}.{key}", inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, inner) for inner in value]
    if getattr(value, "size", None) == 1 or (hasattr(value, "numel") and value.numel() == 1):
        return _plain(name, value.item())
    raise TypeError(f"report: {name} is a {type(value).__name__}: give a number, a text or a list of them")
