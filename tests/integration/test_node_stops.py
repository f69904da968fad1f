"""Cancel, revoke, preempt, stop and kill: the whole tree is gone, and the scheduler hears what became of the job."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from celery.exceptions import TaskRevokedError

from cyxwiz_tasks.celery_app import app
from cyxwiz_tasks.protocol.controls import Stop
from cyxwiz_tasks.protocol.names import control_key
from tests.integration.app_on import app_on
from tests.integration.fake_scheduler import FakeScheduler
from tests.integration.job_pids import is_alive, pid_in
from tests.integration.node_process import NODE_CODE, NodeProcess, wait_until

sys.path.insert(0, str(NODE_CODE))
import node_jobs


@pytest.fixture
def scheduler(broker_url: str) -> Iterator[FakeScheduler]:
    with app_on(broker_url), FakeScheduler(broker_url) as scheduler:
        yield scheduler


@pytest.fixture
def node(scheduler: FakeScheduler, broker_url: str, tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(broker_url, tmp_path / "home", "--name", "stops", "--slots", "2") as node:
        yield node.ready()


def test_stops_of_every_kind(node, scheduler, tmp_path):
    """One node for all of them: starting one takes longer than any of these."""
    for name, body in (
        ("cooperative", cancels_a_job_that_looks),
        ("careless", cancels_a_job_that_never_looks_at_once),
        ("stubborn", cancels_a_stubborn_job_and_its_daemon),
        ("revoked", revokes_with_terminate),
        ("busy", revokes_while_the_job_reports),
        ("early", hears_a_stop_before_its_message),
        ("preempted", gives_a_place_back),
        ("killed", notices_a_killed_process),
        ("forkserver", survives_the_death_of_its_fork_server),
    ):
        folder = tmp_path / name
        folder.mkdir()
        body(node, scheduler, folder)
    assert node_jobs.add.delay(1, 2).get(timeout=20) == 3


def cancels_a_job_that_looks(node, scheduler, folder):
    result = node_jobs.waits.delay(str(folder))
    pid_in(folder / "pid")
    time_taken = stop_and_wait(scheduler, result.id, "cancelled", grace_seconds=10.0)
    assert (folder / "stopped").exists()
    assert time_taken < 10.0
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert result.state == "REVOKED"


def cancels_a_job_that_never_looks_at_once(node, scheduler, folder):
    result = node_jobs.waits.delay(str(folder), cooperative=False)
    pid = pid_in(folder / "pid")
    assert stop_and_wait(scheduler, result.id, "cancelled", grace_seconds=10.0) < 10.0
    assert not is_alive(pid)


def cancels_a_stubborn_job_and_its_daemon(node, scheduler, folder):
    result = node_jobs.is_stubborn.delay(str(folder))
    pids = [pid_in(folder / "pid"), pid_in(folder / "daemon")]
    assert stop_and_wait(scheduler, result.id, "cancelled", grace_seconds=0.5) < 10.0
    assert not any(is_alive(pid) for pid in pids)


def revokes_with_terminate(node, scheduler, folder):
    result = node_jobs.waits.delay(str(folder), cooperative=False)
    pid = pid_in(folder / "pid")
    [active] = app.control.inspect(timeout=5).active().values()
    assert pid in [one["worker_pid"] for one in active], "beside the one before it, perhaps, which has just ended"
    result.revoke(terminate=True)
    ended = scheduler.wait_for("ended", result.id)
    assert (ended.outcome, ended.cause) == ("cancelled", "cancelled")
    assert not is_alive(pid)
    wait_until(lambda: result.state == "REVOKED")


def revokes_while_the_job_reports(node, scheduler, folder):
    """REVOKED is the last word: what the job had just said must not be written over it."""
    for number in range(5):
        result = node_jobs.counts_until.delay(str(folder / str(number)))
        wait_until(lambda result=result: result.state == "PROGRESS")
        result.revoke(terminate=True)
        assert scheduler.wait_for("ended", result.id).outcome == "cancelled"
        wait_until(lambda result=result: result.state == "REVOKED")


def hears_a_stop_before_its_message(node, scheduler, folder):
    given = scheduler.assign("early-job")
    stop = Stop(job=given.job, token=given.token + 1)
    scheduler.client.lpush(control_key(given.node), stop.model_dump_json())
    node.wait_for_text("early-job: to be cancelled")
    result = node_jobs.waits.delay(str(folder))
    ended = scheduler.wait_for("ended", result.id)
    assert ended.outcome == "cancelled"
    assert not scheduler.of("started", result.id)
    assert not (folder / "pid").exists()


def gives_a_place_back(node, scheduler, folder):
    result = node_jobs.waits.delay(str(folder))
    pid_in(folder / "pid")
    stop_and_wait(scheduler, result.id, "preempted")
    assert scheduler.of("ended", result.id)[0].cause == "preempted"
    assert result.state == "STARTED"


def notices_a_killed_process(node, scheduler, folder):
    result = node_jobs.waits.delay(str(folder))
    os.kill(pid_in(folder / "pid"), signal.SIGKILL)
    killed_at = time.monotonic()
    ended = scheduler.wait_for("ended", result.id)
    assert time.monotonic() - killed_at < 5.0
    assert (ended.outcome, ended.cause, ended.exit_code) == ("failed", "crashed", -signal.SIGKILL)


def survives_the_death_of_its_fork_server(node, scheduler, folder):
    result = node_jobs.waits.delay(str(folder))
    pid = pid_in(folder / "pid")
    psutil.Process(pid).parent().kill()
    ended = scheduler.wait_for("ended", result.id)
    assert (ended.outcome, ended.cause) == ("failed", "crashed")
    assert not is_alive(pid)


def stop_and_wait(scheduler: FakeScheduler, job: str, outcome: str, grace_seconds: float = 2.0) -> float:
    asked_at = time.monotonic()
    scheduler.stop_job(job, outcome, grace_seconds)
    assert scheduler.wait_for("ended", job).outcome == outcome
    return time.monotonic() - asked_at


def test_sigterm_gives_jobs_back_and_leaves_in_order(node, scheduler, tmp_path):
    jobs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        jobs.append(node_jobs.waits.delay(str(tmp_path / name)))
        pid_in(tmp_path / name / "pid")
    family = node.family()
    began = time.monotonic()
    assert node.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 15.0
    for job in jobs:
        assert scheduler.wait_for("ended", job.id).outcome == "preempted"
    assert [report.kind for report in scheduler.reports][-1] == "left"
    assert not any(is_alive(process.pid) for process in family)


def test_a_member_that_waits_for_its_gang_gives_its_place_back_when_its_node_stops(scheduler, broker_url, tmp_path):
    """It is told that the node stops before anybody has asked it to leave, and it is no reason to cancel its job."""
    points = tmp_path / "points"
    points.mkdir()
    options = ("--name", "stops", "--slots", "2")
    with NodeProcess(broker_url, tmp_path / "home", *options, CYXWIZ_FAILPOINTS=str(points)) as node:
        node.ready()
        gang = {"rank": 1, "token": 1000, "nodes": ["elsewhere", "stops"], "address": "127.0.0.1"}
        scheduler.changes = {"gang": gang}
        (points / "agent.after_accept").write_text("sleep 0")
        job = node_jobs.add.delay(1, 2)
        wait_until(lambda: not (points / "agent.after_accept").exists())
        assert node.end(signal.SIGTERM) == 0
    ended = scheduler.wait_for("ended", job.id)
    assert (ended.outcome, ended.by_node) == ("preempted", True)


def test_a_second_signal_ends_at_once_and_the_jobs_with_it(node, scheduler, tmp_path):
    node_jobs.is_stubborn.delay(str(tmp_path))
    pids = [pid_in(tmp_path / "pid"), pid_in(tmp_path / "daemon")]
    family = node.family()
    node.process.send_signal(signal.SIGTERM)
    # Two that come at once are one to the kernel.
    node.wait_for_text("node stops stops")
    assert node.end(signal.SIGTERM, seconds=15.0) in (0, 128 + signal.SIGTERM)
    wait_until(lambda: not any(map(is_alive, [*pids, *(process.pid for process in family)])))


def test_a_killed_agent_takes_all_its_processes_with_it(node, scheduler, tmp_path):
    node_jobs.is_stubborn.delay(str(tmp_path))
    pids = [pid_in(tmp_path / "pid"), pid_in(tmp_path / "daemon")]
    family = node.family()
    assert len(family) >= 4
    node.end(signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, [*pids, *(process.pid for process in family)])))
