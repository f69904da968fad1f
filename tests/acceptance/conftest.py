"""Whole stacks for the acceptance tests: a scheduler and nodes as real processes, started by the console script."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from pytest_celery import CeleryWorkerCluster

from cyxwiz_tasks import Client
from cyxwiz_tasks.celery_app import app
from cyxwiz_tasks.settings import settings
from db.databases import create_database, drop_database
from tests.acceptance.processes import (
    CYXWIZ,
    USER_CODE,
    NodeUnderTest,
    ServiceProcess,
    WorkerProcess,
    wait_until,
)
from tests.conftest import database_on

sys.path.insert(0, str(USER_CODE))


@dataclass
class Stack:
    """A scheduler and its nodes on the run's servers, all in one home folder."""

    home: Path
    broker_url: str
    database_url: str
    processes: list[ServiceProcess] = field(default_factory=list)
    client: Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = Client(self.broker_url)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CYXWIZ_HOME": str(self.home),
            "CYXWIZ_BROKER_URL": self.broker_url,
            "CYXWIZ_DATABASE_URL": self.database_url,
        }

    @property
    def secrets(self) -> list[str]:
        """What must appear in no job's environment."""
        return [urlsplit(self.broker_url).password or self.broker_url, self.database_url]

    def start_scheduler(self, name: str = "scheduler", **environment: str) -> ServiceProcess:
        process = ServiceProcess(name, ["scheduler"], self.environment | environment, self.home / "logs", "leading")
        self.processes.append(process)
        return process

    def start_worker(self, name: str, *options: str, fake_gpus: str | None = None) -> WorkerProcess:
        process = WorkerProcess(name, self.environment, self.home / "logs", *options, fake_gpus=fake_gpus)
        self.processes.append(process)
        return process

    def cyxwiz(self, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Run one command of the command line to its end."""
        return subprocess.run(
            [CYXWIZ, *arguments],
            env=self.processes[0].environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def cyxwiz_json(self, *arguments: str) -> Any:
        done = self.cyxwiz(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @staticmethod
    def wait_until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
        return wait_until(condition, seconds)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.teardown()


@pytest.fixture(scope="session")
def _stacks(
    postgres_url: str, redis_url: str, _migrated_database: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[int], Stack]]:
    """Makes stacks: each on a fresh database of both servers, gone at the end of the run."""
    made: list[tuple[Stack, str]] = []

    def make(redis_database: int) -> Stack:
        name = f"cyxwiz_test_{secrets.token_hex(8)}"
        create_database(postgres_url, name, template=_migrated_database)
        broker_url = f"{redis_url}/{redis_database}"
        with redis.Redis.from_url(broker_url) as server:
            server.flushdb()
        stack = Stack(tmp_path_factory.mktemp("home"), broker_url, database_on(postgres_url, name))
        made.append((stack, name))
        return stack

    yield make
    for stack, name in made:
        stack.stop()
        stack.client.close()
        drop_database(postgres_url, name)
        shutil.rmtree(stack.home, ignore_errors=True)


@pytest.fixture(scope="session")
def _laboratory(_stacks: Callable[[int], Stack]) -> Stack:
    stack = _stacks(0)
    stack.start_scheduler().ready()
    nodes = [
        stack.start_worker("big", "--slots", "2", "--label", "rack=a1", fake_gpus="1x80GB:9.0"),
        stack.start_worker("mid", "--slots", "3", "--label", "rack=b1", fake_gpus="2x24GB:8.9"),
        stack.start_worker("small", "--slots", "2"),
    ]
    for node in nodes:
        node.ready()
    return stack


@pytest.fixture
def laboratory(_laboratory: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """One scheduler and three unlike nodes, shared by the tests that leave them as they were."""
    yield from _used(_laboratory, monkeypatch)


@pytest.fixture
def own_stack(_stacks: Callable[[int], Stack], monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """A stack for one test that starts and breaks its processes itself; nothing runs yet."""
    stack = _stacks(1)
    yield from _used(stack, monkeypatch)
    stack.stop()


def _used(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    for name, value in stack.environment.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    app.reconnect()
    yield stack
    settings.cache_clear()


@pytest.fixture
def celery_worker_cluster(laboratory: Stack) -> CeleryWorkerCluster:
    """The laboratory's nodes in pytest-celery's vocabulary."""
    workers = [process for process in laboratory.processes if isinstance(process, WorkerProcess)]
    return CeleryWorkerCluster(*(NodeUnderTest(worker, app) for worker in workers))
