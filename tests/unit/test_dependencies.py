"""What a job comes after: how it is written, and who waits for whom."""

from __future__ import annotations

import pytest

from broker.scheduler.backlog import Waiting
from broker.scheduler.dependencies import Dependencies
from cyxwiz_tasks.dependency import AFTER_LIMIT, parse_after
from cyxwiz_tasks.errors import InvalidJob
from cyxwiz_tasks.handle import JobHandle
from cyxwiz_tasks.ids import new_id
from cyxwiz_tasks.protocol.headers import After
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.states import Priority

A, B = "0198c0de-0000-7000-8000-00000000000a", "0198c0de-0000-7000-8000-00000000000b"
JOB = Waiting("job", 7, Resources(), Priority.NORMAL)


@pytest.mark.parametrize(
    ("written", "means"),
    [
        (A, [(A, "ok")]),
        (f"{A}:fail", [(A, "fail")]),
        (JobHandle(None, A), [(A, "ok")]),
        ((A, "any"), [(A, "any")]),
        ((A, B), [(A, "ok"), (B, "ok")]),
        ([A, (JobHandle(None, B), "fail")], [(A, "ok"), (B, "fail")]),
        ([A.upper(), A], [(A, "ok")]),
        ([], []),
    ],
)
def test_the_forms_of_after(written, means):
    assert parse_after(written) == tuple(After(id=id, kind=kind) for id, kind in means)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("train", "after: 'train' is no job. Write after=handle"),
        ([A, None], "after: 'None' is no job"),
        (f"{A}:fails", "after: 'fails' is no kind of dependency. There are ok, any, fail"),
        ((A, "okay"), "'okay' is no kind"),
        ([new_id() for _ in range(AFTER_LIMIT + 1)], "names 1001 jobs, allowed are 1000"),
    ],
)
def test_what_is_no_dependency(written, told):
    with pytest.raises(InvalidJob) as raised:
        parse_after(written)
    assert told in str(raised.value)


def test_a_job_is_free_after_the_last_of_those_that_it_waits_for():
    waits = Dependencies()
    waits.expect("job", "a")
    waits.expect("job", "b")
    assert waits.hold(JOB, 3.0)
    assert waits.awaited(["x", "b", "a", "b"]) == ["b", "a"]
    assert waits.met("job", "b") is None
    assert "job" in waits
    assert waits.met("job", "a") == (JOB, 3.0)
    assert "job" not in waits
    assert not waits.hold(JOB, None)
    assert waits.awaited(["a", "b"]) == []


def test_a_job_whose_dependencies_are_met_before_it_waits_is_never_held():
    waits = Dependencies()
    waits.expect("job", "a")
    assert waits.met("job", "a") is None
    assert not waits.hold(JOB, None)


def test_one_that_ended_is_not_freed():
    waits = Dependencies()
    waits.expect("job", "a")
    waits.expect("other", "a")
    waits.hold(JOB, None)
    waits.forget("job")
    assert waits.met("job", "a") is None
    assert waits.awaited(["a"]) == ["a"]
    waits.forget("other")
    assert waits.awaited(["a"]) == []
    waits.expect("job", "a")
    waits.hold(JOB, None)
    assert (waits.let_go("job"), waits.let_go("job"), len(waits)) == (True, False, 0)
