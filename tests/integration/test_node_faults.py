"""What a node does when something breaks: its agent, its broker, its disk, its jobs. No end is forgotten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cyxwiz_tasks.protocol.controls import RegisterAgain
from cyxwiz_tasks.protocol.names import REPORTS, control_key, log_key, running_key
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
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def node_on(url: str, home: Path, log: Path | None = None, **environment: str) -> NodeProcess:
    node = NodeProcess(url, home, "--name", "faulty", "--slots", "2", **environment)
    node.log = log or node.log
    return node


def ticks_of(file: Path) -> list[float]:
    return [float(line) for line in file.read_text().split()[1:]]


class TestJournal:
    def test_an_end_that_nobody_confirmed_is_told_by_the_next_agent_before_it_registers(
        self, scheduler, home, tmp_path
    ):
        with node_on(scheduler.url, home) as node:
            node.ready()
            job = node_jobs.waits.delay(str(tmp_path))
            wait_until((tmp_path / "pid").exists)
            scheduler.fall_silent()
            (tmp_path / "go").touch()
            wait_until(lambda: any(b'"ended"' in raw for raw in scheduler.client.lrange(REPORTS, 0, -1)))
            assert '"ended"' in (home / "nodes" / "faulty" / "journal").read_text()
            node.end(signal.SIGKILL)
        scheduler.answers = True
        first = scheduler.wait_for("ended", job.id)
        seen = len(scheduler.reports)
        with node_on(scheduler.url, home) as node:
            node.ready()
            again = [report for report in scheduler.reports[seen:] if report.kind in ("ended", "register")]
        assert [report.kind for report in again][:2] == ["ended", "register"]
        assert (again[0].untold, first.untold) == (True, False)
        assert again[0].model_copy(update={"untold": False, "reply_to": None}) == first.model_copy(
            update={"reply_to": None}
        )
        assert again[0].result == "went"
        with node_on(scheduler.url, home) as node:
            node.ready()
        assert len(scheduler.of("ended", job.id)) == 2

    def test_attempts_of_a_killed_agent_are_reported_lost_by_the_next(self, scheduler, home, tmp_path):
        with node_on(scheduler.url, home) as node:
            node.ready()
            job = node_jobs.ticks.delay(str(tmp_path / "ticks"))
            pid = pid_in(tmp_path / "ticks")
            done = node_jobs.add.delay(1, 2)
            assert done.get(timeout=20) == 3
            # Until then a killed agent rightly leaves it to the next one to tell that end again.
            told = json.dumps({"told": scheduler.assignments[done.id].token})
            wait_until(lambda: told in (home / "nodes" / "faulty" / "journal").read_text())
            node.end(signal.SIGKILL)
        seen = len(scheduler.reports)
        with node_on(scheduler.url, home) as node:
            node.ready()
            reports = [report for report in scheduler.reports[seen:] if report.kind in ("ended", "register")]
        assert [report.kind for report in reports] == ["ended", "register"]
        assert (reports[0].job, reports[0].outcome, reports[0].cause) == (job.id, "failed", "node_lost")
        assert not is_alive(pid)

    def test_a_node_that_stops_before_anybody_confirms_tells_it_at_its_next_start(self, scheduler, home, tmp_path):
        with node_on(scheduler.url, home) as node:
            node.ready()
            job = node_jobs.waits.delay(str(tmp_path))
            wait_until((tmp_path / "pid").exists)
            scheduler.fall_silent()
            assert node.end(signal.SIGTERM, seconds=30.0) == 0
        scheduler.client.delete(REPORTS)
        scheduler.answers = True
        assert not scheduler.of("ended", job.id)
        with node_on(scheduler.url, home) as node:
            node.ready()
        assert scheduler.wait_for("ended", job.id).outcome == "preempted"

    def test_the_node_tells_with_its_beats_what_it_runs(self, scheduler, home, tmp_path):
        def running() -> dict:
            text = scheduler.client.get(running_key(scheduler.node.node))
            return json.loads(text) if text else {}

        with node_on(scheduler.url, home) as node:
            node.ready()
            first = wait_until(running)
            assert first["incarnation"] == scheduler.node.incarnation
            job = node_jobs.waits.delay(str(tmp_path))
            wait_until(lambda: job.id in scheduler.assignments)
            token = scheduler.assignments[job.id].token
            later = wait_until(lambda: running().get("tokens") == [token] and running())
            assert later["number"] > first["number"]
            started = scheduler.wait_for("started", job.id)
            begun = wait_until(lambda: running().get("begun"))
            assert begun == {str(token): {"pid": started.pid, "device": started.device}}
            scheduler.fall_silent()
            (tmp_path / "go").touch()
            node.wait_for_text("no scheduler has confirmed")
            assert running()["tokens"] == [token]
            scheduler.client.lpush(control_key(scheduler.node.node), RegisterAgain().model_dump_json())
            scheduler.answers = True
            assert job.get(timeout=20) == "went"
            assert scheduler.of("ended", job.id)[-1].process.pid == started.pid, "and with its end"
            wait_until(lambda: running().get("number") and not running().get("tokens"))
            assert wait_until(lambda: [r for r in scheduler.of("register") if r.running])[0].running == (token,)


class TestRedisRefuses:
    """Full, read-only, with another password: what ended is kept and told, and the agent lives."""

    def test_full(self, scheduler, home, tmp_path):
        def fill() -> None:
            scheduler.client.config_set("maxmemory-policy", "noeviction")
            scheduler.client.config_set("maxmemory", 1)

        self.refused(scheduler, home, tmp_path, fill, lambda: scheduler.client.config_set("maxmemory", 0))

    def test_read_only(self, scheduler, home, tmp_path):
        self.refused(
            scheduler,
            home,
            tmp_path,
            lambda: scheduler.client.execute_command("REPLICAOF", "127.0.0.1", "1"),
            lambda: scheduler.client.execute_command("REPLICAOF", "NO", "ONE"),
        )

    def refused(self, scheduler, home, tmp_path, begin, end):
        with node_on(scheduler.url, home) as node:
            node.ready()
            job = node_jobs.counts_until.delay(str(tmp_path / "go"))
            wait_until((tmp_path / "go.started").exists)
            started_pid = node.process.pid
            begin()
            try:
                (tmp_path / "go").touch()
                wait_until(lambda: '"ended"' in (home / "nodes" / "faulty" / "journal").read_text())
                assert not scheduler.of("ended", job.id)
            finally:
                end()
            assert job.get(timeout=30) >= 200
            assert node_jobs.add.delay(1, 2).get(timeout=30) == 3
            assert node.process.pid == started_pid
            steps = [row["step"] for report in scheduler.of("metrics", job.id) for row in report.rows]
            assert sorted(steps) == list(range(job.result))

    def test_celery_could_not_be_told_so_the_scheduler_is_asked_to(self, scheduler, home, tmp_path):
        points = tmp_path / "points"
        points.mkdir()
        with node_on(scheduler.url, home, CYXWIZ_FAILPOINTS=str(points)) as node:
            node.ready()
            (points / "agent.after_confirm").write_text("sleep 4")
            scheduler.client.config_set("maxmemory-policy", "noeviction")
            job = node_jobs.add.delay(1, 2)
            assert not scheduler.wait_for("ended", job.id).untold
            wait_until(lambda: not (points / "agent.after_confirm").exists())
            scheduler.client.config_set("maxmemory", 1)
            node.wait_for_text("the scheduler does it")
            scheduler.client.config_set("maxmemory", 0)
            wait_until(lambda: scheduler.of("ended", job.id)[-1].untold)
            again = scheduler.of("ended", job.id)[-1]
            assert (again.outcome, again.result) == ("completed", 3)
            wait_until(lambda: '{"told"' in (home / "nodes" / "faulty" / "journal").read_text())
            assert node_jobs.add.delay(2, 2).get(timeout=20) == 4


class TestCutOff:
    def test_an_exclusive_job_is_gone_before_its_lease_and_another_goes_on_until_its_time(
        self, scheduler, home, tmp_path
    ):
        environment = {"CYXWIZ_LEASE_SECONDS": "4", "CYXWIZ_DISCONNECTED_SECONDS": "8"}
        environment |= {"CYXWIZ_PREEMPT_GRACE_SECONDS": "1"}
        with node_on(scheduler.url, home, **environment) as node:
            node.ready()
            alone = node_jobs.ticks_alone.delay(str(tmp_path / "alone"))
            other = node_jobs.ticks.delay(str(tmp_path / "other"))
            pids = [pid_in(tmp_path / "alone"), pid_in(tmp_path / "other")]
            # Every writer waits until the pause is over, as if nothing came through.
            cut_at = time.monotonic()
            scheduler.client.execute_command("CLIENT", "PAUSE", "14000", "WRITE")
            wait_until(lambda: not is_alive(pids[0]), seconds=6.0)
            assert is_alive(pids[1])
            wait_until(lambda: not is_alive(pids[1]), seconds=12.0)
            assert ticks_of(tmp_path / "alone")[-1] - cut_at < 4.0
            assert ticks_of(tmp_path / "alone")[-1] - cut_at > 0.5
            assert 7.0 < ticks_of(tmp_path / "other")[-1] - cut_at < 13.0
            for job in (alone, other):
                ended = scheduler.wait_for("ended", job.id, seconds=30.0)
                assert (ended.outcome, ended.cause) == ("preempted", "preempted")
                assert "cut off" in ended.message

    def test_a_frozen_agents_exclusive_job_ends_itself(self, scheduler, home, tmp_path):
        with node_on(scheduler.url, home, CYXWIZ_LEASE_SECONDS="3") as node:
            node.ready()
            alone = node_jobs.ticks_alone.delay(str(tmp_path / "alone"))
            other = node_jobs.ticks.delay(str(tmp_path / "other"))
            pids = [pid_in(tmp_path / "alone"), pid_in(tmp_path / "other")]
            wait_until(lambda: ticks_of(tmp_path / "alone")[-1] - ticks_of(tmp_path / "alone")[0] > 4.0)
            frozen_at = time.monotonic()
            node.process.send_signal(signal.SIGSTOP)
            try:
                wait_until(lambda: not is_alive(pids[0]), seconds=5.0)
                assert ticks_of(tmp_path / "alone")[-1] - frozen_at < 3.0
                assert is_alive(pids[1])
            finally:
                node.process.send_signal(signal.SIGCONT)
            assert scheduler.wait_for("ended", alone.id).outcome == "preempted"
            scheduler.stop_job(other.id)
            assert scheduler.wait_for("ended", other.id).outcome == "cancelled"


class TestEndedByTheNode:
    def test_a_job_that_gives_its_place_back_has_time_to_save(self, scheduler, home, tmp_path):
        with node_on(scheduler.url, home) as node:
            node.ready()
            job = node_jobs.saves_slowly.delay(str(tmp_path), 3.0)
            wait_until((tmp_path / "pid").exists)
            began = time.monotonic()
            assert node.end(signal.SIGTERM) == 0
            assert 3.0 < time.monotonic() - began < 10.0
        assert (tmp_path / "saved").exists()
        ended = scheduler.wait_for("ended", job.id)
        assert (ended.outcome, ended.cause) == ("preempted", "preempted")
        assert "the node stops" in ended.message

    def test_grace_ends(self, scheduler, home, tmp_path):
        with node_on(scheduler.url, home, CYXWIZ_PREEMPT_GRACE_SECONDS="0.5") as node:
            node.ready()
            job = node_jobs.saves_slowly.delay(str(tmp_path), 60.0)
            wait_until((tmp_path / "pid").exists)
            assert node.end(signal.SIGTERM, seconds=30.0) == 0
        assert scheduler.wait_for("ended", job.id).outcome == "preempted"

    def test_deadline_and_silence(self, scheduler, home, tmp_path):
        """One node for all of them: starting one takes longer than any of these."""
        environment = {"CYXWIZ_HUNG_FLOOR_SECONDS": "1", "CYXWIZ_HUNG_FACTOR": "5", "CYXWIZ_STOP_GRACE_SECONDS": "0.3"}
        with node_on(scheduler.url, home, **environment) as node:
            node.ready()
            for body in (
                ends_at_its_deadline,
                is_hung,
                is_frozen_and_hung,
                is_cancelled_while_frozen,
                loses_its_peer,
                returns_what_no_report_carries,
            ):
                folder = tmp_path / body.__name__
                folder.mkdir()
                body(scheduler, folder)
            assert node_jobs.add.delay(1, 2).get(timeout=20) == 3


class TestFullDisk:
    @pytest.fixture
    def small_disk(self, tmp_path) -> Iterator[Path]:
        folder = tmp_path / "small"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode != 0:
            pytest.skip("no file system can be mounted here")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    def test_jobs_go_on_and_end_and_the_agent_lives(self, scheduler, small_disk, tmp_path):
        log = tmp_path / "elsewhere"
        with node_on(scheduler.url, small_disk, log=log) as node:
            node.ready()
            job = node_jobs.waits.delay(str(tmp_path))
            wait_until((tmp_path / "pid").exists)
            filler = small_disk / "filler"
            with pytest.raises(OSError, match="No space left"):
                filler.write_bytes(b"x" * 2**20)
            (tmp_path / "go").touch()
            assert job.get(timeout=20) == "went"
            assert node_jobs.returns_much.delay(20_000).get(timeout=20) == "x" * 20_000
            assert "cannot be written" in node.text
            printed = node_jobs.prints.delay("z" * 100_000)
            assert printed.get(timeout=20) is None
            output = b"".join(fields.get(b"text", b"") for _, fields in scheduler.client.xrange(log_key(printed.id)))
            assert len(output) > 100_000
            assert "log ends here" in node.text
            filler.unlink()
            assert node_jobs.add.delay(1, 2).get(timeout=20) == 3
            again = scheduler.wait_for("ended", node_jobs.prints.delay("again").id)
            assert again.outcome == "completed"


def ends_at_its_deadline(scheduler, folder):
    scheduler.changes = {"deadline_seconds": 0.7}
    job = node_jobs.is_stubborn.delay(str(folder))
    ended = scheduler.wait_for("ended", job.id)
    scheduler.changes = {}
    assert (ended.outcome, ended.cause) == ("failed", "deadline")
    assert 0.7 < ended.seconds < 15.0
    assert not is_alive(int((folder / "daemon").read_text()))


def is_hung(scheduler, folder):
    job = node_jobs.hangs.delay(str(folder))
    ended = scheduler.wait_for("ended", job.id)
    assert (ended.outcome, ended.cause) == ("failed", "hung")
    assert 1.0 < ended.seconds < 15.0
    assert not is_alive(int((folder / "pid").read_text()))
    output = b"".join(fields.get(b"text", b"") for _, fields in scheduler.client.xrange(log_key(job.id))).decode()
    assert "most recent call first" in output
    assert "in sleeps_for_ever" in output


def is_frozen_and_hung(scheduler, folder):
    job = node_jobs.hangs.delay(str(folder))
    os.kill(pid_in(folder / "pid"), signal.SIGSTOP)
    ended = scheduler.wait_for("ended", job.id)
    assert (ended.outcome, ended.cause) == ("failed", "hung")
    assert not is_alive(int((folder / "pid").read_text()))


def is_cancelled_while_frozen(scheduler, folder):
    job = node_jobs.waits.delay(str(folder))
    pid = pid_in(folder / "pid")
    os.kill(pid, signal.SIGSTOP)
    scheduler.stop_job(job.id, grace_seconds=0.3)
    assert scheduler.wait_for("ended", job.id).outcome == "cancelled"
    assert not is_alive(pid)


def returns_what_no_report_carries(scheduler, folder):
    """Deeper than a message may be: whatever the agent itself stumbles over, the attempt has an end."""
    ended = scheduler.wait_for("ended", node_jobs.returns_a_deep_list.delay(600).id)
    assert (ended.outcome, ended.cause) == ("failed", "error")
    assert "nested" in ended.message


def loses_its_peer(scheduler, folder):
    ended = scheduler.wait_for("ended", node_jobs.loses_its_peer.delay().id)
    assert (ended.outcome, ended.cause) == ("failed", "network")
