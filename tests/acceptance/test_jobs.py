"""Jobs of every temper, each through the whole stack, judged by what their submitter sees."""

from __future__ import annotations

import json

import lab_jobs
import pytest

from cyxwiz_tasks import Resources
from cyxwiz_tasks.errors import InvalidJob, JobFailed


def test_a_function_returns_through_submit_delay_and_apply_async(laboratory):
    assert lab_jobs.add.submit(2, 3).result(timeout=30) == 5
    assert lab_jobs.add.delay(2, 3).get(timeout=30) == 5
    assert lab_jobs.add.apply_async((2,), {"b": 3}).get(timeout=30) == 5


def test_submit_returns_once_the_job_is_in_the_record(laboratory):
    handle = lab_jobs.add.submit(1, 1)
    assert handle.record()["id"] == handle.id


def test_an_exception_comes_back_as_the_users_own_type_with_the_jobs_traceback(laboratory):
    handle = lab_jobs.fails.submit("the data is gone")
    with pytest.raises(ValueError, match="the data is gone"):
        handle.result(timeout=30)
    record = handle.record()
    assert (record["state"], record["cause"]) == ("failed", "error")
    assert "lab_jobs.py" in record["traceback"]
    assert "raise ValueError(message)" in record["traceback"]
    assert "lab_jobs.py" in handle.async_result.traceback


@pytest.mark.parametrize(
    ("name", "cause", "words"),
    [
        ("crashes", "crashed", "SIGSEGV"),
        ("is_killed", "crashed", "SIGKILL"),
        ("exits", "error", "status 3"),
        ("runs_out_of_memory", "out_of_memory", "memory"),
        ("returns_no_json", "error", "JSON"),
        ("overstays", "time_limit", "1"),
    ],
)
def test_every_bad_end_is_a_failure_with_its_cause_and_words_to_act_on(laboratory, name, cause, words):
    handle = getattr(lab_jobs, name).submit()
    with pytest.raises((JobFailed, MemoryError)):
        handle.result(timeout=30)
    record = handle.record()
    assert (record["state"], record["cause"]) == ("failed", cause)
    assert words in record["message"]
    assert handle.async_result.state == "FAILURE"


def test_a_job_runs_in_a_process_of_its_own_without_credentials(laboratory):
    first, second = (lab_jobs.whoami.submit().result(timeout=30) for _ in range(2))
    assert first["pid"] != second["pid"]
    text = json.dumps(first["environment"])
    for secret in laboratory.secrets:
        assert secret not in text
    assert "CYXWIZ_BROKER_URL" not in first["environment"]
    assert "CYXWIZ_DATABASE_URL" not in first["environment"]


def test_progress_is_whole_even_when_attached_late(laboratory):
    handle = lab_jobs.talks.submit(25)
    assert handle.result(timeout=30) == 25
    steps = [update.step for update in handle.progress() if update.kind == "progress"]
    assert steps == list(range(1, 26))


def test_output_of_the_job_and_of_its_children_is_its_log(laboratory):
    handle = lab_jobs.talks.submit(3)
    text = "".join(handle.logs(follow=True))
    assert [line for line in text.splitlines() if line.startswith("line ")] == ["line 0", "line 1", "line 2"]
    assert "to stderr" in text
    assert "from a child" in text


def test_a_job_runs_on_a_node_that_fits_and_the_record_says_what_it_ran_on(laboratory):
    handle = lab_jobs.needs_a_big_gpu.submit()
    assert handle.result(timeout=30) == {"device": "cpu", "attempt": 1}
    [attempt] = handle.record()["attempts"]
    assert attempt["node"] in {"big", "mid"}
    assert attempt["device"] == "cpu"
    assert attempt["gpus"]


def test_the_same_id_or_key_is_the_same_job(laboratory):
    client = laboratory.client
    first = lab_jobs.add.submit(4, 4)
    again = client.submit(lab_jobs.add.s(4, 4), id=first.id)
    assert again.id == first.id
    one = client.submit(lab_jobs.add.s(1, 2), idempotency_key="sum")
    two = client.submit(lab_jobs.add.s(1, 2), idempotency_key="sum")
    assert one.id == two.id
    assert two.result(timeout=30) == 3


def test_an_impossible_request_is_accepted_waits_and_says_why(laboratory):
    handle = lab_jobs.add.options(resources=Resources(gpu_memory="4TB..")).submit(1, 1)
    why = handle.why()
    text = str(why)
    assert "4TB" in text
    assert "80GB" in text
    assert handle.state == "ACCEPTED"
    handle.cancel()


def test_bad_input_is_refused_with_the_field_and_what_to_write(laboratory):
    with pytest.raises(InvalidJob, match=r"gpu_memory.*24GB"):
        lab_jobs.add.options(resources={"gpu_memory": "much"}).submit(1, 1)
    with pytest.raises(InvalidJob, match="id"):
        laboratory.client.submit(lab_jobs.add.s(1, 1), id="")
