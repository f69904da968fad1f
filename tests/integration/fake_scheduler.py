"""Answers a node as a scheduler would, and keeps what it heard: for tests of a node alone, without a record."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import redis

from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.headers import Assignment
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, INBOX, REPORTS, control_key, node_queue
from cyxwiz_tasks.protocol.reports import REPORT, Ended, Register, ReportReply


class FakeScheduler:
    """Places everything on the node that registered last. Use as a context manager."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url)
        self.reports: list[Any] = []
        self.assignments: dict[str, Assignment] = {}
        self.node: Register | None = None
        #: whether the end of an attempt is confirmed as its job's current one
        self.commits: Callable[[Ended], bool] = lambda _: True
        self.answers = True
        #: fields of every assignment
        self.changes: dict[str, Any] = {}
        self._quiet = threading.Event()
        self._tokens = itertools.count(1)
        self._stopping = threading.Event()
        steps = (self._take_report, self._take_job)
        self._threads = [threading.Thread(target=self._repeat, args=(step,), daemon=True) for step in steps]

    def __enter__(self) -> FakeScheduler:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(5)
        self.client.close()

    @property
    def secrets(self) -> list[str]:
        """What must not appear where jobs can see it."""
        arguments = self.client.connection_pool.connection_kwargs
        return [str(arguments["password"])] if arguments.get("password") else []

    def of(self, kind: str, job: str | None = None) -> list[Any]:
        """Reports of a kind, oldest first."""
        return [r for r in list(self.reports) if r.kind == kind and (job is None or r.job == job)]

    def wait_for(self, kind: str, job: str | None = None, seconds: float = 20.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := self.of(kind, job)):
            assert time.monotonic() < end, f"no {kind} of {job} within {seconds} s, only {self.reports}"
            time.sleep(0.005)
        return found[-1]

    def fall_silent(self) -> None:
        """Answer nothing until `answers` is True again."""
        self.answers = False
        assert self._quiet.wait(5)

    def stop_job(self, job: str, outcome: str = "cancelled", grace_seconds: float = 2.0) -> None:
        assert self.node is not None
        given = self.assignments[job]
        stop = Stop(job=job, token=given.token, outcome=outcome, grace_seconds=grace_seconds)
        self.client.lpush(control_key(self.node.node), stop.model_dump_json())

    def assign(self, job: str, **changes: Any) -> Assignment:
        """A placement of this job on the node."""
        assert self.node is not None
        facts = {"node": self.node.node, "incarnation": self.node.incarnation, "attempt": 1, "epoch": 1}
        facts |= self.changes | changes
        self.assignments[job] = given = Assignment(job=job, token=next(self._tokens), **facts)
        return given

    def publish(self, raw: bytes, **changes: Any) -> None:
        """Send a message from the inbox on to the node."""
        message = json.loads(raw)
        given = self.assign(message["headers"]["id"], **changes)
        message["headers"][ASSIGNMENT_HEADER] = given.model_dump()
        message["properties"]["delivery_info"] = {"exchange": "", "routing_key": node_queue(given.node)}
        self.client.lpush(node_queue(given.node), json.dumps(message))

    def _repeat(self, step: Callable[[], bool]) -> None:
        while not self._stopping.is_set():
            try:
                if not step():
                    self._stopping.wait(0.02)
            except redis.RedisError:
                self._stopping.wait(0.1)

    def _take_report(self) -> bool:
        self._quiet.clear()
        if not self.answers:
            self._quiet.set()
            return False
        if (taken := self.client.brpop([REPORTS], timeout=0.2)) is None:
            return True
        report = REPORT.validate_json(taken[1])
        if isinstance(report, Register):
            self.node = report
        committed = self.commits(report) if isinstance(report, Ended) else True
        # Before the answer: what a node does upon it, a test must find here.
        self.reports.append(report)
        if committed and isinstance(report, Ended) and report.retry is not None:
            self.client.lpush(INBOX, report.retry)
        if getattr(report, "reply_to", None):
            final = not isinstance(report, Ended) or report.outcome not in ("preempted", "retry")
            self.client.lpush(report.reply_to, ReportReply(committed=committed, final=final).model_dump_json())
            self.client.expire(report.reply_to, 60)
        return True

    def _take_job(self) -> bool:
        if self.node is None:
            return False
        if (taken := self.client.brpop([INBOX], timeout=0.2)) is not None:
            self.publish(taken[1])
        return True
