"""What one attempt saves on its way to the artifact store, and what an earlier one saved on its way here.

A thread of its own sends each new checkpoint while the job goes on. Without a store nothing is sent: checkpoints and
artifacts stay in the node's home, and the next attempt finds them if it runs on the same one.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cyxwiz_tasks.checkpoints.generations import PARTIAL, Generation, generations
from cyxwiz_tasks.checkpoints.manifest import NotWhole, check_whole
from cyxwiz_tasks.protocol.headers import Assignment
from workers.artifact_store import ArtifactStore

log = logging.getLogger(__name__)

#: How long a job's end waits for the store: one that goes on from there or hands over a result, and any other.
_PATIENCE_SECONDS, _LITTLE_PATIENCE_SECONDS = 300.0, 20.0
_LONGEST_PAUSE_SECONDS = 10.0


class AttemptArtifacts:
    """Told by the attempt's own thread; sends in another, which is started with the first checkpoint."""

    def __init__(
        self,
        store: ArtifactStore | None,
        assignment: Assignment,
        *,
        artifacts: Path,
        checkpoints: Path,
        staging: Path,
        stopping: Callable[[], bool],
    ) -> None:
        """`staging` is a folder, best on the same disk; `stopping` says whether the node stops."""
        self._store, self._assignment, self._stopping = store, assignment, stopping
        self._artifacts, self._checkpoints, self._staging = artifacts, checkpoints, staging
        self._changed = threading.Condition()
        self._next: Path | None = None
        self._thread: threading.Thread | None = None
        self._ended_at: float | None = None
        self._is_patient = self._wants_artifacts = False
        self._unsent: Exception | None = None
        self._saved = False

    def checkpoint(self, frame: dict[str, Any]) -> None:
        """The job has saved a checkpoint, or could not."""
        if "error" in frame:
            log.warning("job %s: checkpoint of step %s not saved: %s", self._job, frame["step"], frame["error"])
        elif self._store is not None:
            self._saved = True
            self._stage(Path(frame["folder"]))

    def owed(self, outcome: str) -> str | None:
        """Under which name the store must have artifacts of an attempt that ends so; None: it needs none."""
        ends_job = outcome in ("completed", "failed", "cancelled")
        return self._key if self._store is not None and ends_job and holds_any(self._artifacts) else None

    def finish(self, outcome: str) -> str | None:
        """The job has ended: wait until all is in the store. Returns what is not, in words for its log."""
        if self._store is None:
            return None
        with self._changed:
            self._ended_at = time.monotonic()
            self._is_patient = outcome in ("completed", "preempted", "retry")
            self._wants_artifacts = self.owed(outcome) is not None
            self._changed.notify()
        if self._thread is None and not self._wants_artifacts:
            return None
        thread = self._started()
        while thread.is_alive() and not self._gives_up():
            thread.join(0.1)
        shutil.rmtree(self._staging, ignore_errors=True)
        if not thread.is_alive() and self._unsent is None:
            return None
        what = "artifacts are" if self._wants_artifacts else "last checkpoint is"
        return f"The {what} on this node alone, in {self._artifacts.parent}: the artifact store failed ({self._unsent})"

    def forget_checkpoints(self) -> None:
        """The job is over for good."""
        may_be_there = self._saved or self._assignment.attempt > 1
        forget_checkpoints(self._store if may_be_there else None, self._job, self._checkpoints)

    @property
    def _job(self) -> str:
        return self._assignment.job

    @property
    def _key(self) -> str:
        return f"{self._job}/{self._artifacts.name}"

    def _stage(self, folder: Path) -> None:
        """Keep the files by links of our own: the job may remove them before a slow store has them."""
        staged = self._staging / folder.name
        try:
            shutil.copytree(folder, staged, copy_function=_link_or_copy)
        except OSError as error:
            log.warning("job %s: checkpoint %s was gone before it was sent: %s", self._job, folder, error)
            return
        with self._changed:
            if self._next is not None:
                shutil.rmtree(self._next, ignore_errors=True)
            self._next = staged
            self._changed.notify()
        self._started()

    def _started(self) -> threading.Thread:
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_all, name="cyxwiz-artifacts", daemon=True)
            self._thread.start()
        return self._thread

    def _send_all(self) -> None:
        assert self._store is not None
        store, token = self._store, self._assignment.token
        while (staged := self._take()) is not None:
            key = f"{self._job}/checkpoints/{token}/{staged.name}"

            def send(staged: Path = staged, key: str = key) -> None:
                store.push(staged, key)
                store.prune(self._job, token)

            self._try("a checkpoint", send)
            shutil.rmtree(staged, ignore_errors=True)
        if self._wants_artifacts:
            self._try("artifacts", lambda: store.push(self._artifacts, self._key))

    def _take(self) -> Path | None:
        """The newest checkpoint to send, waiting for one; None once the job has ended and all were taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._next is not None or self._ended_at is not None)
            staged, self._next = self._next, None
            return staged

    def _try(self, what: str, send: Callable[[], object]) -> None:
        """Until it is sent, is replaced by a newer one, or time is over."""
        for pause_seconds in _pauses():
            try:
                send()
                self._unsent = None
                return
            except Exception as error:  # of whatever file system it is
                self._unsent = error
                log.warning("job %s: %s could not be sent to the artifact store: %s", self._job, what, error)
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._gives_up(), pause_seconds)
            if self._next is not None or self._gives_up():
                return

    def _gives_up(self) -> bool:
        if self._ended_at is None:
            return False
        is_patient = self._is_patient and not self._stopping()
        return time.monotonic() - self._ended_at >= (_PATIENCE_SECONDS if is_patient else _LITTLE_PATIENCE_SECONDS)


def forget_checkpoints(store: ArtifactStore | None, job: str, here: Path) -> None:
    """Remove those of a job that is over, from this disk and from the store, for which nobody waits."""
    shutil.rmtree(here, ignore_errors=True)

    def remove() -> None:
        assert store is not None
        try:
            store.remove(f"{job}/checkpoints")
        except Exception as error:  # of whatever file system it is
            log.warning("job %s: its checkpoints could not be removed from the artifact store: %s", job, error)

    if store is not None:
        try:
            threading.Thread(target=remove, name="cyxwiz-artifacts", daemon=True).start()
        except RuntimeError as error:  # no thread left
            log.warning("job %s: its checkpoints stay in the artifact store: %s", job, error)


def fetch_checkpoint(
    store: ArtifactStore,
    assignment: Assignment,
    root: Path,
    *,
    patience_seconds: float,
    given_up: Callable[[], bool],
    found: Callable[[], None],
) -> Exception | None:
    """Bring the newest whole checkpoint of a job here, if a newer one is in the store than on this disk.

    `found` is called once the store is known to hold any, before one is checked or fetched, which may take long. What
    it raises counts as the store's error, which is returned if the store failed for too long.
    """
    gives_up_at = time.monotonic() + patience_seconds
    for pause_seconds in _pauses():
        try:
            _fetch_newest(store, assignment, root, found)
        except Exception as error:  # of whatever file system it is
            log.warning("job %s: its checkpoint could not be fetched: %s", assignment.job, error)
            if given_up() or time.monotonic() >= gives_up_at:
                return error
        else:
            return None
        time.sleep(max(0.0, min(pause_seconds, gives_up_at - time.monotonic())))
    return None


def arrived(root: Path) -> int:
    """How many bytes of checkpoints that are being fetched are here."""
    found = 0
    for path in root.glob(f"*/*{PARTIAL}/*"):
        with suppress(OSError):
            found += path.stat().st_size
    return found


def _fetch_newest(store: ArtifactStore, assignment: Assignment, root: Path, found: Callable[[], None]) -> None:
    stored = store.generations(assignment.job, assignment.token)
    if not stored:
        return
    found()
    here, missing = _newest_whole(root, assignment.token), None
    for generation in stored:
        if here is not None and generation[:2] <= here[:2]:
            return
        try:
            store.fetch(assignment.job, generation, root)
        except NotWhole as error:
            log.warning("job %s: checkpoint %s in the artifact store: %s", assignment.job, generation.name, error)
        except FileNotFoundError as error:
            missing = error  # a zombie has removed it, which has newer ones for it
        else:
            return
    if missing is not None:
        raise missing


def _newest_whole(root: Path, token: int) -> Generation | None:
    for generation in generations(root, token):
        try:
            check_whole(generation.folder)
        except NotWhole:
            continue
        return generation
    return None


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # `artifacts` is a volume of its own, or on a file system without links.
        shutil.copyfile(source, target)


def holds_any(folder: Path) -> bool:
    """Whether there is anything to send: nothing is where its job has closed it to us."""
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _pauses() -> Iterator[float]:
    pause_seconds = 0.2
    while True:
        yield pause_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads the nodes
        pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)
