"""Flower over the running stack, by its HTTP API: queues, workers, tasks with progress, and its terminate button."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import lab_jobs
import pytest

from broker.flower import free_port, login
from tests.acceptance.processes import ServiceProcess


class Flower:
    def __init__(self, port: int, password: str) -> None:
        self.url, self.secret = f"http://127.0.0.1:{port}", base64.b64encode(f"cyxwiz:{password}".encode()).decode()

    def ask(self, path: str, post: bool = False, authorised: bool = True) -> Any:
        request = urllib.request.Request(self.url + path, data=b"" if post else None)
        if authorised:
            request.add_header("Authorization", f"Basic {self.secret}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())


@pytest.fixture
def flower(laboratory) -> Iterator[Flower]:
    port = free_port()
    process = ServiceProcess(
        "flower", ["flower", "--port", str(port)], laboratory.environment, laboratory.home / "logs", "flower ready"
    )
    process.ready()
    yield Flower(port, login(laboratory.home).password)
    process.teardown()


def test_flower_asks_for_its_password(flower):
    with pytest.raises(urllib.error.HTTPError) as refused:
        flower.ask("/api/workers", authorised=False)
    assert refused.value.code == 401


def test_workers_and_their_queues_with_lengths(laboratory, flower):
    def seen() -> bool:
        return len(flower.ask("/api/workers?refresh=true")) == 3

    laboratory.wait_until(seen)
    nodes = {node["id"]: node for node in laboratory.client.nodes()}
    queues = {queue["name"]: queue["messages"] for queue in flower.ask("/api/queues/length")["active_queues"]}
    assert {f"node.{node_id}" for node_id in nodes} <= set(queues)
    assert all(length == 0 for length in queues.values())


def test_a_task_is_seen_by_its_jobs_name_with_progress_and_can_be_terminated(laboratory, flower, tmp_path):
    laboratory.wait_until(lambda: len(flower.ask("/api/workers?refresh=true")) == 3)
    gate = tmp_path / "pids"
    handle = lab_jobs.reports_until_stopped.submit(str(gate))

    def shown() -> bool:
        try:
            task = flower.ask(f"/api/task/info/{handle.id}")
        except urllib.error.HTTPError:
            return False
        return task["name"] == "lab_jobs.reports_until_stopped" and "loss" in (task["result"] or "")

    laboratory.wait_until(shown)
    flower.ask(f"/api/task/revoke/{handle.id}?terminate=true", post=True)
    laboratory.wait_until(lambda: handle.record()["state"] == "cancelled")
    laboratory.wait_until(lambda: handle.async_result.state == "REVOKED")
