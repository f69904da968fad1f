"""What a node writes into Celery's result backend while a job runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery.app.task import Context

from cyxwiz_tasks.broker_connection import connect
from cyxwiz_tasks.celery_app import Application, make_app
from workers.states import state_commands

JOB = "0190aaaa-0000-7000-8000-000000000001"


@pytest.fixture
def app(broker_url: str) -> Iterator[Application]:
    app = make_app(broker_url)
    yield app
    app.close()


def tell(app: Application, broker_url: str, state: str) -> None:
    with connect(broker_url) as client:
        for command in state_commands(app.backend, Context(id=JOB), state, {"step": 1}):
            client.execute_command(*command)


@pytest.mark.parametrize("state", ["STARTED", "PROGRESS"])
def test_a_state_is_stored_as_celery_reads_it(app, broker_url, state):
    tell(app, broker_url, state)
    result = app.AsyncResult(JOB)
    assert (result.state, result.info) == (state, {"step": 1})


def test_a_state_follows_another_and_a_retry(app, broker_url):
    for state in ("STARTED", "PROGRESS", "STARTED"):
        tell(app, broker_url, state)
        assert app.AsyncResult(JOB).state == state
    app.backend.store_result(JOB, ValueError("once more"), "RETRY")
    tell(app, broker_url, "STARTED")
    assert app.AsyncResult(JOB).state == "STARTED"


@pytest.mark.parametrize("last", ["SUCCESS", "FAILURE", "REVOKED"])
def test_the_last_word_on_a_job_stays(app, broker_url, last):
    result = {"status": "PROGRESS"} if last == "SUCCESS" else ValueError("no")
    app.backend.store_result(JOB, result, last)
    tell(app, broker_url, "PROGRESS")
    assert app.AsyncResult(JOB).state == last
