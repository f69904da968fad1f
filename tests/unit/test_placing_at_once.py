"""Who finds a place as they arrive, and that whoever does not leaves the models as they were."""

from __future__ import annotations

from typing import Any

import pytest

from broker.scheduler.backlog import Waiting
from broker.scheduler.inbox import Batch
from broker.scheduler.memory import Memory
from broker.scheduler.messages import read
from broker.scheduler.placing_at_once import _book, _plain
from cyxwiz_tasks.celery_app import make_app
from cyxwiz_tasks.envelope import envelope
from cyxwiz_tasks.ids import new_id
from cyxwiz_tasks.protocol.names import HEADER, INBOX, REPORTS
from cyxwiz_tasks.resources import Resources
from cyxwiz_tasks.settings import Settings
from cyxwiz_tasks.states import Priority
from tests.unit.fleet import A100, capability

APP = make_app("redis://nowhere")


def raw(resources: dict[str, Any] | None = None, id: str | None = None, **options: Any) -> bytes:
    ours = {"version": 1, "resources": resources or {}} | options.pop("ours", {})
    return envelope(APP, "lab.train", id or new_id(), ((), {}), {"headers": {HEADER: ours}} | options)


def arrival(**resources: Any) -> Any:
    return read(raw(resources))


@pytest.fixture
def memory() -> Memory:
    made = Memory(Settings().score_weights)
    made.cluster.upsert_node("a", "a", capability(A100, A100, slots=4), "1")
    return made


def test_all_that_fit_are_booked(memory: Memory) -> None:
    new = [arrival(gpus=1), arrival(gpus=1), arrival()]
    assert _book(memory, new).keys() == {one.id for one in new}
    assert len(memory.backlog) == 0
    assert _book(memory, [arrival(gpus=1)]) == {}


def test_where_not_all_fit_nobody_is_booked(memory: Memory) -> None:
    assert _book(memory, [arrival(gpus=1), arrival(gpus=2)]) == {}
    assert len(memory.backlog) == 0
    assert len(_book(memory, [arrival(gpus=2)])) == 1


def test_whoever_waits_comes_first(memory: Memory) -> None:
    for number, wish in enumerate(({"gpus": 2}, {"gpus": 1})):
        memory.backlog.add(Waiting(f"old {number}", 7 + number, Resources.parse(wish), Priority.NORMAL))
    assert _book(memory, [arrival(cpus=1)]) == {}
    assert [placement.job_id for placement in memory.placer.place(9)] == ["old 0"]
    # The other one fits nowhere and is in nobody's way, except in that of its equals.
    assert _book(memory, [arrival(gpus=1)]) == {}
    assert len(_book(memory, [arrival(cpus=1)])) == 1
    assert memory.backlog.find("old 1") == Waiting("old 1", 8, Resources(gpus=1), Priority.NORMAL)


def test_who_waits_stays_as_he_is_when_another_job_comes_with_his_id(memory: Memory) -> None:
    other = arrival(gpus=63)
    old = Waiting(other.id, 7, Resources(gpus=64), Priority.NORMAL, other.header.owner)
    memory.backlog.add(old)
    assert _book(memory, [other]) == {}
    assert memory.backlog.find(other.id) == old
    assert len(memory.backlog) == 1


@pytest.mark.parametrize(
    ("message", "is_plain"),
    [
        (raw(), True),
        (raw({"gpus": 9}), True),
        (raw(ours={"idempotency_key": "k"}), False),
        (raw(ours={"deadline_seconds": 60}), False),
        (raw(ours={"start_by_seconds": 60}), False),
        (raw(countdown=60), False),
        (raw(expires=60), False),
        (raw(retries=1), False),
        (b"{}", False),
    ],
)
def test_only_plain_jobs_are(message: bytes, is_plain: bool) -> None:
    from broker.scheduler.accepting import prepare

    batch = Batch(INBOX, [message], [prepare(message)])
    assert bool(_plain([batch])) is is_plain
    assert not _plain([batch, Batch(REPORTS, [b"{}"])])
    assert not _plain([batch, batch])
