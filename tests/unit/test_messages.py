"""Celery messages as the scheduler reads and makes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from broker.scheduler import accepting
from broker.scheduler.messages import MESSAGE_LIMIT_BYTES, Refused, for_node, read
from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.envelope import envelope
from cyxwiz_tasks.protocol.headers import Assignment
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, HEADER
from cyxwiz_tasks.states import Priority

JOB = "0190b5a0-0000-7000-8000-000000000001"
NODE = "0190b5a0-0000-4000-8000-000000000002"


def message(header: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    ours = {"version": 1, "owner": "ann", "reply_to": "cyxwiz.reply.x", "resources": {"gpus": 1}} | (header or {})
    app = make_app("redis://nowhere")
    return json.loads(envelope(app, "lab.train", JOB, ((1,), {"rate": 0.1}), {"headers": {HEADER: ours}, **options}))


def raw(**changes: Any) -> bytes:
    return json.dumps(message() | changes).encode()


def test_what_a_client_sends_is_read_whole():
    sent = message({"priority": "high", "idempotency_key": "k"}, retries=2, eta=datetime(2030, 1, 1, tzinfo=UTC))
    found = read(json.dumps(sent).encode())
    assert (found.id, found.task, found.retries, found.ignore_result) == (JOB, "lab.train", 2, False)
    assert (found.header.owner, found.header.priority, found.header.resources.gpus) == ("ann", Priority.HIGH, 1)
    assert found.header.reply_to == "cyxwiz.reply.x"
    assert "reply_to" not in found.headers[HEADER]
    assert found.not_before == datetime(2030, 1, 1, tzinfo=UTC)
    assert found.body == sent["body"]


def test_a_time_without_a_zone_is_utc_and_celerys_time_limit_is_taken():
    sent = message()
    sent["headers"] |= {"expires": "2030-01-01T00:00:00", "timelimit": [90, None]}
    found = read(json.dumps(sent).encode())
    assert found.expires_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert found.time_limit_seconds == 90.0


@pytest.mark.parametrize("name", ["time_limit_seconds", "start_by_seconds", "deadline_seconds"])
@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e300, -1e300])
def test_times_that_no_moment_can_be_made_of_are_refused(name, seconds):
    with pytest.raises(Refused, match=name):
        read(json.dumps(message({name: seconds})).encode())


@pytest.mark.parametrize(
    "odd",
    [
        {"timelimit": 90},
        {"timelimit": [10**400, None]},
        {HEADER: {"version": 1, "resources": {"ram": "9" * 400 + "TB"}}},
    ],
)
def test_whatever_is_odd_about_a_message_it_alone_is_refused_before_any_turn(odd):
    sent = message()
    sent["headers"] |= odd
    prepared = accepting.prepare(json.dumps(sent).encode())
    assert isinstance(prepared, Refused)
    assert prepared.id == JOB


def test_a_failure_to_read_a_message_is_a_refusal_of_it(monkeypatch):
    def fail(raw):
        raise ZeroDivisionError

    monkeypatch.setattr(accepting, "read", fail)
    assert "ZeroDivisionError" in str(accepting.prepare(raw()))


def test_the_digest_is_of_task_arguments_and_resources():
    digests = {read(json.dumps(sent).encode()).digest for sent in (message(), message({"name": "other"}))}
    assert len(digests) == 1
    assert read(json.dumps(message({"resources": {}})).encode()).digest not in digests


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"headers": None}, "no header"),
        ({"headers": {HEADER: 3, "id": JOB, "task": "t"}}, "no JSON object"),
        ({"headers": {HEADER: {"version": 1}, "id": JOB.upper(), "task": "t"}}, "lower case"),
        ({"headers": {HEADER: {"version": 1}, "id": [], "task": "t"}}, "not a UUID"),
        ({"headers": {HEADER: {"version": 1}, "id": JOB, "task": "a\nb"}}, "printable"),
        ({"headers": {HEADER: {"version": 1}, "id": JOB, "task": "t", "retries": -1}}, "retries"),
        ({"headers": {HEADER: {"version": 1}, "id": JOB, "task": "t", "expires": 5}}, "expires"),
        ({"headers": {HEADER: {"version": 1}, "id": JOB, "task": "t", "eta": "0001-01-01T00:00:00+14:00"}}, "years"),
        ({"headers": {HEADER: {"version": 1}, "id": JOB, "task": "t", "timelimit": ["x"]}}, "timelimit"),
        ({"headers": {HEADER: {"version": 1, "priority": "now"}, "id": JOB, "task": "t"}}, "priority"),
        ({"headers": {HEADER: {"version": 1, "resources": []}, "id": JOB, "task": "t"}}, "body"),
        ({"headers": {HEADER: {"version": 1, "resources": [1]}, "id": JOB, "task": "t"}}, "resources"),
        ({"body": None}, "no body"),
        ({"properties": 5}, "no properties"),
        ({"body": "x" * MESSAGE_LIMIT_BYTES}, "allowed are"),
        ({"body": "x" * 9 * MESSAGE_LIMIT_BYTES}, "allowed are"),
    ],
)
def test_what_is_no_job_is_refused_with_words(change, words):
    sent = message() | change
    if words == "body":
        sent["body"] = 3
    with pytest.raises(Refused, match=words):
        read(json.dumps(sent).encode())


def test_a_plain_celery_task_is_refused_by_its_id():
    plain = message()
    del plain["headers"][HEADER]
    with pytest.raises(Refused, match="no header 'cyxwiz': send it by a task of cyxwiz_tasks") as refused:
        read(json.dumps(plain).encode())
    assert refused.value.id == JOB


def test_who_is_refused_learns_of_it():
    with pytest.raises(Refused) as refused:
        read(raw(body=None))
    assert (refused.value.id, refused.value.reply_to) == (JOB, "cyxwiz.reply.x")


def test_the_message_for_a_node_differs_only_where_it_must():
    found = read(json.dumps(message(eta=datetime(2030, 1, 1, tzinfo=UTC))).encode())
    assignment = Assignment(job=JOB, attempt=1, token=17, node=NODE, incarnation="i", gpus=(0, 1), epoch=3)
    made = json.loads(for_node(found.headers, found.body, found.properties, assignment, publication=2))
    assert Assignment.model_validate(made["headers"].pop(ASSIGNMENT_HEADER)) == assignment
    assert made["headers"] == found.headers | {"eta": None, "expires": None}
    assert made["body"] == found.body
    assert made["properties"]["delivery_info"] == {"exchange": "", "routing_key": f"node.{NODE}"}
    assert (made["properties"]["delivery_tag"], made["properties"]["priority"]) == ("17.2", 0)
    assert made["content-type"] == "application/json"
