"""Checkpoints and artifacts on their way to a store and back: cut, slow, repeated, damaged, and under a zombie."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from cyxwiz_tasks.checkpoints.checkpoints import Checkpoints
from cyxwiz_tasks.checkpoints.manifest import NotWhole
from cyxwiz_tasks.errors import InvalidSettings
from cyxwiz_tasks.protocol.headers import Assignment
from tests.integration.waiting import until
from workers import attempt_artifacts
from workers.artifact_store import ArtifactStore
from workers.attempt_artifacts import AttemptArtifacts, fetch_checkpoint

JOB = "0198-job"


class Troubled(LocalFileSystem):
    """A store on this disk that is cut off, slow or away as a test asks."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.cut_after_bytes: int | None = None
        self.is_away = False
        self.gate = threading.Event()
        self.gate.set()

    def put_file(self, source: str, target: str, **_: Any) -> None:
        self.gate.wait(10)
        content = Path(source).read_bytes()
        if self.is_away:
            raise ConnectionError("the store is away")
        if self.cut_after_bytes is not None:
            Path(target).write_bytes(content[: self.cut_after_bytes])
            self.cut_after_bytes = None
            raise ConnectionError("cut off")
        Path(target).write_bytes(content)
        self.sent.append(Path(target).name)

    def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        if self.is_away:
            raise ConnectionError("the store is away")
        return super().ls(path, detail, **options)


@pytest.fixture
def files() -> Troubled:
    return Troubled()


@pytest.fixture
def store(tmp_path: Path, files: Troubled) -> ArtifactStore:
    made = ArtifactStore(f"file://{tmp_path}/store")
    made._files = files
    return made


class NodeDisk:
    """One node's home, and an attempt there."""

    def __init__(self, home: Path, store: ArtifactStore | None, token: int) -> None:
        self.root = home / "artifacts" / JOB / "checkpoints"
        self.artifacts = home / "artifacts" / JOB / f"attempt-{token}"
        self.assignment = Assignment(job=JOB, attempt=token, token=token, node="n", incarnation="i", epoch=1)
        self.stopping = False
        self.lines: list[str] = []
        self.checkpoints = Checkpoints(self.root, token, self.lines.append)
        self.attempt = AttemptArtifacts(
            store,
            self.assignment,
            artifacts=self.artifacts,
            checkpoints=self.root,
            staging=home / "nodes" / "n" / "attempts" / str(token) / "unsent",
            stopping=lambda: self.stopping,
        )

    def save(self, *steps: int) -> None:
        for step in steps:
            made = self.checkpoints.save(step, {"w": [float(step)] * 3000})
            self.attempt.checkpoint({"kind": "checkpoint", "step": step, "folder": str(made.folder), "seconds": 0.1})

    def fetch(self, store: ArtifactStore) -> Exception | None:
        return fetch_checkpoint(
            store,
            self.assignment,
            self.root,
            patience_seconds=0.3,
            given_up=lambda: self.stopping,
            found=lambda: None,
        )

    def step(self) -> int | None:
        state = self.checkpoints.load()
        assert state is None or state["w"] == [float(state["step"])] * 3000
        return None if state is None else state["step"]


@pytest.fixture
def node(tmp_path, store):
    """Makes nodes with a disk of their own."""
    numbers = iter(range(100))
    return lambda token: NodeDisk(tmp_path / f"home-{next(numbers)}", store, token)


def names(store: ArtifactStore, token: int) -> list[str]:
    return [found.name for found in store.generations(JOB, token)]


def test_content_is_sent_first_the_manifest_last_and_nothing_twice(node, store, files):
    first = node(3)
    first.save(10)
    assert first.attempt.finish("preempted") is None
    assert files.sent == ["trainer.pt", "manifest.json"]
    folder = first.root / "3" / "000001"
    assert store.push(folder, f"{JOB}/checkpoints/3/000001") == 0


def test_a_cut_off_file_is_sent_again_and_the_checkpoint_counts_only_then(node, store, files):
    files.cut_after_bytes = 100
    first = node(3)
    first.save(10)
    assert first.attempt.finish("preempted") is None
    assert files.sent == ["trainer.pt", "manifest.json"]
    second = node(4)
    assert second.fetch(store) is None
    assert second.step() == 10


def test_a_fresh_node_goes_on_from_the_newest_and_its_own_disk_counts_too(node, store):
    first = node(3)
    first.save(10, 20, 30)
    first.attempt.finish("preempted")
    second = node(5)
    assert second.fetch(store) is None
    assert second.step() == 30
    second.save(40)
    files_before = sorted(second.root.rglob("*"))
    assert second.fetch(store) is None
    assert sorted(second.root.rglob("*")) == files_before
    second.attempt.finish("preempted")
    (second.root / "5" / "000001" / "trainer.pt").write_bytes(b"damaged")
    assert second.fetch(store) is None
    assert second.step() == 40


def test_a_damaged_checkpoint_in_the_store_is_passed_over(node, store, tmp_path):
    first = node(3)
    first.save(10)
    until(lambda: names(store, 3) == ["3/1"])
    first.save(20)
    first.attempt.finish("preempted")
    file = tmp_path / "store" / JOB / "checkpoints" / "3" / "000002" / "trainer.pt"
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)
    second = node(4)
    with pytest.raises(NotWhole, match=r"trainer\.pt has changed"):
        store.fetch(JOB, store.generations(JOB, 4)[0], second.root)
    assert second.fetch(store) is None
    assert second.step() == 10
    assert not list(second.root.rglob("*.partial"))


def test_two_are_kept_in_the_store_and_a_zombie_changes_nothing_of_its_successor(node, store):
    zombie, successor = node(3), node(6)
    for step in (10, 20, 30):
        zombie.save(step)
        until(lambda step=step: names(store, 3)[:1] == [f"3/{step // 10}"])
    until(lambda: names(store, 3) == ["3/3", "3/2"])
    successor.fetch(store)
    successor.save(40)
    until(lambda: names(store, 6) == ["6/1", "3/3"])
    zombie.save(99)
    zombie.attempt.finish("failed")
    assert names(store, 6) == ["6/1", "3/4", "3/3"]  # it keeps two of what it may see
    successor.save(50)
    successor.attempt.finish("preempted")
    assert names(store, 6) == ["6/2", "6/1"]


def test_what_the_job_removes_while_a_slow_store_takes_it_arrives_all_the_same(node, store, files):
    files.gate.clear()
    first = node(3)
    first.save(10)
    until(lambda: first.attempt._next is None)
    first.save(20, 30, 40)
    assert not (first.root / "3" / "000001").exists()
    files.gate.set()
    assert first.attempt.finish("preempted") is None
    assert names(store, 3) == ["3/4", "3/1"]
    assert not first.attempt._staging.exists()


def test_checkpoints_on_another_disk_than_the_nodes_folder_arrive(node, store):
    """Where `artifacts` in the node's home is a volume of its own: no file there can have a second name elsewhere."""
    shm = Path("/dev/shm")
    first = node(3)
    if not os.access(shm, os.W_OK) or shm.stat().st_dev == first.root.parents[3].stat().st_dev:
        pytest.skip("this machine has no second disk")
    with tempfile.TemporaryDirectory(dir=shm) as volume:
        home = first.root.parents[2]
        home.mkdir(parents=True)
        (home / "artifacts").symlink_to(volume)
        first.save(10)
        assert first.attempt.finish("preempted") is None
    second = node(4)
    assert second.fetch(store) is None
    assert second.step() == 10


def test_a_store_that_is_away_costs_the_job_nothing_and_gets_the_newest_when_it_is_back(node, store, files):
    files.is_away = True
    first = node(3)
    first.save(10, 20)
    until(lambda: first.attempt._unsent is not None)
    first.save(30)
    files.is_away = False
    assert first.attempt.finish("preempted") is None
    assert names(store, 3)[0] == "3/3"


def test_patience_at_the_end_is_limited_and_what_is_missing_is_said(node, files, monkeypatch):
    monkeypatch.setattr(attempt_artifacts, "_LITTLE_PATIENCE_SECONDS", 0.5)
    files.is_away = True
    first = node(3)
    first.save(10)
    first.stopping = True
    assert first.attempt.finish("preempted") == (
        f"The last checkpoint is on this node alone, in {first.artifacts.parent}: "
        "the artifact store failed (the store is away)"
    )


def test_artifacts_are_there_before_the_end_is_told_without_links(node, store, tmp_path):
    first = node(3)
    (first.artifacts / "plots").mkdir(parents=True)
    (first.artifacts / "plots" / "loss.txt").write_text("0.5")
    (first.artifacts / "manifest.json").write_text("{}")
    (tmp_path / "secret").write_text("of the agent")
    (first.artifacts / "link").symlink_to(tmp_path / "secret")
    (first.artifacts / "folder").symlink_to(tmp_path)
    assert first.attempt.finish("completed") is None
    there = tmp_path / "store" / JOB / "attempt-3"
    sent = [path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()]
    assert sorted(sent) == ["manifest.json", "plots/loss.txt"]


def test_the_checkpoints_of_a_job_that_is_over_go_from_disk_and_store(node, store):
    first = node(3)
    first.save(10)
    assert first.attempt.finish("completed") is None
    first.attempt.forget_checkpoints()
    assert not first.root.exists()
    until(lambda: names(store, 3) == [])


def test_a_job_does_not_start_without_the_checkpoint_that_it_may_have(node, store, files):
    files.is_away = True
    assert str(node(4).fetch(store)) == "the store is away"


def test_without_a_store_nothing_is_sent(tmp_path, caplog):
    first = NodeDisk(tmp_path / "home", None, 3)
    first.save(10)
    first.attempt.checkpoint({"kind": "checkpoint", "step": 11, "error": "No space left on device"})
    assert "checkpoint of step 11 not saved: No space left on device" in caplog.text
    assert first.attempt.finish("completed") is None
    assert first.step() == 10
    first.attempt.forget_checkpoints()
    assert first.step() is None


def test_any_file_system_that_fsspec_knows_is_a_store(tmp_path):
    made = ArtifactStore("memory://bucket/prefix")
    first, second = NodeDisk(tmp_path / "a", made, 3), NodeDisk(tmp_path / "b", made, 4)
    first.save(10)
    assert first.attempt.finish("preempted") is None
    assert second.fetch(made) is None
    assert second.step() == 10
    first.attempt.forget_checkpoints()
    until(lambda: not fsspec.filesystem("memory").find("/bucket/prefix"))


def test_an_address_that_cannot_be_opened_is_refused_at_the_start():
    with pytest.raises(InvalidSettings, match="CYXWIZ_ARTIFACT_STORE: 'nosuch://bucket' cannot be used"):
        ArtifactStore("nosuch://bucket")
