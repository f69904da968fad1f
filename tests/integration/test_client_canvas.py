"""Celery's canvas over jobs: whoever sends a link, its message says all that the scheduler must know."""

from __future__ import annotations

import base64
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from kombu import pools

from cyxwiz_tasks import JobTask, Resources, install, job
from cyxwiz_tasks.celery_app import app, make_app
from cyxwiz_tasks.protocol.names import HEADER, INBOX


@job(resources=Resources(gpus=1))
def add(a: int, b: int = 0) -> int:
    return a + b


@job(priority="high")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@pytest.fixture(autouse=True)
def server(broker_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    monkeypatch.setattr(app, "_server", broker_url)
    app.reconnect()
    with redis.Redis.from_url(broker_url) as client:
        yield client
    # Results of chains and chords are cycles: collected later, they would unsubscribe at a Redis that is gone.
    gc.collect()
    app.close()
    app.reconnect()
    # Celery's own publisher takes its connections out of kombu's pools, which no application closes.
    pools.reset()


def taken(server: redis.Redis) -> list[dict[str, Any]]:
    raws = server.lrange(INBOX, 0, -1)
    server.delete(INBOX)
    return [json.loads(raw) for raw in reversed(raws)]


def publish_next(message: dict[str, Any], value: Any, broker_url: str) -> None:
    """What a node's tracer does after a link of a chain, with an application that knows no task of the user's."""
    node = make_app(broker_url)
    rest = json.loads(base64.b64decode(message["body"]))[2]["chain"]
    node.signature(rest.pop()).apply_async((value,), chain=rest, priority=None, ignore_result=True)
    node.close()


def test_a_chain_keeps_the_needs_of_each_link(server: redis.Redis, broker_url: str) -> None:
    result = chain(add.s(1, 2), add.s(10), total.si([1]).set(priority="low")).apply_async()
    [first] = taken(server)
    assert first["headers"][HEADER]["resources"] == {"gpus": 1}
    publish_next(first, 3, broker_url)
    [second] = taken(server)
    assert second["headers"][HEADER] == first["headers"][HEADER]
    assert json.loads(base64.b64decode(second["body"]))[0] == [3, 10]
    publish_next(second, 13, broker_url)
    [third] = taken(server)
    assert third["headers"]["id"] == result.id
    assert third["headers"][HEADER]["priority"] == "low"
    assert third["headers"][HEADER]["entry"] == f"{__name__}:total"
    assert third["properties"]["delivery_info"]["routing_key"] == INBOX


def test_groups_and_chords_need_no_current_application(server: redis.Redis) -> None:
    group(add.s(n, n) for n in range(3)).apply_async(ignore_result=True)
    assert [message["headers"]["task"] for message in taken(server)] == [add.name] * 3
    chord([add.s(1), add.s(2)], total.s()).apply_async()
    messages = taken(server)
    assert len(messages) == 2
    body = json.loads(base64.b64decode(messages[0]["body"]))[2]["chord"]
    assert body["options"]["headers"][HEADER]["priority"] == "high"


def test_an_id_that_celery_makes_sorts_by_time(server: redis.Redis) -> None:
    ids = [add.apply_async((n,), ignore_result=True).id for n in range(5)]
    assert ids == sorted(ids) == [message["headers"]["id"] for message in taken(server)]


def test_a_bare_async_result_is_of_this_application() -> None:
    program = (
        "from celery.result import AsyncResult; import cyxwiz_tasks.celery_app\n"
        "print(AsyncResult('0190aaaa-0000-7000-8000-000000000001').get(timeout=5))"
    )
    app.backend.mark_as_done("0190aaaa-0000-7000-8000-000000000001", 7)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"CYXWIZ_BROKER_URL": app.server},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "7\n", done.stderr


def test_jobs_of_an_application_of_the_users_own_go_to_the_inbox(server: redis.Redis, broker_url: str) -> None:
    own = install(Celery("theirs", broker=broker_url, set_as_current=False))
    made = own.task(base=JobTask, resources={"gpus": 2}, name="theirs.add")(plain)
    made.apply_async((1,), priority=9, ignore_result=True)
    [message] = taken(server)
    assert message["headers"][HEADER]["resources"] == {"gpus": 2}
    assert message["headers"][HEADER]["priority"] == "low"
    chain(made.si(1), add.s(2)).apply_async()
    [first] = taken(server)
    publish_next(first, 1, broker_url)
    assert taken(server)[0]["headers"]["task"] == add.name
    own.backend.client.connection_pool.disconnect()
    own.backend.result_consumer.stop()


def plain(number: int) -> int:
    return number
