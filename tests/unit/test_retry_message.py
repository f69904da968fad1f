"""The message of a task's next try."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.runtime.pipe import encode_value
from cyxwiz_tasks.states import Cause
from workers.link import Link
from workers.outcomes import retry
from workers.retry_message import retry_message

APP = make_app("redis://nowhere:1")


def signature(args=(1, "two"), **options) -> str:
    headers = {"cyxwiz": {"version": 1, "entry": "mine:task"}, "cyxwiz_assignment": {"token": 1}}
    made = {
        "task": "mine.task",
        "args": args,
        "kwargs": {"three": 3},
        "options": {"task_id": "some-id", "retries": 2, "headers": headers, "queue": "cyxwiz.inbox"} | options,
        "subtask_type": None,
        "immutable": False,
    }
    return encode_value(made)


def message(**options) -> dict:
    following = retry_message(APP, signature(**options), server_ahead_seconds=-7200)
    return json.loads(following.text)["headers"] | {"in_seconds": following.in_seconds}


def test_it_is_the_same_job_with_one_more_try_and_without_its_old_place():
    headers = message()
    assert (headers["id"], headers["task"], headers["retries"], headers["eta"]) == ("some-id", "mine.task", 2, None)
    assert headers["cyxwiz"]["entry"] == "mine:task"
    assert "cyxwiz_assignment" not in headers


@pytest.mark.parametrize("form", ["countdown", "eta"])
def test_it_is_due_by_the_servers_clock_however_wrong_the_nodes_is(form):
    """This node's clock is two hours ahead."""
    now = datetime.now(UTC)
    due = datetime.fromisoformat(message(**{form: 30 if form == "countdown" else now + timedelta(seconds=30)})["eta"])
    assert abs((due - now).total_seconds() - 30 + 7200) < 5


def test_arguments_of_types_that_only_the_job_knows_are_handed_on_as_they_were_encoded():
    encoded = {"__type__": "their.Money", "__value__": "3 EUR"}
    sent = json.loads(retry_message(APP, signature(args=[encoded]), server_ahead_seconds=0).text)
    assert json.loads(base64.b64decode(sent["body"]))[0] == [encoded]


@pytest.mark.parametrize(
    "when",
    [{"countdown": "60"}, {"countdown": 1e12}, {"countdown": float("nan")}, {"eta": "tomorrow"}, {"eta": 5}],
    ids=str,
)
def test_a_time_that_is_none_is_the_jobs_error_and_not_its_nodes(when):
    attempt = SimpleNamespace(
        node=SimpleNamespace(app=APP, link=Link()),
        log=SimpleNamespace(last_lines=lambda: ""),
        last_frame={"kind": "retry", "message": signature(**when), "cause": None},
    )
    outcome = retry(attempt)
    assert (outcome.kind, outcome.cause) == ("failed", Cause.ERROR)
    assert "self.retry()" in outcome.message


def test_a_countdown_is_none_of_a_clocks():
    assert message(countdown=30)["in_seconds"] == 30
    assert message(eta=datetime.now(UTC))["in_seconds"] is None
    assert message()["in_seconds"] is None
