"""Jobs that fail and are tried again, or held, on real nodes."""

from __future__ import annotations

import lab_jobs
import pytest

from cyxwiz_tasks.errors import JobFailed


def test_a_job_that_crashes_once_runs_again_and_celery_shows_retry_in_between(laboratory):
    run = lab_jobs.crashes_once.submit()
    states = [update.state for update in run.progress()]
    assert run.result(timeout=30) == 2
    assert states.index("RETRY") < states.index("SUCCESS")
    first, second = run.record()["attempts"]
    assert (first["state"], first["cause"], second["state"]) == ("failed", "crashed", "completed")


def test_only_the_exceptions_that_were_named_are_tried_again_and_so_are_their_subclasses(laboratory):
    again, never = lab_jobs.raises_once.submit("key"), lab_jobs.raises_once.submit("type")
    assert again.result(timeout=30) == 2
    with pytest.raises(TypeError, match="not this time"):
        never.result(timeout=30)
    assert never.record()["attempts"][0]["number"] == 1


def test_a_task_that_retries_itself_runs_on_with_its_new_arguments(laboratory):
    run = lab_jobs.tries_again.submit(0)
    assert run.result(timeout=30) == [2, 2]
    attempts = run.record()["attempts"]
    assert [(attempt["state"], attempt["cause"]) for attempt in attempts] == [
        ("failed", "error"),
        ("failed", "error"),
        ("completed", None),
    ]


def test_a_poison_job_is_held_with_its_story_and_released(own_stack):
    own_stack.start_scheduler().ready()
    for name in ("one", "two"):
        own_stack.start_worker(name).ready()
    run = lab_jobs.crashes.options(max_retries=9).submit()
    behind = [lab_jobs.add.submit(number, 1) for number in range(4)]
    assert [one.result(timeout=30) for one in behind] == [1, 2, 3, 4]
    own_stack.wait_until(lambda: run.record()["state"] == "held")
    assert "it crashed 3 times" in own_stack.cyxwiz("job", run.id).stdout
    assert "SIGSEGV" in str(run.why())
    assert own_stack.cyxwiz_json("release", run.id) == {"released": [run.id]}
    own_stack.wait_until(lambda: run.record()["state"] == "held" and len(run.record()["attempts"]) == 6)
    assert own_stack.cyxwiz("release", run.id[-12:]).stdout == f"{run.id} released\n"
    own_stack.wait_until(lambda: len(run.record()["attempts"]) > 6)
    own_stack.cyxwiz("cancel", run.id)
    own_stack.wait_until(lambda: run.state == "REVOKED")
    assert all(node["cordon"] is None for node in own_stack.cyxwiz_json("nodes"))


def test_a_job_that_fails_too_often_fails_as_itself(laboratory):
    run = lab_jobs.fails.options(max_retries=1).submit("still no luck")
    with pytest.raises(ValueError, match="still no luck"):
        run.result(timeout=30)
    assert run.record()["message"].endswith("(tried 2 times)")
    run = lab_jobs.exits.options(max_retries=1).submit()
    with pytest.raises(JobFailed, match="status 3"):
        run.result(timeout=30)


def test_a_deadline_ends_what_runs(laboratory, tmp_path):
    run = lab_jobs.waits_for.options(deadline=3).submit(str(tmp_path / "never"))
    with pytest.raises(JobFailed, match="deadline"):
        run.result(timeout=30)
    assert run.record()["cause"] == "deadline"
