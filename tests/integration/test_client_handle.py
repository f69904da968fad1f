"""A job's handle over a real Redis: what comes is pushed, and the record fills in what Redis has lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cyxwiz_tasks import Client, JobHandle, TrainingJob, errors
from cyxwiz_tasks.errors import JobCancelled, JobFailed, NotFound
from cyxwiz_tasks.ids import new_id
from cyxwiz_tasks.protocol.names import log_key, progress_key
from cyxwiz_tasks.protocol.queries import Reply
from cyxwiz_tasks.training_result import TrainingResult
from tests.integration.scheduler_peer import SchedulerPeer

DIGITS = TrainingJob(model="cnn", dataset="digits")


class Refused(Exception):
    """An exception of the user's own."""


@pytest.fixture
def client(broker_url: str) -> Iterator[Client]:
    with Client(broker_url) as made:
        yield made


@pytest.fixture
def peer(broker_url: str) -> Iterator[SchedulerPeer]:
    with SchedulerPeer(broker_url) as made:
        yield made


@pytest.fixture
def handle(client: Client, peer: SchedulerPeer) -> JobHandle:
    made = client.submit(DIGITS)
    record(peer, made.id, "running")
    return made


def record(peer: SchedulerPeer, job_id: str, state: str, **fields: Any) -> None:
    """What the record says of this job from now on."""

    def answer(request: dict[str, Any]) -> Reply:
        if request.get("name") == "metrics":
            losses = enumerate([0.5, 0.25], start=1)
            return Reply(value=[{"attempt": 1, "at": 0.0, "values": {"step": n, "loss": loss}} for n, loss in losses])
        if request.get("arguments", {}).get("id") == job_id:
            return Reply(value={"id": job_id, "state": state, "task": "cyxwiz.train", **fields})
        return Reply(error_type="NotFound", error="there is no such job")

    peer.answer = answer


def later(action: Callable[[], Any], seconds: float = 0.2) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


def test_a_result_is_pushed_and_a_training_has_its_own_form(handle: JobHandle, peer: SchedulerPeer) -> None:
    value = {"metrics": {"test_accuracy": 0.98}, "artifacts": {"model": "/a/model.safetensors"}, "stopped": None}
    timer = later(lambda: peer.backend.mark_as_done(handle.id, value))
    result = handle.result(timeout=10)
    timer.join()
    assert isinstance(result, TrainingResult)
    assert result.metrics == {"test_accuracy": 0.98}
    assert str(result.artifacts["model"]) == "/a/model.safetensors"
    assert handle.state == "SUCCESS"


def test_the_users_own_exception_comes_back_with_the_jobs_traceback(handle: JobHandle, peer: SchedulerPeer) -> None:
    peer.backend.mark_as_failure(handle.id, Refused("no", 3), traceback='File "train.py", line 7')
    with pytest.raises(Refused) as caught:
        handle.result(timeout=10)
    assert caught.value.args == ("no", 3)
    assert "train.py" in caught.value.__notes__[0]


def test_a_job_that_did_not_end_by_itself_says_why(handle: JobHandle, peer: SchedulerPeer) -> None:
    record(peer, handle.id, "failed", cause="out_of_memory")
    peer.backend.mark_as_failure(handle.id, JobFailed("the host ran out of memory"))
    with pytest.raises(JobFailed, match="ran out of memory") as caught:
        handle.result(timeout=10)
    assert caught.value.cause == "out_of_memory"


def test_a_cancelled_job_says_so(handle: JobHandle, peer: SchedulerPeer) -> None:
    record(peer, handle.id, "cancelled", cause="cancelled", cancel_reason="not needed")
    peer.backend.mark_as_revoked(handle.id, "revoked")
    with pytest.raises(JobCancelled, match=f"job {handle.id} was cancelled: not needed"):
        handle.result(timeout=10)


def test_a_result_that_only_the_record_can_read_waits_for_a_scheduler(
    client: Client, broker_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cyxwiz_tasks.handle._ANSWER_SECONDS", 0.1)
    monkeypatch.setattr("cyxwiz_tasks.handle.BLOCK_SECONDS", 0.1)
    waiting = client.get(new_id())
    client.app.backend.mark_as_done(waiting.id, {"metrics": {"loss": 1.0}, "artifacts": {}})
    with pytest.raises(TimeoutError, match="no scheduler answered"):
        waiting.result(timeout=1.0)
    assert caplog.text.count("waiting for it") == 1
    with SchedulerPeer(broker_url) as peer:
        record(peer, waiting.id, "completed")
        assert waiting.result().metrics == {"loss": 1.0}


def test_a_result_that_redis_lost_comes_from_the_record(handle: JobHandle, peer: SchedulerPeer) -> None:
    peer.connection.flushdb()
    record(peer, handle.id, "completed", result={"metrics": {"loss": 1.0}, "artifacts": {}})
    assert handle.result(timeout=10).metrics == {"loss": 1.0}
    assert handle.state == "SUCCESS"
    record(peer, handle.id, "failed", cause="node_lost", message="its node went silent")
    with pytest.raises(JobFailed, match="its node went silent") as caught:
        handle.result(timeout=10)
    assert caught.value.cause == "node_lost"


def test_waiting_ends_at_its_timeout(handle: JobHandle) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"is ACCEPTED after 0\.3 s"):
        handle.result(timeout=0.3)
    assert time.monotonic() - began < 5


def test_waiting_ends_at_its_timeout_where_no_scheduler_runs(client: Client) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"is PENDING after 0\.3 s"):
        client.get("0198c0de-0000-7000-8000-000000000000").result(timeout=0.3)
    assert time.monotonic() - began < 5


def test_a_job_whose_result_celery_ignores_is_waited_for_by_its_progress(
    client: Client, handle: JobHandle, peer: SchedulerPeer
) -> None:
    ignored = JobHandle(client, handle.id, "mine.task", ignore_result=True)

    def end() -> None:
        record(peer, handle.id, "completed", result=None)
        peer.tell(handle.id, "progress", values={"step": 1})
        peer.tell(handle.id, "end", state="SUCCESS")

    timer = later(end)
    began = time.monotonic()
    assert ignored.result(timeout=10) is None
    timer.join()
    assert time.monotonic() - began < 5


def test_progress_from_the_first_update_to_the_end(handle: JobHandle, peer: SchedulerPeer) -> None:
    peer.tell(handle.id, "state", state="ASSIGNED", node="gpu-1", attempt=1, message="best score")

    def go_on() -> None:
        peer.tell(
            handle.id, "progress", values={"epoch": 1, "epochs": 2, "loss": 0.51234567, "samples_per_second": 1234.5}
        )
        peer.tell(handle.id, "end", state="SUCCESS")

    timer = later(go_on)
    updates = list(handle.progress())
    timer.join()
    assert [update.kind for update in updates] == ["state", "progress", "end"]
    assert [str(update) for update in updates] == [
        "ASSIGNED on gpu-1: best score",
        "epoch 1/2  loss 0.5123  1,234 samples/s",
        "SUCCESS",
    ]
    assert (updates[1].epoch, updates[1].get("accuracy")) == (1, None)
    with pytest.raises(AttributeError, match=r"no 'accuracy'; it has epoch, epochs, loss"):
        _ = updates[1].accuracy


def test_progress_that_redis_lost_comes_from_the_record(handle: JobHandle, peer: SchedulerPeer) -> None:
    record(peer, handle.id, "completed")
    updates = list(handle.progress())
    assert [update.get("loss") for update in updates] == [0.5, 0.25, None]
    assert (updates[-1].kind, updates[-1].state) == ("end", "SUCCESS")


def test_progress_ends_with_a_job_whose_last_update_was_lost(
    handle: JobHandle, peer: SchedulerPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cyxwiz_tasks.streams.BLOCK_SECONDS", 0.1)
    peer.tell(handle.id, "progress", values={"step": 1})
    updates = handle.progress()
    assert next(updates).step == 1
    peer.connection.delete(progress_key(handle.id))
    record(peer, handle.id, "failed", message="boom")
    [last] = updates
    assert (last.kind, last.state, last.message) == ("end", "FAILURE", "boom")


def test_logs_so_far_and_logs_to_the_end(handle: JobHandle, peer: SchedulerPeer) -> None:
    peer.connection.xadd(log_key(handle.id), {"text": "one\n"})
    assert list(handle.logs()) == ["one\n"]

    def go_on() -> None:
        peer.connection.xadd(log_key(handle.id), {"text": "two\n"})
        peer.connection.xadd(log_key(handle.id), {"end": "1"})

    timer = later(go_on)
    assert "".join(handle.logs(follow=True)) == "one\ntwo\n"
    timer.join()


def test_a_job_that_nobody_recorded(client: Client, peer: SchedulerPeer) -> None:
    peer.answer = lambda request: Reply(error_type="NotFound", error="there is no such job")
    unknown = client.get("0190aaaa-0000-7000-8000-000000000001")
    assert unknown.state == "PENDING"
    with pytest.raises(NotFound, match="no such job"):
        unknown.record()
    with pytest.raises(errors.InvalidJob, match=r"id: '17' is not a UUID"):
        client.get("17")


def test_commands_reach_the_scheduler(handle: JobHandle, peer: SchedulerPeer) -> None:
    peer.answer = lambda request: Reply(
        value={"text": "It waits. Ask for less.", "facts": {"sentences": ["It waits.", "Ask for less."], "nodes": 2}}
    )
    assert str(handle.why()) == "It waits.\nAsk for less."
    assert handle.client.plan({"gpus": 1}).facts["nodes"] == 2
    handle.cancel("not needed")
    kinds = [request["kind"] for request in peer.requests]
    assert kinds == ["why", "why", "cancel"]
    assert peer.requests[1]["resources"]["gpus"] == 1
    assert (peer.requests[2]["job"], peer.requests[2]["reason"]) == (handle.id, "not needed")


def test_a_wait_outlives_a_record_that_cannot_be_read(client: Client, handle: JobHandle, peer: SchedulerPeer) -> None:
    unknown = client.get(handle.id)  # what its value is, the record alone knows
    peer.backend.mark_as_done(handle.id, {"metrics": {"loss": 1.0}, "artifacts": {}})
    refused = iter(range(2))

    def answer(request: dict[str, Any]) -> Reply:
        if next(refused, None) is not None:
            return Reply(error_type="ServerUnavailable", error="the scheduler cannot read its record")
        return Reply(value={"id": handle.id, "state": "completed", "task": "cyxwiz.train"})

    peer.answer = answer
    assert unknown.result(timeout=10).metrics == {"loss": 1.0}
    assert len(peer.requests) == 3


def test_what_the_record_cannot_say_in_time_is_said_to_be_so(client: Client, peer: SchedulerPeer) -> None:
    peer.answer = lambda _: Reply(error_type="ServerUnavailable", error="the scheduler cannot read its record")
    unknown = client.get("0198c0de-0000-7000-8000-000000000000")
    began = time.monotonic()
    with pytest.raises(errors.ServerUnavailable, match="cannot read its record"):
        unknown.record(timeout=0.5)
    with pytest.raises(TimeoutError, match=r"is PENDING after 0\.5 s"):
        unknown.result(timeout=0.5)
    assert time.monotonic() - began < 5
    assert len(peer.requests) > 3, "asked again"
