"""`cyxwiz up` and `cyxwiz demo` as a newcomer runs them: embedded servers, services, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from tests.acceptance.processes import CYXWIZ, ServiceProcess, wait_until

SERVICES = ("postgres", "redis", "scheduler", "worker", "flower")


@pytest.fixture
def home(server_folder: Path) -> Path:
    return server_folder / "home"


@pytest.fixture
def up(home: Path) -> Iterator[ServiceProcess]:
    environment = {"CYXWIZ_HOME": str(home)}
    for name in ("CYXWIZ_BROKER_URL", "CYXWIZ_DATABASE_URL"):
        os.environ.pop(name, None)
    process = ServiceProcess("up", ["up", "--slots", "1"], environment, home.parent / "run", prompt="up: Ctrl-C")
    process.ready()
    yield process
    process.teardown()


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process that has the home folder in its environment or arguments."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if any(str(home) in word for word in words) and process.pid != os.getpid():
            found.append(process)
    return found


def cyxwiz(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CYXWIZ, *arguments, "--json"],
        env=os.environ | {"CYXWIZ_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


def train(home: Path, name: str) -> int:
    """The exit status of a training that was followed to its end."""
    training = ("--model", "mlp", "--dataset", "digits", "--epochs", "1", "--name", name)
    return cyxwiz(home, "submit", *training, "--follow").returncode


def test_one_command_brings_everything_up_and_ctrl_c_takes_it_down(up, home):
    output = up.logs()
    for service in SERVICES:
        assert re.search(rf"^{service}\S* +ready", output, re.MULTILINE), output
    assert re.search(r"Flower: http://127\.0\.0\.1:\d+/ +user cyxwiz, password \S{16}", output)

    client = subprocess.run(
        [sys.executable, "-c", "from cyxwiz_tasks import Client; print(Client().nodes()[0]['state'])"],
        env=os.environ | {"CYXWIZ_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert client.stdout.strip() == "up"
    assert json.loads((home / "stack.json").read_text())["pid"] == up.pid
    assert (home / "stack.json").stat().st_mode & 0o077 == 0

    assert len(processes_of(home)) >= 5
    up.kill("SIGINT")
    assert up.process.wait(30) == 0
    assert processes_of(home) == []
    assert not (home / "stack.json").exists()


def test_a_service_that_dies_is_started_again_and_jobs_go_on(up, home):
    for service in ("scheduler", "worker"):
        [victim] = [
            process for process in processes_of(home) if service in process.cmdline() and process.ppid() == up.pid
        ]
        victim.send_signal(signal.SIGKILL)
        wait_until(lambda name=service: re.search(rf"^{name}\S* +died with status -9", up.logs(), re.MULTILINE))
        wait_until(lambda name=service: len(re.findall(rf"^{name}\S* +ready", up.logs(), re.MULTILINE)) == 2, 60)
    assert train(home, "after") == 0, up.logs()


def test_its_own_servers_that_die_are_started_again_where_they_were_and_nothing_is_lost(up, home):
    stack = json.loads((home / "stack.json").read_text())
    assert train(home, "before") == 0, up.logs()
    [postmaster] = home.rglob("postmaster.pid")
    with redis.Redis.from_url(stack["broker_url"]) as client:
        victims = {"postgres": int(postmaster.read_text().split()[0]), "redis": client.info("server")["process_id"]}
    for part, pid in victims.items():
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda part=part: re.search(rf"^{part} +died, starts again", up.logs(), re.MULTILINE))
        wait_until(lambda part=part: len(re.findall(rf"^{part} +ready", up.logs(), re.MULTILINE)) == 2, 60)
    assert train(home, "after") == 0, up.logs()
    kept = {job["name"]: job["state"] for job in json.loads(cyxwiz(home, "jobs").stdout)}
    assert kept == {"before": "completed", "after": "completed"}
    assert json.loads((home / "stack.json").read_text()) == stack
    up.kill("SIGINT")
    assert up.process.wait(30) == 0
    assert processes_of(home) == []


def test_killing_the_command_itself_leaves_no_process(up, home):
    up.kill("SIGKILL")
    wait_until(lambda: processes_of(home) == [], 30)


def test_a_second_stack_in_the_same_home_is_refused(up, home):
    second = subprocess.run(
        [CYXWIZ, "up"],
        env=os.environ | {"CYXWIZ_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode != 0
    assert "runs already" in second.stderr


def test_the_demo_trains_a_model_shows_it_and_stops_cleanly(home):
    done = subprocess.run(
        [CYXWIZ, "demo"],
        env=os.environ | {"CYXWIZ_HOME": str(home), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("postgres", "redis", "Flower: http://", "digits-cnn", "model.safetensors", "metrics.jsonl"):
        assert words in done.stdout
    accuracy = re.search(r"accuracy\D*(0\.\d+|\d+\.\d+ ?%)", done.stdout)
    assert accuracy, done.stdout
    assert processes_of(home) == []
