"""What `submit()` refuses before anything is sent: one sentence that names the field and what to write."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain, group

from cyxwiz_tasks import Client, TrainingJob, errors, job
from cyxwiz_tasks.broker_connection import address
from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.client import client_of
from cyxwiz_tasks.errors import InvalidJob, NoStack, ServerUnavailable
from cyxwiz_tasks.handle import JobHandle
from cyxwiz_tasks.ids import new_id, parse_id
from cyxwiz_tasks.requests import named_error
from cyxwiz_tasks.settings import settings

DIGITS = TrainingJob(model="cnn", dataset="digits")


@job
def step(number: int) -> int:
    return number


@pytest.fixture
def client() -> Client:
    return Client("redis://127.0.0.1:1/0")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"id": ""}, "^id: is empty"),
        ({"id": "  "}, "^id: is empty"),
        ({"id": "17"}, r"^id: '17' is not a UUID"),
        ({"id": 17}, "^id: is empty"),
        ({"idempotency_key": ""}, "^idempotency_key: '' cannot be used"),
        ({"idempotency_key": "k" * 201}, "^idempotency_key: "),
        ({"name": "a\x00b"}, "^name: "),
        ({"owner": " "}, "^owner: "),
        ({"priority": "urgent"}, "^priority: .*Write one of"),
        ({"time_limit": "soon"}, '^time_limit: .*Write "30m"'),
        ({"resources": {"gpu_memory": "24"}}, None),
        ({"resources": {"gpu_memory": "much"}}, "^resources.gpu_memory: .*24GB"),
        ({"resources": {"vram": "24GB"}}, "^resources.vram: there is no such requirement.*gpu_memory"),
        ({"resources": {"device": "cpu", "gpus": 1}}, "^resources: .*contradict"),
    ],
)
def test_options(client: Client, options: dict[str, Any], words: str | None) -> None:
    expected = errors.ServerUnavailable if words is None else InvalidJob
    with pytest.raises(expected, match=words):
        client.submit(DIGITS, **options)


@pytest.mark.parametrize("option", ["countdown", "expires"])
def test_a_schedule_has_no_moment_that_would_pass(client: Client, option: str) -> None:
    with pytest.raises(InvalidJob, match=f'^{option}: is a moment, and each job .* Write start_by="4h"'):
        client.schedule("nightly", step.s(1).set(**{option: 60}), cron="0 3 * * *")


def test_what_is_no_job(client: Client) -> None:
    with pytest.raises(InvalidJob, match=r"^job: a dict is no job\. Pass a TrainingJob"):
        client.submit({"model": "cnn"})  # type: ignore[arg-type]
    with pytest.raises(InvalidJob, match=r"^job: a chain is more than one job.*apply_async"):
        client.submit(chain(step.s(1), step.s()))
    with pytest.raises(InvalidJob, match=r"^job: a group is more than one job"):
        client.submit(group(step.s(1), step.s(2)))
    with pytest.raises(InvalidJob, match=r"^job: other\.task is a plain Celery task.*@job"):
        client.submit(client.app.signature("other.task"))
    with pytest.raises(InvalidJob, match=r"^model: unknown model 'cmn' \(did you mean 'cnn'\?\)"):
        client.submit(TrainingJob(model="cmn", dataset="digits"))
    with pytest.raises(InvalidJob, match=r"^colour: is no option of submit"):
        client.submit_many([(DIGITS, {"colour": "red"})])


def test_arguments_are_checked_as_celery_does(client: Client) -> None:
    with pytest.raises(TypeError, match="number"):
        client.submit(step.s())
    with pytest.raises(InvalidJob, match=r"^arguments: JSON cannot carry them"):
        client.submit(step.s({1, 2}.__iter__()))


def test_any_uuid_in_any_form_is_an_id() -> None:
    assert parse_id("0190AAAA-0000-7000-8000-000000000001") == "0190aaaa-0000-7000-8000-000000000001"
    assert parse_id("0190aaaa000070008000000000000001") == "0190aaaa-0000-7000-8000-000000000001"


def test_ids_are_uuids_of_version_7_in_the_order_they_were_made() -> None:
    made = [new_id() for _ in range(5000)]
    assert made == sorted(set(made))
    assert {uuid.UUID(text).version for text in made} == {7}
    assert {uuid.UUID(text).variant for text in made} == {uuid.RFC_4122}


def test_errors_are_looked_up_among_ours_alone() -> None:
    assert type(named_error("NotFound", "gone")) is errors.NotFound
    assert type(named_error("annotations", "no")) is errors.JobRefused
    assert type(named_error("Any", "no")) is errors.JobRefused
    assert type(named_error(None, None)) is errors.JobRefused
    invalid = named_error("InvalidJob", "resources.gpus: too many: 9")
    assert isinstance(invalid, InvalidJob)
    assert (invalid.field, invalid.reason) == ("resources.gpus", "too many: 9")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:secret@host:7000/2", "host:7000/2"),
        ("redis://:secret@host", "host:6379"),
        ("unix:///run/redis.sock", "/run/redis.sock"),
        ("redis://:secret@host:port/0", "CYXWIZ_BROKER_URL"),
    ],
)
def test_an_address_has_no_password(url: str, shown: str) -> None:
    assert address(url) == shown


def test_a_client_without_a_stack(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CYXWIZ_HOME", str(tmp_path))
    monkeypatch.delenv("CYXWIZ_BROKER_URL", raising=False)
    settings.cache_clear()
    with pytest.raises(NoStack, match="cyxwiz up"):
        Client()
    settings.cache_clear()
    with pytest.raises(errors.ServerUnavailable, match="no URL of a Redis"):
        Client("http://example.com")


@pytest.mark.parametrize("of", [make_app, lambda url: Celery("own", broker=url)], ids=["ours", "own"])
@pytest.mark.parametrize("url", ["rediss://:p%40ss@127.0.0.1:1/3?ssl_cert_reqs=none", "redis://127.0.0.1:1/0"])
def test_a_task_is_submitted_to_the_very_address_of_its_application(of: Callable[[str], Celery], url: str) -> None:
    assert client_of(of(url)).broker_url == url


@pytest.mark.parametrize("ask", [lambda job: job.state, lambda job: job.result(timeout=0.1)], ids=["state", "result"])
def test_a_handle_says_that_redis_is_not_there(client: Client, ask: Callable[[JobHandle], Any]) -> None:
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1/0 does not answer"):
        ask(client.get(new_id()))


def test_importing_costs_next_to_nothing() -> None:
    program = (
        "import sys, time; began = time.perf_counter(); import cyxwiz_tasks\n"
        "seconds = time.perf_counter() - began\n"
        "assert 'celery' not in sys.modules\n"
        "from cyxwiz_tasks import Client, TrainingJob, Resources, job, JobTask, install, errors\n"
        "for name in ('torch', 'sqlalchemy', 'numpy', 'rich', 'broker', 'workers', 'db'):\n"
        "    assert name not in sys.modules, name\n"
        "assert callable(job) and errors.InvalidJob\n"
        "print(seconds)\n"
    )
    runs = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(runs) < 0.6
