"""The order of waiting jobs, whatever is added, cancelled, taken or put back."""

import sys
import tracemalloc

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from broker.scheduler.backlog import Backlog, Queue, Waiting
from broker.scheduler.position import ahead_of
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority
from tests.property_size import examples

SHAPES = [Resources(), Resources(cpus=1), Resources(gpus=1)]


def _take(backlog: Backlog) -> Waiting:
    return backlog.pop(next(iter(backlog)))


def _order(backlog: Backlog) -> list[str]:
    found = []
    while queue := next(iter(backlog), None):
        found.append(backlog.pop(queue).job_id)
    return found


def test_priority_comes_first_then_the_oldest() -> None:
    backlog = Backlog()
    for number, (priority, shape) in enumerate(
        [(Priority.LOW, 0), (Priority.HIGH, 1), (Priority.NORMAL, 0), (Priority.HIGH, 0), (Priority.CRITICAL, 2)]
    ):
        backlog.add(Waiting(f"job-{number}", number, SHAPES[shape], priority))
    assert _order(backlog) == ["job-4", "job-1", "job-3", "job-2", "job-0"]


def test_a_job_that_comes_back_takes_its_old_place() -> None:
    backlog = Backlog()
    for number in range(4):
        backlog.add(Waiting(f"job-{number}", number, SHAPES[0], Priority.NORMAL))
    first, second = _take(backlog), _take(backlog)
    backlog.add(second)
    backlog.add(first)
    assert _order(backlog) == ["job-0", "job-1", "job-2", "job-3"]


def test_a_job_waits_once() -> None:
    backlog = Backlog()
    job = Waiting("job", 1, SHAPES[0], Priority.NORMAL)
    assert backlog.add(job)
    assert not backlog.add(job)
    assert len(backlog) == 1


def test_cancelling_what_does_not_wait_changes_nothing() -> None:
    backlog = Backlog()
    assert not backlog.remove("job")
    with pytest.raises(LookupError):
        Queue(SHAPES[0], Priority.NORMAL).pop()


def test_jobs_ahead_are_counted_over_all_shapes() -> None:
    backlog = Backlog()
    for number in range(3000):
        backlog.add(Waiting(f"job-{number}", number, SHAPES[number % 2], Priority.NORMAL))
    backlog.add(Waiting("urgent", 5000, SHAPES[2], Priority.HIGH))
    for number in range(0, 1000, 2):
        backlog.remove(f"job-{number}")
    # 499 of the first 999 are left, and the urgent one
    assert ahead_of(backlog, Priority.NORMAL, 999).jobs == 500
    assert ahead_of(backlog, Priority.NORMAL).jobs == 2501
    assert ahead_of(backlog, Priority.HIGH, 5000).jobs == 0
    assert ahead_of(backlog, Priority.LOW, 0).jobs == 2501


def test_a_waiting_job_costs_less_than_200_bytes_with_its_id() -> None:
    tracemalloc.start()
    backlog = Backlog()
    for number in range(100_000):
        backlog.add(Waiting(f"01890000-0000-7000-8000-{number:012d}", number, SHAPES[number % 3], Priority.NORMAL))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sys.getsizeof(f"{0:036d}") == 85
    assert used / 100_000 < 200


class BacklogMachine(RuleBasedStateMachine):
    """Against a plain dictionary that is sorted anew each time."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog()
        self.model: dict[str, Waiting] = {}
        self.number = 0

    @rule(target=jobs, shape=st.sampled_from(SHAPES), priority=st.sampled_from(Priority))
    def submit(self, shape: Resources, priority: Priority) -> Waiting:
        self.number += 1
        job = Waiting(f"job-{self.number}", self.number, shape, priority)
        assert self.backlog.add(job)
        self.model[job.job_id] = job
        return job

    @rule(job=jobs)
    def put_back(self, job: Waiting) -> None:
        assert self.backlog.add(job) == (job.job_id not in self.model)
        self.model[job.job_id] = job

    @rule(job=consumes(jobs))
    def cancel(self, job: Waiting) -> None:
        assert self.backlog.remove(job.job_id) == (self.model.pop(job.job_id, None) is not None)

    @rule(position=st.integers(0, 3))
    def take(self, position: int) -> None:
        if position < self.backlog.kinds:
            queue = list(self.backlog)[position]
            mine = [
                job for job in self.model.values() if (job.resources, job.priority) == (queue.resources, queue.priority)
            ]
            job = self.backlog.pop(queue)
            assert job == min(mine, key=lambda job: job.sequence)
            del self.model[job.job_id]

    @invariant()
    def agrees(self) -> None:
        assert len(self.backlog) == len(self.model)
        heads: dict[tuple[str, Priority], Waiting] = {}
        for job in sorted(self.model.values(), key=lambda job: job.sequence):
            heads.setdefault((job.resources.shape, job.priority), job)
        expected = sorted(heads.values(), key=lambda job: (-job.priority.rank, job.sequence))
        assert [queue.head for queue in self.backlog] == [(job.sequence, job.job_id) for job in expected]
        for job in self.model.values():
            assert self.backlog.find(job.job_id) == job


TestBacklogMachine = BacklogMachine.TestCase
TestBacklogMachine.settings = settings(max_examples=examples(100), stateful_step_count=40, deadline=None)
