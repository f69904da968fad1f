"""A node with an artifact store: what it fetches before a job starts, and what it leaves there."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cyxwiz_tasks.checkpoints.checkpoints import Checkpoints
from cyxwiz_tasks.errors import JobFailed
from tests.integration.app_on import app_on
from tests.integration.fake_scheduler import FakeScheduler
from tests.integration.node_process import NODE_CODE, NodeProcess, wait_until
from workers.artifact_store import ArtifactStore

sys.path.insert(0, str(NODE_CODE))
import checkpoint_jobs


class LaterAttempts(FakeScheduler):
    """Places every job as one that has had an attempt before, of token 0."""

    before: Callable[[str], None] = staticmethod(lambda _: None)
    attempt = 2

    def assign(self, job: str, **changes: Any) -> Any:
        self.before(job)
        return super().assign(job, attempt=self.attempt, **changes)


@pytest.fixture
def scheduler(broker_url: str) -> Iterator[LaterAttempts]:
    with LaterAttempts(broker_url) as scheduler, app_on(broker_url):
        yield scheduler


def test_a_job_begins_where_an_attempt_on_another_node_was_and_leaves_its_files_in_the_store(
    scheduler, broker_url, tmp_path
):
    store = ArtifactStore(f"file://{tmp_path}/store")

    def leave_a_checkpoint(job: str) -> None:
        made = Checkpoints(tmp_path / "elsewhere", 0, print).save(41, {"note": "from elsewhere"})
        store.push(made.folder, f"{job}/checkpoints/0/{made.number}")

    scheduler.before = leave_a_checkpoint
    settings = {"CYXWIZ_ARTIFACT_STORE": f"file://{tmp_path}/store"}
    with NodeProcess(broker_url, tmp_path / "home", "--name", "fresh", **settings) as node:
        node.ready()
        result = checkpoint_jobs.goes_on.delay()
        assert result.get(timeout=20) == 41
        assert (tmp_path / "store" / result.id / "attempt-2" / "step.txt").read_text() == "41"
        wait_until(lambda: not list((tmp_path / "store" / result.id).glob("checkpoints/*/*/*")))


def test_a_job_is_not_begun_again_from_nothing_while_the_store_fails(scheduler, broker_url, tmp_path):
    (tmp_path / "store").write_text("a file where a folder should be")
    settings = {"CYXWIZ_ARTIFACT_STORE": f"file://{tmp_path}/store", "CYXWIZ_FETCH_CHECKPOINT_SECONDS": "0.2"}
    with NodeProcess(broker_url, tmp_path / "home", "--name", "cut-off", **settings) as node:
        node.ready()
        result = checkpoint_jobs.goes_on.delay()
        with pytest.raises(JobFailed, match=r"could not be fetched to node cut-off .*Not a directory"):
            result.get(timeout=20)
        ended = scheduler.wait_for("ended", result.id)
    assert (ended.outcome, ended.cause) == ("failed", "network")
    assert not scheduler.of("started", result.id)


def test_artifacts_that_an_agent_did_not_live_to_send_are_sent_by_the_next_one(scheduler, broker_url, tmp_path):
    store, settings = tmp_path / "store", {"CYXWIZ_ARTIFACT_STORE": f"file://{tmp_path}/store"}
    arguments = (broker_url, tmp_path / "home", "--name", "dies")
    journal = tmp_path / "home" / "nodes" / "dies" / "journal"
    scheduler.attempt = 1
    store.write_text("a file where a folder should be")
    with NodeProcess(*arguments, **settings) as node:
        node.ready()
        result = checkpoint_jobs.writes_files.delay()
        wait_until(lambda: b'"ended"' in journal.read_bytes())
        node.end(signal.SIGKILL)
    checkpoints = tmp_path / "home" / "artifacts" / result.id / "checkpoints"
    assert list(checkpoints.rglob("manifest.json"))
    assert not scheduler.of("ended", result.id)
    with NodeProcess(*arguments, **settings) as node:
        assert scheduler.wait_for("ended", result.id).outcome == "completed"
        wait_until(lambda: not checkpoints.exists())
        node.wait_for_text("cannot be sent to the artifact store yet")
        store.unlink()
        wait_until((store / result.id / "attempt-1" / "weights.txt").is_file)
        wait_until(lambda: b'"sent"' in journal.read_bytes())
    assert (store / result.id / "attempt-1" / "weights.txt").read_text() == "0.5"


def test_an_address_that_nothing_can_open_is_said_at_the_start(broker_url, tmp_path):
    with NodeProcess(broker_url, tmp_path, CYXWIZ_ARTIFACT_STORE="nosuch://bucket") as node:
        assert node.process.wait(60) == 1
    assert "CYXWIZ_ARTIFACT_STORE: 'nosuch://bucket' cannot be used" in node.text
