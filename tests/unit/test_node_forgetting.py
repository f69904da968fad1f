"""Nothing waits for folders that are being removed."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any, cast

from tests.integration.waiting import until
from workers.forgetting import Forgetting, forget_artifacts
from workers.heartbeat import Heartbeat
from workers.node_folder import NodeFolder


class SlowFolder:
    """Stands still in the middle of a big folder."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.kept: tuple[int, ...] = ()

    def forget_attempts(self, older_than_seconds: float, keep: tuple[int, ...] = ()) -> int:
        self.kept = keep
        self.reached.set()
        assert self.go_on.wait(10)
        return 1


def test_a_node_beats_and_stops_while_it_removes_a_big_folder():
    beats: list[Any] = []
    folder = SlowFolder()
    registered = threading.Event()
    registered.set()
    settings = SimpleNamespace(result_ttl_seconds=60, heartbeat_seconds=0.01, artifact_retention_days=None)
    node: Any = SimpleNamespace(id="n", incarnation="i", folder=folder, settings=settings, registered=registered)
    node.link, node.open_tokens = SimpleNamespace(), lambda: (7,)
    telemetry: Any = SimpleNamespace(read=lambda: SimpleNamespace(model_dump_json=lambda: "{}"))
    client: Any = SimpleNamespace(register_script=lambda _: lambda **given: beats.append(given) or (1, 0))
    forgetting, heartbeat = Forgetting(node), Heartbeat(cast(Any, node), client, telemetry)
    forgetting.start()
    heartbeat.start()
    assert folder.reached.wait(10)
    until(lambda: len(beats) > 3)
    heartbeat.stop()
    forgetting.stop()
    folder.go_on.set()
    assert folder.kept == (7,), "what runs has a folder, however old"


def test_artifacts_in_which_nothing_changes_are_forgotten(tmp_path):
    def aged(job: str, name: str, seconds: float) -> None:
        file = tmp_path / job / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("weights")
        os.utime(file, (file.stat().st_atime, file.stat().st_mtime - seconds))

    def age_folders() -> None:
        for folder, _, _ in os.walk(tmp_path):
            os.utime(folder, (0, 0))

    aged("old", "attempt-1/model", 200)
    aged("old", "checkpoints/5/1/trainer.pt", 200)
    aged("runs", "attempt-1/model", 200)
    aged("writes", "attempt-1/model", 200)
    aged("writes", "attempt-2/deep/down/log", 0)
    age_folders()
    assert forget_artifacts(tmp_path, 300) == 0
    age_folders()
    assert forget_artifacts(tmp_path, 100, keep={"runs"}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "writes"]
    assert forget_artifacts(tmp_path / "nowhere", 1) == 0


def test_a_folder_that_a_job_closed_to_its_node_does_not_keep_the_others(tmp_path, monkeypatch):
    """As one that has set its umask to 0o177."""
    node_folder = NodeFolder(tmp_path, "n")
    for token in (1, 2):
        node_folder.attempt_path(token).mkdir()
        (node_folder.attempt_path(token) / "made").touch()
        os.utime(node_folder.attempt_path(token) / "made", (0, 0))
        os.utime(node_folder.attempt_path(token), (0, 0))
    lstat = os.lstat

    def refused(path: str, **options: Any) -> os.stat_result:
        if str(path).endswith("1/made"):
            raise PermissionError(path)
        return lstat(path, **options)

    monkeypatch.setattr(os, "lstat", refused)
    assert node_folder.forget_attempts(older_than_seconds=60) == 2
    node_folder.close()


def test_an_attempt_of_days_keeps_its_folder_for_a_day_after_its_last_line(tmp_path):
    folder = NodeFolder(tmp_path, "n")
    log = folder.own_path(5) / "log"
    log.parent.mkdir(parents=True)
    log.write_text("step 1\n")
    for path in (log.parent, folder.attempt_path(5)):
        os.utime(path, (0, 0))  # nothing was made or removed in them since the attempt began
    assert folder.forget_attempts(older_than_seconds=60) == 0
    assert log.exists()
    os.utime(log, (0, 0))
    assert folder.forget_attempts(older_than_seconds=60) == 1
    folder.close()
