"""The jobs of a run, from its seed, and the clients that submit and cancel them, and read some of their results.

What clients did stands in a log as Jepsen keeps it: `invoke`, then `ok`, `fail` (it did not happen), or `info`: nobody
knows whether it happened. A submission that ended as `info` is sent again with the same id, as a user would.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis
from celery import chain
from celery.canvas import Signature

from cyxwiz_tasks import Client, Resources
from cyxwiz_tasks.errors import (
    CyxwizError,
    JobCancelled,
    NotFound,
    SchedulerUnavailable,
    ServerUnavailable,
)
from cyxwiz_tasks.ids import new_id
from tests.chaos.history import URGENT
from tests.chaos.invariants.witness import SAVES_STEPS
from tests.chaos.stack import Journal

#: kinds of jobs and how many of a hundred
MIX = {
    "noop": 42,
    "walk": 24,
    "children": 6,
    "fails": 6,
    "retries": 6,
    "gpu": 2,
    "urgent": 1,
    "cancelled": 5,
    "keyed": 2,
    "train": 1,
    "gang": 1,
    "gang_saves": 1,
    "gang_fails": 1,
    "gang_cancelled": 1,
    "gang_urgent": 1,
}
#: so often comes a job that takes twice as long: no fault shall strike while nothing runs
_PACE_SECONDS = 2.5
#: so long after two that save comes the one for which one of them moves
_SECONDS_UNTIL_SAVED = 2.5
_SUBMITTERS = 4
_SUBMIT_TIMEOUT_SECONDS = 8.0
_TRIES = 12
_RESULT_SHARE = 0.1


@dataclass
class Submission:
    """One job to come. Times are seconds from the start."""

    at: float
    kind: str
    id: str
    #: from this moment on after its submission it is cancelled, if it is one of those
    cancel_after: float | None = None
    #: steps, pause or failures, whatever its kind takes
    numbers: tuple[Any, ...] = ()
    #: the ids of a chain's links, the last one its own
    links: tuple[str, ...] = ()
    key: str | None = None
    #: the node on which it is if there is room
    prefers: str | None = None


def plan_jobs(seed: int, jobs: int, seconds: float) -> list[Submission]:
    """So many jobs, evenly spread over `seconds`; ids are new each time, all else follows from the seed."""
    rng = random.Random(seed + 1)
    kinds, weights = list(MIX), list(MIX.values())
    planned: list[Submission] = []
    pace = 0.0
    while len(planned) < jobs:
        at = len(planned) / jobs * seconds
        if at >= pace:
            pace += _PACE_SECONDS
            planned.append(_paced(at))
            continue
        if rng.random() < 0.02 and len(planned) + 3 <= jobs:
            ids = tuple(new_id() for _ in range(3))
            planned += [Submission(at, "chain", id, links=ids) for id in ids]
            continue
        if rng.random() < 0.02 and len(planned) + 3 <= jobs:
            planned += _in_the_way(rng, at)
            continue
        kind = rng.choices(kinds, weights)[0]
        planned.append(_submission(rng, at, kind))
    return sorted(planned, key=lambda one: one.at)


def _in_the_way(rng: random.Random, at: float) -> Iterator[Submission]:
    """Two that save, on a node each if there is room, and one that finds no node free then: somebody has to move."""
    for node in ("node1", "node2"):
        yield Submission(at, "saves", new_id(), numbers=(SAVES_STEPS, rng.choice((0.25, 0.4))), prefers=node)
    yield Submission(at + _SECONDS_UNTIL_SAVED, "wide", new_id(), numbers=(20, 0.1))


def _paced(at: float) -> Submission:
    return Submission(at, "walk", new_id(), numbers=(20, 2 * _PACE_SECONDS / 20))


def _submission(rng: random.Random, at: float, kind: str) -> Submission:
    made = Submission(at, kind, new_id())
    if kind in ("walk", "gpu", "urgent", "keyed", "gang", "gang_saves", "gang_fails", "gang_urgent"):
        made.numbers = (20, rng.choice((0.02, 0.1, 0.25)))
    elif kind == "train":
        made.numbers = (3, 0.1)
    elif kind in ("cancelled", "gang_cancelled"):
        made.numbers, made.cancel_after = (200, 0.05), rng.uniform(0.0, 2.0)
    elif kind == "retries":
        made.numbers = (rng.randint(1, 3),)
    if kind == "keyed":
        made.key = f"key-{made.id}"
    return made


@dataclass
class Workload:
    """Clients at work. `run()` returns once everything is submitted, or given up, and `faults_over` is set.

    A fault may have to wait for what it strikes: after the plan's jobs more come, so that something runs by then.
    """

    url: str
    plan: Sequence[Submission]
    witness: Path
    mark: str
    log: Journal
    faults_over: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        rng = random.Random(len(self.plan))
        todo: queue.SimpleQueue[Submission] = queue.SimpleQueue()
        for submission in self._heads():
            todo.put(submission)
        with ThreadPoolExecutor(16, "results") as watchers, Client(self.url) as shared:
            while not shared.requests.answered:  # from then on it is waited for
                with suppress(ServerUnavailable, SchedulerUnavailable):
                    shared.status()
                self.stop.wait(0.1)
            began = time.monotonic()
            threads = [
                threading.Thread(target=self._submit_all, args=(todo, began, watchers, shared, rng), daemon=True)
                for _ in range(_SUBMITTERS)
            ]
            threads.append(threading.Thread(target=self._go_on, args=(began,), daemon=True))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _heads(self) -> Iterator[Submission]:
        """Links of a chain are sent as one."""
        for submission in self.plan:
            if not submission.links or submission.id == submission.links[-1]:
                yield submission

    def _submit_all(
        self,
        todo: queue.SimpleQueue[Submission],
        began: float,
        watchers: ThreadPoolExecutor,
        shared: Client,
        rng: random.Random,
    ) -> None:
        with Client(self.url) as client:
            while not self.stop.is_set():
                try:
                    submission = todo.get_nowait()
                except queue.Empty:
                    return
                self.stop.wait(max(0.0, began + submission.at - time.monotonic()))
                if not self._submit(client, submission):
                    continue
                if submission.cancel_after is not None:
                    watchers.submit(self._cancel, shared, submission)
                elif rng.random() < _RESULT_SHARE:
                    watchers.submit(self._result, shared, submission)

    def _go_on(self, began: float) -> None:
        """From the end of the plan on, a job as long as those that keep the pace."""
        pause = began + self.plan[-1].at - time.monotonic()
        with Client(self.url) as client:
            while not self.faults_over.wait(max(0.0, pause)) and not self.stop.is_set():
                self._submit(client, _paced(time.monotonic() - began))
                pause = _PACE_SECONDS

    def _submit(self, client: Client, submission: Submission) -> bool:
        if submission.links:
            return self._send_chain(submission)
        accepted = self._submit_until_known(client, submission)
        if accepted and submission.kind == "keyed":
            # Once more under another id: it must be the job that is there.
            self._submit_until_known(client, replace(submission, id=new_id()))
        return accepted

    def _submit_until_known(self, client: Client, submission: Submission) -> bool:
        def send() -> str:
            return client.submit(self._job(submission), **self._options(submission)).id

        for number in range(_TRIES):
            ended = self._try("submit", submission, send)
            if ended != "info":
                return ended == "ok"
            self.stop.wait(min(0.2 * 2**number, 3.0))
        return False

    def _options(self, submission: Submission) -> dict[str, Any]:
        priority = "critical" if submission.kind in URGENT else "normal"
        options = {"id": submission.id, "idempotency_key": submission.key, "timeout": _SUBMIT_TIMEOUT_SECONDS}
        if submission.prefers is not None:
            options["resources"] = Resources(gpus=1, prefer={f"node={submission.prefers}": 5})
        return options | {"priority": priority}

    def _send_chain(self, submission: Submission) -> bool:
        """By Celery's own means, which do not wait for the record: whether it was accepted nobody knows yet."""
        import chaos_jobs

        first, *rest = submission.links
        signatures = [chaos_jobs.link.s(0, str(self.witness)).set(task_id=first)]
        signatures += [chaos_jobs.link.s(str(self.witness)).set(task_id=id) for id in rest]
        for id in submission.links:
            self.log.write(op="submit", type="invoke", job=id, kind="chain", links=submission.links)
        try:
            chain(*signatures).apply_async()
        except Exception as error:
            self.log.write(op="submit", type="info", job=first, kind="chain", error=type(error).__name__)
            return False
        self.log.write(op="submit", type="info", job=first, kind="chain", sent=True)
        return True

    def _job(self, submission: Submission) -> Signature:
        import chaos_jobs

        tasks = {
            "noop": chaos_jobs.noop,
            "children": chaos_jobs.has_children,
            "fails": chaos_jobs.fails,
            "retries": chaos_jobs.tries_again,
            "gpu": chaos_jobs.walks_on_a_gpu,
            "saves": chaos_jobs.saves_on_a_gpu,
            "wide": chaos_jobs.walks_on_two_gpus,
            "urgent": chaos_jobs.walks_on_two_gpus,
            "train": chaos_jobs.trains,
            "gang": chaos_jobs.walks_together,
            "gang_saves": chaos_jobs.saves_together,
            "gang_fails": chaos_jobs.fails_together,
            "gang_cancelled": chaos_jobs.walks_together,
            "gang_urgent": chaos_jobs.walks_together_on_gpus,
        }
        more = (self.mark,) if submission.kind == "children" else submission.numbers
        return tasks.get(submission.kind, chaos_jobs.walks).s(str(self.witness), *more)

    def _cancel(self, client: Client, submission: Submission) -> None:
        self.stop.wait(submission.cancel_after)
        for number in range(_TRIES):
            if self._try("cancel", submission, lambda: client.cancel(submission.id, "chaos")["state"]) != "info":
                return
            self.stop.wait(min(0.2 * 2**number, 3.0))

    def _result(self, client: Client, submission: Submission) -> None:
        """Wait for it as a user does, over everything that happens meanwhile."""
        handle, op = client.get(submission.id), {"op": "result", "job": submission.id, "kind": submission.kind}
        self.log.write(type="invoke", **op)
        while not self.stop.is_set():
            try:
                value = handle.result(timeout=5)
            except TimeoutError:
                continue  # a look at `stop`; whatever servers do meanwhile, the wait itself outlives
            except JobCancelled:
                self.log.write(type="ok", outcome="cancelled", **op)
            except Exception as error:
                self.log.write(type="ok", outcome="failed", error=f"{type(error).__name__}: {error}"[:300], **op)
            else:
                self.log.write(type="ok", outcome="completed", value=repr(value)[:80], **op)
            return
        self.log.write(type="info", **op)

    def _try(self, op: str, submission: Submission, act: Callable[[], Any]) -> str:
        """Do it and log it; how it ended."""
        fields = {"op": op, "job": submission.id, "kind": submission.kind, "key": submission.key}
        self.log.write(type="invoke", **fields)
        try:
            value = act()
        except (ServerUnavailable, SchedulerUnavailable, redis.RedisError, OSError) as error:
            self.log.write(type="info", error=type(error).__name__, **fields)
            return "info"
        except NotFound as error:
            # Of a cancel: whoever answered has read the record.
            self.log.write(type="fail", error=type(error).__name__, **fields)
            return "fail"
        except CyxwizError as error:
            self.log.write(type="fail", error=f"{type(error).__name__}: {error}"[:300], **fields)
            return "fail"
        self.log.write(type="ok", value=value, **fields)
        return "ok"
