"""Give a job to its warm process: the shortest way from a message to the first line of the job's function.

The thread that reads messages does this itself. Waking another one first took half a millisecond, and what else an
attempt needs (its log, its reports, Celery's events) can be made while the process imports the job's module.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import redis
from celery.app.task import Context
from celery.exceptions import Ignore
from pydantic import ValidationError

from cyxwiz_tasks import failpoints
from cyxwiz_tasks.errors import ProtocolError
from cyxwiz_tasks.protocol.headers import Assignment, JobHeader, Membership
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, HEADER, REPORTS
from cyxwiz_tasks.protocol.reports import Ended, Process, Started
from cyxwiz_tasks.runtime.pipe import Frame
from workers.attempt_artifacts import arrived, fetch_checkpoint
from workers.attempts import StopRequest
from workers.link import gone_seconds
from workers.meeting import NotMet, arrange
from workers.near_cores import chosen, keep_on
from workers.node import Node
from workers.warm_process import WarmProcess

log = logging.getLogger(__name__)

#: Of the request, what `self.request` and `self.retry()` look at in the job's process. The rest is in the body.
_REQUEST_FIELDS = (
    *("id", "task", "root_id", "parent_id", "group", "group_index", "retries", "headers", "correlation_id", "reply_to"),
    *("delivery_info", "hostname", "ignore_result", "origin", "shadow", "timelimit", "replaced_task_nesting"),
)
#: What fits into the buffer of an empty socket, so that sending it never waits for the process.
_AT_ONCE_BYTES = 64 * 1024
#: How often a checkpoint on its way is looked at, and how long nothing of it may come: a big one is checked at its end.
_LOOK_SECONDS, _SILENCE_SECONDS = 0.1, 300.0
#: A store that has not said what it holds by then is slow or hangs. The scheduler must hear within its minute that this
#: node has the job, or it takes the node for one that starts nothing.
_TELL_SECONDS = 20.0
#: What a store that was asked in time may still take to answer, or to fail: it gives the better reason.
_ANSWER_SECONDS = 10.0


class Handover:
    """One job on its way to its process. `refusal` is what its task raises instead of running, if it must not run."""

    assignment: Assignment
    header: JobHeader

    def __init__(self, node: Node, request: dict[str, Any], body: Any) -> None:
        self._node, self._request, self._body = node, request, body if isinstance(body, str) else body.decode()
        self.refusal: Exception | None = None
        #: whether the process has the job, or would have it if it had not just died
        self.given = False
        self.arrived_at = self.given_at = time.monotonic()
        #: the end that the record has, as long as Celery does not know of it
        self.owed: Ended | None = None
        #: why the checkpoint that the job must go on from is not here
        self.not_fetched: Exception | None = None
        self._is_fetched = self._is_found = False
        self._said_started = False
        #: of a gang's member: what its process is told of the others, or why it cannot be
        self._gang: Frame | None = None
        self.not_met: NotMet | None = None
        self.stop_request = StopRequest()
        try:
            self.assignment, self.header = _read_headers(request)
            _refuse_if_not_ours(node, self.assignment)
            _refuse_if_too_late(node, self.assignment, self.header)
        except (ProtocolError, Ignore) as error:
            self.refusal = error
            return
        if not node.attempts.enter(self.assignment.job, self.assignment.token, self.stop_request):
            log.info("job %s: its message came a second time", self.assignment.job)
            self.refusal = Ignore()
            return
        failpoints.hit("agent.after_accept")

    def is_quick(self) -> bool:
        """Whether `give` cannot wait."""
        waits = self._may_have_checkpoint or (self.refusal is None and self.assignment.gang is not None)
        return len(self._body) <= _AT_ONCE_BYTES and not waits

    def give(self, process: WarmProcess) -> None:
        """Send the job, unless it must not run or was stopped before it came so far."""
        if self.given or self.refusal is not None or self.stop_request.asked is not None:
            return
        if self._may_have_checkpoint and not self._fetch_checkpoint(process):
            return
        if self.assignment.gang is not None and not self._meet(self.assignment.gang):
            return
        failpoints.hit("agent.before_handover")
        self._keep_near_its_gpus(process)
        self.given, self.given_at = True, time.monotonic()
        try:
            process.give(self._frame())
        except OSError:
            return  # it has just died: supervise sees why

    def _keep_near_its_gpus(self, process: WarmProcess) -> None:
        node, cpus = self._node, self.header.resources.cpus
        if not cpus or not self.assignment.gpus or not hasattr(os, "sched_setaffinity"):
            return
        near, allowed = node.gpus.near_cores(self.assignment.gpus), frozenset(os.sched_getaffinity(0))
        if cores := chosen(cpus, near, allowed, node.capability.cpu_cores):
            keep_on(process.pid, cores)

    def told(self) -> None:
        """Celery knows of the attempt's end, and what waited for that has been sent on its way."""
        if self.owed is not None:
            self._node.journal.told(self.owed.token)
            self.owed = None

    def close(self) -> None:
        """The attempt is over, or never began."""
        if self.refusal is None:
            self._node.attempts.leave(self.assignment.token)
        self.stop_request.close()

    @property
    def _may_have_checkpoint(self) -> bool:
        """Whether an earlier attempt may have left one in the artifact store."""
        return self.refusal is None and self._node.artifact_store is not None and self.assignment.attempt > 1

    def _say_started(self, process: WarmProcess) -> None:
        """Ahead of the attempt's other reports: a big checkpoint takes longer than a node may take to start a job."""
        if self._said_started:
            return
        self._said_started = True
        runs = Process(pid=process.pid, device=self._node.device_of(self.assignment))
        report = Started(**self.assignment.identity, **runs.model_dump())
        self._node.attempts.started(self.assignment.token, runs)
        try:
            self._node.redis.lpush(REPORTS, report.model_dump_json())
        except redis.RedisError as error:
            log.warning("job %s: that it has started could not be told: %s", self.assignment.job, error)

    def _fetch_checkpoint(self, process: WarmProcess) -> bool:
        """False: the job must not start, because it was stopped meanwhile or the store fails."""
        checkpoints = self._node.checkpoints_path(self.assignment.job)
        # In a thread of its own: nobody can interrupt a store, and a stop does not wait for it.
        fetching = threading.Thread(target=self._fetch, args=(checkpoints, process), name="cyxwiz-fetch", daemon=True)
        fetching.start()
        began_at = grew_at = time.monotonic()
        arrived_bytes = 0
        while fetching.is_alive() and not self._given_up():
            fetching.join(_LOOK_SECONDS)
            now, patience_seconds = time.monotonic(), self._fetch_patience_seconds
            if now - began_at > _TELL_SECONDS:
                self._say_started(process)
            if (here_bytes := arrived(checkpoints)) != arrived_bytes:
                arrived_bytes, grew_at = here_bytes, now
            elif now - grew_at > patience_seconds:
                self.not_fetched = TimeoutError(f"nothing of it came for {patience_seconds:g} s")
                return False
        return self._is_fetched and self.stop_request.asked is None

    @property
    def _fetch_patience_seconds(self) -> float:
        asked_seconds = self._node.settings.fetch_checkpoint_seconds
        patience_seconds = asked_seconds + _ANSWER_SECONDS
        return max(_SILENCE_SECONDS, patience_seconds) if self._is_found else patience_seconds

    def _fetch(self, checkpoints: Path, process: WarmProcess) -> None:
        node = self._node
        assert node.artifact_store is not None
        error = fetch_checkpoint(
            node.artifact_store,
            self.assignment.model_copy(update={"token": self._readable_token}),
            checkpoints,
            patience_seconds=node.settings.fetch_checkpoint_seconds,
            given_up=self._given_up,
            found=lambda: self._found(process),
        )
        # One that was given up may come all the same.
        if self.not_fetched is None:
            self.not_fetched, self._is_fetched = error, error is None

    def _found(self, process: WarmProcess) -> None:
        if self.not_fetched is not None or self._given_up():
            # The store was slow. Another attempt may be here by now, and go on from what this one would replace.
            raise TimeoutError("nobody waits for it any more")
        self._is_found = True
        self._say_started(process)

    def _meet(self, member: Membership) -> bool:
        """False: the job must not start, because it was stopped meanwhile or nobody knows where to meet."""
        try:
            self._gang = arrange(self._node.redis, member, self._given_up)
        except NotMet as error:
            log.warning("job %s: %s", self.assignment.job, error)
            self.not_met = error
        return self._gang is not None and self.stop_request.asked is None

    def _given_up(self) -> bool:
        return self._node.stopping or self.stop_request.asked is not None

    @property
    def _readable_token(self) -> int:
        """Up to which attempt's checkpoints the job may read. All of a gang begin with what was there before it."""
        gang = self.assignment.gang
        return gang.token - 1 if gang is not None and gang.rank else self.assignment.token

    def _frame(self) -> Frame:
        node, assignment, header = self._node, self.assignment, self.header
        gpus = node.gpu_uuids_of(assignment)
        return {
            "kind": "run",
            "task": self._request["task"],
            "entry": header.entry,
            "paths": node.code_paths(header),
            "node": node.name,
            "job": assignment.job,
            "attempt": assignment.attempt,
            "device": node.device_of(assignment),
            "gpus": gpus,
            "gpu_share_bytes": assignment.gpu_share_bytes if gpus else None,
            "threads": node.threads_per_job,
            "folder": str(node.folder.attempt_path(assignment.token)),
            "token": self._readable_token,
            "gang": self._gang,
            "artifacts": str(node.artifacts_path(assignment)),
            "checkpoints": str(node.checkpoints_path(assignment.job)),
            "cache": str(node.cache_path),
            "data_roots": node.data_roots(header),
            "result_limit_bytes": node.settings.result_limit_bytes,
            "lease_until": node.link.heard_at + gone_seconds(node.settings) if header.exclusive else None,
            "request": self._request_fields(),
            "body": self._body,
        }

    def _request_fields(self) -> dict[str, Any]:
        context = Context(self._request)
        fields = {name: context.get(name) for name in _REQUEST_FIELDS}
        fields["headers"] = {**(fields["headers"] or {}), HEADER: self._request.get(HEADER)}
        # Then self.retry() raises without publishing: the process has no broker, the agent does it.
        return fields | {"is_eager": True, "called_directly": False}


def _read_headers(request: dict[str, Any]) -> tuple[Assignment, JobHeader]:
    try:
        assignment = Assignment.model_validate(request.get(ASSIGNMENT_HEADER))
        return assignment, JobHeader.model_validate(request.get(HEADER) or {})
    except ValidationError as error:
        raise ProtocolError(
            f"message {request.get('id')} did not come through the scheduler: its header {ASSIGNMENT_HEADER} or "
            f"{HEADER} cannot be read ({error.errors()[0]['msg']}). Send jobs to the inbox, never to a node's own queue"
        ) from None


def _refuse_if_not_ours(node: Node, assignment: Assignment) -> None:
    """A message from before this node's start, or for another node: its attempt is lost already."""
    if (assignment.node, assignment.incarnation) != (node.id, node.incarnation) or node.stopping:
        log.info("job %s: its message is for an earlier start of a node, or this one stops", assignment.job)
        raise Ignore


def _refuse_if_too_late(node: Node, assignment: Assignment, header: JobHeader) -> None:
    """A node that was frozen or cut off finds an exclusive job in its hands that may run elsewhere by now."""
    if header.exclusive and time.monotonic() - node.link.heard_at > gone_seconds(node.settings):
        log.info("job %s: exclusive, and this node has not heard from the broker since it was sent", assignment.job)
        raise Ignore
