"""Services are told to stop at once, what the others need after them, and nobody waits longer than he was given."""

from __future__ import annotations

import subprocess
import time

import pytest

from broker.stack import STOP_MARGIN_SECONDS, Plan, Stack, _services
from broker.supervisor import Service, Supervisor
from cyxwiz_tasks.settings import Settings

#: says that it runs; asked to stop, says so, takes its time and says that it ends
SERVICE = """
trap 'echo asked $0 >> events; sleep {seconds}; echo ended $0 >> events; exit 0' TERM
echo runs $0 >> events
while :; do sleep 0.02; done
"""


@pytest.fixture
def supervised(tmp_path):
    """A supervisor of shells, each given as its service and the seconds that it takes to stop."""
    started, said = [], []

    def start(*services):
        supervisor = Supervisor([service for service, _ in services], tmp_path, lambda *event: said.append(event))
        for running, (service, seconds) in zip(supervisor.running, services, strict=True):
            command = ["/bin/sh", "-c", SERVICE.format(seconds=seconds), service.name]
            running.process = subprocess.Popen(command, cwd=tmp_path)
            started.append(running.process)
        deadline = time.monotonic() + 10
        while count_running(tmp_path / "events") < len(services):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return supervisor, said

    yield start
    for process in started:
        process.kill()
        process.wait()


def count_running(events):
    return events.read_text().count("runs") if events.exists() else 0


def service(name, **options):
    return Service(name, (), {}, "ready", **options)


def test_nodes_are_told_at_once_and_the_scheduler_once_they_have_ended(supervised, tmp_path):
    supervisor, said = supervised(
        (service("scheduler", needed_to_the_last=True), 0), (service("node-1"), 2), (service("node-2"), 2)
    )
    supervisor.stop()
    told = (tmp_path / "events").read_text().splitlines()[3:]
    assert sorted(told[:2]) == ["asked node-1", "asked node-2"]
    assert sorted(told[2:4]) == ["ended node-1", "ended node-2"]
    assert told[4:] == ["asked scheduler", "ended scheduler"]
    assert [(running.service.name, event) for running, event in said[2:]] == [("scheduler", "stopped")]


def test_one_that_takes_too_long_is_killed_and_said_so(supervised):
    supervisor, said = supervised((service("node", stop_timeout_seconds=0.1), 5))
    [running] = supervisor.running
    process = running.process
    supervisor.stop()
    assert process.returncode == -9
    assert said == [(running, "stopped: killed, it took too long")]


def test_a_log_that_is_long_is_set_aside_while_its_service_writes_on(supervised, tmp_path, monkeypatch):
    monkeypatch.setattr("db.log_limit.LOG_LIMIT_BYTES", 1000)
    supervisor, _ = supervised((service("node"), 0))
    [running] = supervisor.running
    with open(running.log_file, "a", buffering=1) as writing:
        for text in ("first", "second", "third"):
            writing.write(f"{text}\n" + "x" * 1000 + "\n")
            running.log_start = 7
            supervisor.watch(until=iter([False, True]).__next__)
        writing.write("node ready\n")
    assert running.log_file.read_text() == "node ready\n"
    assert running.ready_line() == "node ready"
    assert (tmp_path / "node.log.1").read_text().startswith("third")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "node.log", "node.log.1"]


def test_a_node_has_the_grace_that_is_configured_to_stop(tmp_path):
    stack = Stack(Settings(home=tmp_path, preempt_grace_seconds=120.0), broker_url="redis://there/0", database_url="")
    services = {each.name: each for each in _services(Plan(parts=("scheduler", "worker"), workers=2), stack)}
    scheduler = services.pop("scheduler")
    assert scheduler.needed_to_the_last
    assert [each.stop_timeout_seconds for each in services.values()] == [120.0 + STOP_MARGIN_SECONDS] * 2
