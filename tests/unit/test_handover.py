"""A job on its way from its message to its process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from cyxwiz_tasks.checkpoints.generations import Generation
from cyxwiz_tasks.checkpoints.manifest import MANIFEST
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.headers import Assignment
from cyxwiz_tasks.protocol.names import ASSIGNMENT_HEADER, REPORTS
from cyxwiz_tasks.protocol.reports import REPORT, Process, Started
from cyxwiz_tasks.settings import Settings
from workers.attempts import Attempts
from workers.handover import Handover
from workers.link import Link

ASSIGNMENT = Assignment(job="j", attempt=2, token=7, node="n", incarnation="i", epoch=1)


class SlowStore:
    """It has a checkpoint, which does not come."""

    def __init__(self, on_fetch: Callable[[], object]) -> None:
        self.on_fetch = on_fetch
        self.gate = threading.Event()

    def generations(self, job: str, token: int) -> list[Generation]:
        return [Generation(3, 1, Path("3/1"))]

    def fetch(self, job: str, generation: Generation, root: Path) -> None:
        self.on_fetch()
        self.gate.wait(20)


def node_with(store: SlowStore, root: Path, sent: list[tuple[str, str]]) -> SimpleNamespace:
    return SimpleNamespace(
        id="n",
        incarnation="i",
        name="lab",
        stopping=False,
        attempts=Attempts(),
        link=Link(),
        settings=Settings(fetch_checkpoint_seconds=0.1),
        artifact_store=store,
        checkpoints_path=lambda job: root,
        device_of=lambda assignment: "cpu",
        redis=SimpleNamespace(lpush=lambda key, text: sent.append((key, text))),
    )


def handover_at(node: SimpleNamespace) -> Handover:
    return Handover(node, {"id": "j", ASSIGNMENT_HEADER: json.loads(ASSIGNMENT.model_dump_json())}, "[]")


def given(node: SimpleNamespace) -> Handover:
    handover = handover_at(node)
    began = time.monotonic()
    handover.give(SimpleNamespace(pid=4711))
    assert time.monotonic() - began < 10
    assert not handover.given
    handover.close()
    return handover


def test_an_attempt_that_fetches_its_checkpoint_is_told_as_started_and_can_be_stopped(tmp_path):
    """The scheduler takes back what a node has not started within a minute; a big checkpoint may take longer."""
    sent: list[tuple[str, str]] = []
    known: list[list[tuple[str, str]]] = []
    begun: list[dict[int, Process]] = []

    def stop() -> None:
        known.append(list(sent))
        begun.append(node.attempts.processes())
        node.attempts.stop(Stop(job="j", token=ASSIGNMENT.token))

    store = SlowStore(stop)
    node = node_with(store, tmp_path, sent)
    handover = given(node)
    store.gate.set()
    assert handover.stop_request.asked is not None
    [[(key, text)]] = known
    report = REPORT.validate_json(text)
    assert key == REPORTS
    assert isinstance(report, Started)
    assert (report.job, report.token, report.pid, report.device) == ("j", 7, 4711, "cpu")
    assert begun == [{7: Process(pid=4711, device="cpu")}], "and again with each beat"
    assert node.attempts.processes() == {}, "it is over"


class SilentStore(SlowStore):
    """It takes the question what it has, and answers nothing."""

    def generations(self, job: str, token: int) -> list[Generation]:
        self.gate.wait(20)
        return []


def test_a_store_that_answers_nothing_is_the_networks_fault_and_not_the_nodes(tmp_path, monkeypatch):
    """The node has told by then that it has the job: the scheduler does not wait longer than a minute for that."""
    monkeypatch.setattr("workers.handover._TELL_SECONDS", 0.2)
    monkeypatch.setattr("workers.handover._ANSWER_SECONDS", 0.4)
    sent: list[tuple[str, str]] = []
    store = SilentStore(lambda: None)
    handover = given(node_with(store, tmp_path, sent))
    store.gate.set()
    assert str(handover.not_fetched) == "nothing of it came for 0.5 s"
    assert [REPORT.validate_json(text).kind for _, text in sent] == ["started"]


def test_a_checkpoint_here_that_takes_long_to_check_is_no_silence_of_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr("workers.handover._ANSWER_SECONDS", 0.1)
    checked = threading.Event()

    def check(folder: Path) -> None:
        assert not checked.wait(1.0)

    monkeypatch.setattr("workers.attempt_artifacts.check_whole", check)
    monkeypatch.setattr(Handover, "_frame", lambda self: {})
    (tmp_path / "3" / "1").mkdir(parents=True)
    (tmp_path / "3" / "1" / MANIFEST).touch()
    node = node_with(SlowStore(checked.set), tmp_path, [])
    handover = handover_at(node)
    handover.give(SimpleNamespace(pid=4711, give=lambda frame: None))
    assert handover.given, handover.not_fetched
    assert not checked.is_set(), "what is here needs not be fetched"
    handover.close()


def test_what_comes_after_it_was_given_up_replaces_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("workers.handover._ANSWER_SECONDS", 0.1)
    fetched = threading.Event()

    class LateStore(SlowStore):
        def generations(self, job: str, token: int) -> list[Generation]:
            self.gate.wait(20)
            return super().generations(job, token)

    store = LateStore(fetched.set)
    given(node_with(store, tmp_path, []))
    store.gate.set()
    for thread in threading.enumerate():
        if thread.name == "cyxwiz-fetch":
            thread.join(10)
            assert not thread.is_alive()
    assert not fetched.is_set()


def test_a_store_of_which_nothing_comes_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr("workers.handover._SILENCE_SECONDS", 0.3)
    monkeypatch.setattr("workers.handover._ANSWER_SECONDS", 0.1)
    store = SlowStore(lambda: None)
    handover = given(node_with(store, tmp_path, []))
    store.gate.set()
    assert isinstance(handover.not_fetched, TimeoutError)
