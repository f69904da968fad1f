"""A Celery pool with one thread and one process of its own for each job: `worker_pool="workers.pool:WarmProcessPool"`.

The process is taken before Celery is told that the job was accepted, so the pid that `revoke(terminate=True)`,
`inspect` and Flower know is the job's own.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult, TaskPool

from workers.handover import Handover
from workers.job_environment import job_environment
from workers.node import node_of
from workers.registration import say_stopping
from workers.warm_process import ForkFailed, ForkServer, WarmProcess

log = logging.getLogger(__name__)

_SURVIVORS_SECONDS = 5.0
_RETRY_SECONDS = (0.1, 0.5, 2.0, 10.0)


class _Current(threading.local):
    process: WarmProcess
    handover: Handover


#: the process that this thread of the pool has taken, and the job for it
current = _Current()


class WarmProcessPool(TaskPool):  # type: ignore[misc]
    """At most `limit` jobs at a time; one process more than that exists, so that a place is warm when it frees."""

    def on_start(self) -> None:
        self._node = node_of(self.app)
        environment = job_environment(os.environ, self._node.threads_per_job)
        paths = self._node.paths
        self._server = ForkServer(environment, mark=self._node.id, code_paths=paths.code, preload=paths.preload)
        self._waiting: queue.SimpleQueue[WarmProcess | None] = queue.SimpleQueue()
        self._wanted = threading.Semaphore(0)
        self._closing = threading.Event()
        for _ in range(self.limit):
            self._waiting.put(self._server.fork())
        self._wanted.release()
        self._refiller = threading.Thread(target=self._refill, name="cyxwiz-refill", daemon=True)
        self._refiller.start()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        **_: Any,
    ) -> ApplyResult:
        _, _, request, body, *_ = args
        handover = Handover(self._node, request, body)
        taken = self._take_at_once() if handover.is_quick() else None
        if taken is not None:
            handover.give(taken)

        def run() -> None:
            process = taken or self._take()
            current.process, current.handover = process, handover
            try:
                handover.give(process)
                apply_target(target, args, kwargs, callback, accept_callback, pid=process.pid)
            finally:
                # For an attempt that never came to it; one that did has ended its tree by now.
                handover.close()
                self._settle(handover)
                process.end_tree()
                self._wait_for_survivors(process)
                process.close()
                self._wanted.release()

        return ApplyResult(self.executor.submit(run))

    def _wait_for_survivors(self, process: WarmProcess) -> None:
        """The slot and its GPU are not free while somebody of the last job's lives."""
        while (survivors := process.survivors()) and not self._closing.wait(_SURVIVORS_SECONDS):
            log.error(
                "processes %s of process %d's job hang in the kernel: its slot stays taken", survivors, process.pid
            )

    def _settle(self, handover: Handover) -> None:
        """Redis took nothing when Celery told of the end, or a callback could not be sent: the scheduler will do it."""
        if handover.owed is not None:
            log.warning("job %s: Celery could not be told of its end: the scheduler does it", handover.owed.job)
            self._node.courier.deliver(handover.owed, confirmed=True)

    def on_stop(self) -> None:
        """Give back the places of running jobs, and end every process."""
        self._closing.set()
        grace_seconds = self._node.settings.preempt_grace_seconds
        jobs = self._node.attempts.preempt_all(grace_seconds)
        say_stopping(self._node)
        log.info("node %s stops: %d jobs give their places back, within %g s", self._node.name, jobs, grace_seconds)
        for _ in range(self.limit):
            self._waiting.put(None)
        # Not Celery's own way, which drops what no thread has begun: its process may have its job already.
        self.executor.shutdown()
        self._wanted.release()
        self._refiller.join()
        self._server.stop()

    def on_terminate(self) -> None:
        self.on_stop()

    def _take(self) -> WarmProcess:
        """The next process, waiting for one. Raises ForkFailed once the node stops."""
        while (process := self._waiting.get()) is not None:
            if self._is_usable(process):
                return process
        raise ForkFailed("the node stops")

    def _take_at_once(self) -> WarmProcess | None:
        """The next process, if one is warm."""
        with suppress(queue.Empty):
            while (process := self._waiting.get_nowait()) is not None:
                if self._is_usable(process):
                    return process
        return None

    def _is_usable(self, process: WarmProcess) -> bool:
        if not process.has_ended():
            return True
        log.warning("waiting process %d ended with %d", process.pid, process.read_exit_code())
        process.end_tree()
        process.close()
        self._wanted.release()
        return False

    def _refill(self) -> None:
        failures = 0
        while True:
            self._wanted.acquire()
            while not self._closing.is_set():
                try:
                    self._waiting.put(self._server.fork())
                    failures = 0
                    break
                except ForkFailed as error:
                    log.error("%s", error)
                    self._closing.wait(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                    failures += 1
            if self._closing.is_set():
                return
