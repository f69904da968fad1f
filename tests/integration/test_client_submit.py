"""Submitting over a real Redis: what is sent, what is waited for, what is raised."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import pools
from kombu.transport.redis import Channel

from cyxwiz_tasks import Client, Resources, TrainingJob, errors, job
from cyxwiz_tasks.client import CHUNK
from cyxwiz_tasks.errors import InvalidJob, JobConflict, SchedulerUnavailable, ServerUnavailable
from cyxwiz_tasks.protocol.names import INBOX, TRAIN_TASK
from cyxwiz_tasks.protocol.updates import Ack
from tests.integration.scheduler_peer import SchedulerPeer

DIGITS = TrainingJob(model="cnn", dataset="digits", epochs=3, name="first try")


@job(resources=Resources(gpus=1), priority="high")
def finetune(ctx: Any, rate: float, steps: int = 10) -> float:
    return rate


@pytest.fixture
def client(broker_url: str) -> Iterator[Client]:
    with Client(broker_url) as made:
        yield made
    # Celery's own publisher takes its connections out of kombu's pools, which no application closes.
    pools.reset()


@pytest.fixture
def peer(broker_url: str) -> Iterator[SchedulerPeer]:
    with SchedulerPeer(broker_url) as made:
        yield made


def body_of(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def test_a_training_is_a_celery_message_with_our_header(client: Client, peer: SchedulerPeer) -> None:
    handle = client.submit(DIGITS, resources={"gpu_memory": "4GB.."}, priority="high", project="vision")
    [message] = peer.messages
    assert message["headers"]["id"] == message["properties"]["correlation_id"] == handle.id
    assert message["headers"]["task"] == TRAIN_TASK
    header = peer.header()
    assert (header["name"], header["priority"], header["project"]) == ("first try", "high", "vision")
    assert header["resources"] == {"gpus": 1, "gpu_memory": "4GB.."}
    assert "entry" not in header
    args, kwargs, embedded = body_of(message)
    assert TrainingJob(**args[0]) == DIGITS
    assert kwargs == {}
    assert set(embedded) == {"callbacks", "errbacks", "chain", "chord"}
    assert handle.state == "ACCEPTED"


def test_the_message_is_the_one_that_celery_would_send(client: Client, broker_url: str) -> None:
    signature = finetune.s(0.5, steps=2)
    handle = client.submit(signature, wait=False)
    client.app.send_task(
        signature.task, signature.args, signature.kwargs, task_id=handle.id, ignore_result=True, **signature.options
    )
    with redis.Redis.from_url(broker_url) as server:
        celerys, ours = (json.loads(raw) for raw in server.lrange(INBOX, 0, -1))
    for message in (celerys, ours):
        message["properties"].pop("delivery_tag")
        # Celery writes the thread that would wait for an answer over AMQP.
        message["properties"].pop("reply_to")
        message["headers"].pop("ignore_result")
        message["headers"].pop("origin")
    assert ours == celerys
    with client.app.connection_for_read() as connection:
        channel: Channel = connection.default_channel
        assert channel._q_for_pri(INBOX, 9) == INBOX


def test_a_signature_keeps_its_options_and_takes_those_of_the_call(client: Client, peer: SchedulerPeer) -> None:
    signature = finetune.s(0.1).set(link=finetune.s(2.0), countdown=60, priority="low")
    client.submit(signature, idempotency_key="once")
    header, headers = peer.header(), peer.messages[0]["headers"]
    assert (header["priority"], header["idempotency_key"], header["entry"]) == (
        "low",
        "once",
        f"{__name__}:finetune",
    )
    assert headers["eta"] is not None
    [link] = body_of(peer.messages[0])[2]["callbacks"]
    assert link["options"]["headers"]["cyxwiz"]["resources"] == {"gpus": 1}


def test_many_jobs_in_their_order(client: Client, peer: SchedulerPeer) -> None:
    count = CHUNK + 7
    handles = client.submit_many(
        [(finetune.s(float(n)), {"priority": n % 10}) for n in range(count)] + [DIGITS], timeout=20
    )
    assert [handle.id for handle in handles] == [message["headers"]["id"] for message in peer.messages]
    assert [handle.id for handle in handles] == sorted(handle.id for handle in handles)
    assert [body_of(message)[0] for message in peer.messages[:count]] == [[float(n)] for n in range(count)]


def test_many_jobs_are_sent_or_none(client: Client, broker_url: str) -> None:
    with pytest.raises(InvalidJob, match="priority"):
        client.submit_many([DIGITS, (DIGITS, {"priority": "urgent"})])
    with redis.Redis.from_url(broker_url) as server:
        assert not server.exists(INBOX)


def test_a_refusal_is_raised_as_the_error_that_the_scheduler_named(client: Client, peer: SchedulerPeer) -> None:
    peer.acknowledge = lambda id: Ack(id=id, error_type="JobConflict", error="the id is taken")
    with pytest.raises(JobConflict, match="the id is taken"):
        client.submit(DIGITS)
    peer.acknowledge = lambda id: Ack(id=id, error_type="InvalidJob", error="resources.ram: too much")
    with pytest.raises(InvalidJob, match=r"^resources\.ram: too much$") as caught:
        client.submit(DIGITS)
    assert caught.value.field == "resources.ram"
    peer.acknowledge = lambda id: Ack(id=id, error_type="os.system", error="no")
    with pytest.raises(errors.JobRefused, match="no"):
        client.submit(DIGITS)


def test_a_refusal_among_many_tells_which_were_accepted(client: Client, peer: SchedulerPeer) -> None:
    refuse_next = iter([False, True, False])
    peer.acknowledge = lambda id: Ack(id=id, **({"error": "no"} if next(refuse_next) else {"job": id}))
    with pytest.raises(errors.JobRefused) as caught:
        client.submit_many([DIGITS] * 3)
    assert [handle.id for handle in caught.value.accepted] == [peer.messages[n]["headers"]["id"] for n in (0, 2)]


def test_the_same_key_is_the_job_that_has_it_already(client: Client, peer: SchedulerPeer) -> None:
    first = client.submit(DIGITS, idempotency_key="k")
    peer.acknowledge = lambda id: Ack(id=id, job=first.id, state="STARTED")
    assert client.submit(DIGITS, idempotency_key="k").id == first.id


def test_without_a_scheduler_it_says_so_and_how_to_go_on(client: Client) -> None:
    with pytest.raises(SchedulerUnavailable, match=r"no scheduler recorded job [0-9a-f-]{36} within 0\.2 s.*cyxwiz up"):
        client.submit(DIGITS, timeout=0.2)
    with pytest.raises(SchedulerUnavailable, match="cyxwiz scheduler"):
        client.requests.query("jobs", 0.1)


def test_messages_that_redis_lost_are_sent_again(
    client: Client, peer: SchedulerPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cyxwiz_tasks.client.RESEND_SECONDS", 0.2)
    lost: list[str] = []

    def forget_the_first(id: str) -> Ack | None:
        lost.append(id)
        return Ack(id=id, job=id) if len(lost) > 1 else None

    peer.acknowledge = forget_the_first
    handle = client.submit(DIGITS, timeout=10)
    # Twice, or once more where the answer was slow.
    assert lost[:2] == [handle.id, handle.id]


def test_a_redis_that_is_not_there_is_named_without_its_password() -> None:
    began = time.monotonic()
    with Client("redis://ann:secret@127.0.0.1:1/0") as nowhere:
        with pytest.raises(ServerUnavailable, match=r"Redis at 127\.0\.0\.1:1/0 does not answer.*cyxwiz up") as caught:
            nowhere.submit(DIGITS)
        assert "secret" not in str(caught.value)
        assert caught.value.__suppress_context__
    assert time.monotonic() - began < 5


def test_submit_and_options_of_a_task(peer: SchedulerPeer, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune.app, "_server", broker_url)
    handle = finetune.options(priority="critical", time_limit="1h", id="0190aaaa-0000-7000-8000-000000000001").submit(
        0.1
    )
    assert handle.id == "0190aaaa-0000-7000-8000-000000000001"
    assert (peer.header()["priority"], peer.header()["time_limit_seconds"]) == ("critical", 3600)
    with pytest.raises(TypeError, match="wrong"):
        finetune.submit(wrong=1)
    with pytest.raises(InvalidJob, match="arguments: JSON cannot carry"):
        finetune.submit(object())


def test_it_is_much_faster_than_a_loop_of_apply_async(
    client: Client, peer: SchedulerPeer, broker_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 300
    signatures = [finetune.s(float(n)) for n in range(count)]
    many = []
    for _ in range(3):
        began = time.perf_counter()
        client.submit_many(signatures, wait=False)
        many.append(time.perf_counter() - began)
    began = time.perf_counter()
    for signature in signatures:
        client.app.send_task(signature.task, signature.args, **signature.options)
    assert time.perf_counter() - began > 3 * min(many)
